"""Tasks that fail on purpose, and backoffs of every kind."""

import asyncio
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiotasks
from aiotasks import backoff, task
from tests.site import Context

from .tasks import arecord, record

# What tasks and backoffs have seen, in their order.
seen: list[Any] = []

SOON = backoff.constant(0.01, jitter=False)


class Flaky(Exception):
    """A failure that another attempt may mend."""


class Flakier(Flaky): ...


def _fail(context: Context, name: str, times: int) -> int:
    attempt = context.attempt
    if attempt <= times:
        raise {"Flaky": Flaky, "Flakier": Flakier, "SystemExit": SystemExit, "ValueError": ValueError}[name](
            f"attempt {attempt}"
        )
    return attempt


@task(max_attempts=4, backoff=SOON, takes_context=True)
async def flaky(context: Context, name: str, times: int) -> int:
    return _fail(context, name, times)


@task(max_attempts=4, backoff=SOON, takes_context=True)
def flaky_sync(context: Context, name: str, times: int) -> int:
    return _fail(context, name, times)


@task(max_attempts=3, backoff=SOON, takes_context=True)
async def cancels_itself(context: Context) -> int:
    if context.attempt == 1:
        raise asyncio.CancelledError("its own")
    return context.attempt


@task(max_attempts=5, backoff=SOON, retry_on=Flaky, takes_context=True)
async def only_flaky(context: Context, name: str, times: int) -> int:
    return _fail(context, name, times)


@task(max_attempts=5, backoff=SOON, give_up_on=(Flaky,), takes_context=True)
def but_flaky(context: Context, name: str, times: int) -> int:
    return _fail(context, name, times)


@task(max_attempts=3, takes_context=True)
async def retry_after(context: Context, after: float) -> int:
    seen.append(context.attempt)
    if context.attempt == 1:
        raise aiotasks.Retry(after=after)
    return context.attempt


@task(max_attempts=3, takes_context=True)
def give_up(context: Context) -> None:
    try:
        raise Flaky("the cause")
    except Flaky as error:
        raise aiotasks.GiveUp("no use") from error


@task(takes_context=True)
async def snooze(context: Context, times: int, seconds: float) -> list[int]:
    seen.append("run")
    if len(seen) <= times:
        raise aiotasks.Snooze(for_=seconds)
    return [len(seen), context.attempt]


@task(takes_context=True)
def snooze_sync(context: Context, times: int, seconds: float) -> list[int]:
    seen.append("run")
    if len(seen) <= times:
        raise aiotasks.Snooze(for_=timedelta(seconds=seconds))
    return [len(seen), context.attempt]


def by_the_site(exception: BaseException, result: Any) -> float:
    """A backoff that says what it gets, and where it runs."""
    errors = [error.exception_class_path.rpartition(".")[2] for error in result.errors]
    seen.append((str(exception), result.attempts, result.failures, errors, threading.current_thread().name))
    return 0.01


async def by_the_site_async(exception: BaseException, result: Any) -> timedelta:
    await asyncio.sleep(0)
    by_the_site(exception, result)
    return timedelta(milliseconds=10)


@task(max_attempts=3, backoff=by_the_site, takes_context=True)
async def asks(context: Context) -> int:
    return _fail(context, "Flaky", 2)


@task(max_attempts=3, backoff=by_the_site, takes_context=True)
def asks_sync(context: Context) -> int:
    return _fail(context, "Flaky", 2)


@task(max_attempts=3, backoff=by_the_site_async, takes_context=True)
async def asks_async(context: Context) -> int:
    return _fail(context, "Flaky", 2)


@task(max_attempts=3, backoff=by_the_site_async, takes_context=True)
def asks_async_in_thread(context: Context) -> int:
    return _fail(context, "Flaky", 2)


class BackoffError(Exception): ...


def raises(exception: BaseException, result: Any) -> float:
    raise BackoffError("of the backoff")


def raises_from_none(exception: BaseException, result: Any) -> float:
    raise BackoffError("of the backoff") from None


@dataclass(frozen=True)
class FrozenBackoffError(Exception):
    code: int


def raises_frozen(exception: BaseException, result: Any) -> float:
    raise FrozenBackoffError(3) from None


def exits(exception: BaseException, result: Any) -> float:
    raise SystemExit(3)


async def hangs(exception: BaseException, result: Any) -> float:
    await asyncio.sleep(3600)
    return 1.0


async def swallows(exception: BaseException, result: Any) -> float:
    while "released" not in seen:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
    return 1.0


async def exits_async(exception: BaseException, result: Any) -> float:
    await asyncio.sleep(0)
    raise SystemExit(3)


async def interrupts_async(exception: BaseException, result: Any) -> float:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


async def raises_async(exception: BaseException, result: Any) -> float:
    await asyncio.sleep(0)
    raise BackoffError("of the backoff")


def nonsense(exception: BaseException, result: Any) -> Any:
    return "soon"


def says_no_more(exception: BaseException, result: Any) -> None:
    seen.append("asked")


def _failing(how: Any) -> tuple[Any, Any]:
    async def coroutine() -> None:
        raise Flaky("of the task")

    def function() -> None:
        raise Flaky("of the task")

    for each, kind in ((coroutine, "loop"), (function, "thread")):
        each.__qualname__ = each.__name__ = f"{how.__name__}_{kind}"
    return (
        task(max_attempts=3, backoff=how)(coroutine),
        task(max_attempts=3, backoff=how)(function),
    )


raises_loop, raises_thread = _failing(raises)
raises_from_none_loop, raises_from_none_thread = _failing(raises_from_none)
raises_frozen_loop, raises_frozen_thread = _failing(raises_frozen)
exits_loop, exits_thread = _failing(exits)
exits_async_loop, exits_async_thread = _failing(exits_async)
interrupts_async_loop, interrupts_async_thread = _failing(interrupts_async)
swallows_loop, swallows_thread = _failing(swallows)
hangs_loop, hangs_thread = _failing(hangs)
raises_async_loop, raises_async_thread = _failing(raises_async)
nonsense_loop, nonsense_thread = _failing(nonsense)
says_no_more_loop, says_no_more_thread = _failing(says_no_more)


@task(max_attempts=3, backoff=SOON)
async def unserialisable() -> object:
    seen.append("run")
    return object()


@task(max_attempts=5, backoff=backoff.constant(3600, jitter=False))
async def fails_for_an_hour() -> None:
    raise Flaky("later")


@task(max_attempts=5, backoff=backoff.constant(3600, jitter=False), expires=60)
def fails_for_longer_than_it_may() -> None:
    raise Flaky("too late")


@task(expires=60)
async def snoozes_for_longer_than_it_may() -> None:
    raise aiotasks.Snooze(for_=3600)


@task()
def fails_by_the_options() -> None:
    raise Flaky("by the options")


@task(max_attempts=2, backoff=hangs)
async def fails_and_asks_long() -> None:
    seen.append("failed")
    raise Flaky("of the task")


# --- For the battery

RANDOM_ATTEMPTS = 6
RANDOM_BACKOFF = backoff.exponential(0.05, longest=1.0)


@task(max_attempts=RANDOM_ATTEMPTS, backoff=RANDOM_BACKOFF, takes_context=True)
async def fails_at_random(context: Context, chance: float) -> None:
    """Fail with this probability, and write which of both happened."""
    await asyncio.sleep(random.uniform(0.0, 0.02))
    if random.random() < chance:
        await arecord("fail", context)
        raise Flaky("at random")
    await arecord("end", context)


@task(max_attempts=RANDOM_ATTEMPTS, backoff=RANDOM_BACKOFF, takes_context=True)
def fails_at_random_sync(context: Context, chance: float) -> None:
    failing = random.random() < chance
    record("fail" if failing else "end", context.task_result.id)
    if failing:
        raise Flaky("at random")
