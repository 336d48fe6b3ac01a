"""pgqueuer, an asyncio queue on asyncpg.

Drains: one process under uvloop, coroutine tasks in batches of 1,000, and a pool of connections, with which
it runs about a fifth more than with the one connection of its documentation. Latency: its default batch.
Enqueues: a pool of 20. Kept: two rows in a log, which also say when the first task was picked and when the
last one has succeeded; neither the task's row nor a result.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from benchmarks import rival_support
from benchmarks.rival_support import SELECT_ITEM, BodyTimes, make_items, random_item

from .common import dsn, run, worker

if TYPE_CHECKING:
    from pgqueuer.models import Job

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["pgqueuer", "asyncpg"]
COUNTS = {
    "drain": 30_000,
    "drain-cpu": 1_500,
    "drain-queries": 3_000,
    "enqueue-50": 5_000,
    "enqueue-1": 3_000,
    "latency": 200,
}

_POOL_SIZE = 20

# Jobs that its worker fetches at once: for drains, and by default.
_LARGE_BATCH = 1_000
_DEFAULT_BATCH = 10

_COUNTS = """
    SELECT
        count(*) FILTER (WHERE status = 'successful'),
        count(*) FILTER (WHERE status NOT IN ('queued', 'picked', 'successful'))
    FROM pgqueuer_log
"""
_SECONDS = """
    SELECT extract(epoch FROM
        max(created) FILTER (WHERE status = 'successful') - min(created) FILTER (WHERE status = 'picked'))
    FROM pgqueuer_log
"""


def versions() -> dict[str, str]:
    return rival_support.versions("pgqueuer", "asyncpg")


def prepare() -> None:
    """Make its schema, and the rows that tasks look up."""
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    async def prepared() -> None:
        connection = await asyncpg.connect(dsn())
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()
        await make_items()

    run(prepared())


def _drain(entrypoint: str, count: int) -> dict[str, float]:
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    async def filled() -> None:
        connection = await asyncpg.connect(dsn())
        await Queries(AsyncpgDriver(connection)).enqueue([entrypoint] * count, [None] * count, [0] * count)
        await connection.close()

    run(filled())
    with worker(sys.executable, "-m", __name__, str(_LARGE_BATCH), os.devnull) as process:
        return run(rival_support.drained(process, _COUNTS, _SECONDS, count))


def _enqueue(callers: int, count: int) -> dict[str, float]:
    from pgqueuer.db import AsyncpgPoolDriver
    from pgqueuer.queries import Queries

    async def measured() -> dict[str, float]:
        async with asyncpg.create_pool(dsn(), min_size=1, max_size=_POOL_SIZE) as pool:
            queries = Queries(AsyncpgPoolDriver(pool))
            return await rival_support.enqueued(lambda number: queries.enqueue("noop", None), callers, count)

    return run(measured())


def _latency(count: int) -> dict[str, float]:
    from pgqueuer.db import AsyncpgPoolDriver
    from pgqueuer.queries import Queries

    async def measured() -> dict[str, float]:
        async with asyncpg.create_pool(dsn(), max_size=_POOL_SIZE) as pool:
            queries = Queries(AsyncpgPoolDriver(pool))
            return await rival_support.waits(
                process, times, lambda number: queries.enqueue("now", str(number).encode()), count
            )

    with tempfile.TemporaryDirectory() as directory:
        times = BodyTimes(Path(directory) / "times")
        with worker(sys.executable, "-m", __name__, str(_DEFAULT_BATCH), os.fspath(times.path)) as process:
            return run(measured())


WORKLOADS = {
    "drain": lambda count: _drain("noop", count),
    "drain-cpu": lambda count: _drain("cpu", count),
    "drain-queries": lambda count: _drain("queries", count),
    "enqueue-50": lambda count: _enqueue(50, count),
    "enqueue-1": lambda count: _enqueue(1, count),
    "latency": _latency,
}


async def _work(batch_size: int, path: str) -> None:
    """The worker's process: run what comes; "now" appends to the file at ``path``."""
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgPoolDriver

    with open(path, "a", buffering=1) as times:  # noqa: ASYNC230  # before there is anything to run
        async with asyncpg.create_pool(dsn(), max_size=_POOL_SIZE) as pool:
            queue = PgQueuer(AsyncpgPoolDriver(pool))

            @queue.entrypoint("noop")
            async def noop(job: "Job") -> None:
                pass

            @queue.entrypoint("cpu")
            async def cpu(job: "Job") -> None:
                end = time.thread_time() + 0.001
                while time.thread_time() < end:
                    pass

            @queue.entrypoint("queries")
            async def queries(job: "Job") -> None:
                for _ in range(5):
                    await pool.fetchrow(SELECT_ITEM.format("$1"), random_item())

            @queue.entrypoint("now")
            async def now(job: "Job") -> None:
                times.write(f"{job.payload.decode()} {time.time()}\n")

            await queue.run(batch_size=batch_size)


if __name__ == "__main__":
    run(_work(int(sys.argv[1]), sys.argv[2]))
