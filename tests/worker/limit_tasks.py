"""Tasks with limits, for the tests of workers."""

import asyncio
import time
from typing import Any

import aiotasks

from .tasks import arecord, record

__all__ = [
    "fair",
    "in_line",
    "ledgered",
    "ledgered_sync",
    "one",
    "one_sync",
    "paced",
    "seen",
    "slows_down",
    "stops",
    "two",
]

single = aiotasks.Limit("worker.one", by="key", concurrency=1)
double = aiotasks.Limit("worker.two", by="key", concurrency=2)
turns = aiotasks.Limit("worker.fair", by="key")
line = aiotasks.Limit("worker.line", by="key", ordered=True)
stopping = aiotasks.Limit("worker.stopping", by="key", ordered=True, after_failure="stop")
rate = aiotasks.Limit("worker.paced", by="key", rate="20/s", burst=1)

# What has started in this process, and when by time.monotonic(); and those that wait to be let go, by name.
seen: list[str] = []
times: dict[str, float] = {}
held: dict[str, asyncio.Event] = {}
most: dict[str, int] = {}
_running: dict[str, int] = {}


def forget() -> None:
    for each in (seen, times, held, most, _running):
        each.clear()


def let_go(name: str) -> None:
    held[name].set()


async def _run(key: str, name: str, seconds: float, waits: bool) -> str:
    _running[key] = _running.get(key, 0) + 1
    most[key] = max(most.get(key, 0), _running[key])
    seen.append(name)
    times[name] = time.monotonic()
    try:
        if waits:
            held[name] = asyncio.Event()
            await held[name].wait()
        elif seconds:
            await asyncio.sleep(seconds)
    finally:
        _running[key] -= 1
    return name


@aiotasks.task(limit=single)
async def one(key: str, name: str = "", seconds: float = 0.0, waits: bool = False) -> str:
    return await _run(key, name, seconds, waits)


@aiotasks.task(limit=single)
def one_sync(key: str, name: str = "", seconds: float = 0.0) -> str:
    seen.append(name)
    time.sleep(seconds)
    return name


@aiotasks.task(limit=double)
async def two(key: str, name: str = "", seconds: float = 0.0, waits: bool = False) -> str:
    return await _run(key, name, seconds, waits)


@aiotasks.task(limit=turns)
async def fair(key: str, name: str = "", seconds: float = 0.0) -> str:
    return await _run(key, name, seconds, False)


@aiotasks.task(limit=line, max_attempts=3, backoff=lambda error, result: 0.01)
async def in_line(key: str, name: str, failures: int = 0) -> str:
    seen.append(name)
    if seen.count(name) <= failures:
        raise ValueError(name)
    return name


@aiotasks.task(limit=stopping)
async def stops(key: str, name: str, fails: bool = False) -> str:
    seen.append(name)
    if fails:
        raise ValueError(name)
    return name


@aiotasks.task(limit=double)
async def slows_down(key: str, name: str) -> None:
    await _run(key, name, 0.0, True)
    raise aiotasks.RateLimited(after=3600)


@aiotasks.task(limit=rate)
async def paced(key: str, name: str = "") -> str:
    return await _run(key, name, 0.0, False)


@aiotasks.task(limit=single, takes_context=True)
async def ledgered(context: Any, key: str, seconds: float = 0.0) -> None:
    await arecord("start", context)
    await asyncio.sleep(seconds)
    await arecord("end", context)


@aiotasks.task(limit=single, takes_context=True)
def ledgered_sync(context: Any, key: str, seconds: float = 0.0) -> None:
    record("start", context.task_result.id)
    time.sleep(seconds)
    record("end", context.task_result.id)
