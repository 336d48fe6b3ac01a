"""Drains by the statements alone, over one connection: a claim, a finish of what it has taken, and so on."""

import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.rows import Job, LaneRequest, Status, time_of
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.outcomes import Finish
from aiotasks.store.store import Store

from ..contenders.aiotasks.support import TIMEOUT, connection
from ..contenders.common import MeasurementFailed
from ..contenders.site import insert_rows

__all__ = ["CASES", "EVER", "Case", "enter_worker", "shares"]

# Rounds; each compares both drains a moment apart.
ROUNDS = 3

# A claim of plain tasks begins at the queue's head.
EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """``tasks`` of ``keys`` keys, each with so many places (None: any), claimed into so many slots, and the
    share of a plain drain that a prototype has reached."""

    tasks: int
    keys: int
    places: int | None
    slots: int
    wanted: float

    @property
    def name(self) -> str:
        keys = "1 key" if self.keys == 1 else f"{self.keys:,} keys"
        return f"{keys}, {'taking turns' if self.places is None else f'places: {self.places}'}"


CASES = (
    Case(1_000, 1, 1, 1, 0.52),
    Case(5_000, 1, 10, 10, 0.47),
    Case(20_000, 1, 100, 100, 0.62),
    Case(20_000, 100, 10, 100, 0.44),
    Case(20_000, 1_000, 1, 100, 0.58),
    Case(20_000, 1_000, None, 100, 0.63),
)


async def shares(case: Case, *, quick: bool) -> tuple[float, float, float]:
    """Return tasks a second with limits and without, and the share of the one in the other: medians."""
    tasks = case.tasks // 50 if quick else case.tasks
    found = []
    for number in range(1 if quick else ROUNDS):
        order = (True, False) if number % 2 else (False, True)
        rates = {limited: await _rate(case, tasks, limited=limited) for limited in order}
        keyed, plain = rates[True], rates[False]
        found.append((keyed, plain, keyed / plain))
    keyed, plain, share = (statistics.median(column) for column in zip(*found, strict=True))
    return keyed, plain, share


async def _rate(case: Case, tasks: int, *, limited: bool) -> float:
    """Drain the tasks; return how many a second."""
    async with connection() as opened:
        me = await enter_worker(opened)
        await insert_rows(opened, tasks, key="each" if limited else None, keys=case.keys)
        await opened.execute("VACUUM (ANALYZE) aiotasks_task, aiotasks_limit", timeout=TIMEOUT)
    session = await connect("default", timeout=TIMEOUT, statement_cache_size=100)
    try:
        store = Store(ConnectionDriver(session))
        claims = _Keyed(store, me, case) if limited else _Plain(store, me, case)
        started = time.perf_counter()
        done = 0
        while jobs := await claims.claim():
            await store.finish_jobs(_finishes(jobs))
            claims.finished(jobs)
            done += len(jobs)
        seconds = time.perf_counter() - started
    finally:
        await session.close()
    if done != tasks:
        raise MeasurementFailed(f"{done:,} of {tasks:,} tasks were claimed.")
    return tasks / seconds


class _Plain:
    """Claims of tasks without limits, each from where the last has ended, as a worker does."""

    def __init__(self, store: Store, me: UUID, case: Case) -> None:
        self._store, self._me, self._slots = store, me, case.slots
        self._since = EVER

    async def claim(self) -> list[Job]:
        loop = LaneRequest(["default"], [self._since], self._slots)
        nothing = LaneRequest([], [], 0)
        return await self._store.claim_jobs(self._me, uuid4(), "default", loop=loop, thread=nothing)

    def finished(self, jobs: Sequence[Job]) -> None:
        self._since = max(time_of(job.ready_at) for job in jobs if job.ready_at is not None)


class _Keyed:
    """Claims by keys: those that may have tasks take turns."""

    def __init__(self, store: Store, me: UUID, case: Case) -> None:
        self._store, self._me, self._case = store, me, case
        self._keys = deque(f"each:{number}" for number in range(case.keys))
        self._rules = [LimitRule("each", concurrency=case.places)]

    async def claim(self) -> list[Job]:
        while self._keys:
            keys = [self._keys.popleft() for _ in range(min(len(self._keys), self._case.slots + 2))]
            claim = await self._store.claim_keyed(
                self._me,
                uuid4(),
                "default",
                "loop",
                self._case.slots,
                [KeyRequest("default", key) for key in keys],
                self._rules,
            )
            states = [(seen.key, seen.state) for seen in claim.seen]
            self._keys.extend(key for key, state in states if state in ("more", "full"))
            self._keys.extendleft(key for key, state in states if state in ("new", "left"))
            if new := [key for key, state in states if state == "new"]:
                await self._store.insert_limits("default", new)
            if claim.jobs:
                return claim.jobs
        return []

    def finished(self, jobs: Sequence[Job]) -> None:
        """The keys stand in their line already."""


def _finishes(jobs: Iterable[Job]) -> list[Finish]:
    return [Finish(job.id, _claim_of(job), Status.SUCCESSFUL, "null", None) for job in jobs]


def _claim_of(job: Job) -> UUID:
    assert job.claim_id is not None  # it was claimed
    return job.claim_id


async def enter_worker(opened: asyncpg.Connection) -> UUID:
    """Empty the tables, and enter a worker that claims nothing by itself."""
    await opened.execute("TRUNCATE aiotasks_task, aiotasks_worker, aiotasks_limit")
    id = uuid4()
    await opened.execute(
        """
        INSERT INTO aiotasks_worker (
            id, backend, host, pid, queues, concurrency, threads, version, started_at, lease_expires_at
        )
        VALUES ($1, 'default', 'benchmark', 0, '{none}', 0, 0, '', now(), now() + interval '1 h')
        """,
        id,
    )
    return id
