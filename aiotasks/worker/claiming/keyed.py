"""KeyedClaims: claims tasks with limits, whose keys it finds out before."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from math import inf
from typing import Any
from uuid import UUID

from django.db import utils

from ...db.errors import is_transient
from ...db.outage import Outage
from ...rows import LANES, Job, Lane, microseconds, plain_lane
from ...store.limits import SUSPECTS, KeyedClaim, KeyRequest
from ...store.notifier import INTERVAL
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..events import NULL, Observer
from ..fleet import Fleet
from .budget import CLAIM_LIMIT, FreeSlots
from .intake import Claim, Intake
from .key_rows import KeyRows
from .key_walk import RECENT, Look
from .keys import LONGEST_BUSY_DELAY, Answer, Key, Keys
from .lane_keys import LaneKeys
from .limit_rules import LEAVE_FOR, LimitRules, name_of
from .queue_limits import QueueLimits
from .relay import Relay

__all__ = ["KeyedClaims"]

logger = logging.getLogger("aiotasks.worker")

# Seconds between two wake-ups of others for keys that there is no slot for here. Chosen: while all workers
# are full, each task that ends would send one.
PASS_INTERVAL = 0.1

# Queues and lanes of a limit's tasks that are remembered: where one of its tasks ends, the next of its key
# may be in any of them. And limits. Chosen: a limit has tasks in one or two; a look at a key costs 60 µs.
SOURCES_LIMIT, LIMITS_LIMIT = 4, 1000

# Seconds until the next claim after one that had no lease: by then the worker knows that, too.
WITHOUT_LEASE = 0.5

# As many seconds after a wake-up as other claims.
LOOK_AGAIN_DELAY = INTERVAL * 1.2


class KeyedClaims:
    """The claims of tasks with limits, lane by lane: looks for keys, asks for those whose turn it is, and
    learns from the reply.

    It finds keys by looks (``KeyWalk``), and is told them by what happens here: a task of the key has ended,
    was given back, rescued or promoted. Where it has no slot for such a key, or stops, it wakes others.

    Claims go by the free slots alone: what a rate was charged for isn't given back.
    """

    def __init__(
        self,
        store: Store,
        intake: Intake,
        *,
        backend: str,
        queues: Sequence[str],
        peers: Fleet,
        slots: FreeSlots,
        queue_limits: QueueLimits,
        relay: Relay,
        rules: LimitRules,
        changed: asyncio.Event,
        observer: Observer = NULL,
    ) -> None:
        self.rules = rules
        self._store = store
        self._intake = intake
        self._backend = backend
        self._queues = list(queues)
        self._peers = peers
        self._slots = slots
        self._queue_limits = queue_limits
        self._relay = relay
        self._changed = changed
        self._lanes = {
            lane: LaneKeys(lane, queues, slots=slots, queue_limits=queue_limits)
            for lane in LANES
            if slots.has(lane)
        }
        self._turn: list[LaneKeys] = list(self._lanes.values())
        self._sources: dict[str, dict[tuple[Lane, str], None]] = {}  # by the limit's name
        self._rows = KeyRows(store, backend=backend, observer=observer)
        self._pass_from = -inf
        self._blocked_until = -inf
        self._is_closed = False
        self._outage = Outage(logger, "keyed claims", "tasks with limits aren't claimed", observer=observer)

    def connect(self, met: Callable[[], None]) -> None:
        """Name what is to be called when keyed tasks are met first in a lane: suspects may be among them."""
        self._on_met = met

    # --- News

    def wake(self, wakeup: Wakeup) -> None:
        """Look for keys in the queue of ``wakeup``."""
        now = asyncio.get_running_loop().time()
        for each in self._turn:
            if wakeup.lane in (None, each.lane):
                each.walk.wake(wakeup.queue_name, now, delay=LOOK_AGAIN_DELAY, is_second=wakeup.place == 2)

    def look(self, *, opened: bool = False) -> None:
        """Look for all keys. ``opened``: an operator may have opened some."""
        for each in self._turn:
            each.walk.begin(news=opened)
            if opened:
                each.open_all()

    def meet(self, queue_name: str, lane: Lane) -> None:
        """Note that a queue has keyed tasks."""
        if lane in self._lanes:
            self._lanes[lane].walk.meet(queue_name)

    def tell(self, job: Job, key: str) -> None:
        """The ``key`` of ``job`` may have a free place, or it is READY: try it here, or wake others."""
        for lane, queue_name in self._note_source(name_of(key), job.lane, job.queue_name):
            self._tell(lane, queue_name, key, job.task_path, job.priority)

    def _tell(self, lane: Lane, queue_name: str, key: str, task_path: str, priority: int) -> None:
        each = self._lanes.get(lane)
        if self._is_closed or each is None or not each.walk.meet(queue_name):
            self._relay.wake_others([self._wakeup(lane, queue_name)])
            return
        self._has_met(each)
        each.untaken.add(queue_name)
        each.keys_of(queue_name).tell(queue_name, key, task_path, priority)
        self._changed.set()

    def _has_met(self, each: LaneKeys) -> None:
        if not each.has_met:
            each.has_met = True
            self._on_met()

    def _note_source(self, name: str, lane: Lane, queue_name: str) -> Iterable[tuple[Lane, str]]:
        sources = self._sources.get(name)
        if sources is None:
            if len(self._sources) >= LIMITS_LIMIT:
                self._sources.clear()
            sources = self._sources[name] = {}
        if (lane, queue_name) not in sources:
            if len(sources) >= SOURCES_LIMIT:
                del sources[next(iter(sources))]
            sources[lane, queue_name] = None
        return list(sources)

    # --- What is to be done, and when

    @property
    def is_active(self) -> bool:
        """Whether there may be keyed tasks to claim, once there is a slot, or by the time."""
        return any(not each.is_idle() for each in self._turn)

    @property
    def is_looking(self) -> bool:
        """Whether a look for keys isn't over, or keys that it has found wait for a claim."""
        return any(each.is_looking() for each in self._turn)

    def has_work(self, now: float) -> bool:
        """Return whether there is a look or a claim to be sent, and a slot for what it may bring."""
        return now >= self._blocked_until and any(each.has_work(now) for each in self._turn)

    def at(self, now: float) -> float:
        """Return when that is so by the time alone; ``inf`` if only news can make it so."""
        at = min((each.at for each in self._turn), default=inf)
        if any(each.untaken and each.free() <= 0 for each in self._turn):
            at = min(at, self._pass_from)
        return max(at, self._blocked_until)

    def pass_on(self, now: float, *, may_claim: bool) -> None:
        """Wake others for the keys that there is no slot for; for all unless this worker ``may_claim``."""
        if now < self._pass_from:
            return
        lanes = [each for each in self._turn if each.untaken and not (may_claim and each.free() > 0)]
        wakeups = [self._wakeup(each.lane, name) for each in lanes for name in each.untaken]
        if wakeups:
            for each in lanes:
                each.untaken.clear()
            self._pass_from = now + PASS_INTERVAL
            self._relay.wake_others(wakeups)

    def close(self) -> None:
        """Wake others for all keys that wait: this worker claims no more."""
        self._is_closed = True
        self.rules.close()
        self._rows.close()
        self._relay.wake_others(
            self._wakeup(each.lane, name) for each in self._turn for name in each.waiting_in()
        )

    def _wakeup(self, lane: Lane, queue_name: str) -> Wakeup:
        return Wakeup(self._backend, queue_name, lane=lane, keyed=True)

    # --- Looks and claims

    async def claim(self, worker_id: UUID) -> Claim:
        """Look for keys if there are too few, and claim for a lane that has its turn, once."""
        now = asyncio.get_running_loop().time()
        each = next(each for each in self._turn if each.has_work(now))
        self._turn.remove(each)
        self._turn.append(each)
        return await self._unless_refused(self._claim(each, worker_id, now))

    async def claim_suspect(self, worker_id: UUID, lane: Lane) -> Claim:
        """Claim one task with a limit that has been in two crashes, if there is one."""
        each = self._lanes.get(lane)
        if each is None or not each.has_met or asyncio.get_running_loop().time() < self._blocked_until:
            return Claim()
        return await self._unless_refused(self._claim_suspect(each, worker_id))

    async def _unless_refused(self, claiming: Coroutine[Any, Any, Claim]) -> Claim:
        """Where a right or a table is missing, tasks without limits are claimed all the same."""
        try:
            claim = await claiming
        except utils.Error as error:
            if is_transient(error):
                raise
            self._blocked_until = asyncio.get_running_loop().time() + self._outage.failed(error)
            return Claim()
        self._outage.ended()
        return claim

    async def _claim_suspect(self, each: LaneKeys, worker_id: UUID) -> Claim:
        queues = self._queue_limits.served(self._queues or None)
        if queues == []:
            return Claim()
        requests = await self._store.list_keyed_suspects(self._backend, each.lane, queues)
        while requests:
            last, is_full = requests[-1].key, len(requests) == SUSPECTS
            while requests:
                reply = await self._ask(each, worker_id, requests, 1)
                if reply.jobs:
                    return Claim(worker_id, reply.jobs, keyed=True)
                for seen in reply.seen:
                    if seen.state == "new":
                        self._rows.make(seen.key, self._suspect_soon)
                # The first that can't be taken after all may have had the slot.
                answers = zip(requests[1:], reply.seen[1:], strict=False)  # none where the lease is over
                requests = [request for request, seen in answers if seen.state == "left"]
            if is_full:
                requests = await self._store.list_keyed_suspects(self._backend, each.lane, queues, last)
        return Claim()

    def _suspect_soon(self) -> None:
        # Not at once: where the row can't be made, or be seen, that would be asked again and again.
        asyncio.get_running_loop().call_later(LONGEST_BUSY_DELAY, self._on_met)

    async def _claim(self, each: LaneKeys, worker_id: UUID, now: float) -> Claim:
        free = each.free()
        self._relay.claims([one.lane for one in self._turn if one.free() > 0], keyed=True)
        each.come_round()
        look = each.next_look(now)
        if look is not None:
            await self._look(each, look)
        group, keys = each.next_group(now)
        slots = min(free, each.room(group), CLAIM_LIMIT)
        asked = self._importable(each, keys, keys.take(slots, now)) if slots > 0 else []
        if not asked:
            return Claim()
        for key in asked:
            each.untaken.discard(key.queue_name)
        began = time.monotonic()
        try:
            requests = [KeyRequest(key.queue_name, key.key) for key in asked]
            reply = await self._ask(each, worker_id, requests, slots)
        except BaseException:
            keys.put_back(asked)
            raise
        now = asyncio.get_running_loop().time()
        self._learn(each, keys, asked, reply, now)
        if reply.jobs:
            each.walk.gave()
        else:
            each.walk.took(time.monotonic() - began, look, now, workers=self._peers.number)
        self._relay.left(each.lane, {seen.queue_name for seen in reply.seen if seen.state == "unknown"})
        self._relay.claimed(each.lane, reply.jobs, slots, keyed=True)
        reply.jobs.sort(key=lambda job: (-job.priority, microseconds(job.ready_at), job.id))
        return Claim(worker_id, reply.jobs, keyed=True)

    async def _look(self, each: LaneKeys, look: Look) -> None:
        began = time.monotonic()
        store, backend, lane = self._store, self._backend, each.lane
        match look.kind:
            case "walk":
                sources = list(zip(look.queues, look.after, strict=True))
                found = await store.list_keys(backend, lane, sources, look.at_most)
            case "recent":
                found = await store.recent_keys(backend, lane, look.queues, RECENT, look.at_most)
            case "top":
                found = await store.top_keys(backend, lane, look.queues, look.at_most)
        each.walk.learn(look, [(one.queue_name, one.key) for one in found])
        if not found:
            seconds = time.monotonic() - began
            now = asyncio.get_running_loop().time()
            each.walk.took(seconds, look, now, workers=self._peers.number)
            return
        self._has_met(each)
        if look.kind == "walk":
            random.shuffle(found)  # or workers that walk in step would ask for the same keys
        for name, queue_name in {(name_of(one.key), one.queue_name) for one in found}:
            self._note_source(name, lane, queue_name)
        for one in found:
            keys = each.keys_of(one.queue_name)
            keys.tell(one.queue_name, one.key, one.task_path, one.priority, listed=True)

    def _importable(self, each: LaneKeys, keys: Keys, taken: list[Key]) -> list[Key]:
        """Return the keys of limits that there is nothing to import for, and import the modules of others."""
        known = []
        for key in taken:
            if self.rules.meet(name_of(key.key), key.task_path):
                known.append(key)
            else:
                self.rules.learn(key.task_path, partial(self._imported, keys, key))
        return known

    def _imported(self, keys: Keys, key: Key) -> None:
        keys.put_back([key])
        self._changed.set()

    async def _ask(
        self, each: LaneKeys, worker_id: UUID, requests: Sequence[KeyRequest], slots: int
    ) -> KeyedClaim:
        rules = map(self.rules.rule, {name_of(request.key) for request in requests})
        return await self._intake.fetch_keyed(
            worker_id,
            partial(
                self._store.claim_keyed,
                backend=self._backend,
                lane=each.lane,
                slots=slots,
                requests=requests,
                rules=[rule for rule in rules if rule is not None],
            ),
        )

    def _learn(self, each: LaneKeys, keys: Keys, asked: Sequence[Key], reply: KeyedClaim, now: float) -> None:
        """Learn from a reply. Nothing is awaited here, and nothing may be: the tasks are to be started."""
        given: dict[str, list[int]] = {}
        for job in reply.jobs:
            given.setdefault(job.limit_key or "", []).append(job.priority)
        answers: dict[str, Answer] = {}
        new: set[str] = set()
        for seen in reply.seen:
            match seen.state:
                case "new":
                    new.add(seen.key)
                case "unknown":
                    answers[seen.key] = Answer("closed", LEAVE_FOR)
                case state:
                    answers[seen.key] = Answer(state, seen.wait or 0.0, seen.weight)
        if not reply.seen:  # the database says that the lease is over
            self._blocked_until = now + WITHOUT_LEASE
        keys.learn([key for key in asked if key.key not in new], answers, given, now)
        for key in asked:
            if key.key in new:
                self._rows.make(key.key, partial(self._row_made, keys, key))
        for seen in reply.seen:
            if seen.elsewhere is not None:
                path = next(key.task_path for key in asked if key.key == seen.key)
                self._tell(plain_lane(seen.elsewhere.lane), seen.elsewhere.queue_name, seen.key, path, 0)

    def _row_made(self, keys: Keys, key: Key) -> None:
        """Name the key again, after a moment: it may be locked, or its row can't be made."""
        keys.learn([key], {key.key: Answer("busy")}, {}, asyncio.get_running_loop().time())
        self._changed.set()
