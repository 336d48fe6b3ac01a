"""Statements that list tasks for operators, and show one."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..filters import TaskFilter
from ..rows import Status, StoredLane
from .bulk import NO_ID, Place, ReadyLeg
from .filtering import filter_values
from .statement_group import StatementGroup

__all__ = [
    "LAST_ID",
    "Detail",
    "FailureCount",
    "Listed",
    "ListingStatements",
    "Look",
    "Reported",
    "RunningJob",
    "Walk",
]

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


class Detail(NamedTuple):
    """All that the table knows of a task. JSON is text. ``run_after``: when it is due, or was;
    ``asked_run_after``: what its caller asked for, once a retry or a snooze has changed that
    (``asked_for_none``: no time). ``workers``: ids of workers that have had it, each with a space and
    ``host:pid``."""

    id: UUID
    status: Status
    task_path: str
    queue_name: str
    lane: StoredLane
    priority: int
    args: str
    kwargs: str
    return_value: str | None
    metadata: str | None
    errors: list[str]
    errors_omitted: int | None
    worker_ids: list[str]
    failures: int | None
    crashes: int
    max_crashes: int | None
    snoozes: int | None
    keep_result: float | None
    unique_key: str | None
    unique_waiting: bool | None
    former_key: str | None
    limit_key: str | None
    limit_held: str | None
    ordered: str | None
    asked_for_none: bool | None
    enqueued_at: datetime | None
    run_after: datetime | None
    asked_run_after: datetime | None
    ready_at: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    unknown_since: datetime | None
    expires_at: datetime | None
    unique_until: datetime | None
    limit_place: datetime | None
    workers: list[str]


class FailureCount(NamedTuple):
    """FAILED tasks of a path with errors of a class. ``id``: of the last one."""

    task_path: str
    error: str
    number: int
    first: datetime | None
    last: datetime | None
    id: UUID


class RunningJob(NamedTuple):
    """A task that runs, for so many seconds (None: its row doesn't say). ``is_cancelled``: its worker was
    asked to cancel it. ``lease``: the seconds that its worker's has left; None: that has no row."""

    id: UUID
    task_path: str
    queue_name: str
    priority: int
    attempts: int
    seconds: float | None
    is_cancelled: bool
    worker_id: UUID | None
    host: str | None
    pid: int | None
    lease: float | None


class Reported(NamedTuple):
    """A live worker, and what it says of itself: JSON text."""

    id: UUID
    host: str
    pid: int
    report: str


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

    async def select_detail(self, id: UUID, backend: str) -> Detail | None:
        """Return all that there is of a task; None: there is none of that id."""
        rows = await self._fetch("select_detail", id, backend)
        return Detail(rows[0][0], Status(rows[0][1]), *rows[0][2:]) if rows else None

    async def count_failures(
        self, backend: str, most: int, groups: int, chosen: TaskFilter
    ) -> tuple[int, bool, list[FailureCount]]:
        """Return how many FAILED tasks were looked at, whether those are all, and the groups that the filter
        is for."""
        rows = await self._fetch("count_failures", backend, most, groups, *filter_values(chosen))
        found = [FailureCount(*row[2:]) for row in rows if row[2] is not None]
        return rows[0][0], rows[0][1], found

    async def select_running(self, backend: str, limit: int, most: int) -> list[RunningJob]:
        """Those that have run for longest, ``limit`` of the first ``most``."""
        return [RunningJob(*row) for row in await self._fetch("select_running", backend, limit, most)]

    async def select_reports(self, backend: str) -> list[Reported]:
        return [Reported(*row) for row in await self._fetch("select_reports", backend)]
