"""Budget: how many tasks the next claim may take. One strategy for each reason to take more, less or none."""

from collections.abc import Collection

from ...rows import Lane
from ..protocols import HasFreeThreads, HasSlots

__all__ = ["AtMost", "Budget", "FreeSlots", "Strategy", "TurnCounter"]

# Jobs of one claim at most: with more, the first waits too long for the last (measured: 150 ms for 10,000).
CLAIM_LIMIT = 1000

# Claims in a row that may go beyond the free slots. Such claims leave out the tasks that a crash would harm
# (see claim_jobs.sql), which have their turn after that.
CLAIMS_BEYOND_IN_A_ROW = 4


class Strategy:
    """One reason to claim more, less or nothing. Subclass this and override what applies."""

    def is_open(self) -> bool:
        """Return whether anything may be claimed at the moment."""
        return True

    def limit(self, lane: Lane, limit: int, unstarted: int) -> int:
        """Return how many tasks of the lane may be claimed; the strategies before this one allow ``limit``.

        ``unstarted`` tasks of the lane are claimed already and about to be started.
        """
        return limit

    def used(self, asked: Collection[Lane], beyond: Collection[Lane]) -> None:
        """A claim is sent for tasks of the lanes ``asked``; it goes beyond the free slots of ``beyond``."""


class Budget:
    """Asks its strategies in their order: each gets the limit that those before it have come to."""

    def __init__(self, *strategies: Strategy) -> None:
        self._strategies = strategies

    def is_open(self) -> bool:
        """Return whether anything may be claimed at the moment."""
        return all(strategy.is_open() for strategy in self._strategies)

    def limit(self, lane: Lane, unstarted: int = 0) -> int:
        """Return how many tasks of the lane may be claimed, beside ``unstarted`` ones."""
        limit = 0
        for strategy in self._strategies:
            limit = strategy.limit(lane, limit, unstarted)
        return limit

    def used(self, asked: Collection[Lane], beyond: Collection[Lane]) -> None:
        """A claim is sent for tasks of the lanes ``asked``; it goes beyond the free slots of ``beyond``."""
        for strategy in self._strategies:
            strategy.used(asked, beyond)


class FreeSlots(Strategy):
    """As many as there are free slots. ``threads`` knows for which of the threads a job waits."""

    def __init__(self, slots: HasSlots, threads: HasFreeThreads) -> None:
        self._slots = slots
        self._threads = threads

    def has(self, lane: Lane) -> bool:
        """Return whether the worker has slots in the lane."""
        return self._slots.has(lane)

    def free(self, lane: Lane) -> int:
        """Return the slots of the lane that no claimed task is to have; negative if too many were claimed."""
        return self._slots.free("loop") if lane == "loop" else self._threads.free()

    def limit(self, lane: Lane, limit: int, unstarted: int) -> int:
        return max(limit, self.free(lane) - unstarted)


class AtMost(Strategy):
    """Never more than CLAIM_LIMIT."""

    def limit(self, lane: Lane, limit: int, unstarted: int) -> int:
        return min(limit, CLAIM_LIMIT)


class TurnCounter:
    """Counts the claims in a row that went beyond the free slots of a lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._number = 0

    def count(self, asked: Collection[Lane], beyond: Collection[Lane]) -> None:
        """A claim is sent for tasks of the lanes ``asked``; it goes beyond the free slots of ``beyond``."""
        if self._lane in asked:  # a claim for another lane alone is no turn of this one
            self._number = self._number + 1 if self._lane in beyond else 0

    def is_over(self) -> bool:
        """Return whether the next claim has to go by the free slots."""
        return self._number >= CLAIMS_BEYOND_IN_A_ROW
