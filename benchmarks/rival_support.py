"""What the rivals' modules share: waiting for their workers, callers at once, and the times of bodies."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path

import asyncpg

from .contenders.common import MeasurementFailed, WorkerProcess, dsn, latencies, ticks

__all__ = [
    "INTERVAL",
    "SELECT_ITEM",
    "BodyTimes",
    "drained",
    "enqueued",
    "make_items",
    "random_item",
    "until_finished",
    "versions",
    "waits",
]

type Enqueue = Callable[[int], Awaitable[object]]

# Seconds between the tasks that latency is measured with.
INTERVAL = 0.02

# What tasks look up where there is no Django; {} is the id's place.
SELECT_ITEM = "SELECT id, name FROM item WHERE id = {}"
_ITEMS = 100

# Seconds a rival's worker may take for what a workload gives it.
_TIMEOUT = 600.0


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of what is installed, by name."""
    return {name: metadata.version(name) for name in distributions}


async def make_items() -> None:
    """Make the rows that SELECT_ITEM finds."""
    connection = await asyncpg.connect(dsn())
    await connection.execute("CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL)")
    await connection.execute(
        "INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, $1) AS n", _ITEMS
    )
    await connection.close()


def random_item() -> int:
    """Return the id of one of them."""
    return random.randint(1, _ITEMS)


async def until_finished(process: WorkerProcess, counts: str, count: int) -> None:
    """Wait until ``count`` tasks have finished; ``counts`` is SQL of how many have, and how many failed."""
    connection = await asyncpg.connect(dsn())
    try:

        async def finished() -> bool:
            done, failed = await connection.fetchrow(counts)
            if failed:
                raise MeasurementFailed(f"{failed:,} of {count:,} tasks have failed.")
            return done >= count

        await process.until(finished, _TIMEOUT)
    finally:
        await connection.close()


async def drained(process: WorkerProcess, counts: str, seconds: str, count: int) -> dict[str, float]:
    """Wait likewise, and return the figures; ``seconds`` is SQL of the time from the first start to the last
    finish.
    """
    await until_finished(process, counts, count)
    connection = await asyncpg.connect(dsn())
    try:
        took = float(await connection.fetchval(seconds))
    finally:
        await connection.close()
    return {"per_s": count / took, "seconds": took}


async def enqueued(enqueue: Enqueue, callers: int, count: int) -> dict[str, float]:
    """Return the figures of so many concurrent callers, each of which enqueues one task after the other."""

    async def all_callers(each: int) -> float:
        async def caller() -> None:
            for number in range(each):
                await enqueue(number)

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - start

    await all_callers(5)  # connects
    each = max(1, count // callers)
    return {"per_s": callers * each / await all_callers(each)}


class BodyTimes:
    """A file to which bodies append their task's number and their time, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    async def until(self, process: WorkerProcess, count: int) -> list[float]:
        """Wait for so many bodies; return their times by the number of the task."""

        async def all_ran() -> bool:
            return self.path.read_bytes().count(b"\n") >= count

        await process.until(all_ran, _TIMEOUT)
        times = {int(number): float(at) for number, at in map(str.split, self.path.read_text().splitlines())}
        if sorted(times) != list(range(count)):
            raise MeasurementFailed(f"{len(times):,} of {count:,} tasks have run, or some more than once.")
        return [times[number] for number in range(count)]


async def waits(process: WorkerProcess, times: BodyTimes, enqueue: Enqueue, count: int) -> dict[str, float]:
    """Return the figures from just before each task's enqueue to its body, at a worker that is idle."""
    await enqueue(0)
    await times.until(process, 1)  # it is up, and has connected
    sent: dict[int, float] = {}

    async def send(number: int) -> None:
        sent[number] = time.time()
        await enqueue(number)

    async with asyncio.TaskGroup() as group:
        numbers = iter(range(1, count + 1))
        async for _ in ticks(count, INTERVAL):
            group.create_task(send(next(numbers)))
    ran = await times.until(process, count + 1)
    return latencies([ran[number] - at for number, at in sent.items()])
