"""Statements about limits by key: keyed claims, the keys that have tasks, and what operators say of them."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from ..rows import Job, Lane, keyed_lane
from .columns import keyed_job
from .queues import ReadyIn
from .statement_group import StatementGroup, first_if_all_alike, milliseconds, none_if_all_null

__all__ = [
    "SUSPECTS",
    "KeyFound",
    "KeyRequest",
    "KeySeen",
    "KeyState",
    "KeyedClaim",
    "LimitRule",
    "LimitSetting",
    "LimitState",
    "LimitStatements",
]

# Keys of tasks of two crashes in one claim, and how many such tasks are looked at to find them. Chosen: these
# were in slots of workers that have died twice, so they are hardly ever more.
SUSPECTS, MOST_SUSPECTS = 100, 10_000


class KeyRequest(NamedTuple):
    """A key of a limit of which a claim may take tasks of a queue. ``id``: the only one, a suspect."""

    queue_name: str
    key: str
    id: UUID | None = None


class LimitRule(NamedTuple):
    """What the code says of a limit: places, seconds from start to start, starts at once, share of the turns,
    and whether its keys are lines in strict order. ``concurrency``, ``pace``: None for none.
    """

    name: str
    concurrency: int | None = None
    pace: float | None = None
    burst: int = 1
    weight: int = 1
    ordered: bool = False


# What a claim has seen of a key, after what it has taken itself:
# new: the key has no row; have it made by insert_limits(), and ask again
# unknown: no rule of its limit was given, nor has an operator set a concurrency or a rate
# paused: the key, the limit or the queue
# closed: no start before ``wait`` seconds are over
# full: all places are taken
# none: no task is READY here that could be taken
# more: there may be more
# busy: another claim is taking tasks of the key; ask again soon
# left: not looked at, because the slots were taken before, or the key was asked for twice
type KeyState = Literal["new", "unknown", "paused", "closed", "full", "none", "more", "busy", "left"]


class KeySeen(NamedTuple):
    """What a claim has seen of a key that it was asked for, and how many tasks it has ``given``.

    ``places``, ``starts``: how many more tasks could run, and could start now (None: any number). ``wait``:
    the seconds to the next start, of a limit with a rate or a key that is closed; ``pace``: from that to the
    one after it. ``weight``: its part of the turns. ``elsewhere``: the queue and lane of the first task of a
    line in strict order, if it isn't the one that was asked for.
    """

    queue_name: str
    key: str
    state: KeyState
    given: int
    places: int | None
    starts: int | None
    wait: float | None
    pace: float | None
    weight: int
    elsewhere: ReadyIn | None


class KeyedClaim(NamedTuple):
    """The jobs that a claim has taken, and what it has seen of each request, in their order (nothing: the
    worker's lease is over)."""

    jobs: list[Job]
    seen: list[KeySeen]


class KeyFound(NamedTuple):
    """A key that has READY tasks in a queue, and the priority and path of one of the first."""

    queue_name: str
    key: str
    priority: int
    task_path: str


class LimitSetting(NamedTuple):
    """What an operator says of a limit or a key; None: as it is. ``rate``: how ``pace`` is shown, which is in
    seconds from start to start (0: no rate)."""

    concurrency: int | None = None
    rate: str | None = None
    pace: float | None = None
    burst: int | None = None
    weight: int | None = None


class LimitState(NamedTuple):
    """What there is to say of a limit or a key.

    running: how many tasks run (up to 1,000). waiting: of a line in strict order, the task that waits to run
    again and holds it. stopped_by: the id of the one that has FAILED and stopped it. closed: for how many
    seconds no task starts (None: it isn't closed). said: by operators. level, level_age: starts
    that weren't paid for so many seconds ago.
    """

    key: str
    running: int
    waiting: int
    stopped_by: UUID | None
    closed: float | None
    paused_at: datetime | None
    pause_reason: str | None
    said: LimitSetting
    level: float | None
    level_age: float | None


class LimitStatements(StatementGroup):
    """Claim tasks that have a limit, find their keys, and set limits."""

    async def claim_keyed(
        self,
        worker_id: UUID,
        claim_id: UUID,
        backend: str,
        lane: Lane,
        slots: int,
        requests: Sequence[KeyRequest],
        rules: Sequence[LimitRule],
    ) -> KeyedClaim:
        """Take at most ``slots`` tasks, at least 1, of the keys in this order. Durable on return."""
        rows = await self._fetch(
            "claim_keyed",
            worker_id,
            claim_id,
            backend,
            keyed_lane(lane),
            slots,
            first_if_all_alike([request.queue_name for request in requests]),
            [request.key for request in requests],
            none_if_all_null([request.id for request in requests]),
            [rule.name for rule in rules],
            [rule.concurrency for rule in rules],
            [rule.pace for rule in rules],
            [rule.burst for rule in rules],
            [rule.weight for rule in rules],
            [rule.ordered for rule in rules],
        )
        keys, gave = rows[0][:2]
        jobs = [keyed_job(row[3:], claim_id, backend) for row in rows if row[2] is not None]
        if keys is None:
            return KeyedClaim(jobs, [])
        seen = _seen(requests, keyed_lane(lane), slots, json.loads(keys), json.loads(gave or "[]"))
        return KeyedClaim(jobs, seen)

    async def insert_limits(self, backend: str, keys: Sequence[str], *, lock_timeout: float = 1.0) -> None:
        """Make the rows of keys, where there are none. Waits ``lock_timeout`` seconds at most for whoever has
        written one of them (55P03); then none is made."""
        await self._fetch("insert_limits", backend, list(keys), milliseconds(lock_timeout))

    async def list_keys(
        self, backend: str, lane: Lane, sources: Sequence[tuple[str, str]], at_most: int
    ) -> list[KeyFound]:
        """List the keys that have READY tasks: at most so many in each queue, behind the key that stands
        with it ('': from the first). They are in the database's order, which needn't be Python's."""
        queues, after = [source[0] for source in sources], [source[1] for source in sources]
        rows = await self._fetch("list_keys", backend, keyed_lane(lane), queues, after, at_most)
        return [KeyFound(*row) for row in rows]

    async def top_keys(self, backend: str, lane: Lane, queues: Sequence[str], look_at: int) -> list[KeyFound]:
        """The keys of the first tasks of each queue by priority and age, the most urgent first."""
        rows = await self._fetch("top_keys", backend, keyed_lane(lane), list(queues), look_at)
        return [KeyFound(*row) for row in rows]

    async def recent_keys(
        self, backend: str, lane: Lane, queues: Sequence[str], seconds: float, look_at: int
    ) -> list[KeyFound]:
        """The keys of tasks that became READY within so many seconds: of the last ones of each queue and
        priority."""
        rows = await self._fetch("recent_keys", backend, keyed_lane(lane), list(queues), seconds, look_at)
        return [KeyFound(*row) for row in rows]

    async def list_keyed_suspects(
        self, backend: str, lane: Lane, queues: Sequence[str] | None, after: str = ""
    ) -> list[KeyRequest]:
        """Requests for tasks that have been in two crashes, one of a key: of the first SUSPECTS keys behind
        ``after`` ('': from the first). ``queues``: None for any."""
        names = None if queues is None else list(queues)
        rows = await self._fetch(
            "list_keyed_suspects", backend, keyed_lane(lane), names, MOST_SUSPECTS, after, SUSPECTS
        )
        return [KeyRequest(*row) for row in rows]

    async def set_limit(self, backend: str, key: str, setting: LimitSetting) -> None:
        """Set a limit, by its name, or one of its keys (``name:key``)."""
        await self._fetch("set_limit", backend, key, *setting)

    async def reset_limit(self, backend: str, key: str) -> bool:
        """Have it as the code says again; return whether it was set."""
        return bool(await self._fetch("reset_limit", backend, key))

    async def pause_limit(self, backend: str, key: str, reason: str) -> None:
        """Have no task of it start until it is resumed."""
        await self._fetch("pause_limit", backend, key, reason)

    async def resume_limit(self, backend: str, key: str) -> bool:
        """Have tasks start again; return whether it was paused or closed."""
        return bool(await self._fetch("resume_limit", backend, key))

    async def close_keys(
        self, backend: str, keys: Sequence[tuple[str, float]], *, lock_timeout: float = 1.0
    ) -> None:
        """Have no task of these keys start for so many seconds, or for as long as they are closed already.
        Waits ``lock_timeout`` seconds at most for whoever has locked one of them (55P03); then none is
        closed."""
        names, seconds = [key for key, _ in keys], [seconds for _, seconds in keys]
        await self._fetch("close_keys", backend, names, seconds, milliseconds(lock_timeout))

    async def release_line(self, id: UUID, backend: str) -> tuple[bool, ReadyIn | None]:
        """Let the line go on that a FAILED task has stopped; return whether it had, and the queue and lane of
        the next one (None: none waits)."""
        rows = await self._fetch("release_line", id, backend)
        return bool(rows), ReadyIn(*rows[0]) if rows and rows[0][0] is not None else None

    async def select_limits(
        self, backend: str, key: str | None, limit: int, *, standing: bool = False
    ) -> list[LimitState]:
        """``key``: only this key, or the limit of this name and its keys; None: all. standing: only those
        that are paused, closed or stopped, or wait for a task that runs again."""
        rows = await self._fetch("select_limits", backend, key, limit, standing)
        return [
            LimitState(
                key, running, waiting, stopped_by, closed, paused_at, reason, LimitSetting(*said), level, age
            )
            for key, running, waiting, stopped_by, closed, paused_at, reason, *said, level, age in rows
        ]

    async def prune_limits(self, backend: str, after: str, limit: int) -> tuple[int, str | None]:
        """Delete rows of keys that nobody needs; return how many were looked at, and the last one."""
        ((number, last),) = await self._fetch("prune_limits", backend, after, limit)
        return number, last


def _seen(
    requests: Sequence[KeyRequest],
    lane: str,
    slots: int,
    keys: Sequence[Sequence[Any]],
    gave: Sequence[Sequence[Any]],
) -> list[KeySeen]:
    """What the two texts of claim_keyed.sql say of each request."""
    by_number = {number: rest for number, *rest in keys}
    given = {number: taken for number, taken, *_ in gave}
    elsewhere = {
        number: ReadyIn(*first)
        for number, _, *first in gave
        if first[0] and first != [requests[number - 1].queue_name, lane]
    }
    last = max(given, default=0)
    # A key without tasks takes up a slot of the statement, too.
    is_cut = sum(max(taken, 1) for taken in given.values()) >= slots
    seen = []
    for number, (queue_name, key, _) in enumerate(requests, 1):
        if number not in by_number:
            seen.append(KeySeen(queue_name, key, "left", 0, None, None, None, None, 1, None))
            continue
        is_paused, is_unknown, is_new, closed_for, places, starts, room, pace, wait, weight = by_number[
            number
        ]
        taken, until = given.get(number, 0), None
        places = None if places is None else places - taken
        starts = None if starts is None else starts - taken
        state: KeyState
        if is_paused:
            state = "paused"
        elif is_unknown:
            state = "unknown"
        elif starts is not None and starts <= 0:
            state = "closed"
            until = closed_for or (None if wait is None else max(0.0, wait + taken * pace))
        elif places is not None and places <= 0:
            state = "full"
        elif is_new:
            state = "new"
        elif number not in given:
            state = "left" if is_cut and number > last else "busy"
        elif not taken or (taken < room and not (is_cut and number == last)):
            state = "none"
        else:
            state = "more"
        first = elsewhere.get(number)
        seen.append(KeySeen(queue_name, key, state, taken, places, starts, until, pace, weight, first))
    return seen
