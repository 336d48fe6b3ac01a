"""Intake: sends claims, and starts the jobs that they bring, or gives them back."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from math import inf
from uuid import UUID

from ...rows import LANES, Job, Lane, microseconds
from ...store.changes import WATCHED
from ...store.limits import KeyedClaim
from ...store.store import Store
from ..events import NULL, Observer
from ..protocols import GivesBack, Leases, Starts
from .budget import Budget, FreeSlots
from .overclaim import PATIENCE, OverclaimPolicy, time_spent
from .prefetch import PrefetchBuffer
from .queue_limits import QueueLimits
from .relay import Relay
from .rotation import QueueRotation

__all__ = ["Claim", "Intake"]

# Seconds for which tasks are started before the loop gets a turn. Chosen: a callback may wait for as long as
# for a few statements.
TURN_TIME = 0.005


@dataclass
class Claim:
    """The reply to one claim.

    worker_id: the lease that its jobs belong to; None if the claim wasn't sent.
    jobs: in the order in which they are to be started.
    """

    worker_id: UUID | None = None
    jobs: list[Job] = field(default_factory=list)
    full: bool = False  # it has brought as many coroutine tasks as it was for
    more: bool = False  # the next one may bring some, too
    keyed: bool = False  # its tasks have limits
    unasked: bool = False  # there may be tasks in queues that it didn't ask
    left: AbstractSet[Lane] = frozenset()  # lanes in which it has left tasks, as far as can be seen
    short: AbstractSet[Lane] = frozenset()  # those of which it has brought tasks, and fewer than it was for


class Intake:
    """Carries the claims of one worker out, from the statement to the start of the last job.

    A job whose lease has ended by the time that its claim is read, or that finds no slot, is given back, and
    keeps its place in the queue.

    slots: the free slots. queue_limits: narrows each claim. budget: counts the claims beyond the slots;
    ``overclaim``, one of its strategies, learns how many jobs ended at once. prefetch: where jobs of the
    thread lane go. runner: where the others go. ownership: where jobs go back that aren't started. relay:
    knows which wake-ups a claim answers. tell: gets the ids of claimed jobs whose every change somebody
    awaits.
    """

    def __init__(
        self,
        store: Store,
        rotation: QueueRotation,
        *,
        backend: str,
        lease: Leases,
        slots: FreeSlots,
        budget: Budget,
        queue_limits: QueueLimits,
        overclaim: OverclaimPolicy,
        prefetch: PrefetchBuffer,
        relay: Relay,
        runner: Starts,
        ownership: GivesBack,
        tell: Callable[[Collection[UUID]], None],
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._rotation = rotation
        self._backend = backend
        self._lease = lease
        self._slots = slots
        self._budget = budget
        self._queue_limits = queue_limits
        self._overclaim = overclaim
        self._prefetch = prefetch
        self._relay = relay
        self._runner = runner
        self._ownership = ownership
        self._tell = tell
        self._observer = observer
        self._claiming: set[UUID | None] = set()
        self._unstarted: deque[Job] = deque()  # of the claim whose jobs are being started
        self._starts = True
        self.claimed_at = -inf  # when a claim has last taken tasks, or may have, by time.monotonic()

    @property
    def claiming(self) -> set[UUID | None]:
        """The ids of the claims whose jobs haven't all been started."""
        return self._claiming | self._prefetch.claim_ids

    def waiting(self) -> list[Job]:
        """Return the claimed jobs that haven't been started. May be called in any thread."""
        return [*list(self._unstarted), *self._prefetch.waiting()]

    def start_no_more(self) -> None:
        """Give back what a claim under way brings, because the grace is over."""
        self._starts = False

    async def fetch(
        self,
        worker_id: UUID,
        limits: Mapping[Lane, int],
        free: Mapping[Lane, int],
        unstarted: Sequence[Job] = (),
    ) -> Claim:
        """Claim at most ``limits`` tasks of the lanes, where there are ``free`` slots.

        ``unstarted``: jobs of the claim before, that nothing has been done with yet.
        """
        beyond = {lane for lane in LANES if limits[lane] > max(0, free[lane])}
        wanted = await self._rotation.requests(limits, robust_only=beyond)
        requests = self._queue_limits.restrict(wanted, unstarted)
        if not (requests["loop"].queues or requests["thread"].queues):
            return Claim()
        asked = [lane for lane in LANES if limits[lane]]
        self._budget.used(asked, beyond)
        self._relay.claims(asked, without=self._queue_limits.at_limit)
        jobs = await self._send(
            partial(
                self._store.claim_jobs,
                backend=self._backend,
                loop=requests["loop"],
                thread=requests["thread"],
            ),
            worker_id,
        )
        filled: set[Lane] = set()
        short: set[Lane] = set()
        skipped: set[Lane] = set()  # where the claim began behind tasks that it would have found
        for lane, request in requests.items():
            found = [job for job in jobs if job.lane == lane]
            if self._rotation.learn(lane, request, found):
                skipped.add(lane)
            self._relay.claimed(lane, found, request.limit)
            if found:
                (filled if len(found) >= request.limit else short).add(lane)
        learned = self._queue_limits.learn(requests, jobs, unsure=skipped)
        self._relay.filled(learned.filled, asked)
        turn = {(lane, name): n for lane in LANES for n, name in enumerate(requests[lane].queues)}
        jobs.sort(
            key=lambda job: (
                -job.priority,
                turn[job.lane, job.queue_name],
                microseconds(job.ready_at),
                job.id,
            )
        )
        unasked = self._rotation.unasked(wanted)
        if "loop" in asked and not any(job.lane == "loop" for job in jobs):
            self._overclaim.forget()
        full = "loop" in filled
        return Claim(
            worker_id,
            jobs,
            full=full,
            more=full and (self._overclaim.expected or free["loop"] > limits["loop"]),
            unasked=bool(unasked | skipped),
            # A full claim leaves more, and one beyond the slots has left tasks out.
            left=filled | beyond | unasked | skipped | learned.left,
            # So may a short one: the head may have been locked for a moment.
            short=short,
        )

    async def fetch_suspect(self, worker_id: UUID, lane: Lane) -> Claim:
        """Claim one task of the lane that has been in two crashes, if there is one."""
        queues = self._queue_limits.served(self._rotation.queues)
        if queues == []:
            return Claim()
        statement = partial(self._store.claim_suspect, backend=self._backend, lane=lane, queues=queues)
        return Claim(worker_id, await self._send(statement, worker_id))

    async def fetch_keyed(
        self, worker_id: UUID, statement: Callable[[UUID, UUID], Awaitable[KeyedClaim]]
    ) -> KeyedClaim:
        """Claim tasks with limits by ``statement``."""
        replies = []

        async def claim(worker_id: UUID, claim_id: UUID) -> list[Job]:
            replies.append(await statement(worker_id, claim_id))
            return replies[0].jobs

        await self._send(claim, worker_id)
        return replies[0]

    async def start(self, claim: Claim) -> None:
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
                    if time_spent(turn - began, time.thread_time() - cpu_began) > PATIENCE:
                        unstarted = self._unstarted = self._without_surplus(unstarted)
                        if not unstarted:
                            break
                job = unstarted.popleft()
                # The lease may have ended since the claim was sent: other workers may have these by now.
                if not self._starts or not holds(claim.worker_id):
                    self._ownership.give_back(job)
                elif job.lane == "thread":
                    self._prefetch.add(job)
                    threads += 1
                elif free("loop") <= 0:
                    self._ownership.give_back(job)
                elif start(job):
                    at_once += 1
        finally:
            self.give_back(unstarted)  # if this was cancelled
            self._claiming.discard(claim.jobs[0].claim_id)
        if claim.keyed or threads == len(claim.jobs):
            return  # these show nothing of the loop lane, or of claims beyond the slots
        if claim.full and at_once == len(claim.jobs) - threads:
            self._overclaim.learn(claim.jobs, clock() - began, time.thread_time() - cpu_began)
        else:
            self._overclaim.forget()

    def give_back(self, jobs: Iterable[Job]) -> None:
        """Give back the jobs of a claim."""
        for job in jobs:
            self._ownership.give_back(job)
            self._claiming.discard(job.claim_id)

    async def _send(
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
            if watched := [job.id for job in jobs if job.awaited == WATCHED]:
                self._tell(watched)
            if self._observer.watches_batches:
                self._observer.claimed(len(jobs), time.monotonic() - began)
        finally:
            if not is_empty:
                self.claimed_at = time.monotonic()
            if not jobs:
                self._claiming.discard(claim_id)
        return jobs

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
