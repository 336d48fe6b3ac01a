"""Receivers of task_started and task_finished and the body between them share one context per execution."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.tasks.signals import task_finished, task_started

from tests.backend.support import run_all
from tests.site import task

by_receiver: ContextVar[str] = ContextVar("by_receiver", default="")
by_async_receiver: ContextVar[str] = ContextVar("by_async_receiver", default="")
by_body: ContextVar[str] = ContextVar("by_body", default="")
rebound: ContextVar[str] = ContextVar("rebound", default="")
seen: list[tuple[str, ...]] = []


def values() -> tuple[str, ...]:
    return tuple(variable.get() for variable in (by_receiver, by_async_receiver, by_body, rebound))


def body(name: str) -> list[str]:
    found = list(values())
    by_body.set(f"body of {name}")
    rebound.set(f"rebound by {name}")
    return found


@task
def in_thread(name: str, fails: bool) -> list[str]:
    found = body(name)
    if fails:
        raise ValueError(*found)
    return found


@task
async def on_loop(name: str, fails: bool) -> list[str]:
    await asyncio.sleep(0)
    found = body(name)
    if fails:
        raise ValueError(*found)
    return found


@task
async def in_its_thread(name: str, fails: bool) -> list[str]:
    found: list[str] = await sync_to_async(in_thread.func)(name, fails)
    return found


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_one_context_for_each_execution(database: str, number: int) -> None:
    """``number`` async receivers beside the sync ones."""
    seen.clear()

    def started(task_result: Any, **kwargs: Any) -> None:
        seen.append(("started", *values()))
        by_receiver.set(f"for {task_result.args[0]}")
        rebound.set("by a receiver")

    async def astarted(task_result: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        by_async_receiver.set(f"async for {task_result.args[0]}")

    async def other(task_result: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)

    def finished(task_result: Any, **kwargs: Any) -> None:
        seen.append((task_result.args[0], *values()))

    async def afinished(task_result: Any, **kwargs: Any) -> None:
        seen.append((task_result.args[0], *values()))

    receivers: list[Any] = [(task_started, started), (task_finished, finished)]
    receivers += [(task_started, astarted), (task_finished, afinished)][: 2 * min(number, 1)]
    receivers += [(task_started, other), (task_finished, other)][: 2 * max(number - 1, 0)]
    results = {}
    for signal, receiver in receivers:
        signal.connect(receiver)
    try:
        for one in (in_thread, on_loop, in_its_thread):
            for fails in (False, True):
                for repeat in range(2):
                    name = f"{one.name} {fails} {repeat}"
                    results[name] = await one.aenqueue(name, fails)
        await run_all(concurrency=2, threads=1)
    finally:
        for signal, receiver in receivers:
            signal.disconnect(receiver)
    assert {one for one in seen if one[0] == "started"} == {("started", "", "", "", "")}
    for name, result in results.items():
        by_async = f"async for {name}" if number else ""
        told = (name, f"for {name}", by_async, f"body of {name}", f"rebound by {name}")
        assert [one for one in seen if one[0] == name] == [told] * (1 + min(number, 1)), name
        await result.arefresh()
        found = [f"for {name}", by_async, "", "by a receiver"]
        if result.errors:
            assert ", ".join(map(repr, found)) in result.errors[0].traceback
        else:
            assert result.return_value == found
    assert values() == ("", "", "", "")


@task
async def its_thread() -> int:
    return await sync_to_async(threading.get_ident)()


async def test_sync_receivers_have_the_thread_of_the_bodys_orm_calls(database: str) -> None:
    """So what one sets for its database session is there in the others, too."""
    told: dict[str, list[int]] = {}

    def tell(task_result: Any, **kwargs: Any) -> None:
        told.setdefault(task_result.id, []).append(threading.get_ident())

    for signal in (task_started, task_finished):
        signal.connect(tell)
    try:
        results = [await its_thread.aenqueue() for _ in range(12)]
        await run_all(concurrency=12, threads=1)
    finally:
        for signal in (task_started, task_finished):
            signal.disconnect(tell)
    for result in results:
        await result.arefresh()
        assert told[result.id] == [result.return_value] * 2
    assert len({result.return_value for result in results}) > 1
