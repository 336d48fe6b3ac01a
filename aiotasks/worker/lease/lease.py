"""Lease: for how long a worker may take its tasks for its own."""

import time
from uuid import UUID

__all__ = ["Lease", "boottime"]

# Five more renewals may fail before the lease is lost.
RENEWALS_PER_LEASE = 6


def boottime() -> float:
    """Seconds by a clock that goes on while the machine is suspended, as leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """What the loop and the heartbeat's thread share: plain attributes, each written by one side.

    ``deadline`` is counted from *before* a renewal was sent, so it ends before the database's own
    does. ``steady_since`` is when renewals began to succeed without a failure in between.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.interval = timeout / RENEWALS_PER_LEASE
        self.worker_id: UUID | None = None  # None: no lease at the moment
        self.deadline = 0.0
        self.steady_since: float | None = None

    def remaining(self) -> float:
        """Seconds for which the worker may take its tasks for its own."""
        return self.deadline - boottime()

    def should_remain(self) -> float:
        """Seconds that the lease has to run by the database's clock, unless that has stepped forward by more
        than two intervals. (A smaller step ends no lease that is renewed in time.)"""
        return max(0.0, self.remaining() - 2 * self.interval)

    def may_rescue(self) -> bool:
        """Whether others' silence can be trusted to be theirs.

        After an outage of the database every lease has expired, and whoever came back first
        would "rescue" everybody's healthy tasks; two intervals give the others time to renew.
        """
        since = self.steady_since
        return since is not None and boottime() - since >= 2 * self.interval
