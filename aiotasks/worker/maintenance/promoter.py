"""Promoter: makes scheduled tasks READY when they are due, by a timer for the next one.

A pause that ends by itself has the same timer, and so has the next tick of a schedule."""

import logging
from math import inf

from django.db import utils

from ...db.outage import Outage
from ...rows import LANES
from ...store.queues import Due, Promoted
from ...store.store import Store
from ...store.wakeups import Wakeup, wakeup_in
from ..events import NULL, Observer
from ..fleet import Fleet
from ..protocols import LooksForDue, Wakes
from .promotion import TIMEOUT, Promotion

__all__ = ["LONGEST_WAIT", "Promoter"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one UPDATE: chosen, as many as one claim takes.
PROMOTE_LIMIT = 1000

# Seconds between two looks, at most: the NOTIFY of a task that is due earlier may have been lost. And at
# least: clocks differ by a little.
LONGEST_WAIT = 60.0
SHORTEST_WAIT = 0.001

# Seconds by which each worker looks later than the one before it when a task is due, and at most. Chosen: if
# the first promotes it, the others find nothing; if its loop is blocked, the next one is soon enough.
STAGGER = 0.1
MOST_STAGGER = 1.0

# A task that has been due for so many seconds wasn't promoted because its row is locked (by a cancel() in a
# long transaction). It is looked for again after as many.
LOCKED_WAIT = 0.2


class Promoter:
    """Sleeps until the next task is due, so that rows of the far future cost nothing.

    A wake-up for a task that is due earlier makes it look again. It wakes the claimer with the earliest time
    that a promoted task was due at, because that is the task's place in its queue. After the end of a pause
    it wakes only this worker's claimer: the other workers wait for that time, too. When a schedule ticks it
    has ``ticker`` look, which has it look in turn for the next tick; without one it leaves ticks to others.

    peers: the workers that are woken, too. Each of them waits for the next task, one after another, and they
    take turns at looks within ``longest_wait`` seconds for one that they don't know of. timeout: in seconds,
    of a promotion.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        waker: Wakes,
        peers: Fleet,
        ticker: LooksForDue | None = None,
        longest_wait: float = LONGEST_WAIT,
        timeout: float = TIMEOUT,
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._backend = backend
        self._promotion = Promotion(store, backend=backend, between=self._seconds_to_tick, timeout=timeout)
        self._waker = waker
        self._ticker = ticker
        self._observer = observer
        # When the next task is due or the next schedule ticks (epoch seconds), if that is known.
        self.waiting_for: float | None = None
        self._pause_end: float | None = None  # when the next pause is over (epoch seconds), if one is known
        self._peers = peers
        self._turn = peers.turn(min(LONGEST_WAIT, longest_wait))

    def look(self, due: float | None = None) -> None:
        """Look for what is due: now, or if ``due`` (epoch seconds) is earlier than the next known one."""
        if due is None or self.waiting_for is None or due < self.waiting_for:
            self._turn.take_within(0.0)

    async def run(self) -> None:
        """Promote the tasks that are due and wait for the next one, forever."""
        outage = Outage(logger, "promoter", "due tasks wait for the database", observer=self._observer)
        while True:
            try:
                wait = await self.run_once()
                outage.ended()
            except utils.Error as error:
                wait = min(outage.failed(error), await self._seconds_to_tick())
            self._turn.take_within(wait)
            await self._turn.wait()

    async def run_once(self) -> float:
        """Promote the tasks that are due; returns the seconds until this worker looks for the next one."""
        self.waiting_for = None  # a wake-up meanwhile must count, whatever time it names
        while True:
            promoted, has_more = await self._promotion.next_batch(PROMOTE_LIMIT)
            self._waker.wake(
                list({self._wakeup(task) for task in promoted}),
                since=min((task.ready_at for task in promoted), default=None),
            )
            if not has_more:
                break
            await self._seconds_to_tick()  # ticks don't wait for thousands of tasks
        following = await self._store.next_due(self._backend, refused=self._promotion.refused())
        pause_end = following.pause_end.timestamp() if following and following.pause_end else None
        if self._pause_end is not None and pause_end != self._pause_end:
            self._waker.wake_self()  # it is over, unless somebody has resumed or prolonged it
        self._pause_end = pause_end
        return inf if following is None else self._seconds_to(following)

    def _seconds_to(self, following: Due) -> float:
        """Return the seconds until this worker looks for what comes next, and note when that is."""
        waits: list[tuple[float, float]] = []  # when something is due, and the seconds until a look
        if following.at is not None and following.seconds is not None:
            shortest = LOCKED_WAIT if following.seconds < -LOCKED_WAIT else SHORTEST_WAIT
            waits.append((following.at.timestamp(), max(following.seconds, shortest)))
        if following.tick_at is not None and (wait := self._look_for_tick(following)) < inf:
            waits.append((following.tick_at.timestamp(), wait))
        if not waits:
            return inf
        self.waiting_for = min(due for due, _ in waits)
        return min(wait + self._stagger(due) for due, wait in waits)

    def _look_for_tick(self, following: Due) -> float:
        """Have the ticker look if a tick has come, which calls ``look()`` then; returns the seconds to the
        next one, and infinity if there is none to wait for."""
        if self._ticker is None or following.tick_seconds is None:
            return inf
        if following.tick_seconds > 0:
            return max(following.tick_seconds, SHORTEST_WAIT)
        self._ticker.look()
        return inf

    async def _seconds_to_tick(self) -> float:
        """The same while tasks are promoted, or can't be."""
        if self._ticker is None:
            return inf
        try:
            following = await self._store.next_due(self._backend, refused=self._promotion.refused())
        except utils.Error:
            return inf  # it fails again, and not unseen
        return inf if following is None else self._look_for_tick(following)

    def _wakeup(self, task: Promoted) -> Wakeup:
        if task.lane in LANES:
            return Wakeup(self._backend, task.queue_name)
        return wakeup_in(self._backend, task.queue_name, task.lane)

    def _stagger(self, due: float) -> float:
        """Return the seconds by which this worker looks later than the first, which the time decides."""
        return min(MOST_STAGGER, STAGGER * ((self._peers.rank - int(due)) % self._peers.number))
