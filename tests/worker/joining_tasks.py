"""Tasks that wait for other tasks."""

import asyncio
import time
from typing import Any

import aiotasks
from aiotasks import PostgresTaskResult, task
from tests.site import postgres_result

# Bodies that go on after their joins, at the moment and at most.
going_on = 0
most_going_on = 0

# What bodies have noted.
noted: list[Any] = []


@task
async def leaf(number: int) -> int:
    return number


@task
def leaf_sync(number: int) -> int:
    return number


async def _go_on(seconds: float) -> None:
    global going_on, most_going_on
    going_on += 1
    most_going_on = max(most_going_on, going_on)
    await asyncio.sleep(seconds)
    going_on -= 1


@task
async def nested(depth: int) -> int:
    """So many tasks, each of which waits for the next."""
    if not depth:
        return 0
    result = postgres_result(await nested.aenqueue(depth - 1))
    await result.ajoin()
    return int(result.return_value) + 1


@task
async def parent(number: int, seconds: float = 0.0) -> int:
    result = postgres_result(await leaf.aenqueue(number))
    await result.ajoin()
    await _go_on(seconds)
    return int(result.return_value)


@task
async def parent_of_many(number: int) -> list[int]:
    results = [postgres_result(await leaf.aenqueue(n)) for n in range(number)]
    ends = [result.return_value async for result in aiotasks.as_completed(results)]
    found = await aiotasks.gather_results(results)
    assert sorted(ends) == [result.return_value for result in found]
    return sorted(ends)


@task
async def parent_that_waits_beside() -> int:
    """The join is another asyncio task's, beside which the body goes on."""
    result = postgres_result(await leaf.aenqueue(7))
    joining = asyncio.create_task(_joined(result))
    await _go_on(0.05)
    return await joining


async def _joined(result: PostgresTaskResult) -> int:
    return int((await result.ajoin()).return_value)


@task
async def waits_for_ever(seconds: float) -> str:
    result = postgres_result(await leaf.using(queue_name="nobody").aenqueue(1))
    try:
        await result.ajoin(timeout=seconds or None)
    except TimeoutError:
        await _go_on(0.01)
        noted.append("timed out")
    except asyncio.CancelledError:
        noted.append("cancelled")
        raise
    return "went on"


@task
async def limits_its_wait(seconds: float) -> None:
    result = postgres_result(await leaf.using(queue_name="nobody").aenqueue(1))
    try:
        async with asyncio.timeout(seconds):
            await result.ajoin()
    except TimeoutError:
        await _go_on(0.01)


@task
def parent_sync(number: int) -> int:
    result = postgres_result(leaf_sync.enqueue(number))
    return int(result.join(timeout=60).return_value)


@task
def parent_sync_of_other_lane(number: int) -> int:
    result = postgres_result(leaf.enqueue(number))
    time.sleep(0.05)
    return int(result.join(timeout=60).return_value)


@task(timeout=0.2)
async def waits_briefly() -> None:
    result = postgres_result(await leaf.using(queue_name="nobody").aenqueue(1))
    await result.ajoin()


@task(timeout=0.3)
def waits_briefly_sync() -> None:
    waits_for_ever_sync.func()


@task
def waits_for_ever_sync() -> None:
    result = postgres_result(leaf.using(queue_name="nobody").enqueue(1))
    noted.append("joins")
    try:
        result.join()
    except BaseException as error:
        noted.append(type(error))
        raise
