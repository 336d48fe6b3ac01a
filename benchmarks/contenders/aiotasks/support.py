"""A worker, a connection beside it, and what the table says of the tasks."""

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import datetime

import asyncpg

from ..common import MeasurementFailed, WorkerProcess, dsn, worker

__all__ = [
    "TIMEOUT",
    "aiotasks_worker",
    "all_ended",
    "connection",
    "database_time",
    "drained",
    "registered",
    "return_values",
    "warm_up",
]

# Seconds for which a worker may be at it before the workload counts as failed.
TIMEOUT = 900.0


def aiotasks_worker(
    *arguments: str, settings: str = "benchmarks.settings", **env: str
) -> AbstractContextManager[WorkerProcess]:
    """One worker process of the package's own command."""
    command = [sys.executable, "-m", "aiotasks.worker", *arguments]
    return worker(*command, env={"DJANGO_SETTINGS_MODULE": settings, **env})


@asynccontextmanager
async def connection() -> AsyncIterator[asyncpg.Connection]:
    """A connection beside those of aiotasks."""
    opened = await asyncpg.connect(dsn())
    try:
        yield opened
    finally:
        await opened.close()


async def database_time() -> datetime:
    async with connection() as opened:
        return await opened.fetchval("SELECT clock_timestamp()")


async def registered(process: WorkerProcess, workers: int = 1) -> None:
    """Wait until so many workers are up."""
    async with connection() as opened:

        async def are_up() -> bool:
            return await opened.fetchval("SELECT count(*) FROM aiotasks_worker") >= workers

        await process.until(are_up, TIMEOUT)


async def all_ended(process: WorkerProcess) -> None:
    """Wait until no task is ready or running."""
    async with connection() as opened:

        async def ended() -> bool:
            return not await opened.fetchval(
                "SELECT EXISTS (SELECT FROM aiotasks_task WHERE status IN ('READY', 'RUNNING'))"
            )

        await process.until(ended, TIMEOUT)


async def drained(count: int, *, priority: int = 0) -> dict[str, float]:
    """The figures from the first start to the last finish of all tasks of a priority.

    Raises MeasurementFailed unless all ``count`` have succeeded in their first attempt.
    """
    async with connection() as opened:
        done, seconds = await opened.fetchrow(
            """
            SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at))::float8
            FROM aiotasks_task
            WHERE status = 'SUCCESSFUL' AND cardinality(worker_ids) = 1 AND priority = $1
            """,
            priority,
        )
    if done != count:
        raise MeasurementFailed(f"{done:,} of {count:,} tasks have succeeded in their first attempt.")
    return {"per_s": count / seconds, "seconds": seconds}


async def return_values(process: WorkerProcess, ids: list[str]) -> dict[str, float]:
    """Wait until all these tasks have ended; by id, the numbers that they have returned."""
    async with connection() as opened:

        async def ended() -> bool:
            return not await opened.fetchval(
                "SELECT EXISTS (SELECT FROM aiotasks_task WHERE id = ANY($1) AND finished_at IS NULL)", ids
            )

        await process.until(ended, TIMEOUT)
        rows = await opened.fetch(
            """
            SELECT id::text, return_value::text
            FROM aiotasks_task
            WHERE id = ANY($1) AND status = 'SUCCESSFUL'
            """,
            ids,
        )
    if len(rows) != len(ids):
        raise MeasurementFailed(f"{len(rows):,} of {len(ids):,} tasks have succeeded.")
    return {id: float(value) for id, value in rows}


async def warm_up(process: WorkerProcess) -> None:
    """Return once the worker is up and listens, and has run a few tasks."""
    from benchmarks import tasks

    for _ in range(10):
        result = await tasks.now.aenqueue()
        await return_values(process, [result.id])
