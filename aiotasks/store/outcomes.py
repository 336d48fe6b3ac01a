"""Statements about what becomes of tasks."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from ..rows import Job
from .columns import job
from .statement_group import StatementGroup

__all__ = ["OutcomeStatements"]


class OutcomeStatements(StatementGroup):
    """Finish, release and cancel tasks; look results up, and prune them."""

    async def select_jobs(self, ids: Sequence[UUID], backend: str) -> list[Job]:
        return [job(row) for row in await self._fetch("select_jobs", list(ids), backend)]

    async def finish_jobs(
        self, finishes: Iterable[tuple[UUID, UUID, str, str | None, str | None]]
    ) -> dict[UUID, datetime]:
        """Rows of (id, claim id, status, return value, error); returns finished_at of those accepted."""
        columns = [list(column) for column in zip(*finishes, strict=True)]
        return {row[0]: row[1] for row in await self._fetch("finish_jobs", *columns)}

    async def select_finished_jobs(
        self, ids: Sequence[UUID], claim_ids: Sequence[UUID]
    ) -> dict[UUID, datetime | None]:
        """When each was finished of those that carry the claim id still; None for what is RUNNING."""
        rows = await self._fetch("select_finished_jobs", list(ids), list(claim_ids))
        return {row[0]: row[1] for row in rows}

    async def release_jobs(
        self, releases: Iterable[tuple[UUID, UUID, float, float | None]]
    ) -> dict[UUID, str | None]:
        """Rows of (id, claim id, delay, window); returns the queue names of those released, and None for
        those that are ours and must be failed instead.
        """
        columns = [list(column) for column in zip(*releases, strict=True)]
        return {row[0]: row[1] for row in await self._fetch("release_jobs", *columns)}

    async def cancel_jobs(self, ids: Sequence[UUID], backend: str, error: str) -> list[Job]:
        """Returns those that could still be cancelled: FAILED now, or RUNNING and asked to end."""
        return [job(row) for row in await self._fetch("cancel_jobs", sorted(ids), backend, error)]

    async def select_cancelled_jobs(self, worker_id: UUID) -> set[UUID]:
        return {row[0] for row in await self._fetch("select_cancelled_jobs", worker_id)}

    async def prune_jobs(
        self, backend: str, status: str, keep: float | None, since: float, limit: int
    ) -> tuple[int, float]:
        """Of the tasks without a policy of their own. Returns how many, and when the last of them was
        finished (in epoch seconds, as ``since``).
        """
        ((number, last),) = await self._fetch("prune_jobs", backend, status, keep, since, limit)
        return number, last

    async def prune_kept_jobs(self, backend: str, since: float, limit: int) -> tuple[int, float]:
        """Of the tasks with a ``keep_result``. Returns how many, and when the last one's time was over."""
        ((number, last),) = await self._fetch("prune_kept_jobs", backend, since, limit)
        return number, last
