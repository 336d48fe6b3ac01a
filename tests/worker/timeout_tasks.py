"""Tasks with a time limit, in both lanes. A test lets go of those that wait, by ``released``."""

import asyncio
import threading
import time
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async

from aiotasks import PostgresTaskContext, TransactionClosed, atomic, task, transaction

seen: list[Any] = []
released = threading.Event()
contexts: list[PostgresTaskContext] = []
variable: ContextVar[str] = ContextVar("variable")

# Seconds. Short enough to wait for, and none of these bodies ends by itself.
SHORT = 0.05
# Long enough for whatever a test does before it is over.
LONG = 60.0


@task(timeout=LONG)
async def ends_in_time(value: str) -> str:
    await asyncio.sleep(0.001)
    return value


@task(timeout=LONG)
def ends_in_time_sync(value: str) -> str:
    return value


@task(timeout=LONG)
async def does_not_wait(value: str) -> str:
    return value


@task(timeout=SHORT)
async def sleeps() -> None:
    await asyncio.sleep(3600)


@task(timeout=SHORT)
async def cleans_up() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.01)
        seen.append("cleaned up")


@task(timeout=SHORT)
async def returns_all_the_same() -> str:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)
    return "partial"


@task(timeout=SHORT)
async def raises_its_own_error() -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        raise LookupError("what was cut off") from None


@task(timeout=LONG)
async def has_its_own_timeout() -> None:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(3600)


@task(timeout=SHORT)
async def has_a_longer_timeout() -> None:
    async with asyncio.timeout(3600):
        await asyncio.sleep(3600)


@task(timeout=SHORT)
async def blocks_the_loop() -> str:
    end = time.monotonic() + 3 * SHORT
    while time.monotonic() < end:
        pass
    return "late"


@task(timeout=SHORT)
async def blocks_the_loop_and_waits() -> None:
    await blocks_the_loop.func()
    await asyncio.sleep(3600)


@task(timeout=SHORT)
async def ignores_cancellation() -> str:
    seen.append("begun")
    while not released.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.005)
    seen.append("ended")
    return "ignored"


async def _wait_for_release() -> None:
    while not released.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.005)


async def _query_once_released() -> None:
    from aiotasks.models import Worker

    seen.append("begun")
    await _wait_for_release()
    try:
        await sync_to_async(Worker.objects.count)()
    except RuntimeError as error:
        seen.append(str(error))


@task(timeout=SHORT)
async def queries_after_its_time() -> None:
    await _query_once_released()


@task
async def queries_after_its_release() -> None:
    await _query_once_released()


_BLOCKS: dict[str, Any] = {"atomic": atomic, "nested": atomic, "transaction": transaction}


@task(timeout=LONG)
async def goes_on_in_a_block(kind: str) -> None:
    async with _BLOCKS[kind]() as connection:
        try:
            if kind == "transaction":
                await connection.execute("INSERT INTO ledger (event) VALUES ('from a block')")
            else:
                await note_sync.aenqueue("from a block")
            if kind == "nested":
                async with atomic():
                    seen.append("begun")
                    await _wait_for_release()
            else:
                seen.append("begun")
                await _wait_for_release()
            await note_sync.aenqueue("late")
        except TransactionClosed:
            seen.append("closed")


@task(timeout=LONG)
async def goes_on_and_ends_a_block(kind: str) -> None:
    async with _BLOCKS[kind]():
        await note_sync.aenqueue("from a block")
        seen.append("begun")
        await _wait_for_release()


async def _decides_late(error: BaseException, result: Any) -> None:
    await note_sync.aenqueue("by the backoff")
    seen.append(variable.get("unset"))
    while "decide" not in seen:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@task(timeout=LONG, max_attempts=2, backoff=_decides_late)
async def goes_on_in_a_block_and_asks(kind: str) -> None:
    variable.set("of the body")
    try:
        await goes_on_and_ends_a_block.func(kind)
    finally:
        seen.append("left")


@task(timeout=0.001)
def has_begun() -> None:
    seen.append("begun")


@task(timeout=LONG, takes_context=True)
async def shows_its_context(context: PostgresTaskContext) -> list[Any]:
    contexts.append(context)
    assert context.deadline is not None
    return [context.deadline.isoformat(), context.remaining(), context.is_cancelled(), context.attempt]


@task(timeout=LONG, takes_context=True)
def shows_its_context_sync(context: PostgresTaskContext) -> list[Any]:
    contexts.append(context)
    assert context.deadline is not None
    return [context.deadline.isoformat(), context.remaining(), context.is_cancelled(), context.attempt]


@task(takes_context=True)
async def has_no_limit(context: PostgresTaskContext) -> list[Any]:
    return [context.deadline, context.remaining(), context.is_cancelled()]


@task(takes_context=True)
def waits_until_cancelled(context: PostgresTaskContext) -> str:
    """A sync task that ends where it is asked to."""
    seen.append("begun")
    while not context.is_cancelled():
        time.sleep(0.005)
    return "noticed"


@task(timeout=SHORT, takes_context=True)
def waits_until_its_time_is_over(context: PostgresTaskContext) -> str:
    seen.append("begun")
    while not context.is_cancelled():
        time.sleep(0.001)
    return "noticed"


@task(timeout=SHORT)
def waits(name: str = "") -> str:
    seen.append(("begun", name))
    released.wait(60)
    seen.append(("ended", name))
    return "too late"


@task(timeout=SHORT)
def waits_and_fails() -> None:
    seen.append("begun")
    released.wait(60)
    raise LookupError("too late")


async def _waits(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "awaited"


@task(timeout=SHORT)
def returns_a_coroutine(seconds: float) -> Awaitable[str]:
    return _waits(seconds)


@task(timeout=SHORT)
def returns_a_coroutine_late() -> Awaitable[str]:
    seen.append("begun")
    released.wait(60)
    return _waits(0)


@task
def note_sync(name: str) -> str:
    seen.append(name)
    return name


# --- Those whose time the test lets pass


@task(timeout=LONG)
async def sleeps_long() -> None:
    seen.append("begun")
    await asyncio.sleep(3600)


@task(timeout=LONG)
async def ignores_cancellation_long() -> None:
    seen.append("begun")
    while not released.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.005)


@task(timeout=LONG)
def waits_long() -> str:
    seen.append("begun")
    released.wait(60)
    return "too late"


@task(timeout=LONG)
def returns_a_coroutine_at_once() -> Awaitable[str]:
    seen.append("begun")
    return _waits(3600)


# Of the many that end at the moment of their limit.
NARROW = 0.02


@task(timeout=NARROW)
async def ends_at_its_limit(number: int) -> int:
    await asyncio.sleep(NARROW)
    return number


@task(timeout=NARROW)
def ends_at_its_limit_sync(number: int) -> int:
    time.sleep(NARROW)
    return number


@task(timeout=SHORT, max_attempts=2, backoff=lambda error, result: 0, takes_context=True)
async def times_out_once(context: PostgresTaskContext) -> int:
    if context.attempt == 1:
        await asyncio.sleep(3600)
    return context.attempt


def _backoff(error: BaseException, result: Any) -> float:
    seen.append((type(error).__name__, threading.current_thread() is threading.main_thread()))
    return 0.0


@task(timeout=SHORT, max_attempts=2, backoff=_backoff, takes_context=True)
def times_out_once_sync(context: PostgresTaskContext) -> int:
    if context.attempt == 1:
        released.wait(60)
        seen.append("the first has ended")
    return context.attempt


@task(timeout=SHORT)
def is_too_long_for_a_drain() -> str:
    end = time.monotonic() + 4 * SHORT
    while time.monotonic() < end:
        time.sleep(0.001)
    return "too late"


@task(timeout=SHORT)
def never_comes_back() -> None:
    threading.Event().wait()


@task
async def ticks_until(path: str) -> str:
    """Write to a file every now and then, until there is one whose name ends with .end."""
    while not Path(f"{path}.end").exists():  # noqa: ASYNC240
        with Path(path).open("a") as file:  # noqa: ASYNC230
            file.write(".")
        await asyncio.sleep(0.02)
    return "whole"


@task(timeout=SHORT)
async def never_ends() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


# --- For the battery


@task(timeout=SHORT)
async def late(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task(timeout=SHORT)
def late_sync(seconds: float) -> None:
    time.sleep(seconds)
