"""Slots: how many tasks a worker may run at a time."""

import asyncio
from collections import deque

from ..rows import LANES, Lane
from .protocols import HasCapacity

__all__ = ["Slots"]


class Slots:
    """Counts the tasks that run in each lane against the slots that the lane has.

    loop: slots for coroutine tasks.
    threads: slots for sync tasks. While the machine refuses threads there are fewer, as ``pool`` knows.
    """

    def __init__(self, *, loop: int, threads: int, pool: HasCapacity | None = None) -> None:
        self.threads = threads
        self.total = loop + threads
        self._loop = loop
        self._pool = pool
        self._taken: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._returning: deque[tuple[Lane, asyncio.Future[None]]] = deque()

    def has(self, lane: Lane) -> bool:
        """Return whether the worker has slots in the lane, free or taken."""
        return (self._loop if lane == "loop" else self.threads) > 0

    def taken(self, lane: Lane) -> int:
        """Return how many tasks run in the lane."""
        return self._taken[lane]

    def free(self, lane: Lane) -> int:
        """Return how many more tasks may run in the lane; negative where more run than it has slots."""
        return (self._loop if lane == "loop" else self._usable_threads()) - self._taken[lane]

    def has_all_threads(self) -> bool:
        """Return whether the machine gives the worker as many threads as it has slots for."""
        return self._usable_threads() >= self.threads

    def take(self, lane: Lane) -> None:
        """Count one more task in the lane."""
        self._taken[lane] += 1

    def release(self, lane: Lane) -> None:
        """Count one task less in the lane. A task that waits to go on comes before any other."""
        self._taken[lane] -= 1
        if self._returning:
            self._hand_over()

    async def take_again(self, lane: Lane) -> None:
        """Wait until the lane has a free slot, in the order of the calls, and take it."""
        if self.free(lane) > 0 and not self._returning:
            self.take(lane)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append((lane, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it has been handed over at the same moment
                self.release(lane)
            raise

    def _hand_over(self) -> None:
        while self._returning:
            lane, turn = self._returning[0]
            if not turn.done():
                if self.free(lane) <= 0:
                    return
                self.take(lane)
                turn.set_result(None)
            self._returning.popleft()

    def _usable_threads(self) -> int:
        return self.threads if self._pool is None else min(self.threads, self._pool.capacity())
