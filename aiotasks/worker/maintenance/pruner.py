"""Pruner: deletes finished tasks after the time for which they are kept."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf

from ...rows import Status
from ...store.outcomes import Pruned
from ...store.store import Store

__all__ = ["Pruner"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one DELETE, which takes some milliseconds then. After one that took more than SLOW_DELETE seconds,
# as with large results, there are half as many in the next.
PRUNE_LIMIT = 500
SLOW_DELETE = 0.25

# The pause between two, as a multiple of the time that the last one took: pruning takes a fifth of one
# connection at most.
PAUSE_FACTOR = 4


class Pruner:
    """Every worker has one. SKIP LOCKED lets them work side by side, without a leader."""

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        keep_successful: float | None,
        keep_failed: float | None,
    ) -> None:
        self._store = store
        self._backend = backend
        self._keep = {Status.SUCCESSFUL: keep_successful, Status.FAILED: keep_failed}
        self._limit = PRUNE_LIMIT

    async def run_once(self) -> int:
        """Delete the tasks whose time is over; returns their number."""
        deleted = 0
        for status, keep in self._keep.items():
            if keep is not None:
                deleted += await self._delete(partial(self._store.prune_jobs, self._backend, status, keep))
        deleted += await self._delete(partial(self._store.prune_kept_jobs, self._backend))
        if deleted:
            logger.debug("Pruned finished tasks backend=%r count=%d", self._backend, deleted)
        return deleted

    async def _delete(self, batch: Callable[[float, int], Awaitable[Pruned]]) -> int:
        """Delete batch by batch, each from where the last one ended; returns the number of tasks."""
        deleted = 0
        since = -inf
        while True:
            limit, began = self._limit, time.monotonic()
            # For the next try, should this one fail: a DELETE that times out may succeed for half the rows.
            self._limit = max(1, limit // 2)
            number, since = await batch(since, limit)
            taken = time.monotonic() - began
            if taken < SLOW_DELETE:
                self._limit = min(PRUNE_LIMIT, limit * 2)
            deleted += number
            if number < limit:
                return deleted
            await asyncio.sleep(taken * PAUSE_FACTOR)
