"""LoopWatchdog: each task that blocks the loop is named once."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.events import Observer
from aiotasks.worker.running import watchdog as guard_module
from aiotasks.worker.running.watchdog import LoopWatchdog

from .harness import until, wait_until


class Blocked(Observer):
    def __init__(self) -> None:
        self.names: list[str | None] = []
        self.stacks = ""

    def loop_blocked(self, seconds: float, task_name: str | None, stack: str) -> None:
        self.names.append(task_name)
        self.stacks += stack


async def test_each_stall_is_reported_also_where_one_follows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of one claim block the loop without a turn of it in between."""
    monkeypatch.setattr(guard_module, "BLOCKED_AFTER", 0.2)
    loop = asyncio.get_running_loop()
    blocked = Blocked()
    handler: Any = SimpleNamespace(hung=lambda seconds, task: None, back=lambda: None)
    guard = LoopWatchdog(handler, timeout=None, observer=blocked)
    guard.start()

    async def block() -> None:
        time.sleep(0.8)  # noqa: ASYNC251  # what is to be noticed

    for name in ("first", "second"):
        await asyncio.Task(block(), loop=loop, eager_start=True, name=name)
    guard.stop()
    assert blocked.names == ["first", "second"]
    assert blocked.stacks.count("in block") == 2


async def test_a_loop_that_goes_on_while_it_is_being_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done about it is undone afterwards, and not before."""
    monkeypatch.setattr(guard_module, "BLOCKED_AFTER", 0.2)
    begun, turned = threading.Event(), threading.Event()
    said: list[str] = []

    def hung(seconds: float, task: "asyncio.Task[Any] | None") -> None:
        begun.set()
        turned.wait(30)
        said.append("hung")

    handler: Any = SimpleNamespace(hung=hung, back=lambda: said.append("back"))
    guard = LoopWatchdog(handler, timeout=0.2)
    guard.start()
    await asyncio.sleep(0)
    wait_until(begun.is_set)
    for _ in range(2):
        beat = guard.last_beat
        await until(lambda beat=beat: guard.last_beat > beat)
    turned.set()
    await until(lambda: len(said) >= 2)
    guard.stop()
    assert said == ["hung", "back"]
