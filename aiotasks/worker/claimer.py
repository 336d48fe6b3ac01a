"""Claimer: whenever slots are free and there may be work, takes as much as fits."""

import asyncio
import logging
import random
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf
from uuid import UUID

from django.db import utils

from ..job import LANES, Job, Lane
from ..store.repeat import backoff
from ..store.store import Store
from ..store.wakeups import INTERVAL, Wakeup

__all__ = ["Claimer"]

logger = logging.getLogger("aiotasks.worker")

# For how long the queues that there are, where any name is served, are taken as known.
QUEUES_TTL = 2.0

# A claim that emptied a queue needn't look again at what became READY this long before it (dead
# index entries there, which an old snapshot keeps, cost 20 ms a claim). A transaction may commit
# a row this much later than its ready_at says; what is later still is found by the next poll.
WATERMARK_MARGIN = timedelta(seconds=10)

# What is enqueued so soon after a wake-up isn't told of again: a look at it, in seconds, when it is there.
LOOK_AGAIN = INTERVAL * 1.2

# Tasks that don't wait for anything take no slot for longer than they run. Where a claim's were all of
# that kind the next takes what this many seconds are enough for, at most so many: a claim of 500 and
# its finish cost a quarter less a task than of 100, and past that nothing more.
AT_ONCE_TIME = 0.02
AT_ONCE_LIMIT = 500

# For how long tasks are started without a look at what else the loop has to do.
TURN_TIME = 0.005

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class Claimer:
    """Claims for one worker.

    - It never claims more jobs than there are free slots: nothing waits inside a worker. Tasks that
      were over at once, all of a claim, let the next be larger (``_at_once``); what then finds no
      slot after all is given back.
    - A claim is never cancelled by us: its reply says what we own. ``stop()`` waits for it.
    - It claims on a wake-up and whenever slots come free while there may be more. A poll at
      random times within POLL_INTERVAL finds what no NOTIFY told of.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        queues: Sequence[str],
        poll_interval: float,
        worker_id: Callable[[], UUID | None],
        free: Callable[[Lane], int],
        may_claim: Callable[[], bool],
        start: Callable[[Job], bool],
        drop: Callable[[Job], None],
    ) -> None:
        self._store = store
        self._backend = backend
        self._queues = sorted(queues)
        self._poll_interval = poll_interval
        self._worker_id = worker_id
        self._free = free
        self._may_claim = may_claim
        self._start = start
        self._drop = drop
        self.claiming: UUID | None = None  # the id of a claim whose jobs haven't been started yet
        self._changed = asyncio.Event()
        self._hungry: set[Lane] = set(LANES)
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._watermarks: dict[tuple[str, Lane], datetime] = {}
        self._known_queues: list[str] = []
        self._queues_until = 0.0
        self._look_again_at = inf
        self._served: dict[Lane, str] = dict.fromkeys(LANES, "")  # the queue that has had its turn
        self._at_once = 0  # so many may be claimed for the loop, however few slots are free

    def wake(self, wakeup: Wakeup | None = None) -> None:
        """There may be work (None: anywhere)."""
        if wakeup is not None:
            if wakeup.backend != self._backend or (self._queues and wakeup.queue_name not in self._queues):
                return
            if not self._queues and wakeup.queue_name not in self._known_queues:
                self._queues_until = 0.0
        else:
            self._queues_until = 0.0
        self._hungry.update(LANES)
        self._look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN
        self._changed.set()

    def slot_freed(self) -> None:
        """A lane has room again; it matters where there may be more to claim."""
        if self._hungry:
            self._changed.set()

    async def stop(self) -> None:
        """Claim no more; returns when no claim is under way."""
        self._stopping.set()
        self._changed.set()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim until stopped."""
        loop = asyncio.get_running_loop()
        failures = 0
        next_poll = loop.time() + self._next_poll()
        try:
            while not self._stopping.is_set():
                if loop.time() >= next_poll:
                    next_poll = loop.time() + self._next_poll()
                    self._watermarks.clear()  # a poll looks at everything, everywhere
                    self._hungry.update(LANES)
                if loop.time() >= self._look_again_at:
                    self._look_again_at = inf
                    self._hungry.update(LANES)
                if not self._may_claim() or not any(self._free(lane) > 0 for lane in self._hungry):
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(min(next_poll, self._look_again_at)):
                            await self._changed.wait()
                    self._changed.clear()
                    continue
                try:
                    await self.run_once()
                    failures = 0
                except utils.Error as error:
                    failures += 1
                    if failures == 1:
                        logger.warning("claims wait for the database error=%r", str(error))
                    self._hungry.update(LANES)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(backoff(failures)):
                            await self._stopping.wait()
        finally:
            self._stopped.set()

    def _next_poll(self) -> float:
        return self._poll_interval * random.uniform(0.2, 1.0)  # jitter keeps a herd apart

    async def run_once(self) -> int:
        """Claim once for the free slots and start what was claimed; returns how many jobs."""
        free: dict[Lane, int] = {lane: max(0, self._free(lane)) for lane in LANES}
        self._hungry -= {lane for lane in LANES if free[lane]}  # a wake-up meanwhile adds them again
        worker_id = self._worker_id()
        if worker_id is None:
            return 0  # without a lease nothing is to be had; a registration wakes us
        queues = await self._served_queues()
        if not queues:
            return 0
        if free["loop"]:
            free["loop"] = max(free["loop"], self._at_once)
        sources = {lane: self._source(queues, lane, free[lane]) for lane in LANES}
        # Held from now on: the loop may be blocked while the reply waits to be read, and our own
        # sweep mustn't take for lost what it says.
        claim_id = self.claiming = uuid.uuid4()
        try:
            jobs = await self._store.claim_jobs(worker_id, claim_id, self._backend, **sources)
            for lane, (order, _, limit) in sources.items():
                self._learn(lane, order, limit, [job for job in jobs if job.lane == lane])
            jobs.sort(key=lambda job: (-job.priority, job.ready_at, job.id))
            await self._start_all(jobs, worker_id, full=len(jobs) >= free["loop"])
        finally:
            self.claiming = None
        # Full: there is more. Short: the head may just have been touched, so once more.
        self._hungry.update(job.lane for job in jobs)
        return len(jobs)

    async def _start_all(self, jobs: list[Job], worker_id: UUID, *, full: bool) -> None:
        """Start the jobs of one claim, and see how much the next may take."""
        clock = asyncio.get_running_loop().time
        began = turn = clock()
        at_once = 0
        for job in jobs:
            if clock() - turn > TURN_TIME:
                await asyncio.sleep(0)
                turn = clock()
            # The lease may have ended while the reply was on its way, or since: somebody may have
            # these by now.
            if self._worker_id() != worker_id or self._free(job.lane) <= 0:
                self._drop(job)
            elif self._start(job):
                at_once += 1
        taken = clock() - began
        self._at_once = 0
        if full and at_once == len(jobs) and taken > 0:
            self._at_once = min(AT_ONCE_LIMIT, int(at_once * AT_ONCE_TIME / taken))

    def _source(self, queues: Sequence[str], lane: Lane, free: int) -> tuple[list[str], list[datetime], int]:
        """What to claim from for one lane: the queues, in their order, and how much."""
        turn = bisect_right(queues, self._served[lane])
        order = [*queues[turn:], *queues[:turn]] if free else []
        return order, [self._watermarks.get((name, lane), _EVER) for name in order], free

    def _learn(self, lane: Lane, order: Sequence[str], limit: int, jobs: Sequence[Job]) -> None:
        """What a claim says of the queues: which one is next, or up to when they are empty."""
        if not jobs:
            return
        if len(jobs) < limit:
            since = max(job.ready_at for job in jobs if job.ready_at is not None) - WATERMARK_MARGIN
            self._watermarks |= {(name, lane): since for name in order}
            return
        # The last queue that gave something has more, and begins; one that gave it all has had its turn.
        gave = {job.queue_name for job in jobs}
        last = max(index for index, name in enumerate(order) if name in gave)
        self._served[lane] = order[last if len(gave) == 1 else last - 1]

    async def _served_queues(self) -> list[str]:
        """Sorted; where any name is served, those that there are."""
        if self._queues:
            return self._queues
        now = asyncio.get_running_loop().time()
        if now >= self._queues_until:
            self._queues_until = now + QUEUES_TTL  # a wake-up from now on asks for another look
            try:
                self._known_queues = sorted(await self._store.list_queues(self._backend))
            except utils.Error:
                self._queues_until = 0.0
                raise
        return self._known_queues
