"""Watermarks: since when a claim looks for tasks of a queue, so that it need not pass over those of before.

A task that was claimed leaves a dead entry in the index of READY tasks, at its head, until the table is
vacuumed: each claim passes over all of them. So it begins at a ``ready_at`` before which it expects nothing.
Two things are learned from a claim: that it has emptied a queue, or how far it has come in a long one.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

from ...rows import Job, Lane, microseconds, time_of

__all__ = ["ANY_PRIORITY", "EVER", "Watermarks"]

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

# Not above any task's priority (a smallint).
ANY_PRIORITY = -(2**15)

type _Key = tuple[str, Lane]


class _Passed(NamedTuple):
    """How far full claims have come in a queue: to a task of this time and priority.

    robust_only: whether they have left out tasks that a crash before their start would harm.
    """

    since: datetime
    priority: int
    robust_only: bool


class Watermarks:
    """The watermarks of one worker, by queue and lane.

    A queue that was passed may have older tasks all the same, of a lower priority or left out by a claim that
    is ``robust_only``. So a claim that goes by such a mark takes tasks of that priority or a higher one only,
    and that it brings none, or isn't full, shows nothing (``behind()``): the mark is dropped then.
    """

    def __init__(self) -> None:
        self._emptied: dict[_Key, datetime] = {}
        self._passed: dict[_Key, _Passed] = {}
        self._passed_since = 0.0  # by time.monotonic(): the first of them
        self._moved_at = -inf
        # Of the last full claim the lowest priority of each queue, and of the last request the queues that it
        # looked at behind a passed mark.
        self._lowest: dict[Lane, dict[str, int]] = {}
        self._behind: dict[Lane, list[str]] = {}

    def request(
        self, names: Sequence[str], lane: Lane, *, robust_only: bool
    ) -> tuple[list[datetime], list[int]]:
        """Return where the next claim begins in each queue, and the lowest priority that it takes of each
        (empty: any)."""
        if self._passed and time.monotonic() - self._passed_since > PASSED_FOR:
            self._passed.clear()
        since = [self._emptied.get((name, lane), EVER) for name in names]
        lowest: list[int] = []
        behind = self._behind[lane] = []
        if self._passed:
            for number, name in enumerate(names):
                mark = self._passed.get((name, lane))
                if mark is not None and (robust_only or not mark.robust_only):
                    lowest = lowest or [ANY_PRIORITY] * len(names)
                    since[number] = max(mark.since, since[number])
                    lowest[number] = mark.priority
                    behind.append(name)
        return since, lowest

    def behind(self, lane: Lane) -> list[str]:
        """Return the queues of which the last request for this lane went by a passed mark."""
        return self._behind.get(lane, [])

    def emptied(self, lane: Lane, names: Iterable[str], jobs: Collection[Job]) -> None:
        """Note that a claim has taken all tasks of these queues, the last of which are ``jobs``."""
        # Not later than the claim itself, whatever clock has set a row's time.
        since = min(_ready_at(max(jobs, key=_age)), _claimed_at(jobs)) - EMPTIED_MARGIN
        self._emptied |= {(name, lane): since for name in names}

    def passed(self, lane: Lane, jobs: Collection[Job], *, robust_only: bool) -> None:
        """Note that a full claim has taken ``jobs``: what it left comes after them, or is of a lower
        priority."""
        lowest: dict[str, int] = {}
        for job in jobs:
            lowest[job.queue_name] = min(job.priority, lowest.get(job.queue_name, job.priority))
        for name in self.behind(lane):
            if name not in lowest:
                self._passed.pop((name, lane), None)
        before, self._lowest[lane] = self._lowest.get(lane, {}), lowest
        now = time.monotonic()
        if now - self._moved_at < PASSED_INTERVAL:
            return
        self._moved_at = now
        # Two in a row: among tasks of several priorities, a mark would be dropped by the next claim.
        last = {name: 0 for name, priority in lowest.items() if before.get(name) == priority}
        if not last:
            return
        for job in jobs:
            name = job.queue_name
            if name in last and job.priority == lowest[name]:
                last[name] = max(last[name], microseconds(job.ready_at))
        if not self._passed:
            self._passed_since = now
        latest = _claimed_at(jobs) - PASSED_MARGIN
        for name, ready_at in last.items():
            since = min(time_of(ready_at.to_bytes(8, signed=True)) or EVER, latest)
            self._passed[name, lane] = _Passed(since, lowest[name], robust_only)

    def fell_short(self, lane: Lane) -> bool:
        """Note that a claim wasn't full. Returns whether that may be because of marks of passed tasks, which
        are dropped: the next claim shows it."""
        behind = self.behind(lane)
        for name in behind:
            self._passed.pop((name, lane), None)
        return bool(behind)

    def of(self, lane: Lane, name: str) -> datetime | None:
        """Return the mark of a queue that was emptied."""
        return self._emptied.get((name, lane))

    def are_many(self) -> bool:
        """Return whether there are more than should be remembered."""
        return len(self._emptied) + len(self._passed) > WATERMARKS_LIMIT

    def look_back(self, since: datetime) -> None:
        """Move the marks back to ``since``."""
        self._emptied = {key: min(mark, since) for key, mark in self._emptied.items()}
        self._passed = {
            key: mark._replace(since=min(mark.since, since)) for key, mark in self._passed.items()
        }

    def clear(self) -> None:
        """Drop all."""
        self._emptied.clear()
        self._passed.clear()


def _ready_at(job: Job) -> datetime:
    return time_of(job.ready_at) or EVER


def _claimed_at(jobs: Iterable[Job]) -> datetime:
    """When the claim of these jobs was made, by the database's clock: the same for all."""
    return time_of(next(iter(jobs)).last_attempted_at) or EVER


def _age(job: Job) -> int:
    return microseconds(job.ready_at)
