"""Joins: from the end of a task to whoever waits for it; and a drain of which each task is awaited."""

import asyncio
import time
from uuid import UUID, uuid4

import asyncpg

from ..common import MeasurementFailed, latencies, percentile, run, ticks
from ..site import insert_rows, set_up
from .support import TIMEOUT, aiotasks_worker, connection, drained, warm_up

__all__ = ["drain", "measure"]

# Tasks of the part with a worker, one every 20 ms.
END_TO_END = 200


def measure(count: int) -> dict[str, float]:
    """From the reply to a finish to the waiter; and from an enqueue, over a worker, to the end of a join, by
    the time from the same enqueue to the body.
    """
    set_up()
    figures = latencies(run(_ends(count)))

    async def measured() -> list[tuple[float, float]]:
        await warm_up(process)
        return await _whole_ways(min(count, END_TO_END))

    with aiotasks_worker() as process:
        ways = run(measured())
    whole = percentile([end for _, end in ways], 50)
    return {
        **figures,
        "to_body_p50_ms": percentile([body for body, _ in ways], 50) * 1000,
        "whole_p50_ms": whole * 1000,
        "whole_ratio": whole / percentile([body for body, _ in ways], 50),
    }


async def _ends(count: int) -> list[float]:
    """Finish tasks one by one as a worker does, each while somebody waits for it."""
    from django.tasks import default_task_backend

    from aiotasks.rows import Status
    from aiotasks.store.loop import resources
    from aiotasks.store.outcomes import Finish

    found: list[float] = []
    held = resources(default_task_backend.config)
    claim_id = uuid4()
    async with connection() as opened:
        await insert_rows(opened, count)
        await opened.execute("UPDATE aiotasks_task SET status = 'RUNNING', claim_id = $1", claim_id)
        ids = [str(id) for (id,) in await opened.fetch("SELECT id FROM aiotasks_task")]
        for id in ids:
            result = await default_task_backend.aget_result(id)

            async def wait(result: object = result) -> float:
                await result.ajoin()  # type: ignore[attr-defined]
                return time.perf_counter()

            waiting = asyncio.create_task(wait())
            await _marked(opened, 1, id)
            outcome = Finish(UUID(id), claim_id, Status.SUCCESSFUL, "1", None)
            finished = await held.store.finish_jobs([outcome])
            ended_at = time.perf_counter()
            held.teller.tell(finished.awaited)
            found.append(await waiting - ended_at)
    return found


async def _marked(opened: asyncpg.Connection, count: int, id: str | None = None) -> None:
    """Wait until so many tasks are marked as awaited."""
    marked = "SELECT count(*) FROM aiotasks_task WHERE awaited = 1 AND ($1::uuid IS NULL OR id = $1)"
    while await opened.fetchval(marked, id) < count:  # noqa: ASYNC110  # the table has no event
        await asyncio.sleep(0.001 if id else 0.05)


async def _whole_ways(count: int) -> list[tuple[float, float]]:
    """Seconds from an enqueue to the body, and to the end of its join."""
    from benchmarks import tasks

    found: list[tuple[float, float]] = []

    async def one() -> None:
        began = time.time()
        result = await tasks.now.aenqueue()
        await result.ajoin(timeout=TIMEOUT)
        found.append((result.return_value - began, time.time() - began))

    async with asyncio.TaskGroup() as group:
        async for _ in ticks(count, 0.02):
            group.create_task(one())
    return found


def drain(count: int, *, awaited: bool) -> dict[str, float]:
    """Drain no-ops of which each has a waiter in this process, or none."""
    noop = set_up().noop
    from django.tasks import default_task_backend

    async def measured() -> None:
        results = await default_task_backend.aenqueue_many(noop, [((), {})] * count)
        waiting = [asyncio.create_task(result.ajoin(timeout=TIMEOUT)) for result in results if awaited]
        async with connection() as opened:
            await _marked(opened, len(waiting))
            await opened.execute("CHECKPOINT")
        with aiotasks_worker("--until-empty") as process:
            await asyncio.to_thread(process.wait, TIMEOUT)
            await asyncio.gather(*waiting)
        if awaited and not all(result.is_finished for result in results):
            raise MeasurementFailed("A task that has ended was joined as one that has not.")

    run(measured())
    return run(drained(count))
