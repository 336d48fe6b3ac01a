"""Limits by key: drains of tasks that have them, a place that comes free, and two tenants."""

import asyncio
import json
import time
from typing import Any

from ..common import MeasurementFailed, WorkerProcess, latencies, run, ticks
from ..site import insert_rows, set_up
from .support import TIMEOUT, aiotasks_worker, connection, drained, return_values, warm_up

__all__ = ["drain", "fair", "keys", "latency", "tenant"]

# Seconds that the first task of a pair holds the place for, and between two pairs.
HELD, INTERVAL = 0.02, 0.05

# Tasks of the large tenant for each of the small one's: as many as a worker runs in 20 ms.
BACKLOG = 600


def drain(places: int, count: int) -> dict[str, float]:
    """Drain ``count`` no-ops of one key with so many places."""
    set_up()
    from benchmarks.limited import noops

    return _drained(noops[places], [()] * count)


def keys(number: int, count: int) -> dict[str, float]:
    """Drain ``count`` no-ops of so many keys, each of which has one place."""
    set_up()
    from benchmarks.limited import keyed

    return _drained(keyed, [(n % number,) for n in range(count)])


def fair(number: int, count: int) -> dict[str, float]:
    """Drain ``count`` no-ops of so many keys that only take turns."""
    set_up()
    from benchmarks import limited

    return _drained(limited.fair, [(n % number,) for n in range(count)])


def _drained(task: Any, calls: list[tuple[int, ...]]) -> dict[str, float]:
    from django.tasks import default_task_backend

    async def enqueue() -> None:
        await default_task_backend.aenqueue_many(task, [(args, {}) for args in calls])
        async with connection() as opened:
            await opened.execute("VACUUM (ANALYZE) aiotasks_task", timeout=TIMEOUT)

    run(enqueue())
    with aiotasks_worker("--until-empty") as process:
        process.wait(TIMEOUT)
    return run(drained(len(calls)))


def latency(count: int) -> dict[str, float]:
    """Pairs of tasks of one key with one place: from the end of one's body to the begin of the other's."""
    set_up()
    from django.tasks import default_task_backend

    from benchmarks.limited import held

    async def measured() -> list[float]:
        await warm_up(process)
        pairs: list[list[str]] = []

        async def enqueue(key: int) -> None:
            calls = [((key, HELD), {})] * 2
            pairs.append([one.id for one in await default_task_backend.aenqueue_many(held, calls)])

        async with asyncio.TaskGroup() as group:
            number = 0
            async for _ in ticks(count, INTERVAL):
                group.create_task(enqueue(number))
                number += 1
        return await _between(process, pairs)

    with aiotasks_worker() as process:
        return latencies(run(measured()))


async def _between(process: WorkerProcess, pairs: list[list[str]]) -> list[float]:
    ids = [id for pair in pairs for id in pair]
    async with connection() as opened:

        async def ended() -> bool:
            query = "SELECT count(*) FROM aiotasks_task WHERE id = ANY($1) AND status = 'SUCCESSFUL'"
            return len(ids) == await opened.fetchval(query, ids)

        await process.until(ended, TIMEOUT)
        rows = await opened.fetch(
            "SELECT id::text, return_value::text FROM aiotasks_task WHERE id = ANY($1)", ids
        )
    values = {id: json.loads(value) for id, value in rows}
    found = []
    for pair in pairs:
        (_, end), (begin, _) = sorted(values[id] for id in pair)
        if begin < end:
            raise MeasurementFailed(f"Two tasks of one key ran at once: {pair}.")
        found.append(begin - end)
    return found


def tenant(count: int, *, limited: bool) -> dict[str, float]:
    """The waits of ``count`` tasks of a small tenant, one every 20 ms, behind the backlog of a large one;
    without ``limited`` of tasks that have no limit.
    """
    set_up()
    from benchmarks import limited as tasks
    from benchmarks import tasks as plain

    small = tasks.fair if limited else plain.now
    arguments = [1] if limited else []

    async def measured() -> list[float]:
        await warm_up(process)
        due: dict[str, float] = {}

        async def enqueue() -> None:
            at = time.time()
            due[(await small.aenqueue(*arguments)).id] = at

        async with connection() as opened:
            await insert_rows(opened, BACKLOG * count, key="tenant" if limited else None)
            async with asyncio.TaskGroup() as group:
                async for _ in ticks(count, 0.02):
                    group.create_task(enqueue())
            if not await opened.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'"):
                raise MeasurementFailed(
                    "The large tenant had no task left, so there was nothing to wait for."
                )
        bodies = await return_values(process, list(due))
        return [bodies[id] - at for id, at in due.items()]

    with aiotasks_worker() as process:
        return latencies(run(measured()))
