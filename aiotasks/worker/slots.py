"""Slots: how many tasks a worker may run at a time."""

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
        """Count one task less in the lane."""
        self._taken[lane] -= 1

    def _usable_threads(self) -> int:
        return self.threads if self._pool is None else min(self.threads, self._pool.capacity())
