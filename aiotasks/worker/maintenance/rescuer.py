"""Rescuer: gives back the tasks of dead workers, and those of claims whose reply was lost."""

import time
from dataclasses import dataclass
from math import inf
from uuid import UUID

from django.db import utils

from ...codec import dump_error
from ...conf import Options
from ...exceptions import TaskCancelled, WorkerLost
from ...rows import Status
from ...store.changes import told_of
from ...store.store import Store
from ...store.wakeups import wakeups_again
from ..events import NULL, Observer
from ..protocols import AnnouncesLost, HoldsClaims, Leases, WakesAfterRescue

__all__ = ["Rescued", "Rescuer"]

# Rows in one UPDATE: it holds their locks for some ten milliseconds.
RESCUE_LIMIT = 500

# Looks for lost claims after the first one that can find the rows of the last: these may have been locked.
LOOKS_AFTER_CLAIM = 2

# Seconds between two looks for lost claims of a worker that has claimed nothing meanwhile. Chosen: the
# network or a pooler may deliver a claim minutes after its connection was given up.
LONGEST_PAUSE = 600.0


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one sweep has done: numbers of tasks made READY and FAILED, and of dead workers."""

    ready: int = 0
    failed: int = 0
    workers: int = 0


class Rescuer:
    """Every worker has one. SKIP LOCKED lets them work side by side, without a leader.

    The workers take turns at the rescue of dead workers' tasks. Lost claims are each worker's own.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        options: Options,
        lease: Leases,
        ownership: HoldsClaims,
        waker: WakesAfterRescue,
        lost_tasks: AnnouncesLost,
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._backend = backend
        self._options = options
        self._lease = lease
        self._ownership = ownership
        self._waker = waker
        self._lost_tasks = lost_tasks
        self._observer = observer
        self._looks_left = LOOKS_AFTER_CLAIM
        self._asked_at = -inf  # by time.monotonic(), as the other times
        self._looked_at = -inf

    async def sweep(self) -> None:
        """Rescue the tasks of dead workers."""
        await self.run_once()

    async def run_once(self) -> Rescued:
        """Rescue the tasks of dead workers; returns what was done."""
        worker_id = self._lease.worker_id
        if worker_id is None or not self._lease.may_rescue():
            return Rescued()
        ready, failed = await self._rescue(worker_id)
        workers = await self._store.remove_dead_workers(self._backend, worker_id)
        return Rescued(ready, failed, len(workers))

    async def release_lost_claims(self) -> None:
        """Release the tasks of this worker's claims whose reply was lost, unless there can't be any."""
        worker_id = self._lease.worker_id
        if worker_id is None or not self._may_have_lost_claims():
            return
        cancelled = TaskCancelled("The task was cancelled before it ran.")
        text = dump_error(cancelled, limit=self._options.max_error_size, redact=self._options.redact)
        try:
            released = await self._store.release_lost_claims(
                worker_id, list(self._ownership.held_claims()), self._options.command_timeout, text
            )
        except utils.Error:
            self._looks_left = LOOKS_AFTER_CLAIM  # nothing has been seen
            raise
        if released:
            self._observer.released(len(released), "claim without a reply")
            self._waker.wake_after_rescue(wakeups_again(released))
            self._waker.try_keys(released)
            self._waker.tell(told_of(released))
        for job in released:
            if job.status == Status.FAILED:
                self._lost_tasks.announce(job, cancelled)

    def _may_have_lost_claims(self) -> bool:
        """Return whether tasks may be RUNNING here that the worker doesn't know of, so that a look is due."""
        asked_before, self._asked_at = self._asked_at, time.monotonic()
        # Until then its rows may have been too young to be released at the look before this one.
        hidden_until = self._ownership.claimed_at() + self._options.command_timeout
        if self._ownership.held_claims() or hidden_until >= asked_before:
            self._looks_left = LOOKS_AFTER_CLAIM
        elif self._looks_left:
            self._looks_left -= 1
        elif self._asked_at - self._looked_at < LONGEST_PAUSE:
            return False
        self._looked_at = self._asked_at
        return True

    async def _rescue(self, worker_id: UUID) -> tuple[int, int]:
        """Rescue the tasks of dead workers; returns how many are READY, and FAILED."""
        lost = WorkerLost("The worker that ran this task was killed or hung: its lease ran out.")
        cancelled = TaskCancelled("The task was cancelled, and its worker was killed or hung.")
        limit, redact = self._options.max_error_size, self._options.redact
        lost_text, cancelled_text = (
            dump_error(error, limit=limit, redact=redact) for error in (lost, cancelled)
        )
        ready = failed = 0
        while True:
            jobs = await self._store.rescue_jobs(
                self._backend,
                self._options.max_crashes,
                lost_text,
                RESCUE_LIMIT,
                cancelled_text,
                worker_id,
                self._lease.should_remain(),
            )
            for job in jobs:
                self._observer.rescued(job)
            self._waker.wake_after_rescue(wakeups_again(jobs))
            self._waker.try_keys(jobs)
            self._waker.tell(told_of(jobs))
            for job in jobs:
                if job.status == Status.FAILED:
                    failed += 1
                    self._lost_tasks.announce(job, cancelled if job.errors[-1] == cancelled_text else lost)
                else:
                    ready += 1
            if len(jobs) < RESCUE_LIMIT:
                return ready, failed
