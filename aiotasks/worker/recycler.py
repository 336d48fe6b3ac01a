"""Recycler: asks for a new process when threads are stuck in tasks that have outlasted their time."""

import asyncio
import time

from .events import Observer
from .protocols import Beats, HasStuckThreads, KnowsWork

__all__ = ["Recycler"]

# Seconds between two looks while threads are stuck. Chosen: `status` shows them that late, and a burst of
# time-outs renews the lease that often.
LOOK_INTERVAL = 1.0

# Seconds that threads must be stuck before an idle worker recycles. Chosen: a function whose own time-out is
# a little longer than the task's comes back by itself, which costs less than a start.
PATIENCE = 5.0


class Recycler:
    """Has the lease renewed when the number of stuck threads changes, and sets ``worn`` when nothing but a
    new process helps: when they have been stuck for PATIENCE and the worker is idle otherwise, or when so
    many are stuck that no sync task can run.
    """

    def __init__(
        self,
        threads: HasStuckThreads,
        work: KnowsWork,
        heartbeat: Beats,
        observer: Observer,
        *,
        worn: asyncio.Event,
    ) -> None:
        self._threads = threads
        self._work = work
        self._heartbeat = heartbeat
        self._observer = observer
        self._worn = worn
        self._shown = 0
        self._stuck_since: float | None = None

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
        stuck, now = self._threads.stuck, time.monotonic()
        if stuck != self._shown:
            self._shown = stuck
            self._heartbeat.beat_now()
        if not stuck:
            self._stuck_since = None
            self._worn.clear()
            return
        if self._stuck_since is None:
            self._stuck_since = now
        is_idle = now - self._stuck_since >= PATIENCE and self._work.is_idle()
        if (is_idle or not self._threads.usable) and not self._worn.is_set():
            self._worn.set()
            self._observer.worn(stuck)
