"""Enqueues and look-ups, by the clock of the process that calls them."""

import asyncio
import time

from ..common import REFRESH_WAVES, MeasurementFailed, run
from ..site import set_up
from .support import connection

__all__ = ["bulk", "concurrent", "refresh", "sync"]


def concurrent(count: int, *, callers: int) -> dict[str, float]:
    """``count`` enqueues by ``callers`` coroutines, each of which awaits one after another."""
    noop = set_up().noop

    async def caller(calls: int) -> None:
        for _ in range(calls):
            await noop.aenqueue()

    async def measured() -> float:
        await asyncio.gather(*(caller(1) for _ in range(callers)))  # the pool connects
        started = time.perf_counter()
        await asyncio.gather(*(caller(count // callers) for _ in range(callers)))
        return time.perf_counter() - started

    return _stored(count // callers * callers, run(measured()), before=callers)


def sync(count: int) -> dict[str, float]:
    """``count`` enqueues over Django's connection, each a transaction of its own."""
    noop = set_up().noop
    noop.enqueue()  # the connection opens
    started = time.perf_counter()
    for _ in range(count):
        noop.enqueue()
    return _stored(count, time.perf_counter() - started, before=1)


def bulk(count: int) -> dict[str, float]:
    """``count`` tasks in one call."""
    noop = set_up().noop
    from django.tasks import default_task_backend

    async def measured() -> float:
        await noop.aenqueue()  # the pool connects
        started = time.perf_counter()
        await default_task_backend.aenqueue_many(noop, [((), {})] * count)
        return time.perf_counter() - started

    return _stored(count, run(measured()), before=1)


def _stored(count: int, seconds: float, *, before: int) -> dict[str, float]:
    async def rows() -> int:
        async with connection() as opened:
            return await opened.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'")

    if (found := run(rows())) != count + before:
        raise MeasurementFailed(f"{found:,} tasks are in the table of {count + before:,} enqueued.")
    return {"per_s": count / seconds, "seconds": seconds}


def refresh(count: int) -> dict[str, float]:
    """``count`` refreshes at once, some times over, of as many finished tasks."""
    noop = set_up().noop
    from django.tasks import default_task_backend

    async def measured() -> float:
        results = await default_task_backend.aenqueue_many(noop, [((), {})] * count)
        async with connection() as opened:
            await opened.execute(
                "UPDATE aiotasks_task SET status = 'SUCCESSFUL', return_value = 'null', finished_at = now()"
            )
        await results[0].arefresh()  # the pool connects
        started = time.perf_counter()
        for _ in range(REFRESH_WAVES):
            await asyncio.gather(*(result.arefresh() for result in results))
        seconds = time.perf_counter() - started
        if not all(result.is_finished for result in results):
            raise MeasurementFailed("A task that has finished was read as one that has not.")
        return seconds

    seconds = run(measured())
    return {"per_s": REFRESH_WAVES * count / seconds, "seconds": seconds}
