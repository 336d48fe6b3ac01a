"""What fails: the latest FAILED tasks by task and error."""

from dataclasses import dataclass
from datetime import datetime

from ..filters import TaskFilter
from ..store.store import Store
from .tasks import TaskRow, row_of

__all__ = ["FailureGroup", "FailureGroups", "failure_groups"]

# Groups of which people look at more than the first at most.
MOST_GROUPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """FAILED tasks of a path whose last errors are of a class. ``first``, ``last``: when the first and the
    last of them have finished, of those that were looked at. ``latest``: the last one; None: it is gone."""

    task_path: str
    error: str
    number: int
    first: datetime | None
    last: datetime | None
    latest: TaskRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroups:
    """``groups``: the largest first. ``looked_at``: how many FAILED tasks were. ``complete``: those are
    all."""

    groups: list[FailureGroup]
    looked_at: int
    complete: bool


async def failure_groups(
    store: Store, backend: str, chosen: TaskFilter | None = None, most: int = 5000
) -> FailureGroups:
    """Return how the latest FAILED tasks of a filter divide, ``most`` of them at most, and as many that have
    a ``keep_result``. Its statuses count for nothing."""
    looked_at, complete, found = await store.count_failures(
        backend, most, MOST_GROUPS, chosen or TaskFilter()
    )
    ids = [group.id for group in found]
    listed = await store.select_listed(ids, backend) if ids else {}
    return FailureGroups(
        groups=[
            FailureGroup(
                task_path=group.task_path,
                error=group.error,
                number=group.number,
                first=group.first,
                last=group.last,
                latest=row_of(listed[group.id]) if group.id in listed else None,
            )
            for group in found
        ],
        looked_at=looked_at,
        complete=complete,
    )
