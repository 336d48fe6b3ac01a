"""LoopGuard: who blocks the loop is named, each once."""

import asyncio
import logging
import time

import pytest

from aiotasks.worker import guard as guard_module
from aiotasks.worker.guard import LoopGuard


async def test_each_stall_is_told_also_where_one_follows_on_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two tasks of one claim block the loop without a turn of it in between."""
    monkeypatch.setattr(guard_module, "BLOCKED_AFTER", 0.2)
    loop = asyncio.get_running_loop()
    guard = LoopGuard(timeout=None, hung=lambda seconds, task: None, back=lambda: None)
    guard.start()

    async def block() -> None:
        time.sleep(0.8)  # noqa: ASYNC251  # what is to be noticed

    with caplog.at_level(logging.WARNING, "aiotasks.worker"):
        for name in ("first", "second"):
            await asyncio.Task(block(), loop=loop, eager_start=True, name=name)
    guard.stop()
    assert [name for name in ("first", "second") for said in caplog.messages if f"task={name!r}" in said] == [
        "first",
        "second",
    ]
