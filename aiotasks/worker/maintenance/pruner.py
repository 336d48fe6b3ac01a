"""Pruner: deletes finished tasks whose time is over."""

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

# Rows in one DELETE, which takes some milliseconds then; fewer where results are large.
BATCH = 500
SLOW = 0.25

# It pauses for so many times what the last DELETE took, so that it never has much of the server.
PAUSE = 4


class Pruner:
    """Every worker has one; SKIP LOCKED lets them work side by side, without a leader."""

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
        self._limit = BATCH

    async def run_once(self) -> int:
        """Delete all there is to delete by now; returns how many tasks that were."""
        deleted = 0
        for status, keep in self._keep.items():
            if keep is not None:
                deleted += await self._delete(partial(self._store.prune_jobs, self._backend, status, keep))
        deleted += await self._delete(partial(self._store.prune_kept_jobs, self._backend))
        if deleted:
            logger.debug("finished tasks were pruned backend=%r count=%d", self._backend, deleted)
        return deleted

    async def _delete(self, batch: Callable[[float, int], Awaitable[Pruned]]) -> int:
        """Batch by batch, each from where the last has ended."""
        deleted = 0
        since = -inf
        while True:
            limit, began = self._limit, time.monotonic()
            # Until it is through: what a DELETE can't do in time, half of it may.
            self._limit = max(1, limit // 2)
            number, since = await batch(since, limit)
            taken = time.monotonic() - began
            if taken < SLOW:
                self._limit = min(BATCH, limit * 2)
            deleted += number
            if number < limit:
                return deleted
            await asyncio.sleep(taken * PAUSE)
