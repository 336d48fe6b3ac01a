"""Statements about workers' rows and leases."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from .statement_group import StatementGroup

__all__ = ["Place", "Renewal", "WorkerStatements"]


class Place(NamedTuple):
    """A worker's place among ``number`` workers, itself included: ``rank`` of them have a lower id."""

    number: int
    rank: int


class Renewal(NamedTuple):
    """What a renewal of a lease has found.

    renewed: False if the lease had expired, or was about to.
    workers: the place among the live workers of the backend.
    peers: the place among those that find every task that this worker could find; a worker that NOTIFY
        doesn't wake is alone.
    has_dead: whether the lease of another worker of the backend has expired, and its row stands.
    clock: the database's clock, in epoch seconds.
    """

    renewed: bool
    workers: Place
    peers: Place
    has_dead: bool
    clock: float


class WorkerStatements(StatementGroup):
    """Register workers, renew their leases, remove them."""

    async def register_worker(
        self,
        worker_id: UUID,
        backend: str,
        host: str,
        pid: int,
        queues: Sequence[str],
        concurrency: int,
        threads: int,
        version: str,
        lease_timeout: float,
        channel: str | None = None,
        queue_limits: Sequence[int | None] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """``queue_limits``: one for each of ``queues``."""
        await self._fetch(
            "register_worker",
            worker_id,
            backend,
            host,
            pid,
            list(queues),
            concurrency,
            threads,
            version,
            lease_timeout,
            channel,
            None if queue_limits is None else list(queue_limits),
            timeout=timeout,
        )

    async def renew_lease(
        self,
        worker_id: UUID,
        lease_timeout: float,
        listening: bool | None = None,
        *,
        stuck_threads: int = 0,
        report: str | None = None,
        even_expired: bool = False,
        remaining: float = 0.0,
        timeout: float | None = None,
    ) -> Renewal | None:
        """Renew the lease unless it has expired by the database's clock, or ends within ``remaining``
        seconds; with ``even_expired`` in any case. Return None if the worker has no row. ``listening``:
        whether NOTIFY wakes the worker (None: not known). ``stuck_threads``: how many of its threads don't
        come back from tasks whose time is over. ``report``: what the worker says of itself, as JSON;
        None leaves what it has said before.
        """
        rows = await self._fetch(
            "renew_lease",
            worker_id,
            lease_timeout,
            listening,
            even_expired,
            remaining,
            stuck_threads,
            report,
            timeout=timeout,
        )
        if not rows:
            return None
        renewed, workers, workers_before, peers, peers_before, has_dead, clock = rows[0]
        return Renewal(renewed, Place(workers, workers_before), Place(peers, peers_before), has_dead, clock)

    async def are_leases_locked(self, *, timeout: float | None = None) -> bool:
        """Return whether a lock on the table keeps every worker from renewing its lease."""
        ((locked,),) = await self._fetch("are_leases_locked", timeout=timeout)
        return bool(locked)

    async def remove_dead_workers(self, backend: str, worker_id: UUID | None = None) -> list[UUID]:
        """Return the ids of the rows removed. ``worker_id``: the worker that asks, which needs a live lease;
        None: an operator asks."""
        return [row[0] for row in await self._fetch("remove_dead_workers", backend, worker_id)]

    async def remove_worker(self, worker_id: UUID) -> None:
        await self._fetch("remove_worker", worker_id)
