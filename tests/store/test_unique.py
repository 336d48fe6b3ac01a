"""Unique keys at the level of statements: who has a key, who gets it, and what the others wait for."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from django.db import utils

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.db.errors import Code, sqlstate
from aiotasks.policies.unique import UniqueRule
from aiotasks.rows import NewJob, UniqueJob
from aiotasks.store.settling import STORED, Limits, Settled, Settling
from aiotasks.store.store import Store

from .rows import claim, fail, finish, insert, lane, new_job, release, rescue, row, worker

HOUR = timedelta(hours=1)
UNFINISHED = UniqueRule(None, waiting=False, on_conflict="return", keep_run_after=False)
WAITING = UNFINISHED._replace(waiting=True)
REPLACE = WAITING._replace(on_conflict="replace")
PATIENT = 30.0  # seconds for a lock, where it comes
WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def unique(key: str = "k", rule: UniqueRule = UNFINISHED, **values: Any) -> UniqueJob:
    job = new_job(**values)
    return UniqueJob(job.id, job.template, job.args, job.kwargs, job.enqueued_at, key, rule)


async def settle(
    store: Store, *jobs: NewJob, in_transaction: bool = False, lock: float = PATIENT
) -> list[Settled]:
    settling = Settling(jobs, {}, in_transaction=in_transaction)
    return await settling.run(store, Limits(lock))


async def put(store: Store, key: str = "k", rule: UniqueRule = UNFINISHED, **values: Any) -> str | None:
    """Enqueue a task with a key; its id if it was stored, None if another has the key."""
    job = unique(key, rule, **values)
    (settled,) = await settle(store, job)
    return job.id if settled.holder is None else None


async def holder(store: Store, key: str = "k", rule: UniqueRule = UNFINISHED) -> UUID:
    (settled,) = await settle(store, unique(key, rule))
    assert settled.holder is not None
    return settled.holder.id


@pytest.fixture
async def others(database: str) -> AsyncIterator[Any]:
    """Opens sessions of other callers."""
    async with AsyncExitStack() as stack:

        async def session(isolation: str = "read committed") -> asyncpg.Connection:
            conn = await asyncpg.connect(database)
            stack.push_async_callback(conn.close)
            await conn.execute(f"SET default_transaction_isolation = '{isolation}'")
            return conn

        yield session


@asynccontextmanager
async def waiting_for_a_lock(conn: asyncpg.Connection, coroutine: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine until a session waits for a lock; end it with the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(coroutine)
        while not task.done() and not await conn.fetchval(WAITS):  # noqa: ASYNC110  # of the server
            await asyncio.sleep(0.005)
        yield task


# Who holds a key


async def test_one_task_of_a_key_is_unfinished(store: Store, conn: asyncpg.Connection) -> None:
    first = await put(store)
    assert first is not None
    me = await worker(store)
    for status in ("READY", "RUNNING"):
        assert (await row(conn, UUID(first)))["status"] == status
        assert await put(store) is None
        assert str(await holder(store)) == first
        if status == "READY":
            (job,) = await claim(store, me)
    await release(store, job, delay=60.0)
    assert (await row(conn, UUID(first)))["status"] == "SCHEDULED"
    assert await put(store) is None
    assert await put(store, "other") is not None
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 2


@pytest.mark.parametrize("end", [finish, fail])
async def test_a_finished_task_gives_its_key_up_to_the_next(
    store: Store, conn: asyncpg.Connection, end: Any
) -> None:
    first = await put(store)
    assert first is not None
    (job,) = await claim(store, await worker(store))
    await end(store, job)
    assert (await row(conn, job.id))["unique_key"] == "k"  # whoever ends a task knows nothing of keys
    second = await put(store)
    assert second is not None
    assert await put(store) is None
    before, after = await row(conn, job.id), await row(conn, UUID(second))
    assert (before["unique_key"], before["former_key"]) == (None, "k")
    assert (after["unique_key"], after["former_key"]) == ("k", None)


async def test_tasks_of_one_statement_may_differ_in_all_but_their_backend(
    store: Store, conn: asyncpg.Connection
) -> None:
    """Ticks of schedules are stored together, whatever tasks they are of."""
    soon = datetime.now(UTC) + HOUR
    jobs = [
        unique("a", queue_name="a", task_path="site.a", metadata='{"a": 1}', keep_result=5.0),
        unique("b", WAITING, queue_name="b", lane="thread", priority=3, max_crashes=2),
        unique("c", UNFINISHED._replace(period=60.0), run_after=soon, expires=10.0),
        unique("a again", UNFINISHED, queue_name="a", task_path="site.a"),
    ]
    assert await settle(store, *jobs) == [STORED] * 4
    a, b, c, again = [await row(conn, UUID(job.id)) for job in jobs]
    assert [each["queue_name"] for each in (a, b, c, again)] == ["a", "b", "default", "a"]
    assert [each["unique_waiting"] for each in (a, b, c, again)] == [False, True, False, False]
    assert (a["task_path"], a["metadata"], a["keep_result"], again["metadata"]) == (
        ("site.a", '{"a": 1}', 5.0, None)
    )
    assert (b["lane"], b["priority"], b["max_crashes"], b["status"]) == ("thread", 3, 2, "READY")
    assert (c["run_after"], c["status"], c["expires_at"]) == (soon, "SCHEDULED", soon + timedelta(seconds=10))
    assert [each["unique_until"] is None for each in (a, b, c, again)] == [True, True, False, True]
    await conn.execute("UPDATE aiotasks_task SET status = 'FAILED', finished_at = clock_timestamp()")
    next_ones = [unique("b", queue_name="x"), unique("c", queue_name="y"), unique("a", queue_name="z")]
    settled = await settle(store, *next_ones)
    assert [each.holder and str(each.holder.id) for each in settled] == [None, jobs[2].id, None]


async def test_backends_have_keys_of_their_own(store: Store) -> None:
    assert await put(store) is not None
    assert await put(store, backend="other") is not None
    assert await put(store, backend="other") is None


async def test_a_waiting_key_is_free_once_the_task_runs(store: Store, conn: asyncpg.Connection) -> None:
    first = await put(store, rule=WAITING)
    assert first is not None
    assert await put(store, rule=WAITING) is None
    (job,) = await claim(store, await worker(store))
    second = await put(store, rule=WAITING)
    assert second is not None
    assert await put(store, rule=WAITING) is None
    assert (await row(conn, job.id))["former_key"] == "k"
    # Given back, it waits beside the other: it doesn't get the key again.
    await release(store, job)
    assert str(await holder(store, rule=WAITING)) == second
    # And can be finished as ever.
    both = await claim(store, await worker(store))
    assert {str(each.id) for each in both} == {first, second}
    assert len(await finish(store, *both)) == 2


async def test_a_period_counts_from_the_enqueue_whatever_becomes_of_the_task(
    store: Store, conn: asyncpg.Connection
) -> None:
    period = UNFINISHED._replace(period=3600.0)
    first = await put(store, rule=period)
    assert first is not None
    (job,) = await claim(store, await worker(store))
    assert await put(store, rule=period) is None
    await finish(store, job)
    assert await put(store, rule=period) is None
    await conn.execute("UPDATE aiotasks_task SET unique_until = clock_timestamp()")
    second = await put(store, rule=period)
    assert second is not None
    await conn.execute(
        "UPDATE aiotasks_task SET unique_until = clock_timestamp() WHERE id = $1", UUID(second)
    )
    assert (await row(conn, UUID(second)))["status"] == "READY"
    assert await put(store, rule=period) is not None


async def test_a_task_that_has_expired_holds_no_key(store: Store, conn: asyncpg.Connection) -> None:
    """Nobody will start it, so a caller who were referred to it would wait for nothing."""
    for run_after in (None, datetime.now(UTC) + HOUR):
        key = str(run_after)
        first = await put(store, key, expires=60.0, run_after=run_after)
        assert first is not None
        assert await put(store, key) is None
        await conn.execute(
            "UPDATE aiotasks_task SET expires_at = clock_timestamp() WHERE id = $1", UUID(first)
        )
        assert await put(store, key) is not None
        assert (await row(conn, UUID(first)))["former_key"] == key


async def test_what_is_stored_is_what_a_plain_insert_stores(store: Store, conn: asyncpg.Connection) -> None:
    values: dict[str, Any] = {
        "queue_name": 'q "%s" $1',
        "priority": 7,
        "lane": "thread",
        "args": '["\\u0000", -0.0]',
        "kwargs": '{"%s": 1}',
        "run_after": datetime.now(UTC) + HOUR,
        "expires": 60.0,
        "max_crashes": 2,
        "keep_result": 99.5,
    }
    plain = new_job(**values)
    await store.insert_jobs([plain])
    one = unique("one", **values)
    many = [unique(key, **values) for key in ("b", "a")]
    assert await settle(store, one) == [Settled()]
    assert await settle(store, *many) == [Settled()] * 2
    expected = dict(await row(conn, UUID(plain.id)))
    keyed = {"id", "unique_key", "unique_waiting", "enqueued_at", "expires_at"}
    for job in (one, *many):
        stored = dict(await row(conn, UUID(job.id)))
        assert {name: stored[name] for name in stored if name not in keyed} == {
            name: expected[name] for name in expected if name not in keyed
        }
        assert (stored["unique_key"], stored["unique_waiting"]) == (job.key, False)
        assert stored["expires_at"] - stored["run_after"] == timedelta(seconds=60)


async def test_a_repeated_insert_finds_its_own_row(store: Store, conn: asyncpg.Connection) -> None:
    """The reply was lost."""
    job = unique()
    for _ in range(2):
        assert await settle(store, job) == [STORED]
        assert await settle(store, job, unique("other")) == [STORED, STORED]
        await conn.execute("DELETE FROM aiotasks_task WHERE unique_key = 'other'")
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 1


# Many at once


async def test_many_with_duplicates_among_themselves_and_with_others(
    store: Store, conn: asyncpg.Connection
) -> None:
    held = await put(store, "held")
    gone = await put(store, "gone", priority=9)
    (job,) = await claim(store, await worker(store), loop=lane(slots=1))
    assert str(job.id) == gone
    await finish(store, job)
    jobs: list[NewJob] = [unique(key) for key in ("new", "held", "gone", "new", "held", "gone", "new")]
    jobs.append(new_job())
    settled = await settle(store, *jobs)
    ids = [str(each.holder.id) if each.holder else jobs[n].id for n, each in enumerate(settled)]
    assert ids == [jobs[0].id, held, jobs[2].id, jobs[0].id, held, jobs[2].id, jobs[0].id, jobs[7].id]
    assert [each.holder is None for each in settled] == [True, False, True, *[False] * 4, True]
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 5
    assert (await row(conn, job.id))["former_key"] == "gone"


# Replacing


async def test_a_waiting_task_takes_the_new_arguments_time_and_priority(
    store: Store, conn: asyncpg.Connection
) -> None:
    first = await put(store, rule=REPLACE, args="[1]", run_after=datetime.now(UTC) + HOUR, priority=1)
    assert first is not None
    before = await row(conn, UUID(first))
    later = datetime.now(UTC) + 2 * HOUR
    new = unique(rule=REPLACE, args="[2]", kwargs='{"a": 3}', run_after=later, priority=5, expires=60.0)
    (settled,) = await settle(store, new)
    assert settled.is_replaced
    assert settled.holder is not None
    after = await row(conn, UUID(first))
    assert (after["args"], after["kwargs"], after["priority"]) == ("[2]", '{"a": 3}', 5)
    assert (after["run_after"], after["status"]) == (later, "SCHEDULED")
    assert after["expires_at"] == later + timedelta(seconds=60)
    assert after["enqueued_at"] == before["enqueued_at"]
    assert (str(settled.holder.id), settled.holder.args) == (first, "[2]")
    # And without a time it is due at once.
    await settle(store, unique(rule=REPLACE))
    now = await row(conn, UUID(first))
    assert (now["status"], now["run_after"], now["expires_at"]) == ("READY", None, None)
    assert now["ready_at"] is not None
    # Its place in the queue stays.
    await settle(store, unique(rule=REPLACE, args="[4]"))
    assert (await row(conn, UUID(first)))["ready_at"] == now["ready_at"]


async def test_a_throttled_task_keeps_its_time(store: Store, conn: asyncpg.Connection) -> None:
    rule = REPLACE._replace(keep_run_after=True)
    first = await put(store, rule=rule, run_after=datetime.now(UTC) + HOUR, expires=60.0)
    assert first is not None
    before = await row(conn, UUID(first))
    await settle(store, unique(rule=rule, args="[2]", priority=3, run_after=datetime.now(UTC) + 2 * HOUR))
    after = await row(conn, UUID(first))
    changed = {name for name in after.keys() if after[name] != before[name]}  # noqa: SIM118  # a Record
    assert changed == {"args", "priority"}


async def test_a_task_with_a_key_has_the_metadata_of_the_call_that_it_is_of(
    store: Store, conn: asyncpg.Connection
) -> None:
    old, new = '{"a":1}', '{"b":2}'
    await settle(store, unique("one", REPLACE, metadata=old))
    await settle(store, *(unique(key, REPLACE, metadata=old) for key in ("two", "three")))
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE metadata::text = $1", old) == 3
    await conn.execute("UPDATE aiotasks_task SET awaited = 1")
    await settle(store, unique("one", REPLACE, metadata=new))
    await settle(store, unique("two", REPLACE))
    stored = await conn.fetch("SELECT unique_key, metadata::text, awaited FROM aiotasks_task")
    assert {tuple(each) for each in stored} == {("one", new, 1), ("two", None, 1), ("three", old, 1)}


async def test_a_retry_that_is_replaced_begins_again(store: Store, conn: asyncpg.Connection) -> None:
    first = await put(store, rule=REPLACE)
    assert first is not None
    (job,) = await claim(store, await worker(store))
    await release(store, job, delay=60.0)
    await conn.execute("UPDATE aiotasks_task SET failures = 2, asked_run_after = 'epoch'")
    (settled,) = await settle(store, unique(rule=REPLACE, args="[2]"))
    assert settled.is_replaced
    after = await row(conn, UUID(first))
    assert (after["status"], after["failures"], after["asked_run_after"]) == ("READY", None, None)


async def test_a_running_task_is_followed_and_not_replaced(store: Store, conn: asyncpg.Connection) -> None:
    first = await put(store, rule=REPLACE, args="[1]")
    (job,) = await claim(store, await worker(store))
    follower = await put(store, rule=REPLACE, args="[2]")
    assert follower is not None
    (settled,) = await settle(store, unique(rule=REPLACE, args="[3]"))
    assert settled.holder is not None
    assert str(settled.holder.id) == follower
    assert str(job.id) == first
    assert (await row(conn, job.id))["args"] == "[1]"
    assert (await row(conn, UUID(follower)))["args"] == "[3]"


async def test_what_is_no_waiting_task_of_this_path_is_not_replaced(store: Store) -> None:
    """Another task's arguments would be nonsense for it."""
    other = await put(store, task_path="tests.other.task")
    (settled,) = await settle(store, unique(rule=REPLACE))
    assert settled.holder is not None
    assert (str(settled.holder.id), settled.is_replaced) == (other, False)
    # And one that holds its key while it runs.
    await put(store, "running", queue_name="running")
    await claim(store, await worker(store), loop=lane(["running"]))
    (settled,) = await settle(store, unique("running", REPLACE))
    assert settled.holder is not None
    assert not settled.is_replaced


async def test_many_replace_each_their_own(store: Store, conn: asyncpg.Connection) -> None:
    old = [await put(store, key, rule=REPLACE, args='["old"]') for key in ("a", "b")]
    jobs = [unique(key, REPLACE, args=f'["{n}"]') for n, key in enumerate("abcabc")]
    settled = await settle(store, *jobs)
    assert [each.is_replaced for each in settled] == [True, True, False, True, True, True]
    ids = [*old, jobs[2].id]
    assert [(await row(conn, UUID(str(id))))["args"] for id in ids] == ['["3"]', '["4"]', '["5"]']
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 3


# Other transactions


async def test_an_uncommitted_key_is_waited_for(store: Store, conn: asyncpg.Connection, others: Any) -> None:
    for ending, stored in (("COMMIT", False), ("ROLLBACK", True)):
        session = await others()
        await session.execute("BEGIN")
        first = await put(Store(ConnectionDriver(session)), ending)
        async with waiting_for_a_lock(conn, put(store, ending)) as mine:
            assert not mine.done()
            await session.execute(ending)
        assert (mine.result() is not None) is stored
        assert first is not None


async def test_a_lock_is_waited_for_no_longer_than_is_said(
    store: Store, conn: asyncpg.Connection, others: Any
) -> None:
    """Whichever of many rows it is that is locked; and the server waits for nobody afterwards."""
    keys = "abc"
    session = await others()
    locked = Store(ConnectionDriver(session))

    async def give_up(name: str, *args: Any) -> None:
        with pytest.raises(utils.OperationalError) as caught:
            await getattr(store, name)(*args, lock_timeout=0.05)
        assert sqlstate(caught.value) == Code.LOCK_TIMEOUT

    for key in keys:
        async with session.transaction():
            await put(locked, key)
            await give_up("insert_unique_job", unique(key))
            await give_up("insert_unique_jobs", [unique(each) for each in keys if each >= key])
            if key == "c":
                await give_up("insert_unique_jobs", [unique(each) for each in ("1", "2", "c")])
    ids = [await conn.fetchval("SELECT id FROM aiotasks_task WHERE unique_key = $1", key) for key in keys]
    for id in ids:
        async with session.transaction():
            await session.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", id)
            await give_up("replace_waiting_jobs", ids, [unique(key) for key in keys])
            await give_up("lock_unique_keys", "default", keys)
    await conn.execute("UPDATE aiotasks_task SET status = 'FAILED', finished_at = clock_timestamp()")
    for id in ids:
        async with session.transaction():
            await session.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", id)
            await give_up("free_unique_keys", "default", keys)


async def test_the_callers_own_lock_timeout_is_put_back(others: Any) -> None:
    session = await others()
    store = Store(ConnectionDriver(session))
    async with session.transaction():
        await session.execute("SET LOCAL lock_timeout = '7s'")
        for jobs in (
            [unique()],
            [unique(rule=REPLACE._replace(waiting=True))],
            [unique("l"), unique("m")],
            [unique("l", WAITING), unique("m", WAITING)],
        ):
            await settle(store, *jobs, in_transaction=True)
            assert await session.fetchval("SHOW lock_timeout") == "7s"


async def test_a_key_of_a_savepoint_that_was_rolled_back_is_free(store: Store, others: Any) -> None:
    session = await others()
    mine = Store(ConnectionDriver(session))
    async with session.transaction():
        savepoint = session.transaction()
        await savepoint.start()
        assert await put(mine) is not None
        assert await put(mine) is None
        await savepoint.rollback()
        kept = await put(mine)
        assert kept is not None
    assert str(await holder(store)) == kept


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_an_old_snapshot_gets_an_error_and_never_an_empty_answer(
    store: Store, others: Any, isolation: str
) -> None:
    session = await others(isolation)
    mine = Store(ConnectionDriver(session))
    first = await put(store)
    async with session.transaction():
        assert str(await holder(mine)) == first
        assert await put(mine, "own") is not None
    for jobs in ([unique("late")], [unique("late"), unique("later")]):
        transaction = session.transaction()
        await transaction.start()
        await session.fetchval("SELECT count(*) FROM aiotasks_task")
        await settle(store, *(unique(job.key) for job in jobs))
        with pytest.raises(utils.OperationalError) as caught:
            await settle(mine, *jobs)
        assert sqlstate(caught.value) == "40001"
        await transaction.rollback()


async def test_a_waiting_holder_is_not_claimed_before_the_commit_of_who_relies_on_it(
    store: Store, conn: asyncpg.Connection, others: Any
) -> None:
    me = await worker(store)
    for jobs in ([unique(rule=WAITING)], [unique(rule=WAITING), unique("l", WAITING)]):
        first = await put(store, rule=WAITING)
        session = await others()
        async with session.transaction():
            settled = await settle(Store(ConnectionDriver(session)), *jobs, in_transaction=True)
            assert settled[0].holder is not None
            assert str(settled[0].holder.id) == first
            assert await claim(store, me) == []
        claimed = await claim(store, me)
        assert first in [str(job.id) for job in claimed]


async def test_who_comes_while_the_holder_is_claimed_gets_a_run_of_its_own(
    store: Store, conn: asyncpg.Connection, others: Any
) -> None:
    """Its claim has begun: the transaction waits for it, and stores another task."""
    first = await put(store, rule=WAITING)
    assert first is not None
    claiming, session = await others(), await others()
    await claiming.execute("BEGIN")
    claimer = Store(ConnectionDriver(claiming))
    (job,) = await claim(claimer, await worker(store))
    assert str(job.id) == first
    new = unique(rule=WAITING)
    async with session.transaction():
        mine = settle(Store(ConnectionDriver(session)), new, in_transaction=True)
        async with waiting_for_a_lock(conn, mine) as task:
            await claiming.execute("COMMIT")
        assert task.result() == [Settled()]
    assert str(await holder(store, rule=WAITING)) == new.id


async def test_a_replace_waits_for_a_claim_and_follows_it(
    store: Store, conn: asyncpg.Connection, others: Any
) -> None:
    await put(store, rule=REPLACE, args="[1]")
    claiming = await others()
    await claiming.execute("BEGIN")
    (job,) = await claim(Store(ConnectionDriver(claiming)), await worker(store))
    new = unique(rule=REPLACE, args="[2]")
    async with waiting_for_a_lock(conn, settle(store, new)) as task:
        await claiming.execute("COMMIT")
    assert task.result() == [Settled()]
    assert (await row(conn, job.id))["args"] == "[1]"


async def test_what_ends_and_gives_back_tasks_meets_no_key(store: Store, conn: asyncpg.Connection) -> None:
    """The index is over all keys, so that only an insert can meet it: also where two tasks of a key wait."""
    me = await worker(store)
    await put(store, rule=WAITING)
    (first,) = await claim(store, me)
    second = await put(store, rule=WAITING)
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = clock_timestamp() - interval '1 s'")
    assert [job.id for job in await rescue(store)] == [first.id]
    statuses = await conn.fetch("SELECT id, status FROM aiotasks_task ORDER BY id")
    assert {str(each["id"]): each["status"] for each in statuses} == {str(first.id): "READY", second: "READY"}
    assert await insert(store)


async def test_keys_of_any_characters(store: Store) -> None:
    for key in ("é 😀 %s %(p1)s $1 ' \\ { , \"", "x" * 2000, " ", "NULL", "\n"):
        first = await put(store, key)
        assert first is not None
        assert str(await holder(store, key)) == first
        both = await settle(store, unique(key), unique(f"{key[:-40]}{uuid.uuid4()}"))
        assert [each.holder is None for each in both] == [False, True]


async def test_random_bytes_fill_a_key(store: Store) -> None:
    """The index doesn't compress them."""
    assert await put(store, "".join(uuid.uuid4().hex for _ in range(63))[:2000]) is not None
