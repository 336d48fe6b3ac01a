"""Lines in strict order over queues and lanes, with many claimers and all that may happen to a task."""

import asyncio
import random
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.rows import LANES, Job, Lane, Status, microseconds
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.store import Store

from .hammer import MutatedStore
from .rows import CANCELLED, WORKER_LOST, claim_of, new_job

CLAIMERS = 12
QUEUES = ("a", "b")
RULE = LimitRule("l", ordered=True)

# What is left out of the statement, and an order must be violated then.
MUTANTS: Mapping[str, tuple[str, str]] = {
    "a retry holds no line": ("ELSE ruled.ordered AND held.ordered IS NOT NULL", "ELSE false"),
    "a head for each lane": (
        "AND task.limit_key = held.key AND task.status = 'READY'",
        "AND task.limit_key = held.key AND task.status = 'READY' AND task.lane = $4::text",
    ),
}


@dataclass
class Lines:
    """What has happened. ``violations``: of the order, in words."""

    tasks: int = 0
    claims: int = 0
    retries: int = 0
    deaths: int = 0
    stops: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tasks} tasks, {self.claims} claims, {self.retries} retries and releases, {self.deaths} "
            f"deaths, {self.stops} stops, {len(self.violations)} violations"
        )


async def run_lines(
    *, lines: int, length: int, seed: int = 1, texts: Mapping[str, tuple[str, str]] | None = None
) -> Lines:
    """Run all tasks of the lines, and see in which order they have begun, and after what."""
    seen = Lines(tasks=lines * length)
    dice = random.Random(seed)
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(CLAIMERS + 1):
            connection = await connect("default", timeout=30.0, statement_cache_size=100)
            stack.push_async_callback(connection.close)
            connections.append(connection)
        run = _Run(connections[-1], texts or {}, seen)
        keys = [f"l:{number}" for number in range(lines)]
        await run.store.insert_limits("default", keys)
        jobs = [
            new_job(
                queue_name=dice.choice(QUEUES),
                lane=dice.choice(LANES),
                priority=dice.choice([0, 0, 3]),
                limit_key=key,
                ordered="stop" if number % 2 else "continue",
            )
            for _ in range(length)
            for number, key in enumerate(keys)
        ]
        dice.shuffle(jobs)
        await run.store.insert_jobs(jobs)
        async with asyncio.TaskGroup() as group:
            for number in range(CLAIMERS):
                claimer = _Claimer(connections[number], random.Random(f"{seed} {number}"), run, keys)
                group.create_task(claimer.run())
        await run.judge()
    return seen


class _Run:
    """All that claimers share."""

    def __init__(
        self, connection: asyncpg.Connection, texts: Mapping[str, tuple[str, str]], seen: Lines
    ) -> None:
        self.texts = texts
        self.seen = seen
        self.store = MutatedStore(ConnectionDriver(connection), texts)
        self.connection = connection
        self.left = seen.tasks
        self.begun: dict[UUID, float] = {}
        # Before it the line mustn't have gone on: when the task was final, or an operator let the line go on.
        self.final: dict[UUID, float] = {}

    async def judge(self) -> None:
        rows = await self.connection.fetch(
            "SELECT id, limit_key, extract(epoch FROM finished_at)::float8 FROM aiotasks_task "
            "ORDER BY limit_key, priority DESC, limit_place, id"
        )
        lines: dict[str, list[tuple[UUID, float]]] = defaultdict(list)
        for id, key, finished_at in rows:
            lines[key].append((id, max(finished_at, self.final.get(id, 0.0))))
        for key, tasks in lines.items():
            for number, ((before, final), (after, _)) in enumerate(pairwise(tasks)):
                if not self.begun[before] <= final <= self.begun[after]:
                    self.seen.violations.append(
                        f"{key}, {number}: {self.begun[before]}, {final}, {self.begun[after]}"
                    )


class _Claimer:
    def __init__(
        self, connection: asyncpg.Connection, dice: random.Random, run: _Run, keys: list[str]
    ) -> None:
        self._store: Store = MutatedStore(ConnectionDriver(connection), run.texts)
        self._connection = connection
        self._dice = dice
        self._run = run
        self._keys = keys
        self._id = uuid.uuid4()

    async def run(self) -> None:
        await self._register()
        while self._run.left:
            lane: Lane = self._dice.choice(LANES)
            keys = self._dice.sample(self._keys, min(5, len(self._keys)))
            requests = [KeyRequest(self._dice.choice(QUEUES), key) for key in keys]
            claim = await self._store.claim_keyed(
                self._id, uuid.uuid4(), "default", lane, 5, requests, [RULE]
            )
            self._run.seen.claims += 1
            for job in claim.jobs:
                # Times of the database's clock: a moment counts from 2000.
                self._run.begun.setdefault(job.id, microseconds(job.last_attempted_at) / 1e6 + 946_684_800)
            for job in claim.jobs:
                if not await self._end(job):
                    break
            if self._dice.random() < 0.2:
                await self._store.promote_due_jobs("default", 100)
                await self._store.rescue_jobs("default", 30_000, WORKER_LOST, 100, CANCELLED, self._id)
                # A task of two crashes is for another statement.
                await self._connection.execute("UPDATE aiotasks_task SET crashes = 0 WHERE crashes > 1")

    async def _register(self) -> None:
        await self._store.register_worker(self._id, "default", "host", 1, [], 10, 10, "0", 300.0)

    async def _end(self, job: Job) -> bool:
        """End an execution in some way. False: the worker has died, with what else it has claimed."""
        id, claim_id = claim_of(job)
        seen = self._run.seen
        what = self._dice.random()
        if what < 0.02:
            seen.deaths += 1
            await self._store.remove_worker(self._id)
            self._id = uuid.uuid4()
            await self._register()
            return False
        if what < 0.3:
            seen.retries += 1
            delay, error = self._dice.choice([(0.0, None), (0.0, "{}"), (0.02, "{}"), (0.02, None)])
            await self._store.release_jobs([Release(id, claim_id, delay, error=error)])
            return True
        status = Status.FAILED if what < 0.4 else Status.SUCCESSFUL
        error = "{}" if status == Status.FAILED else None
        await self._store.finish_jobs([Finish(id, claim_id, status, None, error)])
        stopped = await self._fetchval("SELECT ordered = 'stop' FROM aiotasks_task WHERE id = $1", id)
        if status == Status.FAILED and stopped:
            seen.stops += 1
            await asyncio.sleep(self._dice.uniform(0, 0.05))
            self._run.final[id] = await self._fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
            assert (await self._store.release_line(id, "default"))[0]
        self._run.left -= 1
        return True

    async def _fetchval(self, query: str, *args: Any) -> Any:
        return await self._connection.fetchval(query, *args)
