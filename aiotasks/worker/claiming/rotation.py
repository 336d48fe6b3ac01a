"""QueueRotation: from which queues the next claim takes, in what order, and from when on."""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ...rows import LANES, Job, Lane, LaneRequest
from ...store.store import Store
from ...store.wakeups import Wakeup

__all__ = ["QueueRotation"]

# For how long the queues that there are, where any name is served, are taken as known.
QUEUES_TTL = 2.0

# A claim that emptied a queue needn't look again at what became READY this long before it (dead
# index entries there, which an old snapshot keeps, cost 20 ms a claim). A transaction may commit
# a row this much later than its ready_at says; what is later still is found by the next poll.
WATERMARK_MARGIN = timedelta(seconds=10)

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class QueueRotation:
    """What is known of the queues that a worker serves.

    - The queue that has filled a claim comes last in the next one, so a flood in one holds another
      up for a claim, and several take turns.
    - A claim that emptied the queues leaves a watermark: later claims look at what is newer.
    """

    def __init__(self, store: Store, *, backend: str, queues: Sequence[str]) -> None:
        self._store = store
        self._backend = backend
        self._queues = sorted(queues)
        self._known_queues: list[str] = []
        self._known_until = 0.0
        self._heard = 0
        self._served: dict[Lane, str] = dict.fromkeys(LANES, "")  # the queue that has had its turn
        self._watermarks: dict[tuple[str, Lane], datetime] = {}
        self._looked_back = False  # since the last claim was asked for: it doesn't know of that

    def note_wakeup(self, wakeup: Wakeup | None) -> bool:
        """Whether what a wake-up tells of (None: anything, anywhere) is served here."""
        if wakeup is not None and wakeup.backend != self._backend:
            return False
        self._heard += 1
        if wakeup is None:
            self.forget()
        if wakeup is None or (not self._queues and wakeup.queue_name not in self._known_queues):
            self._known_until = 0.0
            return True
        return not self._queues or wakeup.queue_name in self._queues

    def forget(self) -> None:
        """Have the next claims look at everything."""
        self._watermarks.clear()
        self._looked_back = True

    def look_back(self, since: datetime) -> None:
        """Have the next claims look at everything from ``since`` on."""
        self._watermarks = {key: min(mark, since) for key, mark in self._watermarks.items()}
        self._looked_back = True

    async def queues(self) -> list[str]:
        """The queues served, sorted; where any name is, those that there are."""
        if self._queues:
            return self._queues
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            heard = self._heard
            self._known_queues = sorted(await self._store.list_queues(self._backend))
            if heard == self._heard:  # else what was heard of meanwhile may not be on the list
                self._known_until = now + QUEUES_TTL
        return self._known_queues

    def of(self, lane: Lane, queues: Sequence[str], limit: int, *, robust_only: bool) -> LaneRequest:
        """What to ask for in a lane."""
        self._looked_back = False
        turn = bisect_right(queues, self._served[lane])
        order = [*queues[turn:], *queues[:turn]] if limit else []
        return LaneRequest(
            order, [self._watermarks.get((name, lane), _EVER) for name in order], limit, robust_only
        )

    def learn(self, lane: Lane, source: LaneRequest, jobs: Sequence[Job]) -> None:
        """See from what a claim has brought which queue is next, or up to when all are empty."""
        if not jobs:
            return
        if len(jobs) < source.limit:
            if self._looked_back:
                return  # what became READY during the claim may be older than all that it has brought
            since = max(job.ready_at for job in jobs if job.ready_at is not None) - WATERMARK_MARGIN
            self._watermarks |= {(name, lane): since for name in source.queues}
            return
        # The last queue that gave something has more, and begins; one that gave it all has had its turn.
        gave = {job.queue_name for job in jobs}
        last = max(index for index, name in enumerate(source.queues) if name in gave)
        self._served[lane] = source.queues[last if len(gave) == 1 else last - 1]
