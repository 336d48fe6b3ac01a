"""PrefetchBuffer: short sync tasks that are claimed before a thread is free for them."""

import asyncio
from collections import deque
from collections.abc import Collection
from math import inf
from uuid import UUID

from ...rows import Job, Lane
from ..protocols import GivesBack, HasSlots, Leases, Starts
from .budget import Strategy, TurnCounter

__all__ = ["Prefetch", "PrefetchBuffer"]

# Seconds that the waiting tasks may take all threads together; and so many times the threads at most.
# Measured with no-ops in 10 threads: 4,000/s with claims of at most 10 (5 on average, as threads come free
# one by one), 8,000/s with 50.
AHEAD_TIME = 0.01
AHEAD_FACTOR = 5

# Seconds after which a task that still waits is given back: those before it weren't short after all. Five
# times AHEAD_TIME, so that a busy machine is no reason.
PATIENCE = 0.05

# The weight of one task in the mean time that they take: after a long one, some fifty short ones pass
# before the next is claimed ahead.
WEIGHT = 1 / 16


class PrefetchBuffer:
    """Where jobs of the thread lane wait for at most ``PATIENCE``, as long as sync tasks are short.

    ``runner`` gets each job once a thread is free for it. ``ownership`` gets back those that may not wait, or
    whose lease has ended while they did.
    """

    def __init__(
        self, threads: int, *, slots: HasSlots, lease: Leases, runner: Starts, ownership: GivesBack
    ) -> None:
        self._threads = threads
        self._slots = slots
        self._lease = lease
        self._runner = runner
        self._ownership = ownership
        self._jobs: deque[tuple[Job, float]] = deque()  # each with the end of its time
        self._took = inf  # seconds that a task has a thread, on average
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def claim_ids(self) -> set[UUID | None]:
        """The claims of the jobs that wait."""
        return {job.claim_id for job, _ in self._jobs}

    def waiting(self) -> list[Job]:
        """Return the jobs that have no thread yet. May be called in any thread."""
        return [job for job, _ in list(self._jobs)]

    def free(self) -> int:
        """Return the threads for which no job waits; negative where more wait."""
        return self._slots.free("thread") - len(self._jobs)

    def ahead(self) -> int:
        """Return how many more may be claimed now, where that is more than there are free threads; else 0."""
        limit = int(min(AHEAD_FACTOR * self._threads, self._threads * AHEAD_TIME / self._took))
        if limit <= self._threads or 2 * len(self._jobs) > limit:  # a claim of a few is dear
            return 0
        return limit - len(self._jobs)

    def took(self, seconds: float) -> None:
        """Note that a task has had a thread for so many seconds."""
        seconds = max(seconds, 1e-6)
        self._took = seconds if self._took == inf else self._took + (seconds - self._took) * WEIGHT

    def add(self, job: Job) -> None:
        """Start ``job`` now, or have it wait for a thread."""
        if self.free() > 0:
            self._start(job)
        elif self._closed:
            self._ownership.give_back(job)
        else:
            loop = asyncio.get_running_loop()
            self._jobs.append((job, loop.time() + PATIENCE))
            if self._timer is None:
                self._timer = loop.call_later(PATIENCE, self._give_up)

    def feed(self) -> None:
        """Start the waiting jobs, as far as threads are free."""
        while self._jobs and self._slots.free("thread") > 0:
            self._start(self._jobs.popleft()[0])

    def close(self) -> None:
        """Give back the jobs that wait; no other may wait from now on."""
        self._closed = True
        self._give_all_back()

    def _start(self, job: Job) -> None:
        if self._lease.owns(job):
            self._runner.start(job)
        else:
            self._ownership.give_back(job)

    def _give_up(self) -> None:
        self._timer = None
        self.feed()
        loop = asyncio.get_running_loop()
        if self._jobs and self._jobs[0][1] <= loop.time():
            self._took = AHEAD_TIME * self._threads
            self._give_all_back()  # those behind the first, too: they must not start before it
        if self._jobs:
            self._timer = loop.call_at(self._jobs[0][1], self._give_up)

    def _give_all_back(self) -> None:
        while self._jobs:
            self._ownership.give_back(self._jobs.popleft()[0])


class Prefetch(Strategy):
    """As many sync tasks as the buffer takes ahead of the threads, while the machine gives all threads.

    allowed: whether MAX_CRASHES lets a task be in more than one crash.
    """

    def __init__(self, buffer: PrefetchBuffer, slots: HasSlots, *, allowed: bool) -> None:
        self._buffer = buffer
        self._slots = slots
        self._allowed = allowed
        self._turns = TurnCounter("thread")

    def limit(self, lane: Lane, limit: int, unstarted: int) -> int:
        if (
            lane != "thread"
            or not self._allowed
            or self._turns.is_over()
            or not self._slots.has_all_threads()
        ):
            return limit
        return max(limit, self._buffer.ahead() - unstarted)

    def used(self, asked: Collection[Lane], beyond: Collection[Lane]) -> None:
        self._turns.count(asked, beyond)
