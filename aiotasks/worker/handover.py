"""Handover: settles a worker's tasks from the heartbeat's event loop when the worker's own loop can't."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anyio

from ..codec import dump_error
from ..exceptions import TaskCancelled
from ..rows import Job
from ..store.changes import told_of
from ..store.store import Store
from ..store.wakeups import wakeup_again, wakeups_again
from .build import Builder
from .execution import Execution
from .ownership import Ownership
from .protocols import Leases
from .running.orm_threads import OrmThreads
from .waker import Waker
from .writing.finisher import Finisher

__all__ = ["Handover"]


class Handover:
    """Writes outcomes, and gives tasks back, over a Store of the heartbeat's loop."""

    def __init__(self, ownership: Ownership, lease: Leases, waker: Waker, builder: Builder) -> None:
        self._ownership = ownership
        self._lease = lease
        self._waker = waker
        self._builder = builder
        self._options = builder.options

    async def settle_late(self, store: Store, executions: Sequence[Execution]) -> None:
        """Wait until ``executions``, which are in threads, have ended; write their outcomes, end the lease.

        To be run by the heartbeat, which renews the lease meanwhile.
        """
        # No event: the threads would have to know of this loop, which is theirs only by accident.
        while any(execution.outcome is None for execution in executions):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with self._finisher(store) as finisher:
            for execution in executions:
                finisher.finish(execution)
            await finisher.wait_idle(self._options.command_timeout)
            with anyio.move_on_after(self._options.command_timeout):
                await finisher.announcer.all_announced()
        if self._lease.worker_id is not None:
            await store.remove_worker(self._lease.worker_id)

    def prepare(
        self, worker_id: UUID, timeout: float, *, blamed: Collection[Execution]
    ) -> Callable[[Store], Coroutine[Any, Any, None]]:
        """Return what hands the tasks that the worker holds at this moment over to other workers.

        The heartbeat has to run it. It takes ``timeout`` seconds at most, writes the outcomes that there are,
        and makes the other tasks READY without an attempt spent. ``blamed`` stay RUNNING: without a lease
        they are rescued, and count as crashed. May be called in any thread.
        """
        executions = self._ownership.executions()
        unstarted = self._ownership.unstarted()

        async def hand_over(store: Store) -> None:
            with self._finisher(store) as finisher:
                for execution in executions:
                    if execution not in blamed:
                        finisher.finish(
                            execution if execution.outcome is not None else execution.given_back()
                        )
                for job in unstarted:
                    finisher.finish(Execution(job).given_back())
                await finisher.wait_idle(timeout)
                unsettled = {execution.job.claim_id for execution in (*blamed, *finisher.pending)}
                # For the jobs of a claim whose reply the blocked loop hasn't read.
                released = await store.release_lost_claims(
                    worker_id, [id for id in unsettled if id is not None], 0.0, self._cancelled()
                )
                self._waker.notify(wakeups_again(released))
                self._waker.tell(told_of(released))
                await store.remove_worker(worker_id)

        return hand_over

    @contextmanager
    def _finisher(self, store: Store) -> Iterator[Finisher]:
        """Make a Finisher for the running loop, with an ORM thread of its own for receivers: the worker's
        belong to the worker's loop.
        """
        orm_threads = OrmThreads(1, limit=1)
        try:
            yield self._builder.finisher(
                store,
                make_context=orm_threads.session,
                wake=self._waker.notify,
                tell=self._waker.tell,
                settled=self._settled,
            )
        finally:
            orm_threads.close()

    def _settled(self, job: Job | None) -> None:
        """Have other workers look for the key of a job's limit, which has a free place now."""
        if job is not None and job.limit_key is not None:
            self._waker.notify([wakeup_again(job)])

    def _cancelled(self) -> str:
        return dump_error(
            TaskCancelled("The task was cancelled before it ran."),
            limit=self._options.max_error_size,
            redact=self._options.redact,
        )
