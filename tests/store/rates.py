"""Claims of a key with a rate, by many sessions at once, and how many starts there were in any window."""

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.rows import Job, microseconds
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.store import Store

from .rows import new_job, worker

CLAIMERS = 10


async def starts_of(rule: LimitRule, seconds: float) -> list[float]:
    """Have CLAIMERS sessions claim for so many seconds; when tasks have started by the database's clock."""
    started: list[float] = []
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(CLAIMERS):
            connection = await connect("default", timeout=30.0, statement_cache_size=100)
            stack.push_async_callback(connection.close)
            stores.append(Store(ConnectionDriver(connection)))
        assert rule.pace is not None
        number = int(seconds / rule.pace) + 2 * rule.burst + 10
        await stores[0].insert_jobs([new_job(limit_key=rule.name) for _ in range(number)])
        await stores[0].insert_limits("default", [rule.name])
        end = time.monotonic() + seconds

        async def claim(store: Store) -> None:
            me = await worker(store, lease=2 * seconds)
            request = [KeyRequest("default", rule.name)]
            while time.monotonic() < end:
                found = await store.claim_keyed(me, uuid.uuid4(), "default", "loop", 10, request, [rule])
                started.extend(map(_start, found.jobs))
                (seen,) = found.seen
                wait = seen.wait if seen.wait is not None else 0.001
                # A little early now and then, as a worker never is.
                await asyncio.sleep(min(wait * random.uniform(0.9, 1.0), max(0.0, end - time.monotonic())))

        async with asyncio.TaskGroup() as group:
            for store in stores:
                group.create_task(claim(store))
    return sorted(started)


def _start(job: Job) -> float:
    return microseconds(job.last_attempted_at) / 1e6


def excess(started: Sequence[float], pace: float, burst: int) -> float:
    """The starts beyond ``t / pace + burst`` in the window of any length ``t`` that has most of them."""
    worst, least = float("-inf"), float("inf")
    for number, at in enumerate(started):
        # From the start before which the line of the rate was lowest.
        least = min(least, number - at / pace)
        worst = max(worst, number + 1 - at / pace - least)
    return worst - burst
