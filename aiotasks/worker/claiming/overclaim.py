"""OverclaimPolicy: how many coroutine tasks may be claimed beyond the free slots."""

from collections.abc import Collection, Sequence

from ...rows import Job, Lane
from ..protocols import HasSlots
from .budget import Strategy, TurnCounter

__all__ = ["OverclaimPolicy", "time_spent"]

# Tasks that wait for nothing take a slot for as long as they run, and no longer. After a claim of such tasks
# alone the next one takes as many as end within this many seconds, but at most so many. Measured: a claim of
# 250 and its finish cost a fifth less a task than of 100. With 500 it is a tenth less again, but a task in
# another queue waits twice as long for its turn (34 instead of 17 ms during a flood of no-ops).
AT_ONCE_TIME = 0.01
AT_ONCE_LIMIT = 250

# Nor more than so many times what the claims before have shown to end at once, because a few such tasks say
# little of hundreds. Nor more than so many times the free slots: should the tasks wait after all, the rest is
# given back. Measured with no-ops and 4 slots: 32 µs of the database's CPU time a task with 25 times the
# slots, 50 to 85 µs with 5 times.
AT_ONCE_GROWTH = 5
AT_ONCE_FACTOR = 25

# That time is the CPU time of the loop's thread, because among 50 busy workers on two cores the clock goes 25
# times as fast. But it counts as at least this share of the clock's: a task that blocks in a call takes none.
LEAST_SHARE = 0.1

# Seconds, measured likewise, after which the tasks beyond the free slots are given back: those before them
# weren't short after all. Twenty times AT_ONCE_TIME, and 2 seconds by the clock. After 0.5 s by the clock
# fifty workers of a busy machine gave a tenth of 40,000 no-ops back, and each time all of them claimed.
PATIENCE = 0.2


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

    def used(self, asked: Collection[Lane], beyond: Collection[Lane]) -> None:
        self._turns.count(asked, beyond)

    def forget(self) -> None:
        """Discard the estimate for the loop lane."""
        self._at_once = 0

    def learn(self, jobs: Sequence[Job], elapsed: float, cpu: float) -> None:
        """Note that the ``jobs`` of a full claim all ended; those of threads don't count.

        ``elapsed``: how many seconds that took. ``cpu``: the CPU time of the loop's thread meanwhile.
        """
        seconds = time_spent(elapsed, cpu)
        if not self._allowed or seconds <= 0 or not all(map(_is_robust, jobs)):
            self.forget()
            return
        number = sum(job.lane == "loop" for job in jobs)
        shown = max(number, self._at_once)  # a claim that goes by the slots shows less than those before it
        limit = min(AT_ONCE_LIMIT, AT_ONCE_GROWTH * shown, AT_ONCE_FACTOR * self._slots.free("loop"))
        self._at_once = min(limit, int(number * AT_ONCE_TIME / seconds))


def time_spent(elapsed: float, cpu: float) -> float:
    """Return the seconds that tasks count for.

    ``elapsed``: how many seconds they took. ``cpu``: the CPU time of the loop's thread meanwhile.
    """
    return max(cpu, elapsed * LEAST_SHARE)


def _is_robust(job: Job) -> bool:
    """Return whether a crash costs the task only time. It hasn't been in one, as far as can be seen."""
    return len(job.worker_ids) == 1 and (job.policy.max_crashes is None or job.policy.max_crashes > 1)
