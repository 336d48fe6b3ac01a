"""Doubts: which claims that have found nothing are repeated, because rows may have been locked."""

from collections import Counter
from collections.abc import Collection, Iterable
from math import inf

from ...rows import LANES, Job, Lane

__all__ = ["DELAYS", "Doubts"]

# Seconds from a claim that has found nothing to the next look, and from that to the one after it. Chosen: a
# join has 500 rows locked for 5 to 15 ms, and most transactions that lock rows of tasks end within 0.3 s.
DELAYS = (0.05, 0.25)


class Doubts:
    """A claim passes over the rows that another session has locked: a join that marks tasks as awaited, a
    bulk action, a transaction of the site. Nobody wakes a worker when the lock is gone. So a claim that finds
    nothing in a lane is repeated after DELAYS, where there should be tasks:

    - a wake-up for the lane has come to this worker first, and no claim has brought a task since;
    - or there was a backlog: claims were full.

    Any other claim that finds nothing is believed, because in a fleet most come after another worker's.
    """

    def __init__(self) -> None:
        self._woken: set[Lane] = set()
        self._backlog: set[Lane] = set()
        self._full: set[Lane] = set()  # lanes whose last claim was full
        self._looks = Counter[Lane]()  # in a row that have found nothing, though there should be tasks
        self._next: dict[Lane, float] = {}

    @property
    def at(self) -> float:
        """When the next look is due, by the loop's clock."""
        return min(self._next.values(), default=inf)

    def take(self, now: float) -> set[Lane]:
        """Return the lanes in which a look is due."""
        lanes = {lane for lane, at in self._next.items() if now >= at}
        for lane in lanes:
            del self._next[lane]
        return lanes

    def woken(self, lane: Lane) -> None:
        """Note a wake-up that has come to this worker first."""
        self._woken.add(lane)
        self._reset(lane)

    def brought(self, jobs: Collection[Job], short: Collection[Lane]) -> None:
        """Note the jobs of a claim, and in which lanes they are fewer than it was for."""
        numbers = Counter(job.lane for job in jobs)
        for lane in LANES:
            is_full = numbers[lane] > 0 and lane not in short
            if is_full and (numbers[lane] > 1 or lane in self._full):  # one task may be all that there is
                self._backlog.add(lane)
            (self._full.add if is_full else self._full.discard)(lane)
            if numbers[lane]:
                self._woken.discard(lane)
                self._reset(lane)

    def found_nothing(self, lanes: Iterable[Lane], now: float) -> None:
        """Note that a claim has found nothing in these lanes."""
        for lane in lanes:
            if lane not in self._woken and lane not in self._backlog:
                continue
            if self._looks[lane] < len(DELAYS):
                self._next[lane] = now + DELAYS[self._looks[lane]]
                self._looks[lane] += 1
            else:
                self._woken.discard(lane)
                self._backlog.discard(lane)
                self._reset(lane)

    def _reset(self, lane: Lane) -> None:
        self._looks[lane] = 0
        self._next.pop(lane, None)
