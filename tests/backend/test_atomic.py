"""Inside ``transaction.atomic()``: the row is part of it, however it is enqueued (docs/faults.md, 42)."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connection, connections, transaction, utils
from django.db.transaction import TransactionManagementError
from django.tasks import TaskResultStatus
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from aiotasks.db.drivers import DjangoDriver
from aiotasks.db.statement import Statement
from aiotasks.store.store import Store
from aiotasks.sync import drive
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure, until

from .support import Api, run_all, value_of

COUNT = "SELECT count(*) FROM aiotasks_task"


class Rollback(Exception):
    pass


async def in_atomic(function: Callable[[], Any], *, commit: bool = True) -> Any:
    """Run ``function`` in a thread, inside ``atomic()``."""

    def in_thread() -> Any:
        try:
            with transaction.atomic():
                value = function()
                if not commit:
                    raise Rollback
                return value
        except Rollback:
            return value

    return await sync_to_async(in_thread)()


async def test_rolled_back_means_no_row_and_no_run(
    database: str, sync_api: Api, conn: asyncpg.Connection
) -> None:
    tasks.noted.clear()
    await in_atomic(lambda: sync_api.call_sync(tasks.note, "enqueue", 1), commit=False)
    assert await conn.fetchval(COUNT) == 0
    await run_all()
    assert tasks.noted == []


async def test_committed_means_one_row_and_one_run(
    database: str, sync_api: Api, conn: asyncpg.Connection
) -> None:
    tasks.noted.clear()
    await in_atomic(lambda: sync_api.call_sync(tasks.note, "enqueue", 1))
    assert await conn.fetchval(COUNT) == 1
    await run_all()
    assert tasks.noted == [1]


async def test_nobody_else_sees_the_row_before_the_commit(
    database: str, sync_api: Api, conn: asyncpg.Connection
) -> None:
    loop = asyncio.get_running_loop()

    def enqueue() -> int:
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
        return int(asyncio.run_coroutine_threadsafe(conn.fetchval(COUNT), loop).result())

    assert await in_atomic(enqueue) == 0
    assert await conn.fetchval(COUNT) == 1


async def test_the_transaction_itself_sees_it(database: str, sync_api: Api) -> None:
    def enqueue() -> None:
        result = sync_api.call_sync(tasks.add, "enqueue", 1, 2)
        for owner in (tasks.add, default_task_backend):
            assert sync_api.call_sync(owner, "get_result", result.id).id == result.id
        sync_api.call_sync(result, "refresh")
        assert result.status is TaskResultStatus.READY

    await in_atomic(enqueue, commit=False)


async def test_savepoints(database: str, sync_api: Api, conn: asyncpg.Connection) -> None:
    def enqueue() -> None:
        sync_api.call_sync(tasks.echo, "enqueue", "outer")
        try:
            with transaction.atomic():
                sync_api.call_sync(tasks.echo, "enqueue", "rolled back")
                raise Rollback
        except Rollback:
            pass
        with transaction.atomic():
            sync_api.call_sync(tasks.echo, "enqueue", "inner")

    await in_atomic(enqueue)
    args = {row[0] for row in await conn.fetch("SELECT args::text FROM aiotasks_task")}
    assert args == {'["outer"]', '["inner"]'}


async def test_workers_are_told_after_the_commit_and_not_before(
    database: str, sync_api: Api, conn: asyncpg.Connection, notified: list[str]
) -> None:
    loop = asyncio.get_running_loop()

    async def flush() -> list[str]:
        await conn.execute("SELECT 1")  # what was notified before has arrived with its reply
        return list(notified)

    def enqueue() -> list[str]:
        for _ in range(3):
            sync_api.call_sync(tasks.add.using(queue_name="q"), "enqueue", 1, 2)
        return asyncio.run_coroutine_threadsafe(flush(), loop).result()

    assert await in_atomic(enqueue) == []
    await until(lambda: notified)
    assert set(await flush()) == {'["default", "q", null]'}
    notified.clear()
    await in_atomic(enqueue, commit=False)
    assert await flush() == []


async def test_one_statement_tells_of_all_that_was_enqueued_in_a_block(
    database: str, sync_api: Api, notified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a hundred times, and in savepoints, of which one was rolled back."""

    def enqueue(**changes: Any) -> None:
        sync_api.call_sync(tasks.add.using(**changes), "enqueue", 1, 2)

    later = timezone.now() + timedelta(hours=1)

    sent: list[int] = []

    def count(name: str) -> None:
        send = getattr(Store, name)

        async def counted(self: Store, channel: str, news: Sequence[Any], **kwargs: Any) -> Any:
            sent.append(len(news))
            return await send(self, channel, news, **kwargs)

        monkeypatch.setattr(Store, name, counted)

    count("notify")
    count("wake_workers")

    def in_thread() -> None:
        with transaction.atomic():
            for number in range(100):
                enqueue(run_after=later + timedelta(seconds=number))
            with suppress(Rollback), transaction.atomic():
                enqueue(queue_name="gone")
                raise Rollback
            with transaction.atomic():
                enqueue(queue_name="inner")
                enqueue(queue_name="inner too")

    await sync_to_async(in_thread)()
    assert sorted(sent) == [2, 100]  # of those to wait for, and in another savepoint of those that are READY
    await until(lambda: len(notified) >= 102)
    assert len(notified) == 102
    assert {json.loads(payload)[1] for payload in notified} == {"default", "inner", "inner too"}


@pytest.mark.parametrize("notify", [True, False])
async def test_every_way_tells_the_workers_unless_told_not_to(
    database: str, api: Api, conn: asyncpg.Connection, notified: list[str], configure: Configure, notify: bool
) -> None:
    configure(NOTIFY=notify)
    await api.enqueue(tasks.add, 1, 2)
    await api.call(default_task_backend, "enqueue_many", tasks.add.using(queue_name="b"), [((1, 2), {})] * 5)
    if notify:
        await until(lambda: len(notified) >= 2)
        assert sorted(notified) == ['["default", "b", null]', '["default", "default", null]']
    else:
        await conn.execute("SELECT 1")
        assert notified == []


async def test_an_enqueue_that_fails_breaks_the_transaction_as_any_statement_does(
    database: str, sync_api: Api, conn: asyncpg.Connection
) -> None:
    def enqueue() -> None:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE aiotasks_task IN ACCESS EXCLUSIVE MODE NOWAIT")
            cursor.execute("SET LOCAL search_path TO pg_catalog")
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)

    from django.db import ProgrammingError

    with pytest.raises(ProgrammingError):
        await in_atomic(enqueue)

    def after_a_failure() -> None:
        try:
            with transaction.atomic():
                raise Rollback
        except Rollback:
            pass
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            sync_api.call_sync(tasks.add, "enqueue", 1, 2)

    await in_atomic(after_a_failure)
    assert await conn.fetchval(COUNT) == 0


async def test_refused_arguments_leave_the_transaction_whole(
    database: str, sync_api: Api, conn: asyncpg.Connection
) -> None:
    def enqueue() -> None:
        with pytest.raises(TypeError):
            sync_api.call_sync(tasks.echo, "enqueue", object())
        sync_api.call_sync(tasks.echo, "enqueue", 1)

    await in_atomic(enqueue)
    assert await conn.fetchval(COUNT) == 1


# --- In plain threads, without any loop ------------------------------------------------------------


def test_without_any_loop(database: str, sync_api: Api, observer: psycopg.Connection) -> None:
    def count() -> int:
        return int(value_of(observer, COUNT))

    sync_api.call_sync(tasks.add, "enqueue", 1, 2)
    assert count() == 1
    with transaction.atomic():
        result = sync_api.call_sync(tasks.add, "enqueue", 1, 2)
        sync_api.call_sync(result, "refresh")
        assert count() == 1
        transaction.set_rollback(True)
    assert count() == 1


def test_without_autocommit(database: str, sync_api: Api, observer: psycopg.Connection) -> None:
    """Transactions that the site opens and ends by itself; the server holds NOTIFY until the commit."""
    observer.execute("LISTEN aiotasks")
    transaction.set_autocommit(False)
    try:
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
        assert value_of(observer, COUNT) == 0
        transaction.rollback()
        assert value_of(observer, COUNT) == 0
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
        assert list(observer.notifies(timeout=0, stop_after=1)) == []
        transaction.commit()
        assert value_of(observer, COUNT) == 1
        assert len(list(observer.notifies(timeout=10, stop_after=1))) == 1
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_our_statements_are_counted_like_djangos(
    database: str, sync_api: Api, observer: psycopg.Connection
) -> None:
    """The wake-up isn't: whether an enqueue sends one depends on the time since the last."""
    connection.ensure_connection()
    observer.execute("LISTEN aiotasks")
    with CaptureQueriesContext(connection) as outside:
        for _ in range(8):
            result = sync_api.call_sync(tasks.add, "enqueue", 1, 2)
    assert [query["sql"].split()[0] for query in outside] == ["INSERT"] * 8
    assert list(observer.notifies(timeout=10, stop_after=1))
    with CaptureQueriesContext(connection) as on_commit, transaction.atomic():
        transaction.on_commit(lambda: sync_api.call_sync(tasks.add, "enqueue", 1, 2))
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
    assert [query["sql"].split()[0] for query in on_commit] == ["BEGIN", "INSERT", "COMMIT", "INSERT"]
    with CaptureQueriesContext(connection) as look_up:
        sync_api.call_sync(result, "refresh")
    assert len(look_up) == 1
    with transaction.atomic(), CaptureQueriesContext(connection) as inside:
        sync_api.call_sync(default_task_backend, "enqueue_many", tasks.add, [((1, 2), {})] * 50)
    assert len(inside) == 1


def test_execute_wrappers_see_them(database: str, sync_api: Api) -> None:
    seen: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql.split()[0])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
    assert seen == ["INSERT"]


@pytest.mark.parametrize("inside", ["nothing", "atomic()"])
@pytest.mark.parametrize("error", [OSError("the line is gone"), utils.OperationalError("the line is gone")])
def test_a_notify_that_fails_is_no_failed_enqueue(
    database: str,
    sync_api: Api,
    observer: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    inside: str,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The row is committed: whoever caught an error would enqueue it again. The poll finds it."""

    async def notify(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Store, "wake_workers", notify)
    with transaction.atomic() if inside == "atomic()" else nullcontext():
        sync_api.call_sync(tasks.add, "enqueue", 1, 2)
    assert value_of(observer, COUNT) == 1
    assert "the line is gone" in caplog.text


def test_a_refused_notify_is_wrapped_like_djangos_errors(database: str) -> None:
    driver = DjangoDriver("default", logged=False)
    with pytest.raises(utils.DataError):
        drive(
            driver.fetch(Statement("test", "", "SELECT pg_notify('x', repeat('y', %(p1)s::integer))"), 8000)
        )
    assert drive(driver.fetch(Statement("test", "", "SELECT 1"))) == [(1,)]


# --- Where coroutines and threads meet ---------------------------------------------------------------


async def test_coroutines_below_async_to_sync_join_the_transaction(
    database: str, conn: asyncpg.Connection
) -> None:
    """Also those that a helper gathers, or starts as tasks of their own."""

    async def helper() -> None:
        await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(5)))
        await asyncio.create_task(tasks.echo.aenqueue(5))
        async with asyncio.TaskGroup() as group:
            group.create_task(tasks.echo.aenqueue(6))
        results = await default_task_backend.aenqueue_many(tasks.echo, [((7,), {}), ((8,), {})])
        await asyncio.gather(*(result.arefresh() for result in results))

    await in_atomic(lambda: async_to_sync(helper)(), commit=False)
    assert await conn.fetchval(COUNT) == 0
    await in_atomic(lambda: async_to_sync(helper)())
    assert await conn.fetchval(COUNT) == 9


def test_the_same_without_a_loop_around_it(
    database: str, observer: psycopg.Connection, opened: list[str]
) -> None:
    """asgiref then makes a short-lived loop, which must not get a pool."""
    connection.ensure_connection()
    opened.clear()

    async def helper() -> None:
        import contextvars

        await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(5)))
        # A task that hasn't inherited the context is found by its loop.
        await asyncio.create_task(tasks.echo.aenqueue(5), context=contextvars.Context())

    with transaction.atomic():
        async_to_sync(helper)()
        transaction.set_rollback(True)
    assert value_of(observer, COUNT) == 0
    async_to_sync(helper)()
    assert value_of(observer, COUNT) == 6
    assert opened == []


async def test_inside_a_thread_sensitive_context(database: str, conn: asyncpg.Connection) -> None:
    """As for every request under ASGI: a thread of its own."""

    def close() -> None:
        connections.close_all()

    async with ThreadSensitiveContext():
        await in_atomic(lambda: async_to_sync(tasks.echo.aenqueue)(1), commit=False)
        await in_atomic(lambda: tasks.echo.enqueue(2), commit=False)
        assert await conn.fetchval(COUNT) == 0
        await in_atomic(lambda: async_to_sync(tasks.echo.aenqueue)(1))
        await sync_to_async(close)()
    assert await conn.fetchval(COUNT) == 1


async def test_a_sync_task_of_a_worker_has_its_own_transaction(
    database: str, conn: asyncpg.Connection
) -> None:
    """``async_to_sync`` inside a sync task lands on the worker's loop, its enqueue in the task's thread."""
    for way in ("enqueue", "aenqueue"):
        for commit in (True, False):
            await tasks.enqueue_in_atomic.aenqueue(way, commit=commit)
    await run_all()
    rows = await conn.fetch("SELECT args::text, status FROM aiotasks_task WHERE task_path LIKE '%.echo'")
    assert sorted(tuple(row) for row in rows) == [
        ('["aenqueue",true]', "SUCCESSFUL"),
        ('["enqueue",true]', "SUCCESSFUL"),
    ]
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'FAILED'") == 2


async def test_on_a_loop_of_ones_own_it_is_not_djangos_connection(database: str, opened: list[str]) -> None:
    opened.clear()
    await tasks.echo.aenqueue(1)
    assert opened == ["asyncpg"]
