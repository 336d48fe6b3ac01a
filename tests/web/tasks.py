"""Tasks that tell how far they are."""

import asyncio

from aiotasks import PostgresTaskContext, task

# What a browser must show, and not obey.
EVIL = "</script><img src=x onerror=\"document.title='hacked'\">'\"&"


@task(takes_context=True)
async def climb(context: PostgresTaskContext, steps: int, seconds: float = 0.0, message: str = "") -> int:
    for step in range(steps):
        context.progress(step, steps, message or f"step {step}")
        await asyncio.sleep(seconds / steps)
    context.progress(steps, steps)
    return steps


@task(takes_context=True)
async def fall(context: PostgresTaskContext, seconds: float = 0.0) -> None:
    context.progress(1, 3, "so far so good")
    await asyncio.sleep(seconds)
    raise LookupError("the secret reason")


@task(takes_context=True)
async def wander(context: PostgresTaskContext, seconds: float) -> None:
    context.progress(17, None, "no end in sight")
    await asyncio.sleep(seconds)


@task
async def carry(owner: str) -> None:
    """Belongs to somebody, and tells nothing of how far it is."""


@task
async def trip(seconds: float) -> None:
    """Fails without a word of how far it was."""
    await asyncio.sleep(seconds)
    raise LookupError
