"""Claimer: whenever slots are free and there may be work, takes as much as fits."""

import asyncio
import logging
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Protocol
from uuid import UUID

import anyio
from django.db import utils

from ...db.outage import Outage
from ...rows import LANES, Job, Lane, LaneRequest
from ...store.store import Store
from ...store.wakeups import INTERVAL, Wakeup
from ..events import NULL, Observer

__all__ = ["Claimer"]

logger = logging.getLogger("aiotasks.worker")

# What is enqueued so soon after a wake-up isn't told of again: a look at it, in seconds, when it is there.
LOOK_AGAIN = INTERVAL * 1.2

# Jobs that one claim takes at most: with more the first would wait for the last (150 ms for 10,000).
CLAIM_LIMIT = 1000

# Seconds between two looks at everything after wake-ups: what became READY long ago and was given
# back is below the watermarks.
FORGET_INTERVAL = 1.0

# For how long tasks are started without a look at what else the loop has to do.
TURN_TIME = 0.005


class Threads(Protocol):
    """Where jobs of the thread lane go, and may wait for a moment."""

    @property
    def claim_ids(self) -> set[UUID | None]: ...
    def free(self) -> int: ...
    def add(self, job: Job) -> None: ...
    def feed(self) -> None: ...
    def close(self) -> None: ...


class OverclaimPolicy(Protocol):
    """What says how many may be claimed beyond the free slots."""

    @property
    def expected(self) -> bool: ...
    def of(self, lane: Lane) -> int: ...
    def used(self, lanes: Iterable[Lane]) -> None: ...
    def forget(self) -> None: ...
    def learn(self, jobs: Sequence[Job], seconds: float) -> None: ...


class Quarantine(Protocol):
    """What says when tasks that have been in two crashes are claimed, and what beside them."""

    def suspect(self, now: float) -> None: ...
    def look(self, now: float) -> None: ...
    def lanes(self) -> list[Lane]: ...
    def quiet_until(self, now: float) -> float | None: ...
    def take_turn(self) -> bool: ...
    def asks(self, lane: Lane) -> None: ...
    def none_in(self, lane: Lane) -> None: ...
    def admit(self, job: Job, now: float) -> bool: ...
    def ended(self, job: Job) -> None: ...


class QueueRotation(Protocol):
    """Where claims take from."""

    def note_wakeup(self, wakeup: Wakeup | None) -> bool: ...
    def forget(self) -> None: ...
    def look_back(self, since: datetime) -> None: ...
    async def queues(self) -> list[str]: ...
    def of(self, lane: Lane, queues: Sequence[str], limit: int, *, robust_only: bool) -> LaneRequest: ...
    def learn(self, lane: Lane, source: LaneRequest, jobs: Sequence[Job]) -> None: ...


@dataclass
class _Claim:
    """What one claim has brought; ``more`` says that the next may bring something, too."""

    worker_id: UUID | None = None
    jobs: list[Job] = field(default_factory=list)
    full: bool = False
    more: bool = False


class Claimer:
    """Claims for one worker.

    - It claims no more jobs than there are free slots, so that nothing waits inside a worker; more
      only where tasks are short (``OverclaimPolicy``). What then finds no slot after all is given back, and
      keeps its place in the queue.
    - The next claim is under way while the jobs of one are started, where that leaves slots.
    - A claim is never cancelled by us: its reply says what we own. ``stop()`` waits for it.
    - A task that has been in two crashes is claimed by itself (``Quarantine``).
    - It claims on a wake-up and whenever slots come free while there may be more. A poll at
      random times within POLL_INTERVAL finds what no NOTIFY told of.
    """

    def __init__(
        self,
        store: Store,
        rotation: QueueRotation,
        *,
        backend: str,
        poll_interval: float,
        worker_id: Callable[[], UUID | None],
        free: Callable[[], int],
        threads: Threads,
        overclaim: OverclaimPolicy,
        quarantine: Quarantine,
        may_claim: Callable[[], bool],
        start: Callable[[Job], bool],
        drop: Callable[[Job], None],
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._rotation = rotation
        self._backend = backend
        self._poll_interval = poll_interval
        self._worker_id = worker_id
        self._free = free
        self._threads = threads
        self._overclaim = overclaim
        self._quarantine = quarantine
        self._may_claim = may_claim
        self._start = start
        self._drop = drop
        self._observer = observer
        self._claiming: set[UUID | None] = set()
        self._unstarted: deque[Job] = deque()  # of the claim whose jobs are being started
        self._changed = asyncio.Event()
        self._lanes_to_claim: set[Lane] = set(LANES)
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self._poll_at = inf
        self._look_again_at = inf
        self._forgot_at = -inf
        self._outage = Outage(logger, "claims", "claims wait for the database")

    def wake(self, wakeup: Wakeup | None = None) -> None:
        """There may be work (None: anywhere)."""
        if not self._rotation.note_wakeup(wakeup):
            return
        self._lanes_to_claim.update(LANES)
        self._look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN
        self._changed.set()

    def look_back(self, since: float) -> None:
        """Tasks have become READY whose place in their queue is as of ``since`` (epoch seconds)."""
        self._rotation.look_back(datetime.fromtimestamp(since, UTC))

    def suspect(self) -> None:
        """There may be tasks that have been in two crashes."""
        self._quarantine.suspect(asyncio.get_running_loop().time())
        self._changed.set()

    @property
    def claiming(self) -> set[UUID | None]:
        """The ids of claims whose jobs haven't all been started yet."""
        return self._claiming | self._threads.claim_ids

    def waiting(self) -> list[Job]:
        """The jobs of the latest claim that haven't been started yet. May be asked from any thread."""
        return list(self._unstarted)

    def slot_freed(self, job: Job | None = None) -> None:
        """A lane has room again, or ``job`` is written; it matters where there may be more to claim."""
        self._threads.feed()
        if job is not None:
            self._quarantine.ended(job)
        if self._lanes_to_claim or self._quarantine.lanes():
            self._changed.set()

    async def stop(self) -> None:
        """Claim no more; returns when no claim is under way."""
        self._stopping.set()
        self._changed.set()
        self._threads.close()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim until stopped. Whatever else of the worker fails or is cancelled, this ends by ``stop()``."""
        with self._scope:
            await self._run()

    def abort(self) -> None:
        """Give up a claim that has no answer; what it has taken must be rescued."""
        self._scope.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._poll_at = loop.time() + self._next_poll()
        try:
            while not self._stopping.is_set():
                now = loop.time()
                if now >= self._poll_at:
                    self._poll_at = now + self._next_poll()
                    self._look_at_everything(now)
                elif now >= self._look_again_at:
                    self._look_again(now)
                quiet_until = self._quarantine.quiet_until(now)
                may_claim = quiet_until is None and self._may_claim()
                if not may_claim or not (self._has_room_and_work() or self._suspect_lanes()):
                    wake_at = min(self._poll_at, self._look_again_at, quiet_until or inf)
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(wake_at):
                            await self._changed.wait()
                    self._changed.clear()
                    continue
                try:
                    if not await self._claim_apart() and self._has_room_and_work():
                        await self.run_once()
                except utils.Error as error:
                    pause = self._outage.failed(error)
                    self._lanes_to_claim.update(LANES)
                    self._quarantine.suspect(loop.time())  # it may have been that look
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._stopping.wait()
        finally:
            self._stopped.set()

    def _has_room_and_work(self) -> bool:
        """Whether there may be work that there is room for."""
        return any(self._free_in(lane) > 0 or self._overclaim.of(lane) > 0 for lane in self._lanes_to_claim)

    def _look_at_everything(self, now: float) -> None:
        self._forgot_at = now
        self._quarantine.look(now)
        self._rotation.forget()
        self._lanes_to_claim.update(LANES)

    def _look_again(self, now: float) -> None:
        """Some time after a wake-up: at what has come since, and once a second at everything."""
        self._look_again_at = inf
        if now - self._forgot_at >= FORGET_INTERVAL:
            self._look_at_everything(now)
        else:
            self._look_again_at = self._forgot_at + FORGET_INTERVAL
            self._lanes_to_claim.update(LANES)

    def _next_poll(self) -> float:
        return self._poll_interval * random.uniform(0.2, 1.0)  # jitter keeps a herd apart

    async def run_once(self) -> int:
        """Claim for the free slots, until they are full or a claim is short; returns how many jobs."""
        claimed = 0
        clock = asyncio.get_running_loop().time
        claim = await self._claim()
        while claim.jobs:
            claimed += len(claim.jobs)
            is_due = clock() >= self._poll_at or self._suspect_lanes()  # which run() sees to
            if not claim.more or is_due or not self._may_claim() or self._stopping.is_set():
                await self._start_all(claim)
                break
            following = asyncio.create_task(self._claim(claim.jobs), name="aiotasks claim")
            try:
                await asyncio.sleep(0)  # lets it be sent
                await self._start_all(claim)
                claim = await asyncio.shield(following)
            except BaseException:  # cancelled, for the most part
                following.add_done_callback(self._drop_claimed)  # nobody will start what it brings
                raise
        return claimed

    def _drop_claimed(self, following: "asyncio.Task[_Claim]") -> None:
        if not following.cancelled() and following.exception() is None:
            self._drop_all(following.result().jobs)

    def _drop_all(self, jobs: Iterable[Job]) -> None:
        """Give back what a claim has brought."""
        for job in jobs:
            self._drop(job)
            self._claiming.discard(job.claim_id)

    def _suspect_lanes(self) -> list[Lane]:
        """Where there may be a task that is claimed apart, and room for it; nowhere without a lease."""
        if self._worker_id() is None:
            return []
        return [lane for lane in self._quarantine.lanes() if self._free_in(lane) > 0]

    async def _claim_apart(self) -> bool:
        """Claim one task that has been in two crashes; False if there is none, or it is the others' turn."""
        if not self._quarantine.take_turn():
            return False
        for lane in self._suspect_lanes():
            queues = await self._rotation.queues()
            worker_id = self._worker_id()
            if worker_id is None:
                break
            self._quarantine.asks(lane)
            claim = partial(self._store.claim_suspect, backend=self._backend, lane=lane, queues=queues)
            jobs = await self._fetch(claim, worker_id)
            if not jobs:
                self._quarantine.none_in(lane)
                continue
            if self._quarantine.admit(jobs[0], asyncio.get_running_loop().time()):
                await self._start_all(_Claim(worker_id, jobs))
            else:
                self._drop_all(jobs)
            return True
        return False

    def _free_in(self, lane: Lane) -> int:
        """Slots of the lane that nothing is to have yet."""
        return self._free() if lane == "loop" else self._threads.free()

    async def _claim(self, unstarted: Sequence[Job] = ()) -> _Claim:
        """Claim once, beside jobs that haven't been started yet."""
        taken = Counter(job.lane for job in unstarted)
        free = {lane: self._free_in(lane) - taken[lane] for lane in LANES}
        # What is over at once takes no slot: those that are to be started don't count against it.
        most: dict[Lane, int] = {
            "loop": self._overclaim.of("loop"),
            "thread": self._overclaim.of("thread") - taken["thread"],
        }
        limits = {lane: min(max(0, free[lane], most[lane]), CLAIM_LIMIT) for lane in LANES}
        if not any(limits.values()):
            return _Claim()
        beyond = {lane for lane in LANES if limits[lane] > max(0, free[lane])}
        self._overclaim.used(beyond)
        self._lanes_to_claim -= {
            lane for lane in LANES if limits[lane]
        }  # a wake-up meanwhile adds them again
        worker_id = self._worker_id()
        queues = await self._rotation.queues()
        if worker_id is None:
            return _Claim()  # without a lease nothing is to be had; a registration wakes us
        if not queues:
            self._outage.ended()  # the list of queues has been read
            return _Claim()
        sources = {
            lane: self._rotation.of(lane, queues, limits[lane], robust_only=lane in beyond) for lane in LANES
        }
        jobs = await self._fetch(
            partial(
                self._store.claim_jobs, backend=self._backend, loop=sources["loop"], thread=sources["thread"]
            ),
            worker_id,
        )
        self._outage.ended()
        for lane, source in sources.items():
            self._rotation.learn(lane, source, [job for job in jobs if job.lane == lane])
        turn = {(lane, name): n for lane in LANES for n, name in enumerate(sources[lane].queues)}
        jobs.sort(key=lambda job: (-job.priority, turn[job.lane, job.queue_name], job.ready_at, job.id))
        # Full: there is more. Short: the head may just have been touched, so once more; or tasks have
        # been left out.
        self._lanes_to_claim.update(job.lane for job in jobs)
        self._lanes_to_claim.update(beyond)
        if not jobs:
            self._overclaim.forget()
        full = sum(job.lane == "loop" for job in jobs) >= limits["loop"] > 0
        more = full and (self._overclaim.expected or free["loop"] > limits["loop"])
        return _Claim(worker_id, jobs, full, more)

    async def _fetch(
        self, statement: Callable[[UUID, UUID], Awaitable[list[Job]]], worker_id: UUID
    ) -> list[Job]:
        # Held from now on: the loop may be blocked while the reply waits to be read, and our own
        # sweep mustn't take for lost what it says.
        claim_id = uuid.uuid4()
        self._claiming.add(claim_id)
        jobs: list[Job] = []
        began = time.monotonic()
        try:
            jobs = await statement(worker_id, claim_id)
            if self._observer.watches_tasks:
                self._observer.claimed(len(jobs), time.monotonic() - began)
        finally:
            if not jobs:
                self._claiming.discard(claim_id)
        return jobs

    async def _start_all(self, claim: _Claim) -> None:
        """Start the jobs of one claim, and see how many were over at once."""
        clock = time.monotonic  # uvloop's stands still within a turn of the loop
        began = turn = clock()
        at_once = threads = 0
        unstarted = self._unstarted = deque(claim.jobs)
        try:
            while unstarted:
                if clock() - turn > TURN_TIME:
                    await asyncio.sleep(0)
                    turn = clock()
                job = unstarted.popleft()
                # The lease may have ended while the reply was on its way, or since: somebody may have
                # these by now.
                if self._worker_id() != claim.worker_id:
                    self._drop(job)
                elif job.lane == "thread":
                    self._threads.add(job)
                    threads += 1
                elif self._free() <= 0:
                    self._drop(job)
                elif self._start(job):
                    at_once += 1
        finally:
            self._drop_all(unstarted)  # cancelled meanwhile
            self._claiming.discard(claim.jobs[0].claim_id)
        self._overclaim.forget()
        if claim.full and at_once == len(claim.jobs) - threads:
            self._overclaim.learn(claim.jobs, clock() - began)
