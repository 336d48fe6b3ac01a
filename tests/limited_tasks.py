"""Tasks with limits. A worker finds them by their path, so they stand at module level."""

import asyncio
from typing import Any

import aiotasks

__all__ = [
    "both",
    "fair",
    "in_line",
    "limited",
    "limited_sync",
    "one_key",
    "or_stop",
    "paced",
    "slow_down",
    "slow_down_sync",
    "unlimited",
]

# What has started and ended, in this process, by the values that the tasks were given.
started: list[object] = []
ended: list[object] = []
gate: list[asyncio.Event] = []

tenant = aiotasks.Limit("tests.limited", by="tenant_id", concurrency=2)
single = aiotasks.Limit("tests.one-key", concurrency=1)
turns = aiotasks.Limit("tests.fair", by="tenant_id")
line = aiotasks.Limit("tests.line", by="account", ordered=True)
stopping = aiotasks.Limit(
    "tests.stopping", by=lambda account, *rest, **options: account, ordered=True, after_failure="stop"
)
rate = aiotasks.Limit("tests.paced", by="host", rate="10/s", burst=2)
provider = aiotasks.Limit("tests.provider", by="host", concurrency=5)


async def _run(value: object) -> object:
    started.append(value)
    if gate:
        await gate[-1].wait()
    ended.append(value)
    return value


@aiotasks.task(limit=tenant)
async def limited(tenant_id: Any, value: object = None) -> object:
    return await _run(value)


@aiotasks.task(limit=tenant)
def limited_sync(value: object, *, tenant_id: Any) -> object:
    started.append(value)
    return value


@aiotasks.task(limit=single)
async def one_key(value: object = None) -> object:
    return await _run(value)


@aiotasks.task(limit=turns)
async def fair(tenant_id: Any, value: object = None) -> object:
    return await _run(value)


@aiotasks.task(limit=line, max_attempts=3)
async def in_line(account: Any, value: object = None, failures: int = 0) -> object:
    started.append(value)
    if started.count(value) <= failures:
        raise aiotasks.Retry(after=0.05)
    return value


@aiotasks.task(limit=stopping)
async def or_stop(account: Any, value: object = None, fails: bool = False) -> object:
    started.append(value)
    if fails and started.count(value) == 1:
        raise LookupError(value)
    return value


@aiotasks.task(limit=rate)
async def paced(host: Any, value: object = None) -> object:
    return await _run(value)


@aiotasks.task(limit=provider)
async def slow_down(host: Any, value: object, seconds: float = 0.0) -> object:
    started.append(value)
    if seconds and started.count(value) == 1:
        raise aiotasks.RateLimited(after=seconds)
    return value


@aiotasks.task(limit=provider)
def slow_down_sync(host: Any, value: object, seconds: float = 0.0) -> object:
    started.append(value)
    if seconds and started.count(value) == 1:
        raise aiotasks.RateLimited(after=seconds)
    return value


@aiotasks.task
async def unlimited(value: object, seconds: float = 0.0) -> object:
    started.append(value)
    if seconds and started.count(value) == 1:
        raise aiotasks.RateLimited(after=seconds)
    return value


@aiotasks.task(limit=tenant, unique_key=lambda tenant_id, name, value=None: name, on_conflict="replace")
async def both(tenant_id: Any, name: str, value: object = None) -> object:
    return await _run(value)
