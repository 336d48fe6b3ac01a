"""Statements of bulk actions: walk through the tasks that a filter is for, and cancel, retry or delete them,
or run them now.

Those that write leave out what another transaction has locked, and what has changed since it was found.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..filters import TaskFilter
from ..rows import Status, StoredLane
from .filtering import filter_values
from .statement_group import StatementGroup, milliseconds

__all__ = [
    "BulkStatements",
    "CancelledJob",
    "DeletedJob",
    "DueJob",
    "KeyTaken",
    "LeftJob",
    "Leg",
    "Meant",
    "Place",
    "ReadyLeg",
    "RetriedJob",
    "Step",
]

# The place before all others.
NO_ID = UUID(int=0)


class Place(NamedTuple):
    """The place of a task in a leg: its time in epoch seconds, and its id."""

    at: float = float("-inf")
    id: UUID = NO_ID


class Leg(NamedTuple):
    """A part of a walk: the tasks of a branch of walk_jobs.sql. The last three are for READY tasks."""

    branch: str
    status: Status
    queue_name: str | None = None
    lane: StoredLane | None = None
    priority: int | None = None


class Step(NamedTuple):
    """The tasks found, the place of the last one looked at, and how many those were."""

    ids: list[UUID]
    last: Place
    looked_at: int


class ReadyLeg(NamedTuple):
    """A queue, lane and priority that has READY tasks."""

    queue_name: str
    lane: StoredLane
    priority: int


class CancelledJob(NamedTuple):
    """A task that was cancelled, or ``is_running`` and asked to end. ``is_awaited``: it has ended, and
    somebody awaits that."""

    id: UUID
    queue_name: str
    is_running: bool
    is_awaited: bool


class DeletedJob(NamedTuple):
    """A task that was deleted. ``is_awaited``: somebody awaits its end."""

    id: UUID
    is_awaited: bool


class RetriedJob(NamedTuple):
    """A task that is to run again. ``due``: when, in epoch seconds; None: it is READY."""

    id: UUID
    queue_name: str
    lane: StoredLane
    due: float | None


class DueJob(NamedTuple):
    """A task that is READY before its time."""

    id: UUID
    queue_name: str
    lane: StoredLane


class Meant(NamedTuple):
    """Which of the tasks that were found an action is for: what may have changed when it comes to them.

    ``unique_key``, ``finished_after``, ``finished_before``: the filter's. ``finished_by``: those that have
    finished later are left alone; None: whenever they have.
    """

    backend: str
    statuses: list[Status]
    unique_key: str | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None
    finished_by: datetime | None = None


class LeftJob(NamedTuple):
    """A task that a statement has left. ``is_meant``: so it was locked. ``lost_key``: another task has taken
    its unique key. ``key_holder``: the task that holds the key now."""

    is_meant: bool
    lost_key: bool
    key_holder: UUID | None


class KeyTaken(NamedTuple):
    """``retried``: None if nothing was done. ``by_another``: because another task holds the key."""

    retried: RetriedJob | None
    by_another: bool


class BulkStatements(StatementGroup):
    """Walk, cancel, retry, delete and run now."""

    async def list_ready(self, backend: str, queue_name: str | None) -> list[ReadyLeg]:
        """In the order of their claims. ``queue_name``: only this queue's."""
        return [ReadyLeg(*row) for row in await self._fetch("list_ready", backend, queue_name)]

    async def walk_jobs(
        self, backend: str, leg: Leg, after: Place, end: float, limit: int, chosen: TaskFilter
    ) -> Step:
        """Look at ``limit`` tasks of the leg behind ``after``, up to ``end`` in epoch seconds."""
        ((ids, at, id, looked_at),) = await self._fetch(
            "walk_jobs", backend, *leg, *after, end, limit, *filter_values(chosen)
        )
        return Step(list(ids), after if id is None else Place(at, id), looked_at)

    async def select_left_jobs(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, LeftJob]:
        """Return what keeps an action from tasks; without those that aren't there."""
        rows = await self._fetch("select_left_jobs", list(ids), *meant)
        return {id: LeftJob(*left) for id, *left in rows}

    async def cancel_free_jobs(self, ids: Sequence[UUID], meant: Meant, error: str) -> list[CancelledJob]:
        """Cancel the tasks that are meant."""
        rows = await self._fetch("cancel_free_jobs", list(ids), *meant, error)
        return [CancelledJob(*row) for row in rows]

    async def retry_jobs(self, ids: Sequence[UUID], meant: Meant) -> list[RetriedJob]:
        """Have the tasks that are meant run again, but those whose unique key another task has taken."""
        return [RetriedJob(*row) for row in await self._fetch("retry_jobs", list(ids), *meant)]

    async def retry_unique_job(self, id: UUID, meant: Meant, *, lock_timeout: float) -> KeyTaken:
        """Have a task that is meant run again with its unique key, if no other task holds it.

        An IntegrityError: another task has taken the key meanwhile.
        """
        ((_, by_another, *row),) = await self._fetch(
            "retry_unique_job", id, *meant, milliseconds(lock_timeout)
        )
        return KeyTaken(None if row[0] is None else RetriedJob(*row), by_another)

    async def delete_jobs(self, ids: Sequence[UUID], meant: Meant) -> list[DeletedJob]:
        """Delete the tasks that are meant."""
        return [DeletedJob(*row) for row in await self._fetch("delete_jobs", list(ids), *meant)]

    async def run_jobs_now(self, ids: Sequence[UUID], meant: Meant) -> list[DueJob]:
        """Make the tasks READY that are meant, before their time."""
        return [DueJob(*row) for row in await self._fetch("run_jobs_now", list(ids), *meant)]
