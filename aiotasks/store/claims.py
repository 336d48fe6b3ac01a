"""Statements that give tasks to workers, and take them back from those that lost them."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from ..rows import Job, Lane, LaneRequest
from .statement_group import StatementGroup

__all__ = ["ClaimStatements"]


class ClaimStatements(StatementGroup):
    """Claim tasks, and recover what a lost claim or a dead worker left RUNNING."""

    async def claim_jobs(
        self,
        worker_id: UUID,
        claim_id: UUID,
        backend: str,
        *,
        loop: LaneRequest,
        thread: LaneRequest,
    ) -> list[Job]:
        rows = await self._fetch(
            "claim_jobs",
            worker_id,
            claim_id,
            backend,
            loop.queues,
            loop.since,
            loop.limit,
            loop.robust_only,
            thread.queues,
            thread.since,
            thread.limit,
            thread.robust_only,
        )
        return [_claimed(claim_id, backend, *row) for row in rows]

    async def claim_suspect(
        self, worker_id: UUID, claim_id: UUID, backend: str, lane: Lane, queues: Sequence[str]
    ) -> list[Job]:
        rows = await self._fetch("claim_suspect", worker_id, claim_id, backend, lane, list(queues))
        return [_claimed(claim_id, backend, *row) for row in rows]

    async def release_lost_claims(
        self, worker_id: UUID, held: Sequence[UUID], reply_timeout: float, cancelled: str
    ) -> list[Job]:
        """Returns what was given back: READY, or FAILED with the error ``cancelled`` (JSON text)."""
        rows = await self._fetch("release_lost_claims", worker_id, list(held), reply_timeout, cancelled)
        return [Job(*row) for row in rows]

    async def rescue_jobs(
        self,
        backend: str,
        max_crashes: int,
        error: str,
        limit: int,
        cancelled: str,
        rescuer: UUID,
        remaining: float = 0.0,
    ) -> list[Job]:
        """``rescuer`` is the worker that rescues: none without a live lease, and nothing of its own.
        ``remaining``: seconds that its lease should have to run at the least.
        """
        rows = await self._fetch(
            "rescue_jobs", backend, max_crashes, error, limit, cancelled, rescuer, remaining
        )
        return [Job(*row) for row in rows]


def _claimed(
    claim_id: UUID,
    backend: str,
    id: UUID,
    queue_name: str,
    task_path: str,
    lane: Lane,
    priority: int,
    args: str,
    kwargs: str,
    errors: list[str],
    worker_ids: list[str],
    enqueued_at: datetime,
    run_after: datetime | None,
    ready_at: datetime | None,
    started_at: datetime | None,
    last_attempted_at: datetime | None,
    max_crashes: int | None,
    keep_result: float | None,
) -> Job:
    """The row that a claim has made, of the columns that it returns."""
    return Job(
        id,
        claim_id,
        backend,
        queue_name,
        task_path,
        lane,
        priority,
        "RUNNING",
        args,
        kwargs,
        None,
        errors,
        worker_ids,
        enqueued_at,
        run_after,
        ready_at,
        started_at,
        last_attempted_at,
        None,
        max_crashes,
        keep_result,
    )
