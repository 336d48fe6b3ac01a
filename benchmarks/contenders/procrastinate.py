"""procrastinate, an asyncio queue on psycopg.

Drains: one process, ten coroutine tasks at a time on a pool of ten connections, the fastest of one to
thirty; uvloop makes no difference. Enqueues: a pool of 20. Kept: the row
and its events, by whose times a drain is measured; no result.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import rival_support
from benchmarks.rival_support import SELECT_ITEM, BodyTimes, make_items, random_item

from .common import dsn, worker

if TYPE_CHECKING:
    from procrastinate import App

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["procrastinate", "psycopg-pool"]
COUNTS = {
    "drain": 2_000,
    "drain-cpu": 800,
    "drain-queries": 800,
    "enqueue-50": 3_000,
    "enqueue-1": 1_500,
    "latency": 200,
}

_CONCURRENCY = 10
_POOL_SIZE = 20

_COUNTS = """
    SELECT
        count(*) FILTER (WHERE status = 'succeeded' AND attempts = 1),
        count(*) FILTER (WHERE status NOT IN ('todo', 'doing', 'succeeded') OR attempts > 1)
    FROM procrastinate_jobs
"""
_SECONDS = """
    SELECT extract(epoch FROM
        max(at) FILTER (WHERE type = 'succeeded') - min(at) FILTER (WHERE type = 'started'))
    FROM procrastinate_events
"""


def versions() -> dict[str, str]:
    return rival_support.versions("procrastinate", "psycopg")


def _app(pool_size: int) -> "App":
    from procrastinate import App, PsycopgConnector

    return App(connector=PsycopgConnector(conninfo=dsn(), min_size=pool_size, max_size=pool_size))


def prepare() -> None:
    """Make its schema, and the rows that tasks look up."""

    async def prepared() -> None:
        async with _app(1).open_async() as app:
            await app.schema_manager.apply_schema_async()
        await make_items()

    asyncio.run(prepared())


def _drain(task: str, count: int) -> dict[str, float]:
    async def filled() -> None:
        async with _app(1).open_async() as app:
            await app.configure_task(task).batch_defer_async(*({} for _ in range(count)))

    asyncio.run(filled())
    with worker(sys.executable, "-m", __name__, os.devnull) as process:
        return asyncio.run(rival_support.drained(process, _COUNTS, _SECONDS, count))


def _enqueue(callers: int, count: int) -> dict[str, float]:
    async def measured() -> dict[str, float]:
        async with _app(_POOL_SIZE).open_async() as app:
            noop = app.configure_task("noop")
            return await rival_support.enqueued(lambda number: noop.defer_async(), callers, count)

    return asyncio.run(measured())


def _latency(count: int) -> dict[str, float]:
    async def measured() -> dict[str, float]:
        async with _app(_POOL_SIZE).open_async() as app:
            now = app.configure_task("now")
            return await rival_support.waits(
                process, times, lambda number: now.defer_async(number=number), count
            )

    with tempfile.TemporaryDirectory() as directory:
        times = BodyTimes(Path(directory) / "times")
        with worker(sys.executable, "-m", __name__, os.fspath(times.path)) as process:
            return asyncio.run(measured())


WORKLOADS = {
    "drain": lambda count: _drain("noop", count),
    "drain-cpu": lambda count: _drain("cpu", count),
    "drain-queries": lambda count: _drain("queries", count),
    "enqueue-50": lambda count: _enqueue(50, count),
    "enqueue-1": lambda count: _enqueue(1, count),
    "latency": _latency,
}


async def _work(path: str) -> None:
    """The worker's process: run what comes; "now" appends to the file at ``path``."""
    app = _app(_CONCURRENCY)

    @app.task(name="noop")
    async def noop() -> None:
        pass

    @app.task(name="cpu")
    async def cpu() -> None:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass

    @app.task(name="queries")
    async def queries() -> None:
        for _ in range(5):
            await app.connector.execute_query_one_async(SELECT_ITEM.format("%(id)s"), id=random_item())

    with open(path, "a", buffering=1) as times:  # noqa: ASYNC230  # before there is anything to run

        @app.task(name="now")
        async def now(number: int) -> None:
            times.write(f"{number} {time.time()}\n")

        async with app.open_async():
            await app.run_worker_async(concurrency=_CONCURRENCY)


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
