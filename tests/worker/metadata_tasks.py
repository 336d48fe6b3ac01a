"""Tasks that note things about themselves, in both lanes. Those that wait are ended by ``released``."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable
from typing import Any

import aiotasks
from aiotasks import PostgresTaskContext, task
from tests.site import default_task_backend

seen: list[Any] = []
released = threading.Event()
again = threading.Event()
contexts: list[PostgresTaskContext] = []

# Seconds after which a wait has failed.
LONG = 60.0


def _end(how: str, attempt: int) -> str:
    if attempt > 1:
        return how
    match how:
        case "failure":
            raise LookupError("no use")
        case "retry":
            raise aiotasks.Retry(after=0)
        case "snooze":
            raise aiotasks.Snooze(for_=0.001)
    return how


def _note(context: PostgresTaskContext, how: str) -> str:
    seen.append(dict(context.metadata))
    context.metadata["attempts"] = context.metadata.get("attempts", 0) + 1
    context.metadata.pop("for once", None)
    return _end(how, context.metadata["attempts"])


@task(takes_context=True, max_attempts=2)
async def notes(context: PostgresTaskContext, how: str) -> str:
    return _note(context, how)


@task(takes_context=True, max_attempts=2)
def notes_sync(context: PostgresTaskContext, how: str) -> str:
    return _note(context, how)


@task(takes_context=True)
async def looks(context: PostgresTaskContext) -> dict[str, Any]:
    return context.metadata


@task(takes_context=True)
async def has_a_context(context: PostgresTaskContext) -> int:
    return context.attempt


@task(takes_context=True)
async def saves_and_waits(context: PostgresTaskContext, value: int = 1) -> None:
    context.metadata["saved"] = value
    await context.asave_metadata()
    context.metadata["later"] = True
    seen.append("saved")
    while not released.is_set():  # noqa: ASYNC110  # the test may be in another thread
        await asyncio.sleep(0.005)


@task(takes_context=True)
def saves_and_waits_sync(context: PostgresTaskContext, value: int = 1) -> None:
    context.metadata["saved"] = value
    context.save_metadata()
    context.metadata["later"] = True
    seen.append("saved")
    released.wait(LONG)


@task(takes_context=True)
async def waits_forever(context: PostgresTaskContext) -> None:
    context.metadata["began"] = True
    seen.append("began")
    await asyncio.sleep(3600)


@task(takes_context=True)
async def keeps_saving(context: PostgresTaskContext, key: str) -> int:
    """Saves new values until it is released; returns the last."""
    number = 0
    while not released.is_set():
        number += 1
        context.metadata[key] = number
        context.metadata[f"{key}{number % 7}"] = number
        context.save_metadata()
        await asyncio.sleep(0.001)
    return number


@task(takes_context=True)
async def counts(context: PostgresTaskContext, number: int) -> None:
    for done in range(number):
        context.progress(done, number, f"step {done}")
        if done % 5000 == 0:
            await asyncio.sleep(0)
    seen.append(time.monotonic())


@task(takes_context=True)
def counts_sync(context: PostgresTaskContext, number: int) -> None:
    for done in range(number):
        context.progress(done, number, f"step {done}")
    seen.append(time.monotonic())


@task(takes_context=True)
async def reports_twice_and_waits(context: PostgresTaskContext) -> None:
    context.progress(1, 10)
    while not again.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    context.progress(2, 10, "two")
    seen.append("reported")
    while not released.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@task(takes_context=True)
def reports_twice_and_waits_sync(context: PostgresTaskContext) -> None:
    context.progress(1, 10)
    again.wait(LONG)
    context.progress(2, 10, "two")
    seen.append("reported")
    released.wait(LONG)


@task(takes_context=True)
async def ends_with(context: PostgresTaskContext, what: str) -> str:
    context.metadata["good"] = 1
    context.save_metadata()
    bad: dict[str, Any] = {"key": {"_mine": 1}, "value": {"x": object()}, "size": {"x": "x" * 70_000}}
    context.metadata.update(bad[what])
    try:
        context.save_metadata()
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing was raised"


@task(takes_context=True, timeout=0.05)
def outlasts(context: PostgresTaskContext) -> None:
    contexts.append(context)
    context.metadata["before"] = True
    seen.append("began")
    released.wait(LONG)
    context.metadata["after"] = True
    context.save_metadata()
    seen.append("ended")


async def _goes_on(context: PostgresTaskContext) -> str:
    context.metadata["loop"] = True
    return "awaited"


@task(takes_context=True)
def returns_a_coroutine(context: PostgresTaskContext) -> Awaitable[str]:
    context.metadata["thread"] = True
    return _goes_on(context)


@task(
    takes_context=True,
    max_attempts=2,
    backoff=lambda error, result: seen.append(result.metadata) or 0.0,  # type: ignore[func-returns-value]
)
async def asks_its_backoff(context: PostgresTaskContext) -> int:
    context.metadata["wait"] = 7
    if context.attempt == 1:
        raise LookupError
    return context.attempt


@task(takes_context=True)
async def writes_into(context: PostgresTaskContext, result_id: str) -> None:
    """A child of another task."""
    await default_task_backend.asave_metadata(result_id, {f"child {context.task_result.id}": "done"})


@task(takes_context=True)
async def has_children(context: PostgresTaskContext, number: int) -> list[str]:
    """Changes its metadata, and ends when all of its children have written into them, and not later."""
    context.metadata["mine"] = "before"
    context.save_metadata()
    id = context.task_result.id
    children = [await writes_into.aenqueue(id) for _ in range(number)]
    for child in children:
        while not child.is_finished:
            await asyncio.sleep(0.005)
            await child.arefresh()
    context.metadata["mine"] = "after"
    return [child.id for child in children]


# --- In a process of its own


@task(takes_context=True)
async def is_killed_while_it_saves(context: PostgresTaskContext) -> dict[str, Any]:
    """The first attempt saves until its process is killed; the second returns what it has found."""
    found = dict(context.metadata)
    if "progress" in found:
        return found
    number = 0
    while True:
        number += 1
        context.progress(number, None, "x" * (number % 1000))
        await asyncio.sleep(0.001)


@task(takes_context=True)
async def kills_its_worker(context: PostgresTaskContext) -> dict[str, Any]:
    found = dict(context.metadata)
    context.metadata["never saved"] = True
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
