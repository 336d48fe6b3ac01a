"""QueueRotation: from which queues the next claim takes tasks, in which order, and since when."""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ...rows import LANES, Job, Lane, LaneRequest
from ...store.store import Store
from ...store.wakeups import Wakeup

__all__ = ["QueueRotation"]

# Seconds for which a list of all queues is used, by a worker that serves any name. Chosen: a new queue is
# known by its first wake-up anyway.
QUEUES_TTL = 2.0

# After a claim that emptied a queue, the next ones skip the tasks that became READY this long before its
# newest: dead index entries, which an old snapshot keeps, cost 20 ms a claim. A transaction may commit a row
# this much later than its ready_at says; the next poll finds those that come later still.
WATERMARK_MARGIN = timedelta(seconds=10)

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class QueueRotation:
    """Knows the queues that a worker serves, whose turn it is, and up to when they are empty.

    - The queue that has filled a claim comes last in the next one, so a flood in one queue holds the others
      up for one claim, and several floods take turns.
    - A claim that emptied the queues leaves a watermark: later claims look for newer tasks.
    """

    def __init__(self, store: Store, *, backend: str, queues: Sequence[str]) -> None:
        self._store = store
        self._backend = backend
        self._queues = sorted(queues)
        self._known_queues: list[str] = []
        self._known_until = 0.0
        self._wakeups = 0
        self._served: dict[Lane, str] = dict.fromkeys(LANES, "")  # the queue that has had its turn
        self._watermarks: dict[tuple[str, Lane], datetime] = {}
        self._looked_back = False  # since the last claim was sent, which doesn't see that

    def note_wakeup(self, wakeup: Wakeup | None) -> bool:
        """Note a wake-up (None: for any queue); returns whether its queue is served here."""
        if wakeup is not None and wakeup.backend != self._backend:
            return False
        self._wakeups += 1
        if wakeup is None:
            self.forget()
        if wakeup is None or (not self._queues and wakeup.queue_name not in self._known_queues):
            self._known_until = 0.0
            return True
        return not self._queues or wakeup.queue_name in self._queues

    def forget(self) -> None:
        """Drop all watermarks."""
        self._watermarks.clear()
        self._looked_back = True

    def look_back(self, since: datetime) -> None:
        """Move the watermarks back to ``since``."""
        self._watermarks = {key: min(mark, since) for key, mark in self._watermarks.items()}
        self._looked_back = True

    async def queues(self) -> list[str]:
        """Return the served queues, sorted; if any name is served, all that have READY tasks."""
        if self._queues:
            return self._queues
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            wakeups = self._wakeups
            self._known_queues = sorted(await self._store.list_queues(self._backend))
            if wakeups == self._wakeups:  # else the list may lack the queue of a wake-up meanwhile
                self._known_until = now + QUEUES_TTL
        return self._known_queues

    def of(self, lane: Lane, queues: Sequence[str], limit: int, *, robust_only: bool) -> LaneRequest:
        """Return what to ask for in a lane."""
        self._looked_back = False
        turn = bisect_right(queues, self._served[lane])
        order = [*queues[turn:], *queues[:turn]] if limit else []
        return LaneRequest(
            order, [self._watermarks.get((name, lane), _EVER) for name in order], limit, robust_only
        )

    def watermark(self, lane: Lane, queue_name: str) -> datetime | None:
        """Return since when the next claim looks for tasks of this queue; None: for all."""
        return self._watermarks.get((queue_name, lane))

    def learn(self, lane: Lane, request: LaneRequest, jobs: Sequence[Job]) -> None:
        """Learn from the reply to a claim which queue is next, or up to when all are empty."""
        if not jobs:
            return
        if len(jobs) < request.limit:
            if self._looked_back:
                return  # tasks that became READY during the claim may be older than all of its jobs
            since = max(job.ready_at for job in jobs if job.ready_at is not None) - WATERMARK_MARGIN
            self._watermarks |= {(name, lane): since for name in request.queues}
            return
        # The last queue that gave a job has more and begins; if one queue gave all, it has had its turn.
        gave = {job.queue_name for job in jobs}
        last = max(index for index, name in enumerate(request.queues) if name in gave)
        self._served[lane] = request.queues[last if len(gave) == 1 else last - 1]
