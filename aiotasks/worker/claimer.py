"""Claimer: whenever slots are free and there may be work, takes as much as fits."""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import utils

from ..job import LANES, Job, Lane
from ..store.repeat import backoff
from ..store.store import Store
from ..store.wakeups import Wakeup

__all__ = ["Claimer"]

logger = logging.getLogger("aiotasks.worker")

# For how long the queues that there are, where any name is served, are taken as known.
QUEUES_TTL = 2.0

# A claim that emptied a queue needn't look again at what became READY this long before it (dead
# index entries there, which an old snapshot keeps, cost 20 ms a claim). A transaction may commit
# a row this much later than its ready_at says; what is later still is found by the next poll.
WATERMARK_MARGIN = timedelta(seconds=10)

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class Claimer:
    """Claims for one worker.

    - It never claims more jobs than there are free slots: nothing waits inside a worker.
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
        start: Callable[[Job], None],
        drop: Callable[[Job], None],
    ) -> None:
        self._store = store
        self._backend = backend
        self._queues = list(queues)
        self._poll_interval = poll_interval
        self._worker_id = worker_id
        self._free = free
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
        self._turn = 0

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
                if not any(self._free(lane) > 0 for lane in self._hungry):
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(next_poll):
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
        queues = await self._rotated_queues()
        if not queues:
            return 0
        loop, thread = (self._source(queues, lane, free[lane]) for lane in LANES)
        # Held from now on: the loop may be blocked while the reply waits to be read, and our own
        # sweep mustn't take for lost what it says.
        claim_id = self.claiming = uuid.uuid4()
        try:
            jobs = await self._store.claim_jobs(worker_id, claim_id, self._backend, loop=loop, thread=thread)
            if jobs and self._worker_id() != worker_id:
                # The lease ended while the reply was on its way: somebody may have these by now.
                for job in jobs:
                    self._drop(job)
                return 0
            self._note_emptied(queues, free, jobs)
            jobs.sort(key=lambda job: (-job.priority, job.ready_at, job.id))
            for job in jobs:
                self._start(job)
        finally:
            self.claiming = None
        # Full: there is more. Short: the head may just have been touched, so once more.
        self._hungry.update(job.lane for job in jobs)
        return len(jobs)

    def _source(self, queues: Sequence[str], lane: Lane, free: int) -> tuple[list[str], list[datetime], int]:
        names = list(queues) if free else []
        return names, [self._watermarks.get((name, lane), _EVER) for name in names], free

    def _note_emptied(self, queues: Sequence[str], free: dict[Lane, int], jobs: list[Job]) -> None:
        """Remember up to when this claim emptied the queues: in the lanes that it didn't fill."""
        for lane in LANES:
            claimed = [job.ready_at for job in jobs if job.lane == lane and job.ready_at is not None]
            if claimed and len(claimed) < free[lane]:
                since = max(claimed) - WATERMARK_MARGIN
                self._watermarks |= {(name, lane): since for name in queues}

    async def _rotated_queues(self) -> list[str]:
        """The queues to claim from, beginning with another one each time: none starves another."""
        queues = self._queues
        if not queues:
            now = asyncio.get_running_loop().time()
            if now >= self._queues_until:
                self._queues_until = now + QUEUES_TTL  # a wake-up from now on asks for another look
                try:
                    self._known_queues = await self._store.list_queues(self._backend)
                except utils.Error:
                    self._queues_until = 0.0
                    raise
            queues = self._known_queues
        if not queues:
            return []
        self._turn = (self._turn + 1) % len(queues)
        return [*queues[self._turn :], *queues[: self._turn]]
