"""LeaseKeeper: what follows on the worker's loop from the state of its lease."""

import asyncio
import logging
from uuid import UUID

from ...db.cache import ConnectionCache
from ...store.workers import Renewal
from ..events import LeaseLoss, Observer
from ..figures import Gauges
from ..fleet import Fleet
from ..protocols import Beats, Claims, HasStuckThreads, Runs, TakesTurns
from ..waker import Waker
from .lease import Lease

__all__ = ["LeaseKeeper"]

logger = logging.getLogger("aiotasks.worker")


class LeaseKeeper:
    """Cancels the tasks of a lease that is over, and has the worker claim under a new one.

    workers: gets this worker's place among all workers of the backend. peers: gets that among those that find
        the same tasks.
    connections: the pool's, of which some are closed when the heartbeat finds no connection.
    tried: is set once a try to get a lease has failed.
    changed: is set after each registration.
    """

    def __init__(
        self,
        lease: Lease,
        waker: Waker,
        observer: Observer,
        *,
        workers: Fleet,
        peers: Fleet,
        connections: ConnectionCache,
        tried: asyncio.Event,
        changed: asyncio.Event,
    ) -> None:
        self.registered_once = asyncio.Event()
        self._lease = lease
        self._waker = waker
        self._observer = observer
        self._workers = workers
        self._peers = peers
        self._connections = connections
        self._tried = tried
        self._changed = changed

    def connect(
        self,
        runner: Runs,
        threads: HasStuckThreads,
        claimer: Claims,
        *,
        rescue: TakesTurns,
        declare: TakesTurns,
        gauges: Gauges,
    ) -> None:
        """Name the parts that depend on the lease or that it shows, and the turns at a rescue and at
        declaring schedules; before the heartbeat starts. ``gauges``: read at each renewal.
        """
        self._runner = runner
        self._threads = threads
        self._claimer = claimer
        self._rescue = rescue
        self._declare = declare
        self._gauges = gauges

    def is_woken(self) -> bool | None:
        """Return whether NOTIFY wakes the worker at the moment; None if it claims no more, because it stops.
        Called in the heartbeat's thread.
        """
        return None if self._claimer.is_stopping else self._waker.is_woken()

    def stuck_threads(self) -> int:
        """Return how many threads are stuck in tasks that have outlasted their time. Called in the
        heartbeat's thread.
        """
        return self._threads.stuck

    def report(self) -> str | None:
        """Return what the worker reports of itself, as JSON. Called in the heartbeat's thread."""
        try:
            return self._gauges.read().report()
        except Exception:
            logger.exception("A worker cannot report on itself")
            return None

    def registered(self) -> None:
        """Cancel the tasks that were claimed under another id: other workers may run them."""
        mine = str(self._lease.worker_id)
        for execution in list(self._runner.running):
            if execution.job.worker_ids[-1] != mine:
                self._runner.cancel(execution, "lost lease")
        self.registered_once.set()
        self._changed.set()
        self._claimer.wake()
        # A release declares its schedules with its first worker; and other workers read from this row which.
        self._declare.take_within(0.0)

    def renewed(self, renewal: Renewal, ahead: float) -> None:
        """Note how many workers there are, and have a dead one's tasks rescued at once. ``ahead``: seconds by
        which the database's clock is ahead of ``time.monotonic()``.
        """
        self._workers.update(renewal.workers, ahead)
        self._peers.update(renewal.peers, ahead)
        if renewal.has_dead:
            self._rescue.take_within(0.0)

    def lost(self, worker_id: UUID, reason: LeaseLoss = "removed") -> None:
        """Cancel all tasks: they were claimed under a lease that is over."""
        self._observer.lease_lost(worker_id, len(self._runner.running), reason)
        for execution in list(self._runner.running):
            self._runner.cancel(execution, "lost lease")

    def failed(self) -> None:
        """Let a site start that embeds the worker, though the worker has no lease yet."""
        self._tried.set()

    def crowded(self) -> None:
        """Close connections of the pool: the server has none left for the heartbeat."""
        self._connections.shed()

    async def watch(self, heartbeat: Beats) -> None:
        """Enforce the deadline from the loop too: a dead connection may hang the heartbeat's thread."""
        await self.registered_once.wait()
        while True:
            remaining = self._lease.remaining()
            if remaining <= 0 and (worker_id := heartbeat.renounce()) is not None:
                self.lost(worker_id, "expired")
            await asyncio.sleep(remaining if remaining > 0 else self._lease.interval)
