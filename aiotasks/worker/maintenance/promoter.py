"""Promoter: makes scheduled tasks READY when they are due, by a timer for the next one."""

import asyncio
import logging
from contextlib import suppress

from django.db import utils

from ...db.outage import Outage
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..events import NULL, Observer
from ..protocols import Wakes

__all__ = ["LONGEST_WAIT", "Promoter"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one UPDATE: chosen, as many as one claim takes.
PROMOTE_LIMIT = 1000

# Seconds between two looks, at most: the NOTIFY of a task that is due earlier may have been lost. And at
# least: clocks differ by a little.
LONGEST_WAIT = 60.0
SHORTEST_WAIT = 0.001

# A task that has been due for so many seconds wasn't promoted because its row is locked (by a cancel() in a
# long transaction). It is looked for again after as many.
LOCKED_WAIT = 0.2


class Promoter:
    """Sleeps until the next task is due, so that rows of the far future cost nothing.

    A wake-up for a task that is due earlier makes it look again. It wakes the claimer with the earliest time
    that a promoted task was due at, because that is the task's place in its queue.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        waker: Wakes,
        longest_wait: float = LONGEST_WAIT,
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._backend = backend
        self._waker = waker
        self._observer = observer
        self._longest_wait = min(LONGEST_WAIT, longest_wait)
        self.waiting_for: float | None = None  # when the next task is due (epoch seconds), if one is known
        self._look = asyncio.Event()

    def look(self, due: float | None = None) -> None:
        """Look for due tasks: now, or if ``due`` (epoch seconds) is earlier than the next known one."""
        if due is None or self.waiting_for is None or due < self.waiting_for:
            self._look.set()

    async def run(self) -> None:
        """Promote the tasks that are due and wait for the next one, forever."""
        outage = Outage(logger, "promoter", "due tasks wait for the database", observer=self._observer)
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
        """Promote the tasks that are due; returns the seconds until the next look."""
        self.waiting_for = None  # a wake-up meanwhile must count, whatever time it names
        while True:
            promoted = await self._store.promote_due_jobs(self._backend, PROMOTE_LIMIT)
            self._waker.wake(
                [Wakeup(self._backend, name) for name in {task.queue_name for task in promoted}],
                since=min((task.ready_at for task in promoted), default=None),
            )
            if len(promoted) < PROMOTE_LIMIT:
                break
        following = await self._store.next_due(self._backend)
        if following is None:
            return self._longest_wait
        self.waiting_for = following.run_after.timestamp()
        shortest = LOCKED_WAIT if following.seconds < -LOCKED_WAIT else SHORTEST_WAIT
        return min(max(following.seconds, shortest), self._longest_wait)
