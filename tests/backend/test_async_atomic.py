"""``aiotasks.atomic()``: the async ORM, sync code and enqueues in one Django transaction."""

import asyncio
import contextvars
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connection, connections, transaction, utils
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.utils import translation

import aiotasks
from aiotasks.models import Task, Worker
from aiotasks.store import atomic, block_threads
from aiotasks.testing import drain
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import until

from .support import connections_left, finished, worker
from .support import make_host as make

HOSTS = "SELECT host FROM aiotasks_worker ORDER BY host"
COUNT = "SELECT count(*) FROM aiotasks_task"


class Rollback(Exception):
    pass


async def hosts(conn: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await conn.fetch(HOSTS)]


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def execute(sql: Any) -> None:
    """Psycopg's bytes, too, of which Django's stubs know nothing."""
    with connection.cursor() as cursor:
        cursor.execute(sql)


async def are_idle(conn: asyncpg.Connection) -> bool:
    """Whether no session of the test database is in a transaction."""
    return not await conn.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


@asynccontextmanager
async def rolled_back(**options: Any) -> Any:
    with suppress(Rollback):
        async with aiotasks.atomic(**options):
            yield
            raise Rollback


# --- One transaction -------------------------------------------------------------------------------


async def test_all_that_is_done_inside_is_one_transaction(
    database: str, conn: asyncpg.Connection, notified: list[str]
) -> None:
    async def everything() -> list[Any]:
        await make("orm")
        await sync_to_async(lambda: Worker.objects.filter(host="orm").update(pid=7))()
        results: list[Any] = [
            await tasks.echo.using(queue_name="q").aenqueue(1),
            *await default_task_backend.aenqueue_many(tasks.echo, [((2,), {}), ((3,), {})]),
            *await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(4, 14)), make("gathered")),
            await sync_to_async(tasks.echo.enqueue)(14),
            await sync_to_async(async_to_sync(tasks.echo.aenqueue))(15),
        ][:-1]
        await results[0].arefresh()  # its row isn't committed
        assert (await tasks.echo.aget_result(results[1].id)).args == [2]
        assert await results[2].acancel()
        assert await Task.objects.acount() == 15
        assert {await sync_to_async(pid)() for _ in range(3)} == {await sync_to_async(pid)()}
        assert await hosts(conn) == []
        assert await conn.fetchval(COUNT) == 0
        assert notified == []
        return results

    async with rolled_back():
        await everything()
    assert await hosts(conn) == []
    assert await conn.fetchval(COUNT) == 0
    async with aiotasks.atomic():
        await everything()
    assert await hosts(conn) == ["gathered", "orm"]
    assert await conn.fetchval(COUNT) == 15
    await until(lambda: '["default", "q", null]' in notified)
    await tasks.echo.aenqueue(16)  # as ever, afterwards
    assert await conn.fetchval(COUNT) == 16


async def test_parameters_errors_and_hooks_are_djangos(database: str, conn: asyncpg.Connection) -> None:
    heard: list[Any] = []

    def hook(name: str) -> None:
        heard.append((name, connection.in_atomic_block, translation.get_language()))
        async_to_sync(tasks.echo.aenqueue)("by a hook")

    on_commit = sync_to_async(transaction.on_commit)
    with translation.override("de"):
        async with aiotasks.atomic():
            await on_commit(lambda: hook("outer"))
            async with rolled_back():
                await on_commit(lambda: hook("rolled back"))
                await make("rolled back")
            async with aiotasks.atomic():
                await make("inner")
            assert heard == []
    assert heard == [("outer", False, "de")]
    async with aiotasks.atomic():
        await make("set_rollback")
        await sync_to_async(transaction.set_rollback)(True)
    assert await hosts(conn) == ["inner"]
    assert await conn.fetchval(COUNT) == 1
    row = await Worker.objects.aget()

    async def duplicate() -> None:
        with pytest.raises(utils.IntegrityError):
            await sync_to_async(row.save)(force_insert=True)

    async with aiotasks.atomic():
        async with rolled_back():
            await duplicate()
        await make("after a savepoint")
    async with aiotasks.atomic():
        with suppress(Rollback):
            async with aiotasks.atomic(savepoint=False):
                raise Rollback
        with pytest.raises(TransactionManagementError):
            await make("broken")
        with pytest.raises(TransactionManagementError):
            await tasks.echo.aenqueue("broken")
    async with aiotasks.atomic(durable=True):
        with pytest.raises(RuntimeError, match="durable"):
            async with aiotasks.atomic(durable=True):
                raise AssertionError
        await make("durable")
    assert await hosts(conn) == ["after a savepoint", "durable", "inner"]
    error = ValueError("the body's")
    with pytest.raises(ValueError, match="the body's") as caught:
        async with aiotasks.atomic():
            raise error
    assert caught.value is error


async def test_a_refused_commit_is_djangos_error(database: str, conn: asyncpg.Connection) -> None:

    async def duplicate() -> None:
        async with aiotasks.atomic():
            await make("lost")
            await sync_to_async(execute)("INSERT INTO late VALUES (1), (1)")

    await conn.execute("CREATE TABLE late (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(utils.IntegrityError):
            await duplicate()
        async with aiotasks.atomic():
            await make("kept")
    finally:
        await conn.execute("DROP TABLE late")
    assert await hosts(conn) == ["kept"]


async def test_a_session_that_the_server_has_ended(database: str, conn: asyncpg.Connection) -> None:
    async def ended() -> None:
        async with aiotasks.atomic():
            await make("lost")
            await conn.execute("SELECT pg_terminate_backend($1, 5000)", await sync_to_async(pid)())

    with pytest.raises(utils.OperationalError):
        await ended()
    async with aiotasks.atomic():
        await make("kept")
    assert await hosts(conn) == ["kept"]


# --- What runs beside it ---------------------------------------------------------------------------


async def test_what_runs_beside_a_block_is_not_in_it(database: str, conn: asyncpg.Connection) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def neighbour() -> None:
        await go.wait()
        await make("neighbour")
        await tasks.echo.aenqueue("neighbour")
        async with aiotasks.atomic():
            await make("neighbour's block")
        done.set()

    async def request() -> None:  # as Django's ASGI handler runs one
        async with ThreadSensitiveContext():
            async with rolled_back():
                await make("request, rolled back")
            await make("request")
            await sync_to_async(connections.close_all)()

    other = asyncio.create_task(neighbour())
    async with rolled_back():
        await make("rolled back")
        go.set()
        await asyncio.create_task(request(), context=contextvars.Context())
        await done.wait()
    await other
    assert await hosts(conn) == ["neighbour", "neighbour's block", "request"]
    assert await conn.fetchval(COUNT) == 1


@pytest.mark.parametrize("nested", [False, True])
async def test_a_task_that_outlives_the_block_gets_an_error(
    database: str, conn: asyncpg.Connection, nested: bool
) -> None:
    """Never a stranger's transaction."""
    go = asyncio.Event()

    async def straggler() -> None:
        await go.wait()
        for call in (
            lambda: make("lost"),
            lambda: tasks.echo.aenqueue(1),
            lambda: default_task_backend.aget_result("0" * 32),
            lambda: sync_to_async(tasks.echo.enqueue)(1),
        ):
            with pytest.raises(aiotasks.TransactionClosed, match="has ended"):
                await call()
        async with aiotasks.atomic():  # a block of its own is no stranger's
            await make("own")

    if nested:
        async with aiotasks.atomic():
            async with aiotasks.atomic():
                background = asyncio.create_task(straggler())
            await make("outer")
        go.set()
        await background
    else:
        async with aiotasks.atomic():
            background = asyncio.create_task(straggler())
        async with aiotasks.atomic():
            go.set()
            await background
            await make("outer")
    assert await hosts(conn) == ["outer", "own"]


async def test_gathered_nested_blocks_take_turns(database: str, conn: asyncpg.Connection) -> None:
    """And what the outer block does meanwhile isn't rolled back with them."""

    async def nested(number: int) -> None:
        with suppress(Rollback):
            async with aiotasks.atomic():
                await make(f"{number} a")
                await asyncio.sleep(0)
                await make(f"{number} b")
                if number % 2:
                    raise Rollback

    async with aiotasks.atomic():
        await asyncio.gather(*(nested(n) for n in range(4)), *(make(f"outer {n}") for n in range(4)))
    assert await hosts(conn) == ["0 a", "0 b", "2 a", "2 b", *(f"outer {n}" for n in range(4))]


async def test_a_nested_block_left_open_at_the_end(database: str, conn: asyncpg.Connection) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def nested() -> None:
        async with aiotasks.atomic():
            await make("nested")
            inside.set()
            await go.wait()

    left: list[asyncio.Task[None]] = []

    async def outer() -> None:
        async with aiotasks.atomic():
            await make("outer")
            left.append(asyncio.create_task(nested()))
            await inside.wait()

    with pytest.raises(RuntimeError, match="another asyncio task had one open"):
        await outer()
    go.set()
    with pytest.raises(aiotasks.TransactionClosed):
        await left[0]
    assert await hosts(conn) == []
    assert await are_idle(conn)


async def test_it_and_transaction_do_not_mix(database: str, conn: asyncpg.Connection) -> None:
    async with aiotasks.atomic():
        with pytest.raises(RuntimeError, match=r"inside aiotasks\.atomic\(\)"):
            async with aiotasks.transaction():
                raise AssertionError
    async with aiotasks.transaction() as mine:
        with pytest.raises(RuntimeError, match=r"inside aiotasks\.transaction\(\)"):
            async with aiotasks.atomic():
                raise AssertionError
        # The ORM would write elsewhere; it may read.
        for write in (
            lambda: make("lost"),
            lambda: Worker.objects.filter(host="x").aupdate(pid=1),
            lambda: Worker.objects.filter(host="x").adelete(),
            lambda: sync_to_async(execute)(
                "/* x */ WITH a AS (DELETE FROM aiotasks_worker RETURNING 1) SELECT 1"
            ),
            lambda: sync_to_async(transaction.atomic()(execute))("TRUNCATE aiotasks_worker"),
            lambda: sync_to_async(execute)(b"DELETE FROM aiotasks_worker"),
        ):
            with pytest.raises(RuntimeError, match=r"aiotasks\.atomic\(\)"):
                await write()
        assert await Worker.objects.acount() == 0
        assert [row async for row in Worker.objects.all()] == []
        await sync_to_async(execute)(b"SELECT 1")
        await mine.execute("SELECT 1")
        await tasks.echo.aenqueue(1)
        background = asyncio.create_task(until(lambda: not mine_is_open))
        mine_is_open = True
        # What runs beside it writes as ever, on the same thread.
        await asyncio.create_task(make("neighbour"), context=contextvars.Context())
    mine_is_open = False
    await background
    await make("after")
    assert await hosts(conn) == ["after", "neighbour"]
    assert await conn.fetchval(COUNT) == 1


async def test_a_block_on_another_database(second: Any, conn: asyncpg.Connection) -> None:
    async with aiotasks.atomic(), rolled_back(using="second"):
        await make("default")
        await second.aenqueue("rolled back")
        await tasks.echo.aenqueue("kept")
    assert await hosts(conn) == ["default"]
    assert await conn.fetchval(COUNT) == 1
    async with aiotasks.transaction("second"), aiotasks.atomic():
        await make("both")
        await second.aenqueue("kept")
    assert await conn.fetchval(COUNT) == 2


@pytest.fixture
def second(database: str, settings: Any) -> Any:
    connections.databases["second"] = connections["default"].settings_dict.copy()
    backend = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
    settings.TASKS = {"default": backend, "second": {**backend, "OPTIONS": {"DATABASE": "second"}}}
    yield tasks.echo.using(backend="second")
    del connections.databases["second"]


# --- Cancellation ----------------------------------------------------------------------------------


async def test_cancelled_anywhere_it_leaves_nothing_open(
    database: str, conn: asyncpg.Connection, configure: Any
) -> None:
    configure(ASYNC_DB_THREADS=2)

    async def block(seconds: float) -> None:
        async with aiotasks.atomic():
            await make("lost")
            await tasks.echo.aenqueue(1)
            async with aiotasks.atomic():
                await sync_to_async(execute)(f"SELECT pg_sleep({seconds})")
                raise Rollback

    for turns in range(60):  # each a little later
        blocks = [asyncio.create_task(block(0.001)) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 2 else 0.0003)
        for task in blocks:
            task.cancel()
        assert all(
            isinstance(outcome, Rollback | asyncio.CancelledError)
            for outcome in await asyncio.gather(*blocks, return_exceptions=True)
        )
    await until(lambda: are_idle(conn))
    assert await hosts(conn) == []
    assert await conn.fetchval(COUNT) == 0
    for _ in range(4):  # as many as before may be open
        async with aiotasks.atomic():
            assert await sync_to_async(lambda: len(connection.atomic_blocks))() == 1
            await make("kept")
    assert await hosts(conn) == ["kept"] * 4


async def test_a_commit_under_way_is_waited_for(database: str, conn: asyncpg.Connection) -> None:
    committing, go = threading.Event(), threading.Event()

    def wait() -> None:
        committing.set()
        go.wait(30)

    async def block() -> None:
        async with aiotasks.atomic():
            await make("committed")
            await sync_to_async(transaction.on_commit)(wait)

    task = asyncio.create_task(block())
    await asyncio.to_thread(committing.wait, 30)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await hosts(conn) == ["committed"]


async def test_a_statement_under_way_is_cancelled(database: str, conn: asyncpg.Connection) -> None:
    """By the server; the rollback would have to wait for its end."""

    async def block() -> None:
        async with aiotasks.atomic():
            await make("lost")
            await asyncio.gather(make("lost"), sync_to_async(execute)("SELECT pg_sleep(600)"))

    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"
    )
    task = asyncio.create_task(block())
    await until(lambda: conn.fetchval(running))
    task.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await conn.fetchval(running) == 0
    await make_in_block("kept")
    assert await hosts(conn) == ["kept"]


async def test_a_cancel_that_is_late_does_not_hit_the_next_block(
    database: str, conn: asyncpg.Connection, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ASYNC_DB_THREADS=1)
    cancel = atomic._cancel

    def late(session: Any) -> None:
        time.sleep(0.5)
        cancel(session)

    async def block(statement: str) -> None:
        async with aiotasks.atomic():
            await sync_to_async(execute)(statement)

    monkeypatch.setattr(atomic, "_cancel", late)
    for number, patience in enumerate((60.0, 0.01)):
        monkeypatch.setattr(atomic, "CANCEL_TIMEOUT", patience)
        statement = f"SELECT pg_sleep(0.3{number})"
        task = asyncio.create_task(block(statement))
        sent = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{statement}'"
        await until(lambda sent=sent: conn.fetchval(sent))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await block("SELECT pg_sleep(1.0)")


async def test_waiting_for_a_thread_has_a_limit(database: str, configure: Any) -> None:
    configure(ASYNC_DB_THREADS=1, COMMAND_TIMEOUT=0.2)
    async with aiotasks.atomic():
        waiting = asyncio.create_task(make_in_block("late"), context=contextvars.Context())
        with pytest.raises(utils.OperationalError, match=r"ASYNC_DB_THREADS \(1\)"):
            await waiting
    await make_in_block("now")


async def make_in_block(host: str) -> None:
    async with aiotasks.atomic():
        await make(host)


# --- Threads and connections -----------------------------------------------------------------------


async def test_threads_are_used_again_and_conn_max_age_is_obeyed(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def block() -> tuple[str, int]:
        async with aiotasks.atomic():
            return await sync_to_async(lambda: threading.current_thread().name)(), await sync_to_async(pid)()

    settings = connections.databases["default"]  # those of every thread's connection
    monkeypatch.setitem(settings, "CONN_MAX_AGE", 0)
    name, before = await block()
    assert (await block())[1] != before
    monkeypatch.setitem(settings, "CONN_MAX_AGE", 60)
    kept = await block()
    assert await block() == kept
    assert kept[0] == name
    names = [thread.name for thread in threading.enumerate()]
    assert len([name for name in names if name.startswith("aiotasks-atomic-")]) == 1


def test_a_loop_takes_its_threads_with_it(
    database: str, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a block is open at its end."""
    monkeypatch.setitem(connections.databases["default"], "CONN_MAX_AGE", None)

    async def abandon() -> None:
        block = aiotasks.atomic()
        await block.__aenter__()
        await make("lost")
        kept.append(block)

    kept: list[Any] = []
    before = threading.active_count()
    asyncio.run(make_in_block("script"))
    asyncio.run(abandon())
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aiotasks-atomic")]
    assert connections_left(observer) == []
    assert observer.execute(HOSTS).fetchall() == [("script",)]


async def test_threads_that_are_closed_before_a_block_still_end_it(database: str) -> None:
    """``loop.shutdown_asyncgens()`` closes both, in no order: the block waited forever for its rollback."""
    before = set(threading.enumerate())
    threads = block_threads.BlockThreads(1)
    lent = await threads.lend(10.0)
    (started,) = set(threading.enumerate()) - before
    threads.close()
    ended = threading.Event()
    lent.put(ended.set)
    await until(ended.is_set)
    lent.release()
    last = threading.Event()
    lent.put(last.set)
    await until(lambda: not started.is_alive())
    assert not last.is_set()  # what comes after the stop isn't run


async def test_in_coroutine_tasks_of_a_worker(database: str, conn: asyncpg.Connection) -> None:
    async with worker():
        results = [await tasks.sign_up.aenqueue(f"user {n}", fail=n % 2 == 1) for n in range(20)]
        ended = [await finished(result) for result in results]
        assert [result.status for result in ended] == ["SUCCESSFUL", "FAILED"] * 10
        await until(lambda: _are_done(conn))
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker WHERE backend = 'site'") == 10
    assert await conn.fetchval(f"{COUNT} WHERE task_path LIKE '%anoop'") == 10


async def _are_done(conn: asyncpg.Connection) -> bool:
    return not await conn.fetchval(f"{COUNT} WHERE finished_at IS NULL")


# --- Where sync code waits -------------------------------------------------------------------------


def test_below_async_to_sync_it_joins_the_waiting_threads_transaction(database: str, observer: Any) -> None:
    async def helper() -> None:
        async with aiotasks.atomic():
            await asyncio.gather(make("a"), tasks.echo.aenqueue(1))
            async with rolled_back():
                await make("rolled back")
            assert await sync_to_async(pid)() == mine
        await tasks.echo.aenqueue(2)

    with transaction.atomic():
        mine = pid()
        async_to_sync(helper)()
        assert Worker.objects.count() == 1
        transaction.set_rollback(True)
    assert observer.execute(HOSTS).fetchall() == []
    async_to_sync(helper)()
    assert observer.execute(HOSTS).fetchall() == [("a",)]
    assert observer.execute(COUNT).fetchall() == [(2,)]


class AsyncTests(TestCase):
    async def test_it_joins_the_tests_transaction(self) -> None:
        straggler: list[asyncio.Task[Any]] = []
        go = asyncio.Event()

        async def outlive() -> None:
            await go.wait()
            await make("lost")

        async with aiotasks.atomic(durable=True):
            await make("a")
            await tasks.echo.aenqueue(1)
            async with rolled_back():
                await make("rolled back")
            straggler.append(asyncio.create_task(outlive()))
        assert [row.host async for row in Worker.objects.all()] == ["a"]
        assert await Task.objects.acount() == 1
        go.set()
        with self.assertRaises(aiotasks.TransactionClosed):  # noqa: PT027
            await straggler[0]

    def test_tasks_of_a_drain_join_it(self) -> None:
        tasks.sign_up.enqueue("drained", fail=False)
        tasks.sign_up.enqueue("failed", fail=True)
        assert drain() == 3
        assert [row.host for row in Worker.objects.all()] == ["drained"]

    async def test_tasks_of_an_async_drain_join_it(self) -> None:
        await tasks.sign_up.aenqueue("drained", fail=False)
        async with aiotasks.atomic():
            await tasks.sign_up.aenqueue("drained, too", fail=False)
            assert await drain() == 4
        assert await Worker.objects.acount() == 2

    async def test_nothing_is_left_of_the_other(self) -> None:
        assert await Worker.objects.acount() == 0
