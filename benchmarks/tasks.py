"""The tasks that the workloads run."""

import asyncio
import random
import time

from django.db.models import Func, TextField, Value
from django.tasks import task

from .models import ITEMS, Item

__all__ = [
    "cpu",
    "noop",
    "now",
    "queries",
    "sleep",
    "slow_queries",
    "started",
    "sync_noop",
    "sync_now",
    "sync_query",
    "sync_sleep",
]


@task
async def noop() -> None:
    """Nothing, on the loop."""


@task
def sync_noop() -> None:
    """Nothing, in a thread."""


@task
async def cpu() -> None:
    """A millisecond of CPU time."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass


@task
async def queries() -> None:
    """Five look-ups by primary key, one after another."""
    for _ in range(5):
        await Item.objects.aget(pk=random.randint(1, ITEMS))


@task
async def slow_queries() -> None:
    """Five queries of 10 ms, one after another."""
    sleep = Func(Value(0.01), function="pg_sleep", output_field=TextField())
    for _ in range(5):
        await Item.objects.annotate(slept=sleep).aget(pk=1)


@task
def sync_query() -> None:
    """One look-up by primary key, in a thread."""
    Item.objects.get(pk=random.randint(1, ITEMS))


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


@task
def sync_now() -> float:
    """When its body ran, in a thread."""
    return time.time()


@task
async def started(seconds: float) -> float:
    """When its body began, which then waits."""
    at = time.time()
    await asyncio.sleep(seconds)
    return at
