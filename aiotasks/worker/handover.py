"""Handing a worker's tasks over while its event loop hangs: from another loop, for other workers to take."""

from collections.abc import Collection, Iterable
from uuid import UUID

from ..rows import Job
from ..store.store import Store
from .execution import Execution
from .writing.finisher import Finisher

__all__ = ["hand_over"]


async def hand_over(
    store: Store,
    finisher: Finisher,
    worker_id: UUID,
    *,
    executions: Iterable[Execution],
    unstarted: Iterable[Job],
    blamed: Collection[Execution],
    cancelled: str,
    timeout: float,
) -> None:
    """Write the outcomes that are there and give the other tasks back, no attempt spent.

    That takes ``timeout`` seconds at most. ``blamed`` stay RUNNING: without a lease they are rescued, and
    count as crashed. ``unstarted`` are jobs that the loop has claimed; what a claim has brought that the loop
    hasn't read yet is found in the table, and FAILED with the error ``cancelled`` (JSON text) where it was
    to be cancelled. ``finisher`` is one of the running loop's.
    """
    for execution in executions:
        if execution in blamed:
            continue
        if execution.outcome is None:
            execution = execution.given_back()
        finisher.finish(execution)
    for job in unstarted:
        finisher.finish(Execution(job).given_back())
    await finisher.wait_idle(timeout)
    held = {execution.job.claim_id for execution in (*blamed, *finisher.pending)}
    await store.release_lost_claims(worker_id, [id for id in held if id is not None], 0.0, cancelled)
    await store.remove_worker(worker_id)
