"""Claimer: claims tasks whenever slots are free and there may be work."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from math import inf

import anyio
from django.db import utils

from ...db.outage import Outage
from ...rows import LANES, Job, Lane
from ...store.notifier import INTERVAL
from ...store.wakeups import Wakeup
from ..events import NULL, Observer
from ..fleet import Fleet
from ..protocols import Leases
from .budget import Budget, FreeSlots
from .doubts import Doubts
from .intake import Claim, Intake
from .keyed import KeyedClaims
from .prefetch import PrefetchBuffer
from .quarantine import Quarantine
from .queue_limits import QueueLimits
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


class Claimer:
    """Decides when one worker claims, and in which lanes.

    - It claims as many jobs as its budget allows: no more than there are free slots, so that no task waits
      inside a worker, unless tasks are short.
    - The next claim is under way while the jobs of one are started, where that leaves slots.
    - The worker never cancels a claim: its reply says what the worker owns. ``stop()`` waits for it.
    - A task that has been in two crashes is claimed alone (``Quarantine``).
    - Tasks with limits are claimed by their keys (``KeyedClaims``), in turn with the others.
    - It claims on a wake-up, and whenever slots come free while there may be more. Of the two workers that an
      enqueue wakes, the second claims only after LOOK_AGAIN_DELAY, in case the first can't. A claim that
      finds nothing, though there should be tasks, is repeated (``Doubts``). Polls within
      POLL_INTERVAL find the tasks without a NOTIFY; its ``peers`` and this worker take turns at them. A
      worker whose slots are taken at its turn looks as soon as one is free.

    intake: sends the claims and starts their jobs. slots: the free slots. budget: how many jobs a claim may
    take. queue_limits: which queues have as many as they may. prefetch: where jobs of the thread lane wait.
    relay: where wake-ups go that other workers should have.
    """

    def __init__(
        self,
        intake: Intake,
        rotation: QueueRotation,
        *,
        poll_interval: float,
        peers: Fleet,
        lease: Leases,
        slots: FreeSlots,
        budget: Budget,
        queue_limits: QueueLimits,
        prefetch: PrefetchBuffer,
        quarantine: Quarantine,
        keyed: KeyedClaims,
        relay: Relay,
        changed: asyncio.Event,
        observer: Observer = NULL,
    ) -> None:
        self.intake = intake
        self.rotation = rotation
        self._lease = lease
        self._slots = slots
        self._lanes = [lane for lane in LANES if slots.has(lane)]
        self.budget = budget
        self.queue_limits = queue_limits
        self.prefetch = prefetch
        self.quarantine = quarantine
        self.keyed = keyed
        keyed.connect(self.suspect)
        self._relay = relay
        self._changed = changed
        self._is_turn_of_keyed = False
        self._lanes_to_claim: set[Lane] = set(LANES)
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self.poll = peers.turn(poll_interval, earliest=EARLIEST_POLL, moved=self._changed)
        self._look_again_at = inf
        self._woken_since = inf  # when the first wake-up came that there was no other look after
        self._forgot_at = -inf
        self._doubts = Doubts()
        self._outage = Outage(logger, "claims", "claims wait for the database", observer=observer)

    def wake(self, wakeup: Wakeup | None = None) -> None:
        """Look for READY tasks: in the queue of ``wakeup``, or in all."""
        if wakeup is not None and wakeup.lane is not None and wakeup.lane not in self._lanes:
            return  # it is for another worker of this process
        if wakeup is not None and wakeup.keyed:
            if self.rotation.serves(wakeup):
                self.keyed.wake(wakeup)
                self._relay.woken(wakeup)
                self._changed.set()
            return
        if not self.rotation.note_wakeup(wakeup):
            return
        if wakeup is None:
            self.keyed.look(opened=True)
        elif wakeup.due is not None:  # tasks that were enqueued when they were due already, of any lane
            self.keyed.wake(wakeup)
        now = asyncio.get_running_loop().time()
        self.queue_limits.forget()
        self._look_again_at = now + LOOK_AGAIN_DELAY
        self._woken_since = min(self._woken_since, now)
        self._changed.set()
        if wakeup is None or wakeup.place != 2:
            self._lanes_to_claim.update(LANES)
        if wakeup is not None:
            self._relay.woken(wakeup)
            if wakeup.place == 1 and wakeup.lane is not None:
                self._doubts.woken(wakeup.lane)

    def look_back(self, since: float) -> None:
        """Look for tasks with a place in their queue as of ``since`` (epoch seconds) or later."""
        self.rotation.look_back(datetime.fromtimestamp(since, UTC))

    def try_key(self, job: Job) -> None:
        """The key of ``job`` has a free place, or ``job`` is READY again: claim, if it has a limit."""
        if job.limit_key is not None:
            self.keyed.tell(job, job.limit_key)

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

    def slot_freed(self, job: Job | None = None) -> None:
        """A lane has room again: claim, if there may be more. The outcome of ``job`` is written, or it waits
        for other tasks.
        """
        self.prefetch.feed()
        if job is not None:
            self.quarantine.ended(job)
            if job.limit_key is not None:
                self.keyed.tell(job, job.limit_key)
        if not self._changed.is_set() and (
            self._lanes_to_claim
            or self.queue_limits.at_limit
            or self.keyed.is_active
            or self.quarantine.lanes()
        ):
            self._changed.set()

    async def stop(self) -> None:
        """Claim no more; returns when no claim is under way."""
        self._stopping.set()
        self._changed.set()
        self.prefetch.close()
        self._relay.close()
        self.keyed.close()
        await self._stopped.wait()

    async def run(self) -> None:
        """Claim until ``stop()``, whatever other part of the worker fails or is cancelled."""
        with self._scope:
            await self._run()

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
                    self.keyed.look()
                    has_turn = True
                elif now >= self._look_again_at:
                    self._look_again(now)
                elif now - self._woken_since >= FORGET_INTERVAL:
                    # Wake-ups have put the look off all the time.
                    self._woken_since = now
                    self._look_at_everything(now)
                elif now >= self._doubts.at:
                    self._lanes_to_claim |= self._doubts.take(now)
                    self.rotation.walk()  # it finds queues whose tasks are locked, too
                quiet_until = self.quarantine.quiet_until(now)
                may_claim = quiet_until is None and self.budget.is_open()
                if self.queue_limits.has_room_again():
                    self._lanes_to_claim.update(LANES)
                if has_turn and not (may_claim and self._has_room_for_all()):
                    self._relay.pass_turn_on()
                has_turn = False
                has_work = may_claim and self._has_room_and_work()
                may_claim_keyed = may_claim and self._lease.current_id() is not None
                has_keyed_work = may_claim_keyed and self.keyed.has_work(now)
                if not (has_work or has_keyed_work or (may_claim and self._suspect_lanes())):
                    self._relay.pass_on()
                    self.keyed.pass_on(now, may_claim=may_claim)
                    wake_at = min(
                        self.poll.at,
                        self._look_again_at,
                        self._doubts.at,
                        quiet_until or inf,
                        self.keyed.at(now) if may_claim_keyed else inf,
                    )
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(wake_at):
                            await self._changed.wait()
                    self._changed.clear()
                    continue
                try:
                    if not await self._claim_apart():
                        await self._claim_by_turns(has_work, has_keyed_work)
                except utils.Error as error:
                    self._relay.failed()
                    pause = self._outage.failed(error)
                    self._lanes_to_claim.update(LANES)
                    self.quarantine.suspect(loop.time())  # it may have been the claim for these that failed
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._stopping.wait()
        except BaseException:  # abort(), for the most part: nobody knows what the claim has taken
            self._relay.failed()
            raise
        finally:
            self._stopped.set()

    def _has_room_for_all(self) -> bool:
        """Return whether there is room in all lanes and queues."""
        return not self.queue_limits.at_limit and all(self.budget.limit(lane) > 0 for lane in self._lanes)

    def _has_room_and_work(self) -> bool:
        """Return whether there may be READY tasks that there is room for."""
        return any(self.budget.limit(lane) > 0 for lane in self._lanes_to_claim)

    def _look_at_everything(self, now: float) -> None:
        self._forgot_at = now
        self.quarantine.look(now)
        self.rotation.forget()
        self.queue_limits.forget()
        self._lanes_to_claim.update(LANES)

    def _look_again(self, now: float) -> None:
        """Some time after a wake-up: look for tasks that have come since, and once a second for all."""
        self._look_again_at = self._woken_since = inf
        if now - self._forgot_at >= FORGET_INTERVAL:
            self._look_at_everything(now)
        else:
            self._look_again_at = self._forgot_at + FORGET_INTERVAL
            self._lanes_to_claim.update(LANES)

    async def _claim_by_turns(self, has_work: bool, has_keyed_work: bool) -> None:
        """Claim tasks without limits, or with them: by turns, where there may be both."""
        self._is_turn_of_keyed = has_keyed_work and (self._is_turn_of_keyed or not has_work)
        if self._is_turn_of_keyed:
            self._is_turn_of_keyed = False
            await self.run_keyed_once()
        elif has_work:
            self._is_turn_of_keyed = True
            await self.run_once()

    async def run_keyed_once(self) -> int:
        """Claim tasks with limits once; returns the number of jobs."""
        worker_id = self._lease.current_id()
        if worker_id is None:
            return 0  # a registration wakes the claimer
        claim = await self.keyed.claim(worker_id)
        self._outage.ended()
        if claim.jobs:
            await self.intake.start(claim)
        return len(claim.jobs)

    async def run_once(self) -> int:
        """Claim until the slots are full or a claim is short, or it is others' turn; returns the number of
        jobs. Tasks with limits aren't among them.
        """
        claimed = 0
        clock = asyncio.get_running_loop().time
        claim = await self._claim()
        while claim.unasked and not claim.jobs and not self._stopping.is_set():
            claim = await self._claim()
        while claim.jobs:
            claimed += len(claim.jobs)
            now = clock()
            is_due = (
                now >= self.poll.at or self._suspect_lanes() or self.keyed.has_work(now)
            )  # run() does these
            if not claim.more or is_due or not self.budget.is_open() or self._stopping.is_set():
                await self.intake.start(claim)
                break
            following = asyncio.create_task(self._claim(claim.jobs), name="aiotasks claim")
            try:
                await asyncio.sleep(0)  # lets it be sent
                await self.intake.start(claim)
                claim = await asyncio.shield(following)
            except BaseException:  # cancelled, for the most part
                following.add_done_callback(self._give_back_claimed)
                raise
        return claimed

    def _give_back_claimed(self, following: "asyncio.Task[Claim]") -> None:
        if not following.cancelled() and following.exception() is None:
            self.intake.give_back(following.result().jobs)

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
            claim = await self.intake.fetch_suspect(worker_id, lane)
            if not claim.jobs:
                claim = await self.keyed.claim_suspect(worker_id, lane)
            if not claim.jobs:
                self.quarantine.none_in(lane)
                continue
            if self.quarantine.admit(claim.jobs[0], asyncio.get_running_loop().time()):
                await self.intake.start(claim)
            else:
                self.intake.give_back(claim.jobs)
            return True
        return False

    async def _claim(self, unstarted: Sequence[Job] = ()) -> Claim:
        """Claim once, beside jobs that haven't been started yet."""
        taken = Counter(job.lane for job in unstarted)
        limits = {lane: self.budget.limit(lane, taken[lane]) for lane in LANES}
        if not any(limits.values()):
            return Claim()
        # A wake-up during the claim adds them again.
        self._lanes_to_claim.difference_update([lane for lane in LANES if limits[lane]])
        worker_id = self._lease.current_id()
        if worker_id is None:
            return Claim()  # a registration wakes the claimer
        free = {lane: self._slots.free(lane) - taken[lane] for lane in LANES}
        claim = await self.intake.fetch(worker_id, limits, free, unstarted)
        self._outage.ended()
        self._lanes_to_claim |= claim.left
        self._doubts.brought(claim.jobs, claim.short)
        now = asyncio.get_running_loop().time()
        # After a wake-up there is another look soon anyway.
        if self._look_again_at > now + LOOK_AGAIN_DELAY:
            self._lanes_to_claim |= claim.short
            empty = {lane for lane in LANES if limits[lane]}.difference(job.lane for job in claim.jobs)
            self._doubts.found_nothing(empty - self._lanes_to_claim, now)
        return claim
