"""``aiotasks.transaction()``: an asyncpg transaction that enqueues and look-ups join."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import asyncpg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, utils
from django.tasks import TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist

import aiotasks
from aiotasks.store.loop import resources
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure, until

from .support import Heard, finished, run_all, worker

COUNT = "SELECT count(*) FROM aiotasks_task"
PLANNING = ("plan_cache_mode", "enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan")


class Rollback(Exception):
    pass


@asynccontextmanager
async def rolled_back(block: Any) -> AsyncIterator[asyncpg.Connection]:
    """A ``transaction()`` block that ends with an exception."""
    try:
        async with block as conn:
            yield conn
            raise Rollback
    except Rollback:
        pass


@pytest.fixture(params=["our connection", "the caller's connection", "inside the caller's transaction"])
async def block(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Any]:
    """Returns a function like ``aiotasks.transaction`` that ends with a commit of its own kind."""
    async with AsyncExitStack() as stack:
        connection: Any = None
        if request.param != "our connection":
            connection = await asyncpg.connect(database)
            stack.push_async_callback(connection.close)

        @asynccontextmanager
        async def open_block() -> AsyncIterator[asyncpg.Connection]:
            if request.param == "inside the caller's transaction":
                async with connection.transaction(), aiotasks.transaction(connection=connection) as conn:
                    yield conn
            else:
                async with aiotasks.transaction(connection=connection) as conn:
                    yield conn

        yield open_block


async def enqueue_all() -> list[Any]:
    """One of each kind of enqueue, some at the same time."""
    return [
        await tasks.echo.aenqueue(1),
        *await default_task_backend.aenqueue_many(tasks.echo, [((2,), {}), ((3,), {})]),
        *await asyncio.gather(*(tasks.echo.aenqueue(n) for n in range(4, 24))),
    ]


async def test_a_commit(block: Any, conn: asyncpg.Connection) -> None:
    async with block():
        results = await enqueue_all()
        assert await conn.fetchval(COUNT) == 0
    assert await conn.fetchval(COUNT) == len(results) == 23
    await run_all()
    assert await conn.fetchval(f"{COUNT} WHERE status = 'SUCCESSFUL'") == 23


async def test_a_rollback(block: Any, conn: asyncpg.Connection) -> None:
    async with rolled_back(block()):
        await enqueue_all()
    assert await conn.fetchval(COUNT) == 0


async def test_look_ups_inside_see_what_is_not_committed(block: Any, database: str) -> None:
    async with block():
        results = await enqueue_all()
        await asyncio.gather(*(result.arefresh() for result in results))
        assert {result.status for result in results} == {TaskResultStatus.READY}
        assert (await tasks.echo.aget_result(results[0].id)).args == [1]
        # … which a task without the block's context doesn't.
        outside = asyncio.create_task(tasks.echo.aget_result(results[0].id), context=contextvars.Context())
        with pytest.raises(TaskResultDoesNotExist):
            await outside


async def test_the_callers_own_sql_is_part_of_it(block: Any, conn: asyncpg.Connection) -> None:
    async with rolled_back(block()) as mine:
        await tasks.echo.aenqueue(1)
        await mine.execute("UPDATE aiotasks_task SET priority = 7")
        assert await mine.fetchval("SELECT priority FROM aiotasks_task") == 7
    async with block() as mine:
        await tasks.echo.aenqueue(1)
        await mine.execute("UPDATE aiotasks_task SET priority = 7")
    assert await conn.fetchval("SELECT priority FROM aiotasks_task") == 7


async def test_nested_blocks_are_savepoints(block: Any, conn: asyncpg.Connection) -> None:
    async with block() as outer:
        await tasks.echo.aenqueue("outer")
        async with rolled_back(aiotasks.transaction()) as inner:
            assert inner is outer
            await tasks.echo.aenqueue("rolled back")
        async with aiotasks.transaction():
            await tasks.echo.aenqueue("inner")
        assert await conn.fetchval(COUNT) == 0
    args = {row[0] for row in await conn.fetch("SELECT args::text FROM aiotasks_task")}
    assert args == {'["outer"]', '["inner"]'}


async def test_a_failed_statement_can_be_undone_by_a_nested_block(
    block: Any, conn: asyncpg.Connection
) -> None:
    async with block() as mine:
        await tasks.echo.aenqueue("outer")
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with aiotasks.transaction():
                await mine.execute("SELECT 1/0")
        await tasks.echo.aenqueue("after")
    assert await conn.fetchval(COUNT) == 2


@pytest.mark.parametrize(
    "error",
    [
        *(OSError("mine"), ValueError("mine"), TimeoutError("mine"), KeyError("mine"), Rollback("mine")),
        *(
            asyncpg.InterfaceError("mine"),
            asyncpg.UniqueViolationError("mine"),
            asyncio.CancelledError("mine"),
        ),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_users_exceptions_pass_unchanged(block: Any, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with block():
            raise error
    assert caught.value is error
    assert error.__cause__ is None


async def test_an_exception_of_the_users_sql_passes_unchanged(block: Any) -> None:
    """It is asyncpg's connection that the user holds, so they are asyncpg's errors."""
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with block() as mine:
            await mine.execute("SELECT 1/0")


# --- Wake-ups ------------------------------------------------------------------------------------


async def test_workers_are_told_after_the_commit_and_not_before(
    block: Any, conn: asyncpg.Connection, notified: list[str]
) -> None:
    async with block():
        await tasks.echo.using(queue_name="q").aenqueue(1)
        async with aiotasks.transaction():
            await tasks.echo.using(queue_name="nested").aenqueue(1)
        async with rolled_back(aiotasks.transaction()):
            await tasks.echo.using(queue_name="rolled back").aenqueue(1)
        await conn.execute("SELECT 1")
        assert notified == []
    await until(lambda: len(notified) >= 2)
    assert sorted(notified) == ['["default", "nested", null]', '["default", "q", null]']


async def test_a_rollback_tells_nobody(block: Any, notified: list[str]) -> None:
    async with rolled_back(block()):
        await tasks.echo.aenqueue(1)
    await tasks.echo.using(queue_name="after").aenqueue(1)
    await until(lambda: notified)
    assert notified == ['["default", "after", null]']


async def test_notify_false_tells_nobody(
    block: Any, conn: asyncpg.Connection, notified: list[str], configure: Configure
) -> None:
    configure(NOTIFY=False)
    async with block() as mine:
        await tasks.echo.aenqueue(1)
        pid = await mine.fetchval("SELECT pg_backend_pid()")
    await conn.execute("SELECT 1")
    assert pid
    assert notified == []


async def test_a_worker_runs_it_after_the_commit(block: Any, configure: Configure) -> None:
    configure(POLL_INTERVAL=3600)  # so it is the wake-up that brings it
    tasks.noted.clear()
    async with worker():
        async with block():
            result = await tasks.anote.aenqueue(1)
            assert tasks.noted == []
        await finished(result)
    assert tasks.noted == [1]


async def test_task_enqueued_is_sent_inside(block: Any, heard: list[Heard]) -> None:
    async with block():
        result = await tasks.echo.aenqueue(1)
        assert [one.fields["id"] for one in heard] == [result.id]


# --- Past its end ---------------------------------------------------------------------------------


async def test_a_background_task_that_outlives_the_block_gets_an_error(
    block: Any, conn: asyncpg.Connection
) -> None:
    """Never a stranger's transaction (docs/faults.md, 56)."""
    go = asyncio.Event()

    async def straggler() -> None:
        await go.wait()
        for call in (
            lambda: tasks.echo.aenqueue(1),
            lambda: default_task_backend.aenqueue_many(tasks.echo, [((1,), {})] * 2),
            lambda: default_task_backend.aget_result("0" * 32),
        ):
            with pytest.raises(aiotasks.TransactionClosed, match="has ended"):
                await call()
        async with aiotasks.transaction():  # a block of its own is no stranger's
            await tasks.echo.aenqueue("own")

    async with block():
        background = asyncio.create_task(straggler())
    go.set()
    await background
    assert await conn.fetchval(COUNT) == 1


async def test_one_that_outlives_a_nested_block_too(block: Any) -> None:
    go = asyncio.Event()

    async def straggler() -> None:
        await go.wait()
        with pytest.raises(aiotasks.TransactionClosed):
            await tasks.echo.aenqueue(1)

    async with block():
        async with aiotasks.transaction():
            background = asyncio.create_task(straggler())
        go.set()
        await background


async def test_after_the_block_all_is_as_before(block: Any, conn: asyncpg.Connection) -> None:
    async with block():
        pass
    await tasks.echo.aenqueue(1)
    assert await conn.fetchval(COUNT) == 1


async def test_tasks_that_were_started_before_are_not_part_of_it(
    block: Any, conn: asyncpg.Connection
) -> None:
    go = asyncio.Event()

    async def neighbour() -> None:
        await go.wait()
        await tasks.echo.aenqueue("neighbour")

    other = asyncio.create_task(neighbour())
    async with rolled_back(block()):
        go.set()
        await other
    assert await conn.fetchval(COUNT) == 1


async def test_two_blocks_at_once_are_two_transactions(database: str, conn: asyncpg.Connection) -> None:
    async def one(n: int) -> None:
        async with aiotasks.transaction():
            await tasks.echo.aenqueue(n)
            await asyncio.sleep(0)
            if n % 2:
                raise Rollback

    await asyncio.gather(*(one(n) for n in range(8)), return_exceptions=True)
    rows = await conn.fetch("SELECT args::text FROM aiotasks_task")
    assert sorted(row[0] for row in rows) == ["[0]", "[2]", "[4]", "[6]"]


# --- Sync code ------------------------------------------------------------------------------------


async def test_a_sync_enqueue_inside_says_what_to_do(block: Any, conn: asyncpg.Connection) -> None:
    async with block():
        for call in (
            lambda: tasks.echo.enqueue(1),
            lambda: default_task_backend.enqueue_many(tasks.echo, [((1,), {})]),
            lambda: async_to_sync(tasks.echo.aenqueue)(1),
        ):
            with pytest.raises(RuntimeError, match=r"aiotasks\.transaction\(\)"):
                await sync_to_async(call)()
    assert await conn.fetchval(COUNT) == 0


async def test_below_async_to_sync_it_says_what_to_do(database: str) -> None:
    async def helper() -> None:
        async with aiotasks.transaction():
            raise AssertionError

    with pytest.raises(RuntimeError, match="atomic"):
        await sync_to_async(async_to_sync(helper))()


# --- The connection -------------------------------------------------------------------------------


async def test_what_the_user_sets_does_not_leak_into_the_pool(database: str) -> None:
    async with aiotasks.transaction() as mine:
        pid = await mine.fetchval("SELECT pg_backend_pid()")
        await mine.execute("SET search_path TO pg_catalog")
        await mine.execute("SET statement_timeout TO 1234")
        await mine.execute("SET ROLE pg_monitor")
        await mine.execute("SELECT pg_advisory_lock(4711)")
    held = resources(default_task_backend.config)
    async with held.pool.acquire() as again:
        assert await again.fetchval("SELECT pg_backend_pid()") == pid
        assert await again.fetchval("SELECT current_user") != "pg_monitor"
        assert "public" in await again.fetchval("SHOW search_path")
        assert await again.fetchval("SHOW statement_timeout") == "0"
        assert not await again.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    await tasks.echo.aenqueue(1)


async def test_after_an_error_neither(database: str) -> None:
    async with rolled_back(aiotasks.transaction()) as mine:
        await mine.execute("SET statement_timeout TO 1234")
        await mine.execute("SELECT set_config('role', 'pg_monitor', false)")
    async with aiotasks.transaction() as mine:
        assert await mine.fetchval("SHOW statement_timeout") == "0"
        assert await mine.fetchval("SELECT current_user") != "pg_monitor"


async def test_the_callers_sql_is_planned_as_ever(database: str, conn: asyncpg.Connection) -> None:
    """Our statements by their indexes, once and for all; what the caller runs as the server would."""

    async def planning(connection: Any) -> list[str]:
        return [await connection.fetchval(f"SHOW {name}") for name in PLANNING]

    usual = await planning(conn)
    held = resources(default_task_backend.config)
    async with aiotasks.transaction() as mine:
        pid = await mine.fetchval("SELECT pg_backend_pid()")
        assert await planning(mine) == usual
        async with aiotasks.transaction():
            assert await planning(mine) == usual
    for block in (nullcontext(), rolled_back(aiotasks.transaction())):
        async with block:
            pass
        async with held.pool.acquire() as again:
            assert await again.fetchval("SELECT pg_backend_pid()") == pid
            assert await planning(again) == ["force_generic_plan", *["off"] * 4]


async def test_the_callers_own_connection_stays_as_the_caller_had_it(database: str) -> None:
    mine = await asyncpg.connect(database)
    try:
        await mine.execute("SET statement_timeout TO 12345")
        async with aiotasks.transaction(connection=mine):
            await tasks.echo.aenqueue(1)
        assert await mine.fetchval("SHOW statement_timeout") == "12345ms"
        assert not mine.is_in_transaction()
    finally:
        await mine.close()


async def test_a_block_whose_connection_is_cut_leaves_the_pool_whole(
    database: str, conn: asyncpg.Connection
) -> None:

    async def block() -> None:
        async with aiotasks.transaction() as mine:
            await tasks.echo.aenqueue(1)
            pid = await mine.fetchval("SELECT pg_backend_pid()")
            await conn.execute("SELECT pg_terminate_backend($1)", pid)
            await mine.fetchval("SELECT pg_sleep(10)")

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await block()
    assert await conn.fetchval(COUNT) == 0
    await tasks.echo.aenqueue(2)
    async with aiotasks.transaction():
        await tasks.echo.aenqueue(3)
    assert await conn.fetchval(COUNT) == 2


@pytest.fixture(params=["timeout", "terminated"])
def end_session(request: pytest.FixtureRequest, conn: asyncpg.Connection) -> Any:
    """Returns a function that has the server end a block's idle session, and waits until it has."""

    async def end(mine: asyncpg.Connection) -> str:
        pid = mine.get_server_pid()
        if request.param == "timeout":
            await mine.execute("SET idle_in_transaction_session_timeout = 10")
        else:
            await conn.execute("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: mine_is_closed(mine))
        return "due to idle-in-transaction timeout" if request.param == "timeout" else "administrator command"

    return end


def mine_is_closed(mine: asyncpg.Connection) -> bool:
    try:
        return bool(mine.is_closed())
    except asyncpg.InterfaceError:  # the pool has it back
        return True


@pytest.mark.parametrize("whose", ["our connection", "the caller's connection"])
async def test_a_session_that_the_server_has_ended_is_a_django_error(
    database: str, conn: asyncpg.Connection, end_session: Any, whose: str
) -> None:
    """With the server's words, wherever it comes to light."""

    @asynccontextmanager
    async def block() -> AsyncIterator[asyncpg.Connection]:
        own = await asyncpg.connect(database) if whose == "the caller's connection" else None
        try:
            async with aiotasks.transaction(connection=own) as mine:
                yield mine
        finally:
            if own is not None:
                await own.close()

    async with block():  # the pool's session may be one that a block had before
        await tasks.echo.aenqueue(0)
    words = ""

    async def commit(mine: asyncpg.Connection) -> None:
        await tasks.echo.aenqueue(1)

    async def enqueue(mine: asyncpg.Connection) -> None:
        with pytest.raises(utils.OperationalError, match=words):  # which the body swallows
            await tasks.echo.aenqueue(2)

    async def raise_an_error(mine: asyncpg.Connection) -> None:
        raise Rollback

    async def execute(mine: asyncpg.Connection) -> None:
        await mine.execute("SELECT 1")

    async def in_block(body: Any) -> None:
        nonlocal words
        async with block() as mine:
            if body is commit:
                await body(mine)
            words = await end_session(mine)
            if body is not commit:
                await body(mine)

    for body in (commit, enqueue):
        with pytest.raises(utils.OperationalError) as caught:
            await in_block(body)
        assert words in str(caught.value)
    # The body's own error passes, and so does asyncpg's of the caller's own SQL.
    for body, error in ((raise_an_error, Rollback), (execute, asyncpg.InterfaceError)):
        with pytest.raises(error) as caught:
            await in_block(body)
        assert words in caught.value.__notes__[0]
    async with block():
        await tasks.echo.aenqueue(3)
    assert await conn.fetchval(COUNT) == 2


async def test_a_commit_that_is_refused_is_a_django_error(
    block: Any, conn: asyncpg.Connection, request: pytest.FixtureRequest
) -> None:
    if "inside" in request.node.name:
        pytest.skip("the commit is the caller's")

    async def duplicate() -> None:
        async with block() as mine:
            await tasks.echo.aenqueue(1)
            await mine.execute("INSERT INTO late VALUES (1), (1)")

    async def serialize() -> None:
        async with block() as mine:
            await mine.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            await mine.fetch("SELECT * FROM late")
            await mine.execute("INSERT INTO late VALUES (2)")
            async with conn.transaction(isolation="serializable"):
                await conn.fetch("SELECT * FROM late")
                await conn.execute("INSERT INTO late VALUES (3)")

    await conn.execute("CREATE TABLE late (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(utils.IntegrityError) as caught:
            await duplicate()
        assert isinstance(caught.value.__cause__, asyncpg.UniqueViolationError)
        with pytest.raises(utils.OperationalError) as failed:
            await serialize()
        assert isinstance(failed.value.__cause__, asyncpg.SerializationError)
    finally:
        await conn.execute("DROP TABLE late")
    assert await conn.fetchval(COUNT) == 0


async def test_cancelled_blocks_leave_the_pool_whole(database: str, conn: asyncpg.Connection) -> None:
    async def block() -> None:
        async with aiotasks.transaction() as mine:
            await tasks.echo.aenqueue(1)
            await mine.execute("SET statement_timeout TO 1234")
            inside.set()
            await mine.execute("SELECT pg_sleep(60)")

    for _ in range(12):  # more than the pool has
        inside = asyncio.Event()
        task = asyncio.create_task(block())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await conn.fetchval(COUNT) == 0
    async with aiotasks.transaction() as mine:
        assert await mine.fetchval("SHOW statement_timeout") == "0"


async def test_blocks_leave_connections_to_all_else(
    database: str, configure: Any, conn: asyncpg.Connection
) -> None:
    """And what waits for one of them to end is told so in the end."""
    configure(POOL_MAX_SIZE=3, COMMAND_TIMEOUT=0.3)
    async with aiotasks.transaction():
        result = await asyncio.create_task(tasks.echo.aenqueue(1), context=contextvars.Context())
        await asyncio.create_task(result.arefresh(), context=contextvars.Context())
        waiting = asyncio.create_task(in_a_block(), context=contextvars.Context())
        with pytest.raises(utils.OperationalError, match=r"POOL_MAX_SIZE \(3\) allows"):
            await waiting
    configure(POOL_MAX_SIZE=3, COMMAND_TIMEOUT=5)
    blocks = [asyncio.create_task(in_a_block()) for _ in range(20)]
    for number, block in enumerate(blocks):
        await asyncio.sleep(0)
        if number % 2:
            block.cancel()
    await asyncio.gather(*blocks, return_exceptions=True)
    await in_a_block()  # as many as before may be open


async def in_a_block() -> None:
    async with aiotasks.transaction():
        await tasks.echo.aenqueue(1)


async def test_an_unknown_database_is_told_by_name(database: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="'elsewhere'"):
        async with aiotasks.transaction(using="elsewhere"):
            raise AssertionError


# --- Two databases --------------------------------------------------------------------------------


@pytest.fixture
def second(database: str, settings: Any) -> Any:
    """A second alias for the test database, and a backend "second" on it."""
    connections.databases["second"] = connections["default"].settings_dict.copy()
    backend = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
    settings.TASKS = {"default": backend, "second": {**backend, "OPTIONS": {"DATABASE": "second"}}}
    yield tasks.echo.using(backend="second")
    del connections.databases["second"]


async def test_blocks_on_two_databases_nest(second: Any, conn: asyncpg.Connection) -> None:
    """Each enqueue joins the block of its own database, in whichever order they were opened."""
    async with rolled_back(aiotasks.transaction()):
        async with aiotasks.transaction("second"):
            await tasks.echo.aenqueue("outer database")
            await second.aenqueue("inner database")
        assert await conn.fetchval(COUNT) == 1
    rows = await conn.fetch("SELECT args::text FROM aiotasks_task")
    assert [row[0] for row in rows] == ['["inner database"]']


async def test_a_block_on_another_database_is_not_joined(second: Any, conn: asyncpg.Connection) -> None:
    async with rolled_back(aiotasks.transaction("second")):
        await tasks.echo.aenqueue(1)
        assert await conn.fetchval(COUNT) == 1
        await second.aenqueue(2)
        assert await conn.fetchval(COUNT) == 1
    assert await conn.fetchval(COUNT) == 1
