"""LoopWatchdog: names the task that blocks the event loop, and shows where."""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from typing import Any, NamedTuple

from ..events import NULL, Observer
from ..protocols import HandlesHang

__all__ = ["Blocked", "LoopWatchdog"]

# Blocked for a second, a loop that should answer in milliseconds is noticed by people.
BLOCKED_AFTER = 1.0

# Seconds for which a late beat is shown. Chosen: metrics are read once a minute at the least.
LAG_SHOWN = 60.0


class Blocked(NamedTuple):
    """The event loop is blocked: for how many seconds, and by the asyncio task of that name, if by one."""

    seconds: float
    task_name: str | None


class LoopWatchdog:
    """A thread that watches the loop it was made on, and logs each stall once, with its stack.

    timeout: seconds after which a loop that is blocked hangs for good; None: never.
    handler: is called in the thread then, and on the loop should it go on after all.
    """

    def __init__(
        self,
        handler: HandlesHang,
        *,
        timeout: float | None,
        observer: Observer = NULL,
    ) -> None:
        self._timeout = timeout
        self._handler = handler
        self._observer = observer
        self._is_hung = False
        self._loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self.last_beat = time.monotonic()  # when the loop has last made a turn
        self._interval = BLOCKED_AFTER / 4  # of beats
        self._lags: deque[float] = deque(maxlen=round(LAG_SHOWN / self._interval))
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

    def lag(self) -> float:
        """Return by how many seconds the loop was late at most within the last minute, or is at the moment.
        May be called in any thread.
        """
        return max(0.0, time.monotonic() - self.last_beat - self._interval, *list(self._lags))

    def blocked(self) -> Blocked | None:
        """Return what blocks the loop at the moment, if it is blocked. May be called in any thread."""
        seconds = time.monotonic() - self.last_beat
        if seconds <= BLOCKED_AFTER:
            return None
        task = asyncio.current_task(self._loop)
        return Blocked(seconds, None if task is None else task.get_name())

    def _tick(self) -> None:
        now = time.monotonic()
        self._lags.append(now - self.last_beat - self._interval)
        self.last_beat = now
        if self._is_hung:
            self._is_hung = False
            self._handler.back()
        self._handle = self._loop.call_later(self._interval, self._tick)

    def _watch(self) -> None:
        reported: tuple[float, asyncio.Task[Any] | None] = (0.0, None)
        seen, since = None, 0.0
        # Counted by what this thread has seen: a process that was stopped, or a machine, doesn't hang.
        stalled, looked, last_beat = 0.0, time.monotonic(), self.last_beat
        while not self._stop.wait(self._interval) and not self._loop.is_closed():
            now, beat, task = time.monotonic(), self.last_beat, asyncio.current_task(self._loop)
            stalled = stalled + min(now - looked, BLOCKED_AFTER) if beat == last_beat else 0.0
            looked, last_beat = now, beat
            if self._timeout is not None and stalled > self._timeout and not self._is_hung:
                self._handler.hung(stalled, task)
                self._is_hung = True  # only now: the loop may go on meanwhile, and undo it too early
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
        frame = sys._current_frames().get(self.loop_thread)
        self._observer.loop_blocked(
            blocked,
            task.get_name() if task is not None else None,
            "".join(traceback.format_stack(frame)) if frame is not None else "",
        )
