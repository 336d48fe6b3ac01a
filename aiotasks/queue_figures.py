"""The figures of a backend's queues: how many tasks wait and run in each. Counting stops somewhere, so that
they cost the same whatever the backlog.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .metrics import Family, family
from .rows import STORED_LANES
from .store.inspection import ReadyCount, RunningCount
from .store.store import Store

__all__ = ["QueueCounts", "QueueFigures", "families_of", "read_queue_figures"]

# Counting stops earlier than at its limit in a queue if there are more than 20 queues, and never below 100.
COUNT_LIMIT_OF_ALL = 200_000
COUNT_LIMIT_AT_LEAST = 100

# A site with a queue for each customer has thousands; the first by name are counted.
QUEUE_LIMIT = 1_000


class QueueCounts(NamedTuple):
    """The tasks of one queue. ``oldest_ready``: seconds for which the oldest has been READY; None: there is
    none.
    """

    name: str
    ready: int
    oldest_ready: float | None
    scheduled: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """The queues that have tasks, and those asked for, by name.

    listed: the queues whose READY tasks were counted. limit: at which that stopped in each. has_more: more
        queues have READY tasks; only those listed are among ``queues`` then.
    running: the RUNNING tasks by worker. all_scheduled, all_running: no counting was stopped.
    """

    queues: list[QueueCounts]
    listed: list[str]
    limit: int
    has_more: bool
    running: list[RunningCount]
    all_scheduled: bool
    all_running: bool


async def read_queue_figures(store: Store, backend: str, names: Collection[str], most: int) -> QueueFigures:
    """Count the tasks of the queues that have any, and of those in ``names``: at most ``most`` READY ones of
    each queue, and as many SCHEDULED and RUNNING ones of all queues.
    """
    # One row more than the stored lanes of so many queues, so it is another queue's.
    lanes = await store.list_queues(backend, limit=len(STORED_LANES) * QUEUE_LIMIT + 1)
    found = list(dict.fromkeys(lane.queue_name for lane in lanes))
    listed, has_more = found[:QUEUE_LIMIT], len(found) > QUEUE_LIMIT
    scheduled = await store.count_scheduled_jobs(backend, most)
    running = await store.count_running_jobs(backend, most)
    running_in: Counter[str] = Counter()
    for count in running:
        running_in[count.queue_name] += count.number
    if has_more:  # queues that weren't found may have READY tasks, too: as many of them are counted
        unknown = {*names, *scheduled, *running_in}.difference(found)
        listed += sorted(unknown, key=lambda name: (name not in names, name))[:QUEUE_LIMIT]
    limit = max(COUNT_LIMIT_AT_LEAST, min(most, COUNT_LIMIT_OF_ALL // max(1, len(listed))))
    ready = await store.count_ready_jobs(backend, listed, limit)
    queues = []
    for name in sorted(listed if has_more else {*names, *ready, *scheduled, *running_in}):
        number, oldest = ready.get(name, ReadyCount(0, None))
        oldest = None if oldest is None else max(0.0, oldest)
        queues.append(QueueCounts(name, number, oldest, scheduled[name], running_in[name]))
    return QueueFigures(
        queues=queues,
        listed=listed,
        limit=limit,
        has_more=has_more,
        running=running,
        all_scheduled=scheduled.total() < most,
        all_running=running_in.total() < most,
    )


def families_of(figures: Mapping[str, Any], age: float, backend: str) -> list[Family]:
    """Return the figures of a sample (``aiotasks_sample.figures``) as metrics. ``age``: its, in seconds."""
    queues: Mapping[str, Mapping[str, Any]] = figures["queues"]
    mine = {"backend": backend}

    def of_each(name: str, help: str, key: str) -> Family:
        found = [({**mine, "queue": queue}, counts[key] or 0) for queue, counts in queues.items()]
        return family("gauge", name, help, *found)

    return [
        of_each("aiotasks_queue_ready", "Tasks that are ready; counting stops at some thousand.", "ready"),
        of_each(
            "aiotasks_queue_oldest_ready_seconds",
            "For how long the oldest task has been ready; 0 where none is.",
            "oldest",
        ),
        of_each("aiotasks_queue_scheduled", "Tasks that are due later, up to 10,000 in all.", "scheduled"),
        of_each("aiotasks_queue_running", "Tasks that run, up to 10,000 in all.", "running"),
        family(
            "gauge",
            "aiotasks_failed_last_hour",
            "Tasks that failed in the last hour, up to 10,000.",
            (mine, figures["failed_hour"]),
        ),
        family("gauge", "aiotasks_live_workers", "Workers with a lease.", (mine, figures["workers"])),
        family("gauge", "aiotasks_sample_age_seconds", "The age of the figures of the queues.", (mine, age)),
    ]
