"""Claimer: claims tasks whenever slots are free and there may be work."""

import asyncio
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from uuid import UUID

import anyio
from django.db import utils

from ...db.outage import Outage
from ...rows import LANES, Job, Lane, microseconds
from ...store.notifier import INTERVAL
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..events import NULL, Observer
from ..fleet import Fleet
from ..protocols import GivesBack, Leases, Starts
from .budget import Budget, FreeSlots
from .overclaim import PATIENCE, OverclaimPolicy
from .prefetch import PrefetchBuffer
from .quarantine import Quarantine
from .relay import Relay
from .rotation import QueueRotation

__all__ = ["Claimer"]

logger = logging.getLogger("aiotasks.worker")

# Seconds from a wake-up to another claim: tasks that are enqueued within INTERVAL of a wake-up send none, and
# a commit may take a little longer to be seen.
LOOK_AGAIN_DELAY = INTERVAL * 1.2

# Seconds between two claims that ignore the watermarks, after wake-ups: tasks that became READY long ago and
# were given back are below them.
FORGET_INTERVAL = 1.0

# A worker that is alone polls after this part of POLL_INTERVAL at the earliest, which is random enough for
# workers that don't know of each other.
EARLIEST_POLL = 0.2

# Seconds for which tasks are started before the loop gets a turn. Chosen: a callback may wait for as long as
# for a few statements.
TURN_TIME = 0.005


@dataclass
class _Claim:
    """The reply to one claim."""

    worker_id: UUID | None = None
    jobs: list[Job] = field(default_factory=list)
    full: bool = False  # it has brought as many coroutine tasks as it was for
    more: bool = False  # the next one may bring some, too
    unasked: bool = False  # there may be tasks in queues that it didn't ask


class Claimer:
    """Claims for one worker.

    - It claims as many jobs as its budget allows: no more than there are free slots, so that no task waits
      inside a worker, unless tasks are short. A job that finds no slot after all is given back, and keeps its
      place in the queue.
    - The next claim is under way while the jobs of one are started, where that leaves slots.
    - The worker never cancels a claim: its reply says what the worker owns. ``stop()`` waits for it.
    - A task that has been in two crashes is claimed alone (``Quarantine``).
    - It claims on a wake-up, and whenever slots come free while there may be more. Of the two workers that an
      enqueue wakes, the second claims only after LOOK_AGAIN_DELAY, in case the first can't. Polls within
      POLL_INTERVAL find the tasks without a NOTIFY; its ``peers`` and this worker take turns at them. A
      worker whose slots are taken at its turn looks as soon as one is free.

    slots: the free slots. budget: how many jobs a claim may take; ``overclaim`` is one of its strategies.
    prefetch: where jobs of the thread lane go. runner: where the others go. ownership: where jobs go back
    that aren't started. relay: where wake-ups go that other workers should have.
    """

    def __init__(
        self,
        store: Store,
        rotation: QueueRotation,
        *,
        backend: str,
        poll_interval: float,
        peers: Fleet,
        lease: Leases,
        slots: FreeSlots,
        budget: Budget,
        overclaim: OverclaimPolicy,
        prefetch: PrefetchBuffer,
        quarantine: Quarantine,
        relay: Relay,
        runner: Starts,
        ownership: GivesBack,
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self.rotation = rotation
        self._backend = backend
        self._lease = lease
        self._slots = slots
        self._lanes = [lane for lane in LANES if slots.has(lane)]
        self.budget = budget
        self._overclaim = overclaim
        self.prefetch = prefetch
        self.quarantine = quarantine
        self._relay = relay
        self._runner = runner
        self._ownership = ownership
        self._observer = observer
        self._claiming: set[UUID | None] = set()
        self.claimed_at = -inf  # when a claim has last taken tasks, or may have, by time.monotonic()
        self._unstarted: deque[Job] = deque()  # of the claim whose jobs are being started
        self._changed = asyncio.Event()
        self._lanes_to_claim: set[Lane] = set(LANES)
        self._stopping = asyncio.Event()
        self._starts = True
        self._stopped = asyncio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self.poll = peers.turn(poll_interval, earliest=EARLIEST_POLL, moved=self._changed)
        self._look_again_at = inf
        self._woken_since = inf  # when the first wake-up came that there was no other look after
        self._forgot_at = -inf
        self._outage = Outage(logger, "claims", "claims wait for the database", observer=observer)

    def wake(self, wakeup: Wakeup | None = None) -> None:
        """Look for READY tasks: in the queue of ``wakeup``, or in all."""
        if wakeup is not None and wakeup.lane is not None and wakeup.lane not in self._lanes:
            return  # it is for another worker of this process
        if not self.rotation.note_wakeup(wakeup):
            return
        now = asyncio.get_running_loop().time()
        self._look_again_at = now + LOOK_AGAIN_DELAY
        self._woken_since = min(self._woken_since, now)
        self._changed.set()
        if wakeup is None or wakeup.place != 2:
            self._lanes_to_claim.update(LANES)
        if wakeup is not None:
            self._relay.woken(wakeup)

    def look_back(self, since: float) -> None:
        """Look for tasks with a place in their queue as of ``since`` (epoch seconds) or later."""
        self.rotation.look_back(datetime.fromtimestamp(since, UTC))

    def suspect(self) -> None:
        """Look for tasks that have been in two crashes."""
        self.quarantine.suspect(asyncio.get_running_loop().time())
        self._changed.set()

    @property
    def lanes_to_claim(self) -> frozenset[Lane]:
        """The lanes in which there may be READY tasks."""
        return frozenset(self._lanes_to_claim)

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop()`` was called."""
        return self._stopping.is_set()

    @property
    def claiming(self) -> set[UUID | None]:
        """The ids of the claims whose jobs haven't all been started."""
        return self._claiming | self.prefetch.claim_ids

    def waiting(self) -> list[Job]:
        """Return the claimed jobs that haven't been started. May be called in any thread."""
        return [*list(self._unstarted), *self.prefetch.waiting()]

    def slot_freed(self, job: Job | None = None) -> None:
        """A lane has room again, or the outcome of ``job`` is written: claim, if there may be more."""
        self.prefetch.feed()
        if job is not None:
            self.quarantine.ended(job)
        if self._lanes_to_claim or self.quarantine.lanes():
            self._changed.set()

    async def stop(self) -> None:
        """Claim no more; returns when no claim is under way."""
        self._stopping.set()
        self._changed.set()
        self.prefetch.close()
        self._relay.close()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim until ``stop()``, whatever other part of the worker fails or is cancelled."""
        with self._scope:
            await self._run()

    def start_no_more(self) -> None:
        """Give back what a claim under way brings, because the grace is over."""
        self._starts = False

    def abort(self) -> None:
        """Give up a claim that has no reply; the tasks that it has taken must be rescued."""
        self._scope.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self.poll.next()
        has_turn = False
        try:
            while not self._stopping.is_set():
                now = loop.time()
                if now >= self.poll.at:
                    self.poll.next()
                    self._look_at_everything(now)
                    self.rotation.walk()
                    has_turn = True
                elif now >= self._look_again_at:
                    self._look_again(now)
                elif now - self._woken_since >= FORGET_INTERVAL:
                    # Wake-ups have put the look off all the time.
                    self._woken_since = now
                    self._look_at_everything(now)
                quiet_until = self.quarantine.quiet_until(now)
                may_claim = quiet_until is None and self.budget.is_open()
                if has_turn and not (may_claim and all(self.budget.limit(lane) > 0 for lane in self._lanes)):
                    self._relay.pass_turn_on()
                has_turn = False
                has_work = may_claim and self._has_room_and_work()
                if not has_work and not (may_claim and self._suspect_lanes()):
                    self._relay.pass_on()
                    wake_at = min(self.poll.at, self._look_again_at, quiet_until or inf)
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(wake_at):
                            await self._changed.wait()
                    self._changed.clear()
                    continue
                try:
                    if not await self._claim_apart() and has_work:
                        await self.run_once()
                except utils.Error as error:
                    self._relay.failed()
                    pause = self._outage.failed(error)
                    self._lanes_to_claim.update(LANES)
                    self.quarantine.suspect(loop.time())  # it may have been the claim for these that failed
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._stopping.wait()
        finally:
            self._stopped.set()

    def _has_room_and_work(self) -> bool:
        """Return whether there may be READY tasks that there is room for."""
        return any(self.budget.limit(lane) > 0 for lane in self._lanes_to_claim)

    def _look_at_everything(self, now: float) -> None:
        self._forgot_at = now
        self.quarantine.look(now)
        self.rotation.forget()
        self._lanes_to_claim.update(LANES)

    def _look_again(self, now: float) -> None:
        """Some time after a wake-up: look for tasks that have come since, and once a second for all."""
        self._look_again_at = self._woken_since = inf
        if now - self._forgot_at >= FORGET_INTERVAL:
            self._look_at_everything(now)
        else:
            self._look_again_at = self._forgot_at + FORGET_INTERVAL
            self._lanes_to_claim.update(LANES)

    async def run_once(self) -> int:
        """Claim until the slots are full or a claim is short; returns the number of jobs."""
        claimed = 0
        clock = asyncio.get_running_loop().time
        claim = await self._claim()
        while claim.unasked and not claim.jobs and not self._stopping.is_set():
            claim = await self._claim()
        while claim.jobs:
            claimed += len(claim.jobs)
            is_due = clock() >= self.poll.at or self._suspect_lanes()  # run() does both
            if not claim.more or is_due or not self.budget.is_open() or self._stopping.is_set():
                await self._start_all(claim)
                break
            following = asyncio.create_task(self._claim(claim.jobs), name="aiotasks claim")
            try:
                await asyncio.sleep(0)  # lets it be sent
                await self._start_all(claim)
                claim = await asyncio.shield(following)
            except BaseException:  # cancelled, for the most part
                following.add_done_callback(self._give_back_claimed)
                raise
        return claimed

    def _give_back_claimed(self, following: "asyncio.Task[_Claim]") -> None:
        if not following.cancelled() and following.exception() is None:
            self._give_all_back(following.result().jobs)

    def _give_all_back(self, jobs: Iterable[Job]) -> None:
        """Give back the jobs of a claim."""
        for job in jobs:
            self._ownership.give_back(job)
            self._claiming.discard(job.claim_id)

    def _suspect_lanes(self) -> list[Lane]:
        """Return the lanes with room in which there may be a task to claim alone; none without a lease."""
        if self._lease.current_id() is None:
            return []
        return [lane for lane in self.quarantine.lanes() if self._slots.free(lane) > 0]

    async def _claim_apart(self) -> bool:
        """Claim one task that has been in two crashes.

        Returns False if there is none, or it is the turn of the other tasks.
        """
        if not self.quarantine.take_turn():
            return False
        for lane in self._suspect_lanes():
            worker_id = self._lease.current_id()
            if worker_id is None:
                break
            self.quarantine.asks(lane)
            claim = partial(
                self._store.claim_suspect, backend=self._backend, lane=lane, queues=self.rotation.queues
            )
            jobs = await self._fetch(claim, worker_id)
            if not jobs:
                self.quarantine.none_in(lane)
                continue
            if self.quarantine.admit(jobs[0], asyncio.get_running_loop().time()):
                await self._start_all(_Claim(worker_id, jobs))
            else:
                self._give_all_back(jobs)
            return True
        return False

    async def _claim(self, unstarted: Sequence[Job] = ()) -> _Claim:
        """Claim once, beside jobs that haven't been started yet."""
        taken = Counter(job.lane for job in unstarted)
        free = {lane: self._slots.free(lane) - taken[lane] for lane in LANES}
        limits = {lane: self.budget.limit(lane, taken[lane]) for lane in LANES}
        if not any(limits.values()):
            return _Claim()
        beyond = {lane for lane in LANES if limits[lane] > max(0, free[lane])}
        # A wake-up during the claim adds them again.
        self._lanes_to_claim.difference_update([lane for lane in LANES if limits[lane]])
        worker_id = self._lease.current_id()
        if worker_id is None:
            return _Claim()  # a registration wakes the claimer
        requests = await self.rotation.requests(limits, robust_only=beyond)
        if not any(request.queues for request in requests.values()):
            self._outage.ended()  # the list of queues has been read
            return _Claim()
        self.budget.used(beyond)
        self._relay.claims(lane for lane in LANES if limits[lane])
        jobs = await self._fetch(
            partial(
                self._store.claim_jobs,
                backend=self._backend,
                loop=requests["loop"],
                thread=requests["thread"],
            ),
            worker_id,
        )
        self._outage.ended()
        # A full claim leaves more. A short one may, too: the head may have been locked for a moment, or tasks
        # have been left out. After a wake-up there is another look soon anyway.
        looks_soon = self._look_again_at <= asyncio.get_running_loop().time() + LOOK_AGAIN_DELAY
        for lane, request in requests.items():
            found = [job for job in jobs if job.lane == lane]
            self.rotation.learn(lane, request, found)
            self._relay.claimed(lane, found, request.limit)
            if found and not (looks_soon and len(found) < request.limit):
                self._lanes_to_claim.add(lane)
        self._lanes_to_claim.update(beyond)
        turn = {(lane, name): n for lane in LANES for n, name in enumerate(requests[lane].queues)}
        jobs.sort(
            key=lambda job: (
                -job.priority,
                turn[job.lane, job.queue_name],
                microseconds(job.ready_at),
                job.id,
            )
        )
        unasked = self.rotation.unasked(requests)
        self._lanes_to_claim.update(unasked)
        if not jobs:
            self._overclaim.forget()
        full = sum(job.lane == "loop" for job in jobs) >= limits["loop"] > 0
        more = full and (self._overclaim.expected or free["loop"] > limits["loop"])
        return _Claim(worker_id, jobs, full, more, bool(unasked))

    async def _fetch(
        self, statement: Callable[[UUID, UUID], Awaitable[list[Job]]], worker_id: UUID
    ) -> list[Job]:
        # Register the claim id before sending: if the loop blocks before the reply is read, our own sweep
        # must not release these rows.
        claim_id = uuid.uuid4()
        self._claiming.add(claim_id)
        jobs: list[Job] = []
        began = time.monotonic()
        is_empty = False
        try:
            jobs = await statement(worker_id, claim_id)
            is_empty = not jobs
            if self._observer.watches_tasks:
                self._observer.claimed(len(jobs), time.monotonic() - began)
        finally:
            if not is_empty:
                self.claimed_at = time.monotonic()
            if not jobs:
                self._claiming.discard(claim_id)
        return jobs

    async def _start_all(self, claim: _Claim) -> None:
        """Start the jobs of one claim, and learn how many ended at once."""
        holds, start, free = self._lease.holds, self._runner.start, self._slots.free
        clock = time.monotonic  # uvloop's clock stands still within a turn of the loop
        began = turn = clock()
        cpu_began = time.thread_time()
        at_once = threads = 0
        unstarted = self._unstarted = deque(claim.jobs)
        try:
            while unstarted:
                if clock() - turn > TURN_TIME:
                    await asyncio.sleep(0)
                    turn = clock()
                    if turn - began > PATIENCE:
                        unstarted = self._unstarted = self._without_surplus(unstarted)
                        if not unstarted:
                            break
                job = unstarted.popleft()
                # The lease may have ended since the claim was sent: other workers may have these by now.
                if not self._starts or not holds(claim.worker_id):
                    self._ownership.give_back(job)
                elif job.lane == "thread":
                    self.prefetch.add(job)
                    threads += 1
                elif free("loop") <= 0:
                    self._ownership.give_back(job)
                elif start(job):
                    at_once += 1
        finally:
            self._give_all_back(unstarted)  # if this was cancelled
            self._claiming.discard(claim.jobs[0].claim_id)
        if claim.full and at_once == len(claim.jobs) - threads:
            self._overclaim.learn(claim.jobs, clock() - began, time.thread_time() - cpu_began)
        else:
            self._overclaim.forget()

    def _without_surplus(self, unstarted: Iterable[Job]) -> deque[Job]:
        """Give back the coroutine tasks beyond the free slots; returns the other jobs."""
        free = self._slots.free("loop")
        kept: deque[Job] = deque()
        for job in unstarted:
            free -= job.lane == "loop"
            if job.lane == "loop" and free < 0:
                self._ownership.give_back(job)
            else:
                kept.append(job)
        return kept
