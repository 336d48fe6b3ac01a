"""PrefetchBuffer: short sync tasks that are claimed before a thread is free for them."""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from uuid import UUID

from ...rows import Job

__all__ = ["PrefetchBuffer"]

# Seconds that what waits here may take all threads together; and so many times the threads at most.
# No-ops in 10 threads: 4,000/s with claims of at most 10 (5 on average, as threads come free one by
# one), 8,000/s with 50.
AHEAD_TIME = 0.01
AHEAD_FACTOR = 5

# Seconds after which what still waits is given back: the tasks before it weren't short after all.
PATIENCE = 0.05

# The weight of one task in the mean time that they take: after a long one, some fifty short ones pass
# before the next is claimed ahead.
WEIGHT = 1 / 16


class PrefetchBuffer:
    """Where jobs of the thread lane wait for at most ``PATIENCE``, as long as sync tasks are short.

    ``start`` gets each job once a thread is ``free`` for it, ``drop`` each one that isn't to wait.
    """

    def __init__(
        self,
        threads: int,
        *,
        free: Callable[[], int],
        start: Callable[[Job], object],
        drop: Callable[[Job], None],
    ) -> None:
        self._threads = threads
        self._free = free
        self._start = start
        self._drop = drop
        self._jobs: deque[tuple[Job, float]] = deque()  # with when their time is up
        self._took = inf  # seconds that a task has a thread, on average
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def claim_ids(self) -> set[UUID | None]:
        """The claims of what waits."""
        return {job.claim_id for job, _ in self._jobs}

    def waiting(self) -> list[Job]:
        """The jobs that have no thread yet. May be asked from any thread."""
        return [job for job, _ in list(self._jobs)]

    def free(self) -> int:
        """Threads for which nothing waits."""
        return self._free() - len(self._jobs)

    def ahead(self) -> int:
        """How many more may be claimed now, where that is more than there are free threads; else 0."""
        limit = int(min(AHEAD_FACTOR * self._threads, self._threads * AHEAD_TIME / self._took))
        if limit <= self._threads or 2 * len(self._jobs) > limit:  # few at a time would be dear
            return 0
        return limit - len(self._jobs)

    def took(self, seconds: float) -> None:
        """A task has had a thread for so long."""
        seconds = max(seconds, 1e-6)
        self._took = seconds if self._took == inf else self._took + (seconds - self._took) * WEIGHT

    def add(self, job: Job) -> None:
        """Have ``job`` started now, or soon."""
        if self.free() > 0:
            self._start(job)
        elif self._closed:
            self._drop(job)
        else:
            loop = asyncio.get_running_loop()
            self._jobs.append((job, loop.time() + PATIENCE))
            if self._timer is None:
                self._timer = loop.call_later(PATIENCE, self._give_up)

    def feed(self) -> None:
        """Start what waits, as far as threads are free."""
        while self._jobs and self._free() > 0:
            self._start(self._jobs.popleft()[0])

    def close(self) -> None:
        """Let nothing wait any longer."""
        self._closed = True
        while self._jobs:
            self._drop(self._jobs.popleft()[0])

    def _give_up(self) -> None:
        self._timer = None
        self.feed()
        loop = asyncio.get_running_loop()
        if self._jobs and self._jobs[0][1] <= loop.time():
            self._took = AHEAD_TIME * self._threads
            while self._jobs:  # those behind it, too: they must not start before it
                self._drop(self._jobs.popleft()[0])
        if self._jobs:
            self._timer = loop.call_at(self._jobs[0][1], self._give_up)
