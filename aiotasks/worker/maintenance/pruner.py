"""Pruner: deletes finished tasks after the time for which they are kept."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf

from django.db import utils

from ...db.errors import is_transient
from ...rows import Status
from ...store.outcomes import Pruned
from ...store.store import Store

__all__ = ["Pruner"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one DELETE, which takes one or two milliseconds then. Where such DELETEs fall behind, because each
# waits for a busy server or event loop, it is up to LARGEST_BATCH, for 5 ms. After one that took more than
# SLOW_DELETE seconds, as with large results, there are half as many in the next.
PRUNE_LIMIT = 500
LARGEST_BATCH = 2_000
SLOW_DELETE = 0.25

# A full batch is followed by the next after CATCH_UP of the time in which its tasks were finished: deletes go
# through the history twice as fast as it was made, and so keep up with workers of any rate. The pause between
# two is at least SHORTEST_PAUSE times what the DELETE took (two thirds of a connection), and at most
# LONGEST_PAUSE times (a fifth).
CATCH_UP = 0.5
SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 4.0

# How many tasks a round should find. At 3,000 tasks/s rounds are 1.7 s apart then, and the table's size is
# even.
ROUND_TASKS = 10 * PRUNE_LIMIT

# Seconds in which what a round finds has come, at the most: in a fleet a worker's own last round may be hours
# ago, and the last turn of another worker is not.
LONGEST_ELAPSED = 60.0

# Seconds between two rounds, at least, and seconds for which rounds begin where the one before has ended. A
# task that a round has passed over, because another transaction had locked its row, waits for so long.
SHORTEST_INTERVAL = 1.0
RESUMING = 600.0


class _Sweep:
    """Deletes of one kind of tasks: where the next one begins, and how many it takes."""

    def __init__(self, delete: Callable[[float, int], Awaitable[Pruned]]) -> None:
        self._delete = delete
        self._since = -inf
        self._restarts = False
        self._limit = PRUNE_LIMIT

    def restart(self) -> None:
        """Have the next batch begin with the oldest task.

        If that fails, the one after it begins where the last one ended: an old snapshot may keep so many dead
        index entries that reading them takes longer than a statement may.
        """
        self._restarts = True

    async def next_batch(self) -> tuple[int, float | None]:
        """Delete a batch; returns the number of tasks, and the seconds to pause, or None if none are left."""
        limit, began = self._limit, time.monotonic()
        # For the next try, should this one fail: a DELETE that times out may succeed for half the rows.
        self._limit = max(1, limit // 2)
        since, self._restarts = -inf if self._restarts else self._since, False
        batch = await self._delete(since, limit)
        taken = time.monotonic() - began
        if batch.number:
            self._since = batch.last
        time_left = CATCH_UP * batch.span - taken
        if taken < SLOW_DELETE:
            self._limit = self._next_limit(limit, taken, time_left, full=batch.number >= limit)
        if batch.number < limit:
            return batch.number, None
        return batch.number, min(max(time_left, SHORTEST_PAUSE * taken), LONGEST_PAUSE * taken)

    def _next_limit(self, limit: int, taken: float, time_left: float, *, full: bool) -> int:
        if full and time_left < SHORTEST_PAUSE * taken:
            return min(limit * 2, LARGEST_BATCH)
        if full and limit > PRUNE_LIMIT and time_left < LONGEST_PAUSE * taken:
            return limit  # as many as it takes to keep up
        return min(limit * 2, PRUNE_LIMIT)


class Pruner:
    """Every worker has one. SKIP LOCKED lets them work side by side, without a leader.

    When a worker's next round comes follows from how many tasks it has found. So workers share the rounds,
    too, because the others' rounds become rare where one deletes everything.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        keep_successful: float | None,
        keep_failed: float | None,
    ) -> None:
        self._backend = backend
        keep = {Status.SUCCESSFUL: keep_successful, Status.FAILED: keep_failed}
        self._sweeps = [
            *(
                _Sweep(partial(store.prune_jobs, backend, status, seconds))
                for status, seconds in keep.items()
                if seconds is not None
            ),
            _Sweep(partial(store.prune_kept_jobs, backend)),
        ]
        self._restarted_at = self._ended = time.monotonic()
        self._has_failed = False  # the last round

    async def run_once(self) -> int:
        """Delete the tasks whose time is over; returns their number."""
        self._restart()
        return await self._prune()

    async def run_round(self) -> float | None:
        """Delete the tasks whose time is over; returns the seconds until the next round should come, or None
        where so few were found that it doesn't matter.
        """
        if time.monotonic() - self._restarted_at > RESUMING and not self._has_failed:
            self._restart()
        self._has_failed = True
        deleted = await self._prune()
        self._has_failed = False
        ended = time.monotonic()
        elapsed, self._ended = min(ended - self._ended, LONGEST_ELAPSED), ended
        if deleted < PRUNE_LIMIT:
            self._restart()
            # A quiet moment between busy ones costs no long pause.
            return max(SHORTEST_INTERVAL, 2 * elapsed) if elapsed < LONGEST_ELAPSED / 2 else None
        return max(SHORTEST_INTERVAL, elapsed * ROUND_TASKS / deleted)

    def _restart(self) -> None:
        """Have the next round look at all tasks.

        Frequent rounds don't, because the dead index entries of what was deleted since the last vacuum come
        first. Where an old snapshot keeps these, reading them would cost more than the round's own tasks.
        """
        self._restarted_at = time.monotonic()
        for sweep in self._sweeps:
            sweep.restart()

    async def _prune(self) -> int:
        """Delete batch by batch, of each kind in turn; returns the number of tasks.

        A kind whose DELETE fails holds up no other. Raises afterwards: where several have failed, an error
        that waiting doesn't help against, because only that is logged.
        """
        deleted = 0
        unfinished = self._sweeps
        errors: list[utils.Error] = []
        while unfinished:
            unfinished, sweeps = [], unfinished
            for sweep in sweeps:
                try:
                    number, pause = await sweep.next_batch()
                except utils.Error as error:
                    errors.append(error)
                    continue
                deleted += number
                if pause is not None:
                    unfinished.append(sweep)
                    await asyncio.sleep(pause)
        if deleted:
            logger.debug("Pruned finished tasks backend=%r count=%d", self._backend, deleted)
        if errors:
            raise min(errors, key=is_transient)
        return deleted
