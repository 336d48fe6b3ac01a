"""Statements that list tasks for operators, and show one."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..filters import TaskFilter
from ..rows import Status
from .bulk import NO_ID, Place, ReadyLeg
from .filtering import filter_values
from .statement_group import StatementGroup

__all__ = ["LAST_ID", "Listed", "ListingStatements", "Look", "Walk"]

# The id behind all others.
LAST_ID = UUID(int=2**128 - 1)


class Walk(NamedTuple):
    """A branch of page_jobs.sql. ``statuses``: None for any. ``legs``: of READY tasks. ``until``: the end, in
    epoch seconds of finished tasks; ``until_id``: of the newest."""

    branch: str
    statuses: list[Status] | None = None
    legs: Sequence[ReadyLeg] = ()
    until: float = float("-inf")
    until_id: UUID = NO_ID


class Look(NamedTuple):
    """The places of the tasks that the filter is for; that of the last task looked at (None: there was none);
    how many were looked at. ``capped``: not all tasks with a ``keep_result`` were."""

    found: list[Place]
    last: Place | None
    looked_at: int
    capped: bool


class Listed(NamedTuple):
    """What a list shows of a task. ``error``: JSON text of the last one of a FAILED task, or its beginning.
    ``worker_id``: of the last execution, and where that worker is (None: its row is gone)."""

    id: UUID
    status: Status
    task_path: str
    queue_name: str
    priority: int
    enqueued_at: datetime | None
    run_after: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    attempts: int
    unique_key: str | None
    limit_key: str | None
    error: str | None
    worker_id: UUID | None
    host: str | None
    pid: int | None


class ListingStatements(StatementGroup):
    """Read only."""

    async def page_jobs(
        self, backend: str, walk: Walk, after: Place, number: int, kept: int, chosen: TaskFilter
    ) -> Look:
        """Look at ``number`` tasks behind ``after``; ``kept``: how many of those with a ``keep_result`` are
        sorted."""
        legs = [list(column) for column in zip(*walk.legs, strict=True)] or [[], [], []]
        ((ids, ats, at, id, looked_at, capped),) = await self._fetch(
            "page_jobs",
            *(backend, walk.branch, walk.statuses, *legs, *after, walk.until, walk.until_id, number, kept),
            *filter_values(chosen),
        )
        found = [Place(*place) for place in zip(ats, ids, strict=True)]
        return Look(found, None if id is None else Place(at, id), looked_at, capped)

    async def select_listed(self, ids: Sequence[UUID], backend: str) -> dict[UUID, Listed]:
        """By id, without those that are gone."""
        rows = await self._fetch("select_listed", list(ids), backend)
        return {row[0]: Listed(row[0], Status(row[1]), *row[2:]) for row in rows}
