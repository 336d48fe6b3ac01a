"""A worker and a site of an older release beside this one's, and what they make of its policies.

They ignore what they don't know of, and lose and double no task. docs/howto/deploy.md says what they do.
"""

import asyncio
import itertools
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import aiotasks
from aiotasks import BulkCounts, TaskFilter
from aiotasks.conf import Options
from aiotasks.operations.pauses import apause, aresume
from aiotasks.rows import Job
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.loop import close_pools, resources
from aiotasks.store.store import Store
from tests import unique_tasks
from tests.site import default_task_backend
from tests.store.rows import (
    CANCELLED,
    WORKER_LOST,
    claim,
    expire,
    insert,
    release,
    rescue,
    row,
    worker,
)
from tests.worker import limit_tasks, retry_tasks, tasks
from tests.worker.harness import Configure, Ledger, until

from .releases import RELEASES, Release, Release0007
from .test_retries import CRASHES, ERROR, FATES, Fate, store

__all__ = ["store"]

EXPIRED = '{"class": "aiotasks.exceptions.TaskExpired", "traceback": "expired"}'


async def pass_by(conn: asyncpg.Connection) -> None:
    """Let the time of all tasks be over."""
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp() - interval '1 s'")


# --- What each does with the other's rows


@RELEASES
async def test_retries(store: Store, conn: asyncpg.Connection, kind: type[Release]) -> None:
    """It fails a task that would be tried again, and leaves attempts and errors as they are."""
    await insert(store, 3)
    jobs = await claim(store, await worker(store))
    await release(store, *jobs, delay=60.0, error=ERROR)
    older = kind(conn)
    await older.register()
    assert await older.claim() == []
    await conn.execute("UPDATE aiotasks_task SET run_after = clock_timestamp()")
    await store.promote_due_jobs("default", 10)
    done, failed, put_off = ids = sorted(await older.claim())
    assert ids == sorted(job.id for job in jobs)
    await older.finish([done])
    await older.finish([failed], ERROR)
    assert await older.release([put_off], 60.0, 3600.0) == [put_off]
    found = {job.id: job for job in await store.select_jobs(ids, "default")}
    assert {id: (job.status, job.failures, len(job.errors)) for id, job in found.items()} == {
        done: ("SUCCESSFUL", 1, 1),
        failed: ("FAILED", 1, 2),
        put_off: ("SCHEDULED", 1, 1),
    }
    assert [len(found[id].worker_ids) for id in ids] == [2, 2, 1]
    assert found[put_off].run_after is None  # as its caller asked for none
    for job in jobs:
        assert await release(store, job, error=ERROR) == {}


@RELEASES
async def test_expired_tasks(store: Store, conn: asyncpg.Connection, kind: type[Release]) -> None:
    """It starts what has expired, and its result counts. What it gives back later isn't started here."""
    older = kind(conn)
    await older.register()
    me = await worker(store)
    await insert(store, 3, expires=3600.0)
    await pass_by(conn)
    done, failed, given_back = ids = await older.claim()
    assert await claim(store, me) == await store.expire_jobs("default", EXPIRED, 10) == []
    await older.finish([done])
    await older.finish([failed], ERROR)
    assert await older.release([given_back]) == [given_back]
    assert await claim(store, me) == []
    assert [job.id for job in await store.expire_jobs("default", EXPIRED, 10)] == [given_back]
    assert await older.claim() == []
    assert await older.try_to_finish([given_back]) == []
    found = [await row(conn, id) for id in ids]
    assert [(one["status"], one["errors"], len(one["worker_ids"])) for one in found] == [
        ("SUCCESSFUL", [], 1),
        ("FAILED", [ERROR], 1),
        ("FAILED", [EXPIRED], 0),
    ]


async def test_each_expired_task_is_started_or_failed(
    store: Store, conn: asyncpg.Connection, database: str
) -> None:
    """Its claims beside sweeps: never both."""
    await insert(store, 2000, expires=3600.0)
    await pass_by(conn)
    other = await asyncpg.connect(database)
    older = Release0007(other)
    await older.register()
    swept: list[UUID] = []
    started: list[UUID] = []

    async def sweep() -> None:
        while jobs := await store.expire_jobs("default", EXPIRED, 7):
            swept.extend(job.id for job in jobs)

    async def start() -> None:
        while ids := await older.claim(7):
            started.extend(ids)
            await older.finish(ids)

    await asyncio.gather(sweep(), start())
    await other.close()
    assert swept
    assert started
    assert len({*swept, *started}) == len(swept) + len(started) == 2000
    ended = await conn.fetch(
        "SELECT status, cardinality(worker_ids), count(*) FROM aiotasks_task GROUP BY 1, 2"
    )
    assert sorted(map(tuple, ended)) == [("FAILED", 0, len(swept)), ("SUCCESSFUL", 1, len(started))]


@RELEASES
async def test_unique_keys(store: Store, conn: asyncpg.Connection, kind: type[Release]) -> None:
    """It knows nothing of keys: it claims, finishes, gives back and enqueues beside them."""
    older = kind(conn)
    await older.register()
    for task in (unique_tasks.once, unique_tasks.follow):
        first = await task.aenqueue(1)
        claimed = await older.claim()
        assert [str(id) for id in claimed] == [first.id]
        assert (await task.aenqueue(1)).is_duplicate is (task is unique_tasks.once)
        assert await older.release(claimed) == claimed
        again = await older.claim()
        assert set(again) >= set(claimed)
        await older.finish(again)
        await older.enqueue_many(2)
        await older.finish(await older.claim())
        assert not (await unique_tasks.once.aenqueue(1)).is_duplicate
        await older.finish(await older.claim())
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status <> 'SUCCESSFUL'") == 0


async def test_the_keys_of_a_crash(store: Store, conn: asyncpg.Connection) -> None:
    """Its rescue meets no index: also where the key is another task's by now."""
    first = await unique_tasks.follow.aenqueue(1)
    older = Release0007(conn)
    await older.register()
    assert [str(id) for id in await older.claim()] == [first.id]
    second = await unique_tasks.follow.aenqueue(1)
    assert not second.is_duplicate
    await expire(conn, older.worker_id)
    await rescue_by(older)
    assert sorted(str(id) for id in await older.claim()) == sorted([first.id, second.id])


@RELEASES
async def test_a_task_that_a_transaction_relies_on(
    store: Store, conn: asyncpg.Connection, kind: type[Release]
) -> None:
    """Of a key that is held while its task waits: it doesn't start the task before the commit."""
    first = await unique_tasks.follow.aenqueue(1)
    older = kind(conn)
    await older.register()
    async with aiotasks.transaction():
        assert (await unique_tasks.follow.aenqueue(1)).is_duplicate
        assert await older.claim() == []
    assert [str(id) for id in await older.claim()] == [first.id]


async def test_the_key_of_an_expired_task(store: Store, conn: asyncpg.Connection) -> None:
    """The next task has it, and both run."""
    first = await unique_tasks.once.using(expires=60).aenqueue(1)
    await pass_by(conn)
    second = await unique_tasks.once.aenqueue(2)
    assert not second.is_duplicate
    older = Release0007(conn)
    await older.register()
    claimed = await older.claim()
    assert sorted(str(id) for id in claimed) == sorted([first.id, second.id])
    assert (await unique_tasks.once.aenqueue(3)).id == second.id
    await older.finish(claimed)


@RELEASES
@pytest.mark.parametrize(
    "what", [{"queue": "default"}, {"task": "tests.store.tasks.nothing"}], ids=["queue", "task"]
)
async def test_pauses(store: Store, conn: asyncpg.Connection, kind: type[Release], what: Any) -> None:
    """It starts what is paused. What it gives back, or leaves behind, waits here for the end of the pause."""
    older = kind(conn)
    await older.register()
    me = await worker(store)
    (first, second) = await insert(store, 2)
    await apause(**what)
    assert await claim(store, me) == []
    assert sorted(await older.claim()) == sorted([first, second])
    assert await older.release([first]) == [first]
    await expire(conn, older.worker_id)
    assert [job.id for job in await rescue(store)] == [second]
    assert await claim(store, me) == []
    assert not await store.has_unfinished_jobs("default", None, ["loop", "thread"])
    assert await Release0007(conn).fetch("has_unfinished_jobs", "default", None, ["loop"]) == [(True,)]
    assert await aresume(**what)
    assert sorted(job.id for job in await claim(store, me)) == sorted([first, second])


async def test_bulk_actions(store: Store, conn: asyncpg.Connection) -> None:
    """What it runs is asked to end and not deleted; what it has failed is retried, and is its own again."""
    older = Release0007(conn)
    await older.register()
    await insert(store, 3, task_path=tasks.add.module_path, expires=3600.0)
    runs = await older.claim(2)
    assert len(runs) == 2
    assert await default_task_backend.adelete_many(runs) == BulkCounts(refused=2)
    assert await default_task_backend.acancel_many(TaskFilter(), everything=True) == BulkCounts(
        cancelled=1, requested=2
    )
    asked = await older.fetch("select_cancelled_jobs", older.worker_id)
    assert sorted(id for (id,) in asked) == sorted(runs)
    assert await older.release(runs) == []  # the caller fails those
    await older.finish(runs, CANCELLED)
    assert await default_task_backend.aretry_many(runs) == BulkCounts(retried=2)
    assert sorted(await older.claim()) == sorted(runs)
    await older.finish(runs)
    assert await default_task_backend.adelete_many(TaskFilter(), everything=True) == BulkCounts(deleted=3)


async def rescue_by(older: Release) -> list[UUID]:
    """Register again, and take what dead workers have left."""
    older.worker_id = uuid4()
    await older.register()
    rows = await older.fetch(
        "rescue_jobs", "default", 1000, WORKER_LOST, 1000, CANCELLED, older.worker_id, 0.0
    )
    return [row[0] for row in rows]


# --- Random fates


class MixedFate(Fate):
    """What happens to a task where either release may do it."""

    def __init__(self, store: Store, conn: asyncpg.Connection, id: UUID) -> None:
        super().__init__(store, conn, id)
        self._older = Release0007(conn)

    async def _claim_by_the_older(self) -> list[UUID]:
        await self._conn.execute(
            "UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE status = 'SCHEDULED'"
        )
        await self._older.fetch("promote_due_jobs", "default", 10)
        self._older.worker_id = self._worker = uuid4()
        await self._older.register()
        ids = await self._older.claim()
        if not ids:
            claim_id = uuid4()
            suspect = (self._worker, claim_id, "default", "loop", ["default"])
            ids = [row[0] for row in await self._older.fetch("claim_suspect", *suspect)]
            self._older.claims |= dict.fromkeys(ids, claim_id)
        self.attempts += len(ids)
        self.former += await self._store.select_jobs(ids, "default")
        return ids

    async def _older_succeed(self) -> None:
        if ids := await self._claim_by_the_older():
            assert await self._older.try_to_finish(ids) == ids

    async def _older_fail(self) -> None:
        if ids := await self._claim_by_the_older():
            assert await self._older.try_to_finish(ids, ERROR) == ids
            self.errors += 1

    async def _older_stop(self) -> None:
        if ids := await self._claim_by_the_older():
            assert await self._older.release(ids) == ids
            self.attempts -= 1

    async def _older_put_off(self) -> None:
        if ids := await self._claim_by_the_older():
            assert await self._older.release(ids, 5.0, 3600.0) == ids
            self.attempts -= 1

    async def _older_crash(self) -> None:
        if await self._claim_by_the_older():
            await expire(self._conn, self._worker)
            self._older.worker_id = uuid4()
            await self._older.register()
            lost = ("default", CRASHES, WORKER_LOST, 10, CANCELLED, self._older.worker_id, 0.0)
            assert await self._older.fetch("rescue_jobs", *lost)
            self.errors += 1
            self.crashes += 1

    async def _older_cancel(self) -> None:
        if await self._older.fetch("cancel_jobs", [self._id], "default", CANCELLED):
            self.errors += 1

    async def _sweep(self) -> None:
        """As if its time had passed."""
        await self._conn.execute(
            "UPDATE aiotasks_task SET expires_at = clock_timestamp() WHERE expires_at > now()"
        )
        self.errors += len(await self._store.expire_jobs("default", EXPIRED, 10))

    async def _older_zombie(self) -> None:
        """All former owners write once more, by its statements."""
        before = await row(self._conn, self._id)
        for job in self.former:
            self._older.claims[job.id] = _claim_id(job)
            assert await self._older.release([job.id], 5.0) == []
            assert await self._older.try_to_finish([job.id]) == []
        assert await row(self._conn, self._id) == before


def _claim_id(job: Job) -> UUID:
    assert job.claim_id is not None
    return job.claim_id


OLDER_FATES = (
    "older_succeed",
    "older_fail",
    "older_stop",
    "older_put_off",
    "older_crash",
    "older_cancel",
    "older_zombie",
    "sweep",
)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fates=st.lists(st.sampled_from(FATES + OLDER_FATES), min_size=1, max_size=16))
def test_attempts_are_counted_whichever_release_has_the_task(database: str, fates: Sequence[str]) -> None:
    async def live() -> None:
        conn = await asyncpg.connect(database)
        try:
            await conn.execute("TRUNCATE aiotasks_task, aiotasks_worker")
            store = resources(Options()).store
            (id,) = await insert(store)
            fate = MixedFate(store, conn, id)
            for what in fates:
                await fate.happen(what)
        finally:
            with suppress(Exception):
                await conn.close()
            await close_pools()

    asyncio.run(live())


# --- All of it at once, beside real workers


class OldWorker:
    """Claims tasks as a worker of the older release does; what becomes of each is chosen at random."""

    def __init__(self, older: Release, ledger: Ledger, rng: random.Random) -> None:
        self.happened = dict.fromkeys(("succeed", "fail", "stop", "crash"), 0)
        self._older = older
        self._ledger = ledger
        self._rng = rng

    async def run(self, stopping: asyncio.Event) -> None:
        await self._older.register()
        while not stopping.is_set():
            for id in await self._older.claim(3):
                await self._run(id)
            await asyncio.sleep(0.002)

    async def _run(self, id: UUID) -> None:
        (what,) = self._rng.choices([*self.happened], [5, 2, 2, 1])
        self.happened[what] += 1
        match what:
            case "succeed":
                self._ledger.connection.execute(
                    "INSERT INTO ledger (task_id, event, claim_id) VALUES (%s, 'end', %s)",
                    [id, self._older.claims[id]],
                )
                await self._older.finish([id])
            case "fail":
                await self._older.finish([id], ERROR)
            case "stop":
                await self._older.release([id])
            case "crash":
                await self._older.conn.execute(
                    "UPDATE aiotasks_task SET worker_id = $2 WHERE id = $1", id, uuid4()
                )
                await rescue_by(self._older)


async def test_tasks_with_limits(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, database: str
) -> None:
    """It claims none. Those that it rescues or promotes wait for workers of this one, and hold no place."""
    configure(POLL_INTERVAL=0.1, LEASE_TIMEOUT=300)
    session = await asyncpg.connect(database)
    older = Release0007(session)
    await older.register()
    names = [f"n{number}" for number in range(4)]
    for name in names:
        await limit_tasks.one.aenqueue("a", name)
    await limit_tasks.one.using(run_after=timezone.now() + timedelta(hours=1)).aenqueue("a", "due")
    assert await older.claim() == []
    store = resources(Options()).store
    request, rule = KeyRequest("default", "worker.one:a"), LimitRule("worker.one", concurrency=1)
    await store.insert_limits("default", ["worker.one:a"])
    dead = await worker(store)
    found = await store.claim_keyed(dead, uuid4(), "default", "loop", 5, [request], [rule])
    assert [seen.state for seen in found.seen] == ["full"]
    await expire(conn, dead)
    await rescue_by(older)
    await conn.execute("UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE status = 'SCHEDULED'")
    await older.fetch("promote_due_jobs", "default", 10)
    assert await older.claim() == []
    assert ledger.statuses() == {"READY": 5}
    limit_tasks.forget()
    async with aiotasks.Worker(concurrency=3):
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 5})
    assert sorted(limit_tasks.seen) == ["due", *names]
    assert limit_tasks.most == {"a": 1}
    await session.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_or_doubled(
    configure: Configure, ledger: Ledger, database: str, conn: asyncpg.Connection, seed: int
) -> None:
    """Each task ends once, successfully at last, as everything that has failed is retried by hand."""
    configure(POLL_INTERVAL=0.1, MAX_CRASHES=1000)
    rng = random.Random(seed)
    session = await asyncpg.connect(database)
    older = Release0007(session)
    old_worker = OldWorker(older, ledger, rng)
    stopping = asyncio.Event()
    ids: set[str] = set()
    async with (
        asyncio.timeout(120),
        aiotasks.Worker(concurrency=3, threads=1),
        aiotasks.Worker(concurrency=3),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(old_worker.run(stopping))
        for number in itertools.count():
            if number >= 12 and all(old_worker.happened.values()):
                break
            ids |= {(await retry_tasks.fails_at_random.aenqueue(0.3)).id for _ in range(5)}
            ids |= {(await tasks.work.using(expires=0.001).aenqueue(0.0)).id for _ in range(5)}
            ids |= {(await tasks.work.using(unique_key=f"key {n}").aenqueue(0.0)).id for n in range(5)}
            ids |= set(await older_site(database, 5))
            if number % 3 == 0:
                what: dict[str, Any] = rng.choice([{"queue": "default"}, {"task": tasks.work}])
                await apause(**what, until=0.1)
            if number % 4 == 0:
                waiting = TaskFilter(status=["READY", "SCHEDULED"])
                await default_task_backend.acancel_many(waiting, everything=True)
            await default_task_backend.aretry_many(TaskFilter(status="FAILED"))

        async def all_succeeded() -> bool:
            await default_task_backend.aretry_many(TaskFilter(status="FAILED"))
            return ledger.statuses() == {"SUCCESSFUL": len(ids)}

        await until(all_succeeded, 100)
        stopping.set()
    await session.close()
    ends = ledger.rows("SELECT task_id::text, count(*) FROM ledger WHERE event = 'end' GROUP BY 1")
    assert dict(ends) == dict.fromkeys(ids, 1)


async def older_site(database: str, number: int) -> list[str]:
    session = await asyncpg.connect(database)
    try:
        return await Release0007(session).enqueue_many(number, 0, path=tasks.work.module_path)
    finally:
        await session.close()
