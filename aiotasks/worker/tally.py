"""Tally: counts a worker's events for its metrics."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from ..codec import CANCELLED, decode
from ..exceptions import TaskCancelled
from ..metrics import SECONDS, SIZES, Family, Histogram, Sample, family
from ..rows import Job
from .events import LeaseLoss, Observer, ReleaseReason
from .execution import Execution
from .outcomes import Outcome, Retried, Succeeded
from .waits import wait_of

__all__ = ["Tally"]

# Pairs of a task and a queue that are counted apart; the others are counted together. Chosen: each has some
# forty series, and a site with a queue for each customer has any number of them.
MOST_PAIRS = 200
OTHER = "other"

# Seconds for which a schedule that failed counts as failing: twice the ticker's LONGEST_RETRY. Another worker
# may be the one that enqueues its next tick, or nobody if it was removed, and this one doesn't hear of that.
FAILING = 1200.0

MICROSECONDS = tuple(round(seconds * 1e6) for seconds in SECONDS)

# How a task ends without an execution, by the class of its error.
_LOST = {
    CANCELLED: "cancelled",
    "aiotasks.exceptions.TaskExpired": "expired",
    "aiotasks.exceptions.WorkerLost": "lost",
}


class _Pair:
    """The counts of one task in one queue. ``others``: outcomes but success, by their names."""

    __slots__ = ("others", "retried", "succeeded", "took", "waited")

    def __init__(self) -> None:
        self.succeeded = 0
        self.others: Counter[str] = Counter()
        self.retried = 0
        self.took = Histogram(SECONDS)
        self.waited = Histogram(MICROSECONDS, 1e-6)  # of the database's clock, as rows have it


class Tally(Observer):
    """Counts, and makes no more of it than that: 1 µs a task. Its families may be read in any thread."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._other = _Pair()
        self._began = 0  # attempts that have ended, of those that began
        self._started = 0  # as shown last
        self._claim_size, self._claim_seconds = Histogram(SIZES), Histogram(SECONDS)
        self._write_size, self._write_seconds = Histogram(SIZES), Histogram(SECONDS)
        self._fenced = self._rescued = self._released = self._leases_lost = 0
        self._outages: Counter[str] = Counter()
        self._reconnects: Counter[str] = Counter()
        self._failing: dict[str, float] = {}  # schedules, and the time.monotonic() of the last failure

    # --- Events

    def claimed(self, number: int, seconds: float) -> None:
        self._claim_size.add(number)
        self._claim_seconds.add(seconds)

    def wrote(self, executions: Sequence[Execution], seconds: float) -> None:
        self._write_size.add(len(executions))
        self._write_seconds.add(seconds)
        # Written for speed: all that is looked up once, or looked up again only where it has changed.
        pairs, bucket, from_bytes, path, queue, began = (
            self._pairs,
            bisect_left,
            int.from_bytes,
            None,
            None,
            0,
        )
        for execution in executions:
            job = execution.job
            if job.task_path != path or job.queue_name != queue:
                path, queue = job.task_path, job.queue_name
                pair = pairs.get((path, queue)) or self._pair(job)
                took, waited = pair.took, pair.waited
            if execution.outcome.__class__ is Succeeded:
                pair.succeeded += 1
            else:
                pair.others[_name(execution.outcome)] += 1
            if (lasted := execution.seconds) is not None:
                began += 1
                took.counts[bucket(SECONDS, lasted)] += 1
                took.total += lasted
            if (ready := job.ready_at) is not None and (claimed := job.last_attempted_at) is not None:
                wait = from_bytes(claimed, signed=True) - from_bytes(ready, signed=True)
                waited.counts[bucket(MICROSECONDS, wait)] += 1
                waited.total += wait
        self._began += began

    def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
        pair = self._pair(job)
        pair.retried += 1
        if seconds is not None:
            self._began += 1
            pair.took.add(seconds)
        if (waited := wait_of(job)) is not None:
            pair.waited.add(waited * 1e6)

    def lost(self, job: Job, error: str) -> None:
        self._pair(job).others[_LOST.get(decode(error)["class"], "failed")] += 1

    def fenced(self, job: Job, outcome: Outcome) -> None:
        self._fenced += 1

    def rescued(self, job: Job) -> None:
        self._rescued += 1

    def released(self, number: int, reason: ReleaseReason) -> None:
        self._released += number

    def lease_lost(self, worker_id: UUID, running: int, reason: LeaseLoss) -> None:
        self._leases_lost += 1

    def outage_began(self, part: str, error: Exception) -> None:
        self._outages[part] += 1

    def reconnected(self, part: str) -> None:
        self._reconnects[part] += 1

    def schedule_failed(self, schedule: str, error: str, failures: int) -> None:
        self._failing[schedule] = time.monotonic()

    def schedule_recovered(self, schedule: str) -> None:
        self._failing.pop(schedule, None)

    def ticked(self, schedule: str, tick: datetime, late: float) -> None:
        self._failing.pop(schedule, None)

    # --- Metrics

    def families(self, running: int) -> list[Family]:
        """Return what has been counted. ``running``: attempts that have begun and not ended."""
        # Attempts that are given back end without a count, and a counter must not fall.
        self._started = max(self._started, self._began + running)
        pairs = [*list(self._pairs.items()), ((OTHER, OTHER), self._other)]
        labelled = [({"task": path, "queue": queue}, pair) for (path, queue), pair in pairs]
        long_ago = time.monotonic() - FAILING
        return [
            family(
                "counter",
                "aiotasks_tasks_started",
                "Attempts begun; those that were given back may be missing.",
                ({}, self._started),
            ),
            family(
                "counter",
                "aiotasks_tasks_finished",
                "Tasks with a stored outcome: succeeded, failed, cancelled, expired, or lost with a worker.",
                *(
                    ({**labels, "outcome": outcome}, number)
                    for labels, pair in labelled
                    for outcome, number in [
                        ("succeeded", pair.succeeded),
                        *sorted(pair.others.copy().items()),
                    ]
                    if number
                ),
            ),
            family(
                "counter",
                "aiotasks_tasks_retried",
                "Attempts that failed, and whose task is tried again.",
                *((labels, pair.retried) for labels, pair in labelled if pair.retried),
            ),
            _histograms(
                "aiotasks_task_duration_seconds",
                "Seconds that attempts took.",
                [(labels, pair.took) for labels, pair in labelled],
            ),
            _histograms(
                "aiotasks_task_wait_seconds",
                "Seconds for which tasks were ready before a worker claimed them, by the database's clock.",
                [(labels, pair.waited) for labels, pair in labelled],
            ),
            family("counter", "aiotasks_claims", "Claims answered.", ({}, sum(self._claim_size.counts))),
            _histograms("aiotasks_claim_size", "Tasks that a claim brought.", [({}, self._claim_size)]),
            _histograms("aiotasks_claim_seconds", "Seconds that claims took.", [({}, self._claim_seconds)]),
            _histograms("aiotasks_write_size", "Outcomes stored together.", [({}, self._write_size)]),
            _histograms(
                "aiotasks_write_seconds", "Seconds that storing outcomes took.", [({}, self._write_seconds)]
            ),
            family(
                "counter",
                "aiotasks_results_fenced",
                "Outcomes rejected, because the worker no longer owned the task.",
                ({}, self._fenced),
            ),
            family(
                "counter",
                "aiotasks_rescues",
                "Tasks of dead workers rescued by this one.",
                ({}, self._rescued),
            ),
            family(
                "counter",
                "aiotasks_released",
                "Tasks given back without an attempt spent.",
                ({}, self._released),
            ),
            family("counter", "aiotasks_lease_lost", "Leases lost.", ({}, self._leases_lost)),
            family(
                "counter",
                "aiotasks_outages",
                "Outages of the database, as the parts of the worker saw them.",
                *(({"part": part}, number) for part, number in sorted(self._outages.copy().items())),
            ),
            family(
                "counter",
                "aiotasks_reconnects",
                "New connections in the place of lost ones.",
                *(({"part": part}, number) for part, number in sorted(self._reconnects.copy().items())),
            ),
            family(
                "gauge",
                "aiotasks_schedules_failing",
                "Schedules whose tick this worker couldn't enqueue within the last 20 minutes.",
                ({}, sum(at > long_ago for at in list(self._failing.values()))),
            ),
        ]

    def _pair(self, job: Job) -> _Pair:
        key = job.task_path, job.queue_name
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= MOST_PAIRS:
                return self._other
            pair = self._pairs[key] = _Pair()
        return pair


def _name(outcome: Outcome | None) -> str:
    return "cancelled" if isinstance(getattr(outcome, "exception", None), TaskCancelled) else "failed"


def _histograms(name: str, help: str, found: Iterable[tuple[dict[str, str], Histogram]]) -> Family:
    """The family of histograms by their labels; those without values are left out."""
    samples: list[Sample] = []
    for labels, histogram in found:
        if any(histogram.counts):
            samples += histogram.samples(name, labels)
    return Family(name, "histogram", help, samples)
