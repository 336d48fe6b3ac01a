"""QueueRotation: from which queues the next claim takes tasks, in which order, and since when."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from ...rows import LANES, Job, Lane, LaneRequest, keyed_lane
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..protocols import MeetsQueues
from .turns import PIECE, Turns
from .watermarks import EVER, Watermarks

__all__ = ["QueueRotation"]


class QueueRotation:
    """Knows the queues that a worker serves, whose turn it is, and where the next claim begins in each.

    - The queue that has filled a claim comes last in the next one, so a flood in one queue holds the others
      up for one claim, and several floods take turns (``Turns``).
    - A claim leaves a watermark: later claims look for newer tasks (``Watermarks``).
    """

    def __init__(self, store: Store, *, backend: str, queues: Sequence[str]) -> None:
        """``queues``: the names that are served; empty for any."""
        self._store = store
        self._backend = backend
        self._queues = sorted(queues)
        self._turns = {lane: Turns(self._queues) for lane in LANES}
        self.marks = Watermarks()
        self._skipped: set[tuple[str, Lane]] = set()  # asked for newer tasks than a watermark only
        self._looked_back = False  # since the last claim was sent, which doesn't see that
        self._keyed: MeetsQueues | None = None

    def connect(self, keyed: MeetsQueues) -> None:
        """Name the part that is to know queues with keyed tasks, which the walk comes by."""
        self._keyed = keyed

    @property
    def queues(self) -> list[str] | None:
        """The served queues, sorted; None if any name is served."""
        return self._queues or None

    def note_wakeup(self, wakeup: Wakeup | None) -> bool:
        """Note a wake-up (None: for any queue); returns whether its queue is served here."""
        if wakeup is None:
            self.forget()
            self.walk()
            return True
        if not self.serves(wakeup):
            return False
        lanes = LANES if wakeup.lane is None else [wakeup.lane]
        self._note_wakeups((wakeup.queue_name, lane) for lane in lanes)
        return True

    def serves(self, wakeup: Wakeup) -> bool:
        """Return whether the queue of a wake-up is served here."""
        return wakeup.backend == self._backend and (not self._queues or wakeup.queue_name in self._queues)

    def walk(self) -> None:
        """Look for all queues that have READY tasks, if any name is served."""
        for turns in self._turns.values():
            turns.walk()

    def forget(self) -> None:
        """Drop all watermarks."""
        self._note_wakeups(self._skipped)
        self._skipped.clear()
        self.marks.clear()
        self._looked_back = True

    def look_back(self, since: datetime) -> None:
        """Move the watermarks back to ``since``."""
        self.marks.look_back(since)
        self._looked_back = True

    async def requests(
        self, limits: Mapping[Lane, int], *, robust_only: Collection[Lane] = ()
    ) -> dict[Lane, LaneRequest]:
        """Return what the next claim asks for, at most ``limits`` tasks.

        Where no queues are left to ask, the walk goes on until it has found some, or has come round.
        """
        while lanes := [
            lane for lane in LANES if limits[lane] and self._turns[lane].wants_piece(limits[lane])
        ]:
            await self._list_piece(lanes, max(PIECE, *limits.values()))
            if any(limits[lane] and self._turns[lane].has_names() for lane in LANES):
                break
        self._looked_back = False
        return {lane: self._request(lane, limits[lane], lane in robust_only) for lane in LANES}

    def unasked(self, requests: Mapping[Lane, LaneRequest]) -> set[Lane]:
        """Return the lanes in which there may be queues with tasks beside those of ``requests``."""
        return {
            lane
            for lane, request in requests.items()
            if request.limit and self._turns[lane].has_more(request.queues)
        }

    def learn(self, lane: Lane, request: LaneRequest, jobs: Sequence[Job]) -> bool:
        """Learn from the reply to a claim which queue is next, or up to when all are empty.

        Returns whether the claim has found fewer tasks than were asked for because it hasn't looked at all.
        """
        if not request.queues:
            return False
        given = {job.queue_name for job in jobs}
        is_full = len(jobs) >= request.limit
        unsure = request.queues if request.robust_only else self.marks.behind(lane)
        self._turns[lane].learn(request.queues, given, full=is_full, unsure=unsure)
        fell_short = not is_full and self.marks.fell_short(lane)
        # Tasks that became READY during the claim may be older than all of its jobs.
        if not jobs or fell_short or self._looked_back:
            return fell_short
        if is_full:
            self.marks.passed(lane, jobs, robust_only=request.robust_only)
        elif not request.robust_only:
            capped = _capped(request, jobs)
            names = request.queues if self._queues else given
            self.marks.emptied(lane, (name for name in names if name not in capped), jobs)
        if not self._queues and self.marks.are_many():
            self.forget()
        return False

    def _request(self, lane: Lane, limit: int, robust_only: bool) -> LaneRequest:
        names = self._turns[lane].next(limit, time.monotonic()) if limit else []
        since, lowest = self.marks.request(names, lane, robust_only=robust_only)
        self._skipped.update((name, lane) for name, mark in zip(names, since, strict=True) if mark > EVER)
        return LaneRequest(names, since, limit, robust_only, lowest=lowest)

    def _note_wakeups(self, queues: Iterable[tuple[str, Lane]]) -> None:
        now = time.monotonic()
        for name, lane in queues:
            self._turns[lane].note_wakeup(name, now)

    async def _list_piece(self, lanes: Collection[Lane], steps: int) -> None:
        """List a piece of the walk for each of ``lanes``; lanes at the same place share a statement."""
        for position in {self._turns[lane].position for lane in lanes}:
            here = [
                lane
                for lane, turns in self._turns.items()
                if turns.position == position and (lane in lanes or turns.takes_piece(steps))
            ]
            for lane in here:
                self._turns[lane].begin_piece()
            found = await self._store.list_queues(self._backend, position, steps)
            last = found[-1] if len(found) == steps else None
            if self._keyed is not None:
                for queue in found:
                    for lane in LANES:
                        if queue.lane == keyed_lane(lane):
                            self._keyed.meet(queue.queue_name, lane)
            for lane in here:
                self._turns[lane].end_piece((queue.queue_name for queue in found if queue.lane == lane), last)


def _capped(request: LaneRequest, jobs: Sequence[Job]) -> set[str]:
    """Return the queues that have given as many jobs as the request has allowed each, and may have more."""
    if not request.most:
        return set()
    given = Counter(job.queue_name for job in jobs)
    return {name for name, most in zip(request.queues, request.most, strict=True) if given[name] >= most}
