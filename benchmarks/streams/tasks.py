"""Tasks that tell how far they are."""

import asyncio
import time

from aiotasks import PostgresTaskContext, task

__all__ = ["tell"]

# Seconds between two calls of progress().
INTERVAL = 0.1


@task(takes_context=True)
async def tell(context: PostgresTaskContext, seconds: float, tells: bool = True) -> None:
    """Call progress() ten times a second, with the time as its message."""
    steps = int(seconds / INTERVAL)
    for step in range(steps):
        if tells:
            context.progress(step, steps, f"{time.time():.4f}")
        await asyncio.sleep(INTERVAL)
