"""Stalls: notices that the worker claims nothing, though tasks wait that it could run."""

import asyncio
import time
from typing import TYPE_CHECKING

from django.db import utils

from ..rows import Lane
from ..store.store import Store
from .events import Observer
from .protocols import HasSlots, Leases

if TYPE_CHECKING:
    from .claiming.loop import Claimer

__all__ = ["Stalls"]

# Polls that a task may wait for, though slots are free for it. Chosen: the first one finds a task whose
# NOTIFY was lost, and the other two may have been interrupted by an outage.
PATIENCE = 3

# Queues that are asked where a worker serves any.
MOST_QUEUES = 100


class Stalls:
    """Looks, if the worker has claimed nothing for PATIENCE polls and has free slots, for a task that has
    waited for as long. Found twice, the worker is stalled until it claims again.

    The workers that find the same tasks take turns, so that an idle fleet asks the database once a poll: a
    task that any of them could have claimed tells of all. Tasks with limits aren't looked for.
    """

    def __init__(
        self,
        store: Store,
        claimer: "Claimer",
        slots: HasSlots,
        lease: Leases,
        observer: Observer,
        *,
        backend: str,
        poll_interval: float,
    ) -> None:
        self._store = store
        self._backend = backend
        self._interval = poll_interval
        self._claimer = claimer
        self._slots = slots
        self._lease = lease
        self._observer = observer
        self._began = time.monotonic()
        self._suspected = 0  # looks in a row that have found a task
        self._is_stalled = False

    def seconds(self) -> float | None:
        """Return for how long the worker has been stalled; None if it isn't. May be called in any thread."""
        return self._since_claim() if self._is_stalled else None

    async def look(self) -> float | None:
        """Look once; returns the seconds to the next look, where that must not wait for the worker's turn."""
        lanes = self._idle_lanes()
        if self._since_claim() < PATIENCE * self._interval or not lanes:
            self._over()
            return None
        patience = PATIENCE * self._interval
        try:
            found = await self._find(lanes, patience)
        except utils.Error:
            self._began = time.monotonic()  # in an outage no worker claims
            raise
        if found is None or self._since_claim() < patience:
            self._over()
            return None
        self._suspected += 1
        if self._suspected > 1 and not self._is_stalled:
            self._is_stalled = True
            self._observer.stalled(self._since_claim(), found)
        return self._interval

    async def _find(self, lanes: list[Lane], patience: float) -> str | None:
        """Return the queue of a task that waits."""
        names = self._claimer.rotation.queues
        if names is None:
            listed = await self._store.list_queues(self._backend, limit=MOST_QUEUES)
            names = sorted({one.queue_name for one in listed})
        names = self._claimer.queue_limits.served(names)
        return await self._store.has_claimable(self._backend, names, lanes, patience) if names else None

    def _since_claim(self) -> float:
        return time.monotonic() - max(self._began, self._claimer.intake.claimed_at)

    def _idle_lanes(self) -> list[Lane]:
        """The lanes with free slots, if the worker may claim."""
        claimer = self._claimer
        is_quiet = claimer.quarantine.quiet_until(asyncio.get_running_loop().time()) is not None
        if (
            claimer.is_stopping
            or is_quiet
            or not claimer.budget.is_open()
            or self._lease.current_id() is None
        ):
            self._began = time.monotonic()  # it has no chance to claim
            return []
        free: dict[Lane, int] = {"loop": self._slots.free("loop"), "thread": claimer.prefetch.free()}
        return [lane for lane, number in free.items() if self._slots.has(lane) and number > 0]

    def _over(self) -> None:
        self._suspected = 0
        if self._is_stalled:
            self._is_stalled = False
            self._observer.unstalled()
