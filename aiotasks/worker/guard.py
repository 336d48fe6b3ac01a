"""LoopGuard: names the task that blocks the event loop, and shows where."""

import asyncio
import logging
import sys
import threading
import time
import traceback

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
        reported = 0.0
        while not self._stop.wait(BLOCKED_AFTER / 4):
            beat = self._beat
            blocked = time.monotonic() - beat
            if blocked > BLOCKED_AFTER and beat != reported and not self._loop.is_closed():
                reported = beat
                self._report(blocked)

    def _report(self, blocked: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        task = asyncio.current_task(self._loop)
        logger.warning(
            "the event loop is blocked seconds=%.1f task=%r\n%s",
            blocked,
            task.get_name() if task is not None else None,
            "".join(traceback.format_stack(frame)) if frame is not None else "",
        )
