"""OverclaimPolicy: how many tasks may be claimed beyond the free slots."""

from collections.abc import Callable, Iterable, Sequence

from ...rows import LANES, Job, Lane

__all__ = ["OverclaimPolicy"]

# Tasks that don't wait for anything take no slot for longer than they run. Where a claim's were all of
# that kind the next takes what this many seconds are enough for, at most so many: a claim of 250 and
# its finish cost a fifth less a task than of 100. With 500 it is a tenth less again, but a task in
# another queue waits twice as long for its turn (34 instead of 17 ms during a flood of no-ops).
AT_ONCE_TIME = 0.01
AT_ONCE_LIMIT = 250

# Yet not so many times the slots, and only so many claims in a row, after which the tasks that such
# claims leave out (see claim_jobs.sql) have their turn.
AT_ONCE_FACTOR = 5
ROW = 4


class OverclaimPolicy:
    """What the claims of one worker have shown of its tasks, and so let the next one take.

    Tasks of the loop lane that were over at once, all of a claim, let the next be larger; of the thread
    lane, ``ahead`` says how many are short enough to wait for a thread. ``free`` are the loop's slots.
    """

    def __init__(self, *, free: Callable[[], int], ahead: Callable[[], int], allowed: bool) -> None:
        self._free = free
        self._ahead = ahead
        self._allowed = allowed
        self._at_once = 0
        self._in_a_row: dict[Lane, int] = dict.fromkeys(LANES, 0)

    def of(self, lane: Lane) -> int:
        """How many may be claimed for the lane, however few slots are free; 0 for no more than those."""
        if not self._allowed or self._in_a_row[lane] >= ROW:
            return 0
        if lane == "loop":
            return self._at_once if self._free() > 0 else 0
        return self._ahead()

    @property
    def expected(self) -> bool:
        """Whether the last claim for the loop was all over at once, so that the next probably is."""
        return self._at_once > 0

    def used(self, lanes: Iterable[Lane]) -> None:
        """A claim goes beyond the free slots of these lanes, and of no other."""
        for lane in LANES:
            self._in_a_row[lane] = self._in_a_row[lane] + 1 if lane in lanes else 0

    def forget(self) -> None:
        """Nobody knows any more how long tasks take on the loop."""
        self._at_once = 0

    def learn(self, jobs: Sequence[Job], seconds: float) -> None:
        """``jobs``, a full claim's, were all over within ``seconds``, those of threads not counted."""
        if self._allowed and seconds > 0 and all(map(_is_robust, jobs)):
            number = sum(job.lane == "loop" for job in jobs)
            limit = min(AT_ONCE_LIMIT, AT_ONCE_FACTOR * self._free())
            self._at_once = min(limit, int(number * AT_ONCE_TIME / seconds))


def _is_robust(job: Job) -> bool:
    """Whether a crash costs the task nothing but time, and it hasn't been in one, as far as can be seen."""
    return len(job.worker_ids) == 1 and (job.max_crashes is None or job.max_crashes > 1)
