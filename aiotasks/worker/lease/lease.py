"""Lease: for how long a worker may take its tasks for its own."""

import threading
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from ...rows import Job

__all__ = ["Lease", "boottime"]

# Five more renewals may fail before the lease is lost.
RENEWALS_PER_LEASE = 6


# boottime() returns the seconds of a clock that runs on while the machine is suspended, as leases do. A
# function in Python would cost every task another call.
boottime: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Lease:
    """A worker's lease, as its event loop and the heartbeat's thread see it.

    Both threads read the attributes. Both also change them, by the methods alone: each method is one step
    under a lock, and has no effect if the lease that it is about has ended meanwhile.

    worker_id: the id of the worker's row; None while the worker has no lease.
    deadline: when the lease ends, by ``boottime()``. It is counted from *before* a renewal was sent, so it
        is earlier than the database's.
    steady_since: since when every renewal has succeeded, by ``boottime()``; None after one that failed.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.interval = timeout / RENEWALS_PER_LEASE
        self.worker_id: UUID | None = None
        self.deadline = 0.0
        self.steady_since: float | None = None
        self._lock = threading.Lock()

    # --- Questions

    def remaining(self) -> float:
        """Return for how many seconds the worker may take its tasks for its own; negative if it may not."""
        return self.deadline - boottime()

    def current_id(self) -> UUID | None:
        """Return the id under which tasks may be claimed and started now, if there is one."""
        return self.worker_id if self.deadline > boottime() else None

    def holds(self, worker_id: UUID | None) -> bool:
        """Return whether the lease under this id lasts still."""
        if worker_id is None or self.deadline <= boottime():
            return False
        own = self.worker_id  # after the deadline, which a later lease under another id moves
        return worker_id is own or worker_id == own  # mostly the same object, and UUID compares in Python

    def owns(self, job: Job) -> bool:
        """Return whether ``job`` was claimed under the lease that lasts now."""
        return job.worker_ids[-1] == str(self.current_id())

    def should_remain(self) -> float:
        """Return the seconds that the lease has left by the database's clock, unless that clock has stepped
        forward by more than two intervals. (A smaller step ends no lease that is renewed in time.)
        """
        return max(0.0, self.remaining() - 2 * self.interval)

    def may_rescue(self) -> bool:
        """Return whether other workers that are silent can be taken for dead.

        After an outage of the database every lease has expired, and the first worker to be back would rescue
        the healthy tasks of all others. Two intervals give them the time to renew.
        """
        since = self.steady_since
        return since is not None and boottime() - since >= 2 * self.interval

    # --- Changes

    def registered(self, worker_id: UUID, asked: float) -> None:
        """Begin a lease by a registration that was sent at ``asked``."""
        with self._lock:
            self.worker_id = worker_id
            self.deadline = asked + self.timeout
            self.steady_since = boottime()

    def renewed(self, worker_id: UUID, asked: float) -> bool:
        """Note a renewal that was sent at ``asked``; returns whether it is the first after a failed one."""
        with self._lock:
            if self.worker_id != worker_id:
                return False
            self.deadline = asked + self.timeout
            if self.steady_since is not None:
                return False
            self.steady_since = boottime()
            return True

    def unsteady(self) -> None:
        """Note a renewal that failed, or came late."""
        with self._lock:
            self.steady_since = None

    def extend(self, until: float) -> None:
        """Move the deadline to ``until`` unless it is later: no worker can take the tasks before."""
        with self._lock:
            self.deadline = max(self.deadline, until)

    def end(self, worker_id: UUID | None = None) -> UUID | None:
        """End the lease (if given, only the one under ``worker_id``).

        Returns the id that it had; None if there was nothing to end.
        """
        with self._lock:
            ended = self.worker_id
            if ended is None or worker_id not in (None, ended):
                return None
            self.worker_id = None
            return ended
