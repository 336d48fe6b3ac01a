"""LoopGuard: names the task that blocks the event loop, and shows where."""

import asyncio
import logging
import sys
import threading
import time
import traceback
from typing import Any

__all__ = ["LoopGuard"]

logger = logging.getLogger("aiotasks.worker")

# Blocked for a second, a loop that should answer in milliseconds is noticed by people.
BLOCKED_AFTER = 1.0


class LoopGuard:
    """A thread that watches the loop it was made on, and logs each stall once, with its stack."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._handle: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="aiotasks-guard", daemon=True)

    def start(self) -> None:
        self._tick()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        self._beat = time.monotonic()
        self._handle = self._loop.call_later(BLOCKED_AFTER / 4, self._tick)

    def _watch(self) -> None:
        reported: tuple[float, asyncio.Task[Any] | None] = (0.0, None)
        seen, since = None, 0.0
        while not self._stop.wait(BLOCKED_AFTER / 4) and not self._loop.is_closed():
            now, beat, task = time.monotonic(), self._beat, asyncio.current_task(self._loop)
            if task is not seen:
                seen, since = task, now
            blocked = now - beat
            if beat == reported[0]:
                # Another may follow on the one reported, before the loop has come to its beat.
                blocked = now - since if task is not reported[1] else 0.0
            if blocked > BLOCKED_AFTER:
                reported = beat, task
                self._report(blocked, task)

    def _report(self, blocked: float, task: "asyncio.Task[Any] | None") -> None:
        frame = sys._current_frames().get(self._loop_thread)
        logger.warning(
            "the event loop is blocked seconds=%.1f task=%r\n%s",
            blocked,
            task.get_name() if task is not None else None,
            "".join(traceback.format_stack(frame)) if frame is not None else "",
        )
