"""Tasks with limits by key, for the workloads."""

import asyncio
import time

from aiotasks import Limit, task

__all__ = ["NUMBERS", "fair", "held", "keyed", "noops"]

# Places of the limits that have one key.
NUMBERS = (1, 10, 100)

_one = Limit("one", concurrency=1)
_ten = Limit("ten", concurrency=10)
_hundred = Limit("hundred", concurrency=100)
_each = Limit("each", by="key", concurrency=1)
_tenant = Limit("tenant", by="key")


@task(limit=_one)
async def noop_1() -> None:
    """Nothing, one at a time."""


@task(limit=_ten)
async def noop_10() -> None:
    """Nothing, ten at a time."""


@task(limit=_hundred)
async def noop_100() -> None:
    """Nothing, a hundred at a time."""


noops = dict(zip(NUMBERS, (noop_1, noop_10, noop_100), strict=True))


@task(limit=_each)
async def keyed(key: int) -> None:
    """Nothing, one at a time of each key."""


@task(limit=_tenant)
async def fair(key: int) -> float:
    """When its body ran, by the machine's clock; keys take turns."""
    return time.time()


@task(limit=_each)
async def held(key: int, seconds: float) -> list[float]:
    """When its body began and ended, one at a time of each key."""
    began = time.time()
    await asyncio.sleep(seconds)
    return [began, time.time()]
