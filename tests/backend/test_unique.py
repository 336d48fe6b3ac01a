"""Unique keys, as callers see them: async and sync, in transactions and in bulk."""

import asyncio
import enum
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction, utils
from django.utils import timezone

import aiotasks
from aiotasks import DuplicateTask, PostgresTaskResult
from aiotasks.rows import AnyResult
from aiotasks.store import commit_hooks
from aiotasks.store.loop import resources
from aiotasks.store.notifier import throttle
from aiotasks.store.wakeups import Wakeup
from tests import unique_tasks as tasks
from tests.examples import example
from tests.site import default_task_backend
from tests.worker.harness import Configure, until

from .support import Api, Heard, worker

COUNT = "SELECT count(*) FROM aiotasks_task"
LATER = timedelta(hours=1)


class Rollback(Exception):
    pass


@asynccontextmanager
async def closing(session: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def rolled_back(block: Any) -> AsyncIterator[None]:
    """A block that ends with an exception."""
    with suppress(Rollback):
        async with block:
            yield
            raise Rollback


@pytest.fixture(autouse=True)
def ran(database: str) -> Iterator[list[tuple[str, object]]]:
    tasks.ran.clear()
    yield tasks.ran
    tasks.gate.clear()


def many(task: Any) -> Any:
    return default_task_backend, "enqueue_many", task


async def test_a_duplicate_is_the_result_of_the_first(
    api: Api, conn: asyncpg.Connection, heard: list[Heard]
) -> None:
    first = await api.enqueue(tasks.once, 1)
    again = await api.enqueue(tasks.once, 2)
    assert (first.is_duplicate, again.is_duplicate) == (False, True)
    assert again == first
    assert (again.id, again.args) == (first.id, [1])
    assert await conn.fetchval(COUNT) == 1
    assert [(each.signal, each.fields["id"]) for each in heard] == [("task_enqueued", first.id)]
    found = await api.call(tasks.once, "get_result", first.id)
    assert found.is_duplicate is False
    assert await api.call(again, "cancel")
    assert not (await api.enqueue(tasks.once)).is_duplicate


async def test_a_function_makes_the_key_of_the_arguments(api: Api, conn: asyncpg.Connection) -> None:
    ids = [(await api.enqueue(tasks.by_argument, key)).id for key in (1, 2, 1, None, None)]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4
    other = tasks.by_argument.using(unique_key="by argument 2")
    assert (await api.enqueue(other, 3)).id == ids[1]
    assert not (await api.enqueue(tasks.once.using(unique_key=None))).is_duplicate
    keys = await conn.fetch("SELECT unique_key FROM aiotasks_task ORDER BY unique_key")
    assert [each[0] for each in keys] == ["by argument 1", "by argument 2", None, None, None]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1, TypeError, "must return a str or None, not 1"),
        ("", ValueError, "must return a string of at least one character"),
        ("a\0", ValueError, "without NUL"),
        ("\ud800", ValueError, "surrogates"),
        ("TypeError", TypeError, "unique_key of tests.unique_tasks.reindex failed: TypeError: no"),
        ("KeyError", ValueError, "unique_key of tests.unique_tasks.reindex failed: KeyError"),
    ],
)
async def test_a_function_that_makes_no_key_stores_nothing(
    api: Api, conn: asyncpg.Connection, value: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await api.enqueue(tasks.reindex, value)
    with pytest.raises(error, match=rf"calls\[1\]: .*{text}"):
        await api.call(*many(tasks.reindex), [(["good"], {}), ([value], {})])
    assert await conn.fetchval(COUNT) == 0


async def test_a_long_key_is_stored_as_its_hash(api: Api, conn: asyncpg.Connection) -> None:
    fits, long = "é" * 1000, "é" * 1001
    for key in (fits, long):
        assert not (await api.enqueue(tasks.once.using(unique_key=key))).is_duplicate
        assert (await api.enqueue(tasks.once.using(unique_key=key))).is_duplicate
    assert not (await api.enqueue(tasks.once.using(unique_key=f"{long}!"))).is_duplicate
    lengths = await conn.fetch("SELECT length(unique_key) FROM aiotasks_task")
    assert sorted(each[0] for each in lengths) == [71, 71, 1000]


async def test_raising_says_which_task_has_the_key(api: Api, conn: asyncpg.Connection) -> None:
    first = await api.enqueue(tasks.refuse, 1)
    with pytest.raises(DuplicateTask, match=f"Task {first.id} holds the unique key 'refuse'") as caught:
        await api.enqueue(tasks.refuse, 2)
    assert (caught.value.result.id, caught.value.result.is_duplicate) == (first.id, True)
    assert caught.value.key == "refuse"


async def test_bulk_is_all_or_none(
    api: Api, conn: asyncpg.Connection, heard: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a call isn't to raise, but must, because what holds its key can't be replaced."""
    sent: list[Wakeup] = []
    monkeypatch.setattr(commit_hooks, "_notify", lambda alias, wakeups, changed: sent.extend(wakeups))
    first = await api.enqueue(tasks.by_argument.using(unique_key="debounced b"), 1)
    await api.enqueue(tasks.debounced, "a", "before")
    sent.clear()
    heard.clear()
    calls: Any = [(["new"], {}), (["a", "after"], {}), (["b"], {}), (["c"], {})]
    with pytest.raises(DuplicateTask, match=rf"^calls\[2\]: Task {first.id} holds") as caught:
        await api.call(*many(tasks.debounced), calls)
    assert caught.value.result.id == first.id
    with pytest.raises(DuplicateTask, match=r"^calls\[1\]: "):
        await api.call(*many(tasks.refuse), [([1], {}), ([2], {})])
    rows = await conn.fetch("SELECT args::text FROM aiotasks_task ORDER BY id")
    assert [row[0] for row in rows] == ["[1]", '["a","before"]']
    assert (sent, heard) == ([], [])


async def test_a_holder_that_cannot_be_imported_has_the_callers_task(
    api: Api, conn: asyncpg.Connection, heard: list[Heard]
) -> None:
    """While a deploy has renamed it, or brings it."""
    first = await api.enqueue(tasks.by_argument.using(priority=3), "x")
    await conn.execute("UPDATE aiotasks_task SET task_path = 'of.another.release'")
    again = await api.enqueue(tasks.by_argument, "x")
    assert (again.id, again.is_duplicate) == (first.id, True)
    assert (again.task.module_path, again.task.priority) == (tasks.by_argument.module_path, 3)
    heard.clear()
    results = await api.call(*many(tasks.by_argument), [(["w"], {}), (["x"], {}), (["y"], {})])
    assert [each.is_duplicate for each in results] == [False, True, False]
    assert len(heard) == 2


class Key(str, enum.Enum):  # noqa: UP042  # str() of a StrEnum's member is its value
    ONCE = "once"


async def test_a_key_that_is_a_kind_of_str_is_its_text(conn: asyncpg.Connection) -> None:
    await tasks.once.using(unique_key=Key.ONCE).aenqueue()
    await tasks.once.aenqueue()
    assert await conn.fetchval(COUNT) == 1
    assert await conn.fetchval("SELECT unique_key FROM aiotasks_task") == "once"


async def test_a_period_longer_than_results_are_kept_keeps_the_row(
    api: Api, conn: asyncpg.Connection, configure: Configure
) -> None:
    async def kept(task: Any) -> float | None:
        id = (await api.enqueue(task)).id
        value: float | None = await conn.fetchval("SELECT keep_result FROM aiotasks_task WHERE id = $1", id)
        return value

    task = tasks.periodical
    assert await kept(task) is None  # kept for a day, and for two weeks, anyway
    assert await kept(task.using(unique_key="2", keep_result=5)) == 3600
    assert await kept(task.using(unique_key="3", keep_result=7200)) == 7200
    configure(KEEP_SUCCESSFUL=60, KEEP_FAILED=7200)
    assert await kept(task.using(unique_key="4")) == 7200
    configure(KEEP_SUCCESSFUL=60, KEEP_FAILED=90)
    assert await kept(task.using(unique_key="5")) == 3600
    configure(KEEP_SUCCESSFUL=60, KEEP_FAILED=None)
    assert await kept(task.using(unique_key="6")) == float("inf")


async def test_debouncing_and_throttling(api: Api, conn: asyncpg.Connection, heard: list[Heard]) -> None:
    due = [timezone.now() + LATER * number for number in (1, 2, 3)]
    for task, last in ((tasks.debounced, due[2]), (tasks.throttled, due[0])):
        results = [await api.enqueue(task.using(run_after=at), 1, n) for n, at in enumerate(due)]
        assert len({each.id for each in results}) == 1
        assert [each.is_duplicate for each in results] == [False, True, True]
        assert [each.args for each in results] == [[1, 0], [1, 1], [1, 2]]
        (stored,) = await conn.fetch("SELECT * FROM aiotasks_task WHERE id = $1", results[0].id)
        assert (stored["args"], stored["run_after"]) == ("[1,2]", last)
    assert len(heard) == 2  # one for each task, of its first enqueue


async def test_bulk_has_its_results_in_order(api: Api, conn: asyncpg.Connection, heard: list[Heard]) -> None:
    first = await api.enqueue(tasks.by_argument, 1, "first")
    calls: Any = [([key, n], {}) for n, key in enumerate([2, 1, None, 2, 3, 1, None])]
    results = await api.call(*many(tasks.by_argument), calls)
    assert [each.is_duplicate for each in results] == [False, True, False, True, False, True, False]
    assert [each.args[1] for each in results] == [0, "first", 2, 0, 4, "first", 6]
    assert results[1].id == results[5].id == first.id
    assert results[0].id == results[3].id
    assert await conn.fetchval(COUNT) == 5
    assert len(heard) == 5
    latest = await api.call(*many(tasks.debounced), [([key, n], {}) for n, key in enumerate("abab")])
    assert [each.is_duplicate for each in latest] == [False, False, True, True]
    assert [each.args for each in latest[2:]] == [["a", 2], ["b", 3]]
    assert await conn.fetchval(COUNT) == 7


@asynccontextmanager
async def counted(notified: list[str], conn: asyncpg.Connection) -> AsyncIterator[list[str]]:
    """The wake-ups that are sent while the block lasts. They are there at its end."""
    sent: list[str] = []
    before = len(notified)
    yield sent
    await resources(default_task_backend.config).notifier.all_sent()
    await conn.execute("SELECT pg_notify('aiotasks', 'sync')")
    await until(lambda: "sync" in notified[before:])
    sent += notified[before:-1]


async def test_workers_are_woken_for_new_and_earlier_tasks_alone(
    notified: list[str], conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "should_notify_now", lambda *args: True)

    async def enqueue(task: Any, *args: Any, at: Any = None) -> int:
        async with counted(notified, conn) as sent:
            await (task if at is None else task.using(run_after=at)).aenqueue(*args)
        return len(sent)

    now = timezone.now()
    assert await enqueue(tasks.once) == 1
    assert await enqueue(tasks.once) == 0
    assert await enqueue(tasks.debounced, 1, at=now + LATER) == 1
    assert await enqueue(tasks.debounced, 1, at=now + 2 * LATER) == 0  # they look in an hour, and see
    assert await enqueue(tasks.debounced, 1, at=now + LATER) == 1
    assert await enqueue(tasks.debounced, 1) == 1
    assert await enqueue(tasks.debounced, 1) == 0  # they know of a task that is READY
    assert await enqueue(tasks.debounced, 1, at=now + LATER) == 1  # but not of this time


@pytest.mark.parametrize("block", [aiotasks.transaction, aiotasks.atomic])
@pytest.mark.parametrize("task", [tasks.follow, tasks.debounced])
async def test_workers_are_woken_for_a_ready_task_that_a_transaction_has_locked(
    block: Any, task: Any, notified: list[str], conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim meanwhile has passed it over, and nobody else would wake the worker."""
    monkeypatch.setattr(throttle, "should_notify_now", lambda *args: True)
    async with counted(notified, conn):
        await task.aenqueue("ready")
        await task.using(run_after=timezone.now() + LATER).aenqueue("later")
    async with counted(notified, conn) as sent, block():
        assert (await task.aenqueue("ready", "news")).is_duplicate
        assert (await task.using(run_after=timezone.now() + 2 * LATER).aenqueue("later")).is_duplicate
    assert sent == ['["default", "default", null]']


async def test_workers_are_woken_for_ready_tasks_that_many_calls_have_replaced(
    notified: list[str], conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is a transaction, and may take long."""
    monkeypatch.setattr(throttle, "should_notify_now", lambda *args: True)
    async with counted(notified, conn):
        await default_task_backend.aenqueue_many(tasks.debounced, [([n], {}) for n in range(2)])
    async with counted(notified, conn) as sent:
        await default_task_backend.aenqueue_many(tasks.debounced, [([n, "news"], {}) for n in range(2)])
    assert sent == ['["default", "default", null]']


# Transactions


async def test_a_rolled_back_task_has_no_key(conn: asyncpg.Connection) -> None:
    async with rolled_back(aiotasks.transaction()):
        first = await tasks.once.aenqueue()
        assert (await tasks.once.aenqueue()).id == first.id
    async with rolled_back(aiotasks.atomic()):
        assert not (await tasks.once.aenqueue()).is_duplicate
    assert not (await tasks.once.aenqueue()).is_duplicate
    assert await conn.fetchval(COUNT) == 1


async def test_savepoints_give_keys_back(conn: asyncpg.Connection) -> None:
    async with aiotasks.transaction():
        async with rolled_back(aiotasks.transaction()):
            assert not (await tasks.once.aenqueue(1)).is_duplicate
        kept = await tasks.once.aenqueue(2)
        assert not kept.is_duplicate
    assert (await tasks.once.aenqueue()).id == kept.id

    def in_sync() -> None:
        with transaction.atomic():
            with suppress(Rollback), transaction.atomic():
                assert not tasks.by_argument.enqueue(1).is_duplicate
                raise Rollback
            assert not tasks.by_argument.enqueue(1).is_duplicate
            assert tasks.by_argument.enqueue(1).is_duplicate

    await sync_to_async(in_sync)()
    assert await conn.fetchval(COUNT) == 2


async def test_bulk_in_a_transaction_is_all_or_none(conn: asyncpg.Connection) -> None:
    calls: Any = [([1], {}), ([2], {})]
    await tasks.refuse.using(unique_key="taken").aenqueue()

    def key(value: int) -> str:
        return "taken" if value == 2 else "free"

    task = tasks.refuse.using(unique_key=key)
    async with aiotasks.transaction():
        with pytest.raises(DuplicateTask):
            await default_task_backend.aenqueue_many(task, calls)
        await tasks.once.aenqueue()
    async with aiotasks.atomic():
        with pytest.raises(DuplicateTask):
            await default_task_backend.aenqueue_many(task, calls)
        await tasks.by_argument.aenqueue(1)
    keys = await conn.fetch("SELECT unique_key FROM aiotasks_task ORDER BY 1")
    assert [each[0] for each in keys] == ["by argument 1", "once", "taken"]


LOCKED = r"with the unique key 'once' hasn't ended within COMMAND_TIMEOUT \(1 s\)"


async def test_a_conflict_with_an_open_transaction_ends_with_words(
    database: str, configure: Configure
) -> None:
    """Everywhere alike; Django's transaction goes on afterwards."""
    configure(COMMAND_TIMEOUT=1.0)
    holder = await asyncpg.connect(database)
    async with closing(holder), aiotasks.transaction(connection=holder):
        await tasks.once.aenqueue("uncommitted")
        await asyncio.create_task(_all_ways(), context=Context())  # outside of the block
    assert (await tasks.once.aenqueue()).is_duplicate


async def _all_ways() -> None:
    def by_django() -> PostgresTaskResult:
        with pytest.raises(utils.OperationalError, match=LOCKED):
            tasks.once.enqueue()
        with transaction.atomic():
            with pytest.raises(utils.OperationalError, match=LOCKED):
                tasks.once.enqueue()
            result = tasks.by_argument.enqueue(1)
        connection.close()
        return result

    with pytest.raises(utils.OperationalError, match=LOCKED):
        await tasks.once.aenqueue()
    with pytest.raises(utils.OperationalError, match="with one of 2 unique keys"):
        await default_task_backend.aenqueue_many(
            tasks.by_argument.using(unique_key=lambda key: key), [(["once"], {}), (["b"], {})]
        )
    result = await sync_to_async(by_django)()
    assert (await tasks.by_argument.aenqueue(1)).id == result.id
    async with rolled_back(aiotasks.transaction()):
        with pytest.raises(utils.OperationalError, match=LOCKED):
            await tasks.once.aenqueue()


# Concurrency


async def test_concurrent_calls_of_a_key_share_statements(
    statements: list[str], conn: asyncpg.Connection
) -> None:
    results = await asyncio.gather(*(tasks.once.aenqueue(n) for n in range(100)))
    assert len({each.id for each in results}) == 1
    assert sum(not each.is_duplicate for each in results) == 1
    assert statements.count("insert_unique_job") <= 4
    statements.clear()
    results = await asyncio.gather(*(tasks.debounced.aenqueue(1, n) for n in range(100)))
    assert len(statements) <= 8
    assert await conn.fetchval("SELECT args FROM aiotasks_task WHERE id = $1", results[0].id) == "[1,99]"
    outcomes = await asyncio.gather(*(tasks.refuse.aenqueue(n) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(each, DuplicateTask) for each in outcomes) == 19


async def test_a_cancelled_caller_leaves_the_others_theirs(conn: asyncpg.Connection) -> None:
    for turns in range(12):
        calls = [asyncio.ensure_future(tasks.by_argument.aenqueue(turns)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        calls[0].cancel()
        results = await asyncio.gather(*calls[1:])
        assert len({each.id for each in results}) == 1
    assert await conn.fetchval(COUNT) == 12


async def test_a_conflict_slows_nobody_else(database: str, configure: Configure) -> None:
    """With callers that wait for 20 keys of an open transaction, others' enqueues go on."""
    configure(COMMAND_TIMEOUT=5.0, POOL_MAX_SIZE=4)
    async with closing(await asyncpg.connect(database)) as holder:
        around = holder.transaction()
        await around.start()
        async with aiotasks.transaction(connection=holder):
            await default_task_backend.aenqueue_many(tasks.by_argument, [([n], {}) for n in range(20)])
        waiting = [asyncio.ensure_future(tasks.by_argument.aenqueue(n % 20)) for n in range(60)]
        for _ in range(50):  # each would have to wait for all of them
            await tasks.by_argument.aenqueue(None)
        await tasks.once.aenqueue()
        assert not any(each.done() for each in waiting)
        await around.commit()
        assert all(each.is_duplicate for each in await asyncio.gather(*waiting))


@asynccontextmanager
async def locked(database: str, keys: int, task: Any = tasks.by_argument) -> AsyncIterator[Any]:
    """An open transaction that has enqueued so many keys of a task."""
    async with closing(await asyncpg.connect(database)) as holder:
        around = holder.transaction()
        await around.start()
        async with aiotasks.transaction(connection=holder):
            await default_task_backend.aenqueue_many(task, [([n], {}) for n in range(keys)])
        yield around


async def test_bulk_is_one_of_the_blocks_that_may_be_open(database: str, configure: Configure) -> None:
    """Or it would have the connections that these leave to claims and finishes."""
    configure(POOL_MAX_SIZE=3, COMMAND_TIMEOUT=1.0)

    async def outside() -> None:
        with pytest.raises(utils.OperationalError, match=r"No aiotasks.transaction\(\) block has ended"):
            await default_task_backend.aenqueue_many(tasks.by_argument, [([1], {}), ([2], {})])
        assert not (await tasks.by_argument.aenqueue(1)).is_duplicate

    async with aiotasks.transaction():
        await asyncio.create_task(outside(), context=Context())
    await default_task_backend.aenqueue_many(tasks.by_argument, [([1], {}), ([2], {})])


async def test_locked_keys_do_not_hold_up_free_ones(database: str, statements: list[str]) -> None:
    """A hundred of them have all been tried, and come again and again."""
    async with locked(database, 100) as around:
        waiting = [asyncio.ensure_future(tasks.by_argument.aenqueue(n)) for n in range(100)]
        await until(lambda: statements.count("insert_unique_job") >= 200)
        for n in range(100, 110):
            before = statements.count("insert_unique_job")
            assert not (await tasks.by_argument.aenqueue(n)).is_duplicate
            tries = statements.count("insert_unique_job") - before
            assert tries < 25, "it waited for others' turns"
        assert not any(each.done() for each in waiting)
        await around.commit()
        assert all(each.is_duplicate for each in await asyncio.gather(*waiting))


SLOW_INSERT = """
    CREATE FUNCTION slow_insert() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END';
    CREATE TRIGGER slow_insert BEFORE INSERT ON aiotasks_task FOR EACH ROW EXECUTE FUNCTION slow_insert()
"""


@asynccontextmanager
async def trigger(conn: asyncpg.Connection, sql: str, name: str) -> AsyncIterator[None]:
    await conn.execute(sql)
    try:
        yield
    finally:
        await conn.execute(f"DROP TRIGGER {name} ON aiotasks_task; DROP FUNCTION {name}()")


async def test_more_keys_at_once_than_the_time_limit_is_for_are_all_stored(
    conn: asyncpg.Connection, configure: Configure
) -> None:
    """It is for each call's own statement: together they take longer than it."""
    configure(COMMAND_TIMEOUT=5.0)
    async with trigger(conn, SLOW_INSERT, "slow_insert"):  # eight at a time
        results = await asyncio.gather(*(tasks.by_argument.aenqueue(n) for n in range(500)))
    assert not any(each.is_duplicate for each in results)
    assert await conn.fetchval(COUNT) == 500


BAD_ARGUMENTS = """
    CREATE FUNCTION refuse_bad() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF NEW.args::text LIKE ''%bad%'' THEN RAISE EXCEPTION ''refused''; END IF; RETURN NEW; END';
    CREATE TRIGGER refuse_bad BEFORE INSERT OR UPDATE ON aiotasks_task FOR EACH ROW
    EXECUTE FUNCTION refuse_bad()
"""


async def test_a_call_that_the_database_refuses_fails_alone(
    conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of calls of one key that go together, none is sent again for it: a task that was stored may be finished
    by then."""
    store = resources(default_task_backend.config).store
    real = store.insert_unique_job

    async def insert(new: Any, **limits: Any) -> Any:
        reply = await real(new, **limits)
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = now(), ready_at = NULL "
            "WHERE status = 'READY'"
        )
        return reply

    async with trigger(conn, BAD_ARGUMENTS, "refuse_bad"):
        values = ["alone", "together", "bad", "bad", "after"]
        monkeypatch.setattr(store, "insert_unique_job", insert)
        outcomes = await asyncio.gather(
            *(tasks.by_argument.aenqueue(1, value) for value in values), return_exceptions=True
        )
        monkeypatch.undo()
        refused = [str(each) for each in outcomes if isinstance(each, Exception)]
        assert refused == ["refused"] * 2
        assert isinstance(outcomes[2], utils.Error)
        assert isinstance(outcomes[3], utils.Error)
        rows = await conn.fetch("SELECT args::text FROM aiotasks_task ORDER BY id")
        assert [row[0] for row in rows] == [f'[1,"{value}"]' for value in ("alone", "together", "after")]
        # Of those that replace, the last good one counts.
        outcomes = await asyncio.gather(
            *(tasks.debounced.aenqueue(1, value) for value in [*values[:2], "last", "bad"]),
            return_exceptions=True,
        )
        assert [isinstance(each, utils.Error) for each in outcomes] == [False, False, False, True]
        assert (
            await conn.fetchval("SELECT args::text FROM aiotasks_task WHERE status = 'READY'") == '[1,"last"]'
        )


async def test_no_key_leaves_anything_behind(database: str) -> None:
    """Nor one whose second caller is cancelled, while it waits and while its own statement runs."""
    enqueuer = resources(default_task_backend.config).unique
    async with closing(await asyncpg.connect(database)) as holder:
        around = holder.transaction()
        await around.start()
        async with aiotasks.transaction(connection=holder):
            await default_task_backend.aenqueue_many(tasks.by_argument, [([n], {}) for n in range(5)])
        calls = [asyncio.ensure_future(tasks.by_argument.aenqueue(n % 5)) for n in range(20)]
        await until(lambda: len(enqueuer._by_key) == 5)
        for call in calls[5:]:
            call.cancel()
        await around.commit()
        await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: not enqueuer._by_key)


async def test_a_call_that_has_its_error_is_not_written_later(
    database: str, conn: asyncpg.Connection, configure: Configure
) -> None:
    """It would take the place of newer arguments."""
    configure(COMMAND_TIMEOUT=1.0)
    async with closing(await asyncpg.connect(database)) as holder:
        around = holder.transaction()
        await around.start()
        async with aiotasks.transaction(connection=holder):
            await tasks.debounced.aenqueue(1, "holder")
        calls = [asyncio.ensure_future(tasks.debounced.aenqueue(1, "old"))]
        unique = resources(default_task_backend.config).unique
        await until(lambda: any(not each.is_idle for each in unique._by_key.values()))
        calls.append(asyncio.ensure_future(tasks.debounced.aenqueue(1, "old")))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, utils.OperationalError) for each in outcomes)
        while await conn.fetchval(SESSIONS, "transactionid"):  # noqa: ASYNC110  # the statement under way
            await asyncio.sleep(0.005)
        await around.commit()
    await until(lambda: not unique._by_key)
    assert await conn.fetchval("SELECT args::text FROM aiotasks_task") == '[1,"holder"]'


async def test_a_caller_that_has_left_is_not_written(
    database: str, conn: asyncpg.Connection, statements: list[str]
) -> None:
    """Though it was to be, in a statement with others that waits for a lock."""
    async with locked(database, 1, tasks.debounced) as around:
        calls = [
            asyncio.ensure_future(tasks.debounced.aenqueue(0, value)) for value in ("first", "kept", "left")
        ]
        await until(lambda: statements.count("insert_unique_job") >= 1)
        for gone in (calls[0], calls[2]):  # the first one's own statement, and then one of the others'
            gone.cancel()
            before = statements.count("insert_unique_job")
            await until(lambda before=before: statements.count("insert_unique_job") >= before + 2)
        await around.commit()
        assert (await calls[1]).args == [0, "kept"]
        await asyncio.gather(*calls, return_exceptions=True)
    assert await conn.fetchval("SELECT args::text FROM aiotasks_task") == '[0,"kept"]'


async def test_each_call_of_a_locked_key_has_a_time_limit_of_its_own(
    database: str, statements: list[str], configure: Configure
) -> None:
    configure(COMMAND_TIMEOUT=3.0)

    async def tried(times: int, call: asyncio.Task[Any]) -> None:
        before = statements.count("insert_unique_job")
        await until(lambda: call.done() or statements.count("insert_unique_job") >= before + times)
        assert not call.done()

    async with locked(database, 1) as around:
        early = asyncio.ensure_future(tasks.by_argument.aenqueue(0))
        await tried(4, early)
        late = asyncio.ensure_future(tasks.by_argument.aenqueue(0))
        with pytest.raises(utils.OperationalError, match=r"within COMMAND_TIMEOUT \(3 s\)"):
            await early
        await tried(2, late)
        await around.commit()
        assert (await late).is_duplicate


# Lost replies


async def test_a_call_whose_reply_is_lost_finds_its_own_task_before_anothers(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has taken the key since its own was finished."""
    store = resources(default_task_backend.config).store
    real = store.insert_unique_job
    replies: list[Any] = []

    async def lost(new: Any, **limits: Any) -> Any:
        replies.append(await real(new, **limits))
        if len(replies) > 1:
            return replies[-1]
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = now(), ready_at = NULL"
        )
        other = await asyncpg.connect(database)
        async with closing(other), aiotasks.transaction(connection=other):
            await tasks.refuse.aenqueue("other")
        raise utils.OperationalError("lost")

    monkeypatch.setattr(store, "insert_unique_job", lost)
    await tasks.refuse.aenqueue("mine")  # no DuplicateTask
    assert await conn.fetchval(COUNT) == 2


SLOW_COMMIT = """
    CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON aiotasks_task DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION slow_commit()
"""
SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = $1
"""


@pytest.mark.parametrize("calls", [[1, 2], [1, None], [1, None, 3]], ids=str)
@pytest.mark.parametrize(
    "task", [tasks.by_argument, tasks.refuse, tasks.debounced], ids=["return", "raise", "replace"]
)
async def test_bulk_whose_commit_has_lost_its_reply_finds_its_own_tasks(
    conn: asyncpg.Connection, heard: list[Heard], calls: list[object], task: Any
) -> None:
    """The server goes through with the COMMIT while the next try waits for the keys."""
    await conn.execute(SLOW_COMMIT)
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            await conn.execute("SELECT pg_advisory_lock(42)")
            task = task.using(unique_key=lambda key: None if key is None else f"k {key}")
            stored: asyncio.Task[Any] = group.create_task(
                default_task_backend.aenqueue_many(task, [([each], {}) for each in calls])
            )
            await _sessions_that_wait(conn, "advisory")
            for holder in resources(default_task_backend.config).pool._holders:
                if holder._con is not None and holder._in_use:
                    holder._con.terminate()
            await _sessions_that_wait(conn, "transactionid")
            await conn.execute("SELECT pg_advisory_unlock(42)")
        assert [each.is_duplicate for each in stored.result()] == [False] * len(calls)
        assert await conn.fetchval(COUNT) == len(heard) == len(calls)
    finally:
        await conn.execute("SELECT pg_advisory_unlock_all()")
        await conn.execute("DROP TRIGGER slow_commit ON aiotasks_task; DROP FUNCTION slow_commit()")


async def _sessions_that_wait(conn: asyncpg.Connection, event: str) -> None:
    while not await conn.fetchval(SESSIONS, event):  # noqa: ASYNC110  # of the server
        await asyncio.sleep(0.005)


# Workers


async def test_a_change_made_while_the_task_runs_gets_one_more_run(ran: list[tuple[str, object]]) -> None:
    gate = asyncio.Event()
    tasks.gate.append(gate)
    async with worker(concurrency=1) as running:  # so that what follows waits
        await tasks.follow.aenqueue(1, "first")
        await until(lambda: bool(ran))
        results = [await tasks.follow.aenqueue(1, n) for n in range(3)]
        assert [each.is_duplicate for each in results] == [False, True, True]
        gate.set()
        await running.wait_until_empty()
    assert ran == [("follow 1", "first"), ("follow 1", 0)]


async def test_a_finished_tasks_key_is_free_for_the_next(ran: list[tuple[str, object]]) -> None:
    ids = set()
    async with worker() as running:
        for n in range(3):
            ids.add((await tasks.once.aenqueue(n)).id)
            await running.wait_until_empty()
    assert len(ids) == 3
    assert ran == [("once", n) for n in range(3)]
    result: AnyResult = await tasks.once.aget_result(ids.pop())
    assert result.is_finished


async def test_the_page_on_unique_tasks(database: str, conn: asyncpg.Connection) -> None:
    with example("howto/unique.md") as page:
        while page.blocks:
            await page.run()
    keys = await conn.fetch("SELECT unique_key FROM aiotasks_task ORDER BY unique_key")
    assert [each[0] for each in keys] == [
        "import 21",
        "import 22",
        "import 30",
        "import 7",
        "import 8",
        "publish prices",
        "render 1",
    ]
