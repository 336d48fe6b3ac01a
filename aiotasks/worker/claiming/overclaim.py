"""OverclaimPolicy: how many coroutine tasks may be claimed beyond the free slots."""

from collections.abc import Collection, Sequence

from ...rows import Job, Lane
from ..protocols import HasSlots
from .budget import Strategy, TurnCounter

__all__ = ["OverclaimPolicy"]

# Tasks that wait for nothing take a slot for as long as they run, and no longer. After a claim of such tasks
# alone the next one takes as many as end within this many seconds, but at most so many. Measured: a claim of
# 250 and its finish cost a fifth less a task than of 100. With 500 it is a tenth less again, but a task in
# another queue waits twice as long for its turn (34 instead of 17 ms during a flood of no-ops).
AT_ONCE_TIME = 0.01
AT_ONCE_LIMIT = 250

# Nor more than so many times the free slots: should the tasks wait after all, the rest is given back.
AT_ONCE_FACTOR = 5


class OverclaimPolicy(Strategy):
    """Learns from each claim for the loop whether all of its tasks ended at once, without a wait.

    allowed: whether MAX_CRASHES lets a task be in more than one crash. Else nothing is claimed beyond the
        slots.
    """

    def __init__(self, slots: HasSlots, *, allowed: bool) -> None:
        self._slots = slots
        self._allowed = allowed
        self._at_once = 0
        self._turns = TurnCounter("loop")

    @property
    def expected(self) -> bool:
        """Whether the last claim's tasks all ended at once, so that the next claim's probably do."""
        return self._at_once > 0

    def limit(self, lane: Lane, limit: int, unstarted: int) -> int:
        # The unstarted ones don't count: by the time of the next ones they have ended.
        if lane != "loop" or not self._at_once or self._turns.is_over() or self._slots.free("loop") <= 0:
            return limit
        return max(limit, self._at_once)

    def used(self, beyond: Collection[Lane]) -> None:
        self._turns.count(beyond)

    def forget(self) -> None:
        """Discard the estimate for the loop lane."""
        self._at_once = 0

    def learn(self, jobs: Sequence[Job], seconds: float) -> None:
        """Note that ``jobs``, of a full claim, all ended within ``seconds``; those of threads don't count."""
        if self._allowed and seconds > 0 and all(map(_is_robust, jobs)):
            number = sum(job.lane == "loop" for job in jobs)
            limit = min(AT_ONCE_LIMIT, AT_ONCE_FACTOR * self._slots.free("loop"))
            self._at_once = min(limit, int(number * AT_ONCE_TIME / seconds))


def _is_robust(job: Job) -> bool:
    """Return whether a crash costs the task only time. It hasn't been in one, as far as can be seen."""
    return len(job.worker_ids) == 1 and (job.policy.max_crashes is None or job.policy.max_crashes > 1)
