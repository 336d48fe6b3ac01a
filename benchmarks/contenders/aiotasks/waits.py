"""Waits: from just before the enqueue, or from the due time, to the body, at an idle worker."""

import asyncio
import random
from datetime import timedelta

from django.utils import timezone

from ..common import WorkerProcess, latencies, run, ticks
from ..site import set_up
from .support import aiotasks_worker, return_values, warm_up

__all__ = ["latency", "scheduled", "waits"]


def latency(count: int) -> dict[str, float]:
    """One task every 20 ms."""
    return _at_idle_worker(count, interval=0.02)


def scheduled(count: int) -> dict[str, float]:
    """One task every 50 ms, due 300 ms later: how long after that its body began."""
    return _at_idle_worker(count, interval=0.05, delay=0.3)


def _at_idle_worker(count: int, *, interval: float, delay: float = 0.0) -> dict[str, float]:
    set_up()

    async def measured() -> list[float]:
        await warm_up(process)
        return await waits(process, count, interval=interval, delay=delay)

    with aiotasks_worker() as process:
        return latencies(run(measured()))


async def waits(
    process: WorkerProcess, count: int, *, interval: float, delay: float = 0.0, names: int = 1
) -> list[float]:
    """Seconds from the due time to the body, of a task every ``interval`` seconds, due ``delay`` later.

    With several ``names`` each task is in one of so many queues: those of ``insert_rows()``.
    """
    from benchmarks import tasks

    due: dict[str, float] = {}

    async def enqueue() -> None:
        task = tasks.now
        if names > 1:
            task = task.using(queue_name=f"default {random.randrange(names)}")
        at = timezone.now() + timedelta(seconds=delay)
        result = await (task.using(run_after=at) if delay else task).aenqueue()
        due[result.id] = at.timestamp()

    async with asyncio.TaskGroup() as group:
        async for _ in ticks(count, interval):
            group.create_task(enqueue())
    bodies = await return_values(process, list(due))
    return [bodies[id] - at for id, at in due.items()]
