"""Watermarks: since when a claim looks for tasks of a queue, so that it need not pass over those of before.

A task that was claimed leaves a dead entry in the index of READY tasks, at its head, until the table is
vacuumed: each claim passes over all of them. So it begins at a ``ready_at`` before which it expects nothing.
Two things are learned from a claim: that it has emptied a queue, or how far it has come in a long one.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import inf

from ...rows import Job, Lane, microseconds, time_of

__all__ = ["EVER", "Watermarks"]

# After a claim that emptied a queue, the next ones skip the tasks that became READY this long before its
# newest: dead index entries, which an old snapshot keeps, cost 20 ms a claim. A transaction may commit a row
# this much later than its ready_at says; the next poll finds those that come later still.
EMPTIED_MARGIN = timedelta(seconds=10)

# After a claim that was full, the next ones skip the tasks before its last, but look at all that became READY
# within this time before the claim: of those some aren't committed yet.
PASSED_MARGIN = timedelta(seconds=1)

# Seconds after which a claim looks at everything again, because tasks may have come back to their old places,
# and seconds between two moves of the marks, which take 30 µs for a claim of 250.
PASSED_FOR = 1.0
PASSED_INTERVAL = 0.05

# Watermarks of a worker that serves any name; with more it drops them all. Chosen: as many as it remembers
# names of a kind.
WATERMARKS_LIMIT = 1000

# Earlier than any task.
EVER = datetime(1970, 1, 1, tzinfo=UTC)

type _Key = tuple[str, Lane]


class Watermarks:
    """The watermarks of one worker, by queue and lane.

    A queue that was passed may have older tasks all the same, of a lower priority or left out by a claim that
    is ``robust_only``. So a claim that goes by such a mark and isn't full shows nothing: ``fell_short()``.
    """

    def __init__(self) -> None:
        self._emptied: dict[_Key, datetime] = {}
        self._passed: dict[_Key, tuple[datetime, bool]] = {}  # and whether the claim was robust_only
        self._passed_since = 0.0  # by time.monotonic(): the first of them
        self._moved_at = -inf
        self._asked: dict[Lane, list[str]] = {}  # the names of the last request that go by a passed mark

    def since(self, names: Sequence[str], lane: Lane, *, robust_only: bool) -> list[datetime]:
        """Return where the next claim begins in each queue."""
        if self._passed and time.monotonic() - self._passed_since > PASSED_FOR:
            self._passed.clear()
        marks = [self._emptied.get((name, lane), EVER) for name in names]
        asked = self._asked[lane] = []
        if self._passed:
            for number, name in enumerate(names):
                passed, is_robust = self._passed.get((name, lane), (None, False))
                if passed is not None and (robust_only or not is_robust):
                    marks[number] = max(passed, marks[number])
                    asked.append(name)
        return marks

    def emptied(self, lane: Lane, names: Iterable[str], jobs: Collection[Job]) -> None:
        """Note that a claim has taken all tasks of these queues, the last of which are ``jobs``."""
        since = _ready_at(max(jobs, key=_age)) - EMPTIED_MARGIN
        self._emptied |= {(name, lane): since for name in names}

    def passed(self, lane: Lane, jobs: Collection[Job], *, robust_only: bool) -> None:
        """Note that a claim has taken ``jobs`` and left others, which come after them or are of a lower
        priority."""
        now = time.monotonic()
        if now - self._moved_at < PASSED_INTERVAL:
            return
        self._moved_at = now
        last: dict[str, Job] = {}
        for job in jobs:
            known = last.get(job.queue_name)
            if known is None or _place(job) > _place(known):
                last[job.queue_name] = job
        if not self._passed:
            self._passed_since = now
        for name, job in last.items():
            claimed_at = time_of(job.last_attempted_at)
            if claimed_at is not None:
                mark = min(_ready_at(job), claimed_at - PASSED_MARGIN)
                self._passed[name, lane] = mark, robust_only

    def fell_short(self, lane: Lane) -> bool:
        """Note that a claim wasn't full. Returns whether that may be because of marks of passed tasks, which
        are dropped: the next claim shows it."""
        asked = self._asked.pop(lane, [])
        for name in asked:
            self._passed.pop((name, lane), None)
        return bool(asked)

    def of(self, lane: Lane, name: str) -> datetime | None:
        """Return the mark of a queue that was emptied."""
        return self._emptied.get((name, lane))

    def are_many(self) -> bool:
        """Return whether there are more than should be remembered."""
        return len(self._emptied) + len(self._passed) > WATERMARKS_LIMIT

    def look_back(self, since: datetime) -> None:
        """Move the marks back to ``since``."""
        self._emptied = {key: min(mark, since) for key, mark in self._emptied.items()}
        self._passed = {key: (min(mark, since), robust) for key, (mark, robust) in self._passed.items()}

    def clear(self) -> None:
        """Drop all."""
        self._emptied.clear()
        self._passed.clear()


def _ready_at(job: Job) -> datetime:
    return time_of(job.ready_at) or EVER


def _age(job: Job) -> int:
    return microseconds(job.ready_at)


def _place(job: Job) -> tuple[int, int]:
    """A job's place among those of its queue that one claim has taken."""
    return -job.priority, microseconds(job.ready_at)
