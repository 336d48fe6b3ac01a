"""Promoter: makes scheduled tasks READY when they are due, by a timer on the next one."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from django.db import utils

from ...db.outage import Outage
from ...store.store import Store
from ...store.wakeups import Wakeup

__all__ = ["LONGEST_WAIT", "Promoter"]

logger = logging.getLogger("aiotasks.worker")

BATCH = 1000

# It looks again after a minute at the latest, in case that a NOTIFY of an earlier task got lost.
LONGEST_WAIT = 60.0
SHORTEST_WAIT = 0.001

# What has been due for so long wasn't promoted because somebody has locked it (a cancel() inside a long
# transaction): it is looked for again so many seconds later.
LOCKED_WAIT = 0.2


class Promoter:
    """Sleeps until the next task is due, so that far-future rows cost nothing.

    A wake-up of a task that is due earlier than what it waits for makes it look again. ``look_back`` is
    called before a wake-up, with the earliest time (epoch seconds) that a promoted task was due at: that is
    its place in the queue.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        wake: Callable[[Sequence[Wakeup]], None],
        look_back: Callable[[float], None],
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        self._store = store
        self._backend = backend
        self._wake = wake
        self._look_back = look_back
        self._longest_wait = min(LONGEST_WAIT, longest_wait)
        self._waiting_for: float | None = None
        self._look = asyncio.Event()

    def look(self, due: float | None = None) -> None:
        """There may be a task that is due at ``due`` (epoch seconds; None: at any time)."""
        if due is None or self._waiting_for is None or due < self._waiting_for:
            self._look.set()

    async def run(self) -> None:
        """Promote, wait for the next, for ever."""
        outage = Outage(logger, "promoter", "due tasks wait for the database")
        while True:
            self._look.clear()
            try:
                wait = await self.run_once()
                outage.ended()
            except utils.Error as error:
                wait = outage.failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._look.wait()

    async def run_once(self) -> float:
        """Promote what is due; returns the seconds until the next look."""
        self._waiting_for = None  # until we know: a wake-up meanwhile must count, whatever it names
        while True:
            promoted = await self._store.promote_due_jobs(self._backend, BATCH)
            if promoted:
                self._look_back(min(task.ready_at for task in promoted))
            self._wake([Wakeup(self._backend, name) for name in {task.queue_name for task in promoted}])
            if len(promoted) < BATCH:
                break
        following = await self._store.next_due(self._backend)
        if following is None:
            self._waiting_for = None
            return self._longest_wait
        self._waiting_for = following.run_after.timestamp()
        shortest = LOCKED_WAIT if following.seconds < -LOCKED_WAIT else SHORTEST_WAIT
        return min(max(following.seconds, shortest), self._longest_wait)
