"""Recycler: asks for a new process when threads are stuck in tasks that have outlasted their time."""

import asyncio

from .events import Observer
from .protocols import Beats, HasStuckThreads, KnowsStuckThreads, KnowsWork

__all__ = ["Recycler"]

# Seconds between two looks while threads are stuck. Chosen: `status` shows them that late, and a burst of
# time-outs renews the lease that often.
LOOK_INTERVAL = 1.0

# Seconds that threads must be stuck before a worker recycles. Chosen: a function whose own time-out is a
# little longer than the task's comes back by itself, which costs less than a start.
PATIENCE = 5.0


class Recycler:
    """Has the lease renewed when the number of stuck threads changes, and sets an event when nothing but a
    new process helps, until no thread is stuck.

    - ``exhausted``: so many threads are stuck, each for PATIENCE, that no sync task can run.
    - ``worn``: that, or a thread has been stuck for PATIENCE and the worker is idle otherwise.
    """

    def __init__(
        self,
        threads: HasStuckThreads,
        deadlines: KnowsStuckThreads,
        work: KnowsWork,
        heartbeat: Beats,
        observer: Observer,
        *,
        worn: asyncio.Event,
        exhausted: asyncio.Event,
    ) -> None:
        self._threads = threads
        self._deadlines = deadlines
        self._work = work
        self._heartbeat = heartbeat
        self._observer = observer
        self._worn = worn
        self._exhausted = exhausted
        self._shown = 0

    async def run(self) -> None:
        """Look while threads are stuck, forever."""
        while True:
            await self._threads.stuck_changed.wait()
            self._threads.stuck_changed.clear()
            self.look()
            while self._threads.stuck:
                await asyncio.sleep(LOOK_INTERVAL)
                self.look()

    def look(self) -> None:
        """Look once."""
        stuck = self._threads.stuck
        if stuck != self._shown:
            self._shown = stuck
            self._heartbeat.beat_now()
        if not stuck:
            self._worn.clear()
            self._exhausted.clear()
            return
        seconds = self._deadlines.stuck_for()
        is_exhausted = not self._threads.usable and min(seconds, default=0.0) >= PATIENCE
        if is_exhausted:
            self._exhausted.set()
        is_idle = max(seconds, default=0.0) >= PATIENCE and self._work.is_idle()
        if (is_exhausted or is_idle) and not self._worn.is_set():
            self._worn.set()
            self._observer.worn(stuck)
