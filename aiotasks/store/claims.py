"""Statements that give tasks to workers, and take them back from workers that lost them."""

from collections.abc import Sequence
from uuid import UUID

from ..rows import Job, Lane, LaneRequest
from .columns import claimed_job, job
from .statement_group import StatementGroup

__all__ = ["ClaimStatements"]


class ClaimStatements(StatementGroup):
    """Claim tasks, and recover tasks that a lost claim or a dead worker left RUNNING."""

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
            loop.most,
            thread.most,
            loop.lowest,
            thread.lowest,
        )
        return [claimed_job(row, claim_id, backend) for row in rows]

    async def claim_suspect(
        self, worker_id: UUID, claim_id: UUID, backend: str, lane: Lane, queues: Sequence[str] | None
    ) -> list[Job]:
        """``queues``: None for any."""
        names = None if queues is None else list(queues)
        rows = await self._fetch("claim_suspect", worker_id, claim_id, backend, lane, names)
        return [claimed_job(row, claim_id, backend) for row in rows]

    async def release_lost_claims(
        self, worker_id: UUID, held: Sequence[UUID], reply_timeout: float, cancelled: str
    ) -> list[Job]:
        """Return the rows that were released: READY, or FAILED with the error ``cancelled`` (JSON text).
        ``held``: the ids of the worker's claims, whose rows stay."""
        rows = await self._fetch("release_lost_claims", worker_id, list(held), reply_timeout, cancelled)
        return [job(row) for row in rows]

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
        """Return the rows that were taken from dead workers: READY, or FAILED with ``error``, or with
        ``cancelled`` (JSON text).

        ``rescuer``: the id of the worker that rescues. It needs a lease of at least ``remaining`` seconds;
        its own rows stay.
        """
        rows = await self._fetch(
            "rescue_jobs", backend, max_crashes, error, limit, cancelled, rescuer, remaining
        )
        return [job(row) for row in rows]
