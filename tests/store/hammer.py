"""The hammer: many sessions that claim tasks of few keys at once, and do all else that happens to tasks.

Each claim is followed by a count of what runs of each key, in a snapshot of its own.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import asyncpg

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.db.statement import Statement, statement
from aiotasks.rows import LANES, Job, Status
from aiotasks.store.limits import KeyRequest, LimitRule, LimitSetting
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.statements import load
from aiotasks.store.store import Store

from .rows import CANCELLED, WORKER_LOST, new_job

QUEUES = ("a", "b")
RULES = (LimitRule("one", concurrency=3), LimitRule("few", concurrency=2), LimitRule("line", ordered=True))
KEYS = {"one": 3, "few:1": 2, "few:2": 2, "few:3": 2, "line:1": 1, "line:2": 1}
SESSIONS = 20

# Of each key and queue: enough to fill all places, and few, so that a count of them costs little.
WAITING = 6

# What is left out of the statement, or put in place of it, and a limit must be exceeded then.
MUTANTS: Mapping[str, tuple[str, str]] = {
    "no guard": ("AND one.xmin = open.version AND NOT", "AND NOT"),
    "no new version": ("WHERE own.ctid = gave.place", "WHERE own.ctid = gave.place AND false"),
    "a key twice": ("SELECT DISTINCT ON (one.key)", "SELECT"),
}

# The pruner without its hour.
OVER_EAGER = ("interval '1 hour'", "interval '0'")


class MutatedStore(Store):
    """Some statements with other texts."""

    def __init__(self, driver: ConnectionDriver, texts: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(driver)
        self._texts = {name: _mutated(name, *change) for name, change in texts.items()}

    async def _fetch(self, name: str, *args: Any, timeout: float | None = None) -> Sequence[Sequence[Any]]:
        return await self.driver.fetch(self._texts.get(name) or load(name), *args, timeout=timeout)


def _mutated(name: str, old: str, new: str) -> Statement:
    sql = load(name).sql
    assert old in sql, f"{name}: {old}"
    return statement(name, sql.replace(old, new))


@dataclass
class Seen:
    """What came of it. ``over``: counts that were above a limit; ``most``: the most that ran of each key."""

    claims: int = 0
    given: int = 0
    over: int = 0
    most: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        most = ", ".join(f"{key} {self.most[key]} of {limit}" for key, limit in KEYS.items())
        return (
            f"{self.claims} claims, {self.given} tasks, {self.over} times over; at most {most}; "
            f"{dict(self.states)}; errors {dict(self.errors)}"
        )


async def hammer(
    *,
    claims: int,
    until_over: bool = False,
    seed: int = 1,
    texts: Mapping[str, tuple[str, str]] | None = None,
    isolation: str = "read committed",
    timeout: float = 120.0,
) -> Seen:
    """Have SESSIONS sessions do their work until there were so many claims, or with ``until_over`` until a
    limit was exceeded."""
    seen = Seen()
    end = time.monotonic() + timeout
    async with AsyncExitStack() as stack:
        sessions = []
        for number in range(SESSIONS):
            connection = await connect("default", timeout=30.0, statement_cache_size=100)
            stack.push_async_callback(connection.close)
            await connection.execute(f"SET default_transaction_isolation = '{isolation}'")
            sessions.append(_Session(connection, random.Random(f"{seed} {number}"), texts or {}, seen))
        await sessions[0].store.insert_limits("default", list(KEYS))

        def is_over() -> bool:
            return seen.claims >= claims or (until_over and seen.over > 0) or time.monotonic() > end

        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(session.run(is_over))
    return seen


async def write_rows_of_keys(*, seconds: float, seed: int = 1) -> Counter[str]:
    """Have sessions write the rows of the same 200 keys in all ways, many in a statement; return their errors
    by SQLSTATE."""
    errors: Counter[str] = Counter()
    keys = [f"few:{number}" for number in range(200)]
    end = time.monotonic() + seconds

    async def write(store: Store, dice: random.Random) -> None:
        me = uuid.uuid4()
        await store.register_worker(me, "default", "host", 1, [], 10, 10, "0", 300.0)
        while time.monotonic() < end:
            try:
                await _write_once(store, me, dice.sample(keys, 50), dice)
            except Exception as error:
                code = getattr(error.__cause__, "sqlstate", None)
                if code is None:
                    raise
                errors[code] += 1

    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(SESSIONS):
            connection = await connect("default", timeout=30.0, statement_cache_size=100)
            stack.push_async_callback(connection.close)
            stores.append(MutatedStore(ConnectionDriver(connection), {"prune_limits": OVER_EAGER}))
        await stores[0].insert_jobs([new_job(queue_name="a", limit_key=key) for key in keys])
        async with asyncio.TaskGroup() as group:
            for number, store in enumerate(stores):
                group.create_task(write(store, random.Random(f"{seed} {number}")))
    return errors


async def _write_once(store: Store, me: UUID, keys: list[str], dice: random.Random) -> None:
    requests = [KeyRequest("a", key) for key in keys]
    setting = LimitSetting(weight=dice.randint(1, 9))
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.insert_limits("default", keys),
        lambda: store.claim_keyed(me, uuid.uuid4(), "default", "loop", 20, requests, RULES),
        lambda: store.set_limit("default", keys[0], setting),
        lambda: store.reset_limit("default", keys[0]),
        lambda: store.close_keys("default", [(keys[0], 0.01)]),
        lambda: store.pause_limit("default", keys[0], ""),
        lambda: store.resume_limit("default", keys[0]),
        lambda: store.prune_limits("default", "", 500),
    ]
    await dice.choices(writes, weights=[9, 9, 3, 3, 3, 1, 3, 3])[0]()


class _Session:
    """A worker that goes by no protocol: it claims any keys, and dies now and then."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        dice: random.Random,
        texts: Mapping[str, tuple[str, str]],
        seen: Seen,
    ) -> None:
        self.store = MutatedStore(ConnectionDriver(connection), texts)
        self._connection = connection
        self._dice = dice
        self._seen = seen
        self._id = uuid.uuid4()
        self._held: list[Job] = []

    async def run(self, is_over: Any) -> None:
        await self._register()
        while not is_over():
            try:
                await self._dice.choices(
                    [self._claim, self._end, self._enqueue, self._cancel, self._rescue, self._die],
                    weights=[45, 40, 10, 2, 4, 1],
                )[0]()
            except Exception as error:
                code = getattr(error.__cause__ or error, "sqlstate", None)
                if code is None:
                    raise
                self._seen.errors[code] += 1

    async def _register(self) -> None:
        await self.store.register_worker(self._id, "default", "host", 1, [], 10, 10, "0", 300.0)

    async def _claim(self) -> None:
        dice = self._dice
        lane = dice.choice(LANES)
        requests = [KeyRequest(dice.choice(QUEUES), key) for key in dice.sample([*KEYS], dice.randint(1, 4))]
        requests.append(KeyRequest(dice.choice(QUEUES), requests[0].key))
        claim = await self.store.claim_keyed(
            self._id, uuid.uuid4(), "default", lane, dice.randint(1, 10), requests, RULES
        )
        self._held += claim.jobs
        if new := [one.key for one in claim.seen if one.state == "new"]:
            await self.store.insert_limits("default", new)
        seen = self._seen
        seen.claims += 1
        seen.given += len(claim.jobs)
        seen.states.update(one.state for one in claim.seen)
        await self._count()

    async def _count(self) -> None:
        rows = await self._connection.fetch(
            "SELECT limit_key, count(*) FROM aiotasks_task WHERE status = 'RUNNING' GROUP BY limit_key"
        )
        for key, number in rows:
            self._seen.over += number > KEYS[key]
            self._seen.most[key] = max(self._seen.most[key], number)

    async def _end(self) -> None:
        """Finish or release one, with an error or without."""
        if not self._held:
            return
        job = self._held.pop(self._dice.randrange(len(self._held)))
        claim_id = cast("UUID", job.claim_id)
        what = self._dice.random()
        if what < 0.7:
            status = Status.SUCCESSFUL if what < 0.6 else Status.FAILED
            error = None if status == Status.SUCCESSFUL else "{}"
            await self.store.finish_jobs([Finish(job.id, claim_id, status, None, error)])
        else:
            delay = self._dice.choice([0.0, 0.05])
            error = self._dice.choice([None, "{}"])
            await self.store.release_jobs([Release(job.id, claim_id, delay, error=error)])

    async def _enqueue(self) -> None:
        """Fill up what waits of one key and queue; some of it is urgent."""
        dice = self._dice
        key, queue = dice.choice([*KEYS]), dice.choice(QUEUES)
        number = await self._connection.fetchval(
            "SELECT count(*) FROM aiotasks_task "
            "WHERE status = 'READY' AND limit_key = $1 AND queue_name = $2",
            key,
            queue,
        )
        jobs = [
            new_job(
                queue_name=queue,
                lane=dice.choice(LANES),
                priority=dice.choice([0, 0, 0, 9]),
                limit_key=key,
                ordered="continue" if key.startswith("line") else None,
            )
            for _ in range(WAITING - number)
        ]
        if jobs:
            await self.store.insert_jobs(jobs)

    async def _cancel(self) -> None:
        ids = await self._connection.fetch(
            "SELECT id FROM aiotasks_task WHERE status IN ('READY', 'RUNNING') ORDER BY random() LIMIT 1"
        )
        await self.store.cancel_jobs([row[0] for row in ids], "default", CANCELLED)

    async def _rescue(self) -> None:
        await self.store.promote_due_jobs("default", 100)
        await self.store.rescue_jobs("default", 5, WORKER_LOST, 100, CANCELLED, self._id)
        await self.store.prune_limits("default", "", 100)

    async def _die(self) -> None:
        await self.store.remove_worker(self._id)
        self._held = []
        self._id = uuid.uuid4()
        await self._register()
