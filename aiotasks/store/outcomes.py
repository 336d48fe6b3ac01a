"""Statements about the outcomes of tasks."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..rows import Job, Status
from .columns import job
from .statement_group import StatementGroup, first_if_all_alike, none_if_all_null

__all__ = ["Awaited", "Finish", "Finished", "OutcomeStatements", "Pruned", "Release", "Released"]


class Finish(NamedTuple):
    """The final state of a task. ``return_value`` and ``error`` are JSON text."""

    id: UUID
    claim_id: UUID
    status: Status
    return_value: str | None
    error: str | None


class Finished(NamedTuple):
    """When tasks were finished, by their ids, and the ids of those that somebody awaits."""

    at: dict[UUID, datetime]
    awaited: Sequence[UUID]


class Release(NamedTuple):
    """A task to be READY again in ``delay`` seconds. ``window``: for how many seconds the task may be unknown
    to all workers; None: it is known. ``error``: JSON text, if the attempt has failed. ``snoozes``: True if
    the task has asked for the delay without having failed."""

    id: UUID
    claim_id: UUID
    delay: float
    window: float | None = None
    error: str | None = None
    snoozes: bool | None = None


class Released(NamedTuple):
    """The queue of a task that was released; None if the task is still its claim's and must be failed: it has
    expired, has been unknown for too long, or, if ``cancelled``, is to be cancelled. ``watched``: somebody
    awaits each change of it."""

    queue_name: str | None
    cancelled: bool
    watched: bool


class Awaited(NamedTuple):
    """How tasks stand that somebody awaits, by their ids: they have ended; or haven't, and whoever ends them
    will see that they are awaited (``marked``), or won't. The others are gone."""

    ended: frozenset[UUID]
    marked: frozenset[UUID]
    unmarked: frozenset[UUID]


class OwnJobs(NamedTuple):
    """How tasks stand inside of a transaction, by their ids: they have ended; or haven't, and it has changed
    or locked them itself (``held``), or hasn't. The others aren't there."""

    ended: frozenset[UUID]
    held: frozenset[UUID]
    others: frozenset[UUID]


class Pruned(NamedTuple):
    """How many tasks a DELETE took, the time of the last one in epoch seconds (where the next DELETE begins),
    and the seconds from the first one's time to it.
    """

    number: int
    last: float
    span: float


class OutcomeStatements(StatementGroup):
    """Finish, release, cancel and expire tasks; await them, look results up, and prune them."""

    async def select_jobs(self, ids: Sequence[UUID], backend: str) -> list[Job]:
        return [job(row) for row in await self._fetch("select_jobs", list(ids), backend)]

    async def finish_jobs(self, finishes: Iterable[Finish]) -> Finished:
        """Return which tasks were finished."""
        ids, *columns = [list(column) for column in zip(*finishes, strict=True)]
        ((finished, at, awaited),) = await self._fetch("finish_jobs", ids, *map(first_if_all_alike, columns))
        return Finished(dict.fromkeys(finished, at), awaited or ())

    async def await_jobs(self, ids: Sequence[UUID], backend: str, level: int) -> Awaited:
        """Mark the tasks as awaited. ``level``: 1 their ends, 2 each change. Some may be unmarked though they
        haven't ended, because another session has locked them: try again."""
        ((ended, marked, others),) = await self._fetch("await_jobs", sorted(ids), backend, level)
        now_marked = frozenset(marked or ())
        return Awaited(frozenset(ended or ()), now_marked, frozenset(others or ()) - now_marked)

    async def select_ended_jobs(self, ids: Sequence[UUID], backend: str) -> Awaited:
        """The same without marking any."""
        ((ended, others),) = await self._fetch("select_ended_jobs", list(ids), backend)
        return Awaited(frozenset(ended or ()), frozenset(), frozenset(others or ()))

    async def select_own_jobs(self, ids: Sequence[UUID], backend: str) -> OwnJobs:
        """Look at tasks from inside of the transaction that is open on the connection."""
        (row,) = await self._fetch("select_own_jobs", list(ids), backend)
        return OwnJobs(*(frozenset(found or ()) for found in row))

    async def select_finished_jobs(
        self, ids: Sequence[UUID], claim_ids: Sequence[UUID]
    ) -> dict[UUID, datetime | None]:
        """Return finished_at by task id (None: RUNNING), for each task that still has its claim id."""
        rows = await self._fetch("select_finished_jobs", list(ids), list(claim_ids))
        return {row[0]: row[1] for row in rows}

    async def release_jobs(self, releases: Iterable[Release]) -> dict[UUID, Released]:
        """Return what became of each task that was this claim's, by its id."""
        ids, claim_ids, delays, *columns = [list(column) for column in zip(*releases, strict=True)]
        rows = await self._fetch("release_jobs", ids, claim_ids, delays, *map(none_if_all_null, columns))
        return {id: Released(*columns) for id, *columns in rows}

    async def cancel_jobs(self, ids: Sequence[UUID], backend: str, error: str) -> list[Job]:
        """Return the rows that were cancelled: FAILED, or RUNNING with a request to their worker."""
        return [job(row) for row in await self._fetch("cancel_jobs", sorted(ids), backend, error)]

    async def expire_jobs(self, backend: str, error: str, limit: int) -> list[Job]:
        """Return the rows of waiting tasks that weren't started in time, which are FAILED now with ``error``
        (JSON text).
        """
        return [job(row) for row in await self._fetch("expire_jobs", backend, error, limit)]

    async def select_cancelled_jobs(self, worker_id: UUID) -> set[UUID]:
        return {row[0] for row in await self._fetch("select_cancelled_jobs", worker_id)}

    async def prune_jobs(
        self, backend: str, status: Status, keep: float | None, since: float, limit: int
    ) -> Pruned:
        """Delete tasks without a ``keep_result``, by when they were finished."""
        (row,) = await self._fetch("prune_jobs", backend, status, keep, since, limit)
        return Pruned(*row)

    async def prune_kept_jobs(self, backend: str, since: float, limit: int) -> Pruned:
        """Delete tasks with a ``keep_result``, by when that time ends."""
        (row,) = await self._fetch("prune_kept_jobs", backend, since, limit)
        return Pruned(*row)
