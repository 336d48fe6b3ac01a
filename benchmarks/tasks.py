"""The tasks that the workloads run."""

import asyncio
import time

from django.tasks import task


@task
async def noop() -> None:
    """Nothing, on the loop."""


@task
def sync_noop() -> None:
    """Nothing, in a thread."""


@task
async def sleep(seconds: float) -> None:
    """What I/O looks like to a loop."""
    await asyncio.sleep(seconds)


@task
def sync_sleep(seconds: float) -> None:
    """What I/O looks like to a thread."""
    time.sleep(seconds)


@task
async def now() -> float:
    """When its body ran, by the machine's clock."""
    return time.time()
