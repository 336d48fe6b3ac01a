"""Joins: every end of a task ends them, in whichever way they wait."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction, utils
from django.tasks import TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.test.utils import CaptureQueriesContext

import aiotasks
from aiotasks import PostgresTaskResult, joining
from aiotasks.compat import set_frozen
from aiotasks.store import joins, loop_thread
from aiotasks.store.joins import Changes
from aiotasks.store.loop import close_pools, resources
from aiotasks.store.store import Store
from tests.examples import example
from tests.site import default_task_backend as backend
from tests.site import postgres_result, running_store
from tests.store.rows import worker as register

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until

LISTENS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN %changed%'"
)

type Join = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test fails where something isn't notified."""
    monkeypatch.setattr(joins, "POLL_SHORTEST", 3600.0)
    monkeypatch.setattr(joins, "POLL_LONGEST", 3600.0)


@pytest.fixture(autouse=True)
def own_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A LoopThread that ends with the test, and its connections with it."""
    monkeypatch.setattr(loop_thread, "IDLE_TIMEOUT", 0.05)
    yield
    end = time.monotonic() + 30
    while any(thread.name == "aiotasks-joins" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def _in_thread(call: Callable[..., Any]) -> Callable[..., Any]:
    """Call it in a thread that no loop knows of."""

    async def run(result: PostgresTaskResult, *args: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                value = call(result, *args)
            except BaseException as error:
                connections.close_all()
                loop.call_soon_threadsafe(future.set_exception, error)
            else:
                connections.close_all()
                loop.call_soon_threadsafe(future.set_result, value)

        threading.Thread(target=work, daemon=True).start()
        return await future

    return run


JOINS: dict[str, Join] = {
    "ajoin": PostgresTaskResult.ajoin,
    "as_completed": lambda result, *args: _first(aiotasks.as_completed([result], *args)),
    "gather_results": lambda result, *args: _only(aiotasks.gather_results([result], *args)),
    "sync_to_async": sync_to_async(PostgresTaskResult.join),
    "a thread": _in_thread(PostgresTaskResult.join),
    "async_to_sync": _in_thread(lambda *args: async_to_sync(PostgresTaskResult.ajoin)(*args)),
}


async def _first(results: AsyncIterator[PostgresTaskResult]) -> PostgresTaskResult:
    (result,) = [result async for result in results]
    return result


async def _only(results: Any) -> PostgresTaskResult:
    (result,) = await results
    return postgres_result(result)


@pytest.fixture(params=JOINS)
def join(request: pytest.FixtureRequest) -> Join:
    return JOINS[request.param]


@asynccontextmanager
async def joined(join: Join, result: PostgresTaskResult, conn: asyncpg.Connection) -> AsyncIterator[Any]:
    """A join that waits, by the task's row; it has ended at the block's end."""

    async def is_marked() -> bool:
        return bool(await conn.fetchval("SELECT awaited FROM aiotasks_task WHERE id = $1", UUID(result.id)))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = group.create_task(_awaited(join(result)))
        await until(is_marked)
        assert not waiting.done()
        yield waiting


async def _awaited(waiting: Any) -> Any:
    return await waiting


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_that_ends(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, join: Join, fails: bool
) -> None:
    result = await tasks.fail.aenqueue("ValueError") if fails else await tasks.add.aenqueue(1, 2)
    async with joined(join, result, conn) as waiting, aiotasks.Worker():
        assert await waiting is result
    assert result.is_finished
    if fails:
        assert result.status == TaskResultStatus.FAILED
        assert [error.exception_class_path for error in result.errors] == ["builtins.ValueError"]
    else:
        assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert await join(result) is result  # at once
    await close_pools()


@pytest.mark.parametrize("how", ["one", "bulk"])
async def test_a_task_that_is_cancelled(
    database: str, conn: asyncpg.Connection, join: Join, how: str
) -> None:
    result = await tasks.add.aenqueue(1, 2)
    async with joined(join, result, conn) as waiting:
        if how == "one":
            assert await postgres_result(await backend.aget_result(result.id)).acancel()
        else:
            assert (await backend.acancel_many([result.id])).cancelled == 1
        await waiting
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]


async def test_a_running_task_that_is_cancelled(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, join: Join
) -> None:
    result = await tasks.work.aenqueue(60.0)
    async with joined(join, result, conn) as waiting, aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"RUNNING": 1})
        assert await postgres_result(await backend.aget_result(result.id)).acancel()
        await waiting
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]


async def test_a_task_that_expires(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, join: Join
) -> None:
    result = await tasks.add.using(expires=3600.0).aenqueue(1, 2)
    async with joined(join, result, conn) as waiting:
        await conn.execute("UPDATE aiotasks_task SET expires_at = now()")
        async with aiotasks.Worker():
            await waiting
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskExpired"]


async def test_a_task_at_its_last_crash(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, join: Join
) -> None:
    configure(queues=["default", "none"], MAX_CRASHES=1)
    dead = await register(running_store(), lease=-60.0)
    result = await tasks.add.using(queue_name="none").aenqueue(1, 2)
    async with joined(join, result, conn) as waiting:
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'RUNNING', worker_id = $1, worker_ids = ARRAY[$1::uuid], "
            "claim_id = $2",
            dead,
            uuid4(),
        )
        async with aiotasks.Worker(queues=["default"]):
            await waiting
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.WorkerLost"]


async def test_a_task_that_is_deleted(database: str, conn: asyncpg.Connection, join: Join) -> None:
    result = await tasks.add.aenqueue(1, 2)
    with pytest.raises(ExceptionGroup) as caught:
        async with joined(join, result, conn):
            assert (await backend.adelete_many([result.id])).deleted == 1
    assert caught.group_contains(TaskResultDoesNotExist, match=result.id)
    with pytest.raises(TaskResultDoesNotExist):
        await join(result)


async def test_a_task_that_is_pruned(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells of it, because its end was told of a minute before at least: a look finds it."""
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.05)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.1)
    result = await tasks.add.aenqueue(1, 2)
    with pytest.raises(ExceptionGroup) as caught:
        async with joined(PostgresTaskResult.ajoin, result, conn):
            await conn.execute("DELETE FROM aiotasks_task")
    assert caught.group_contains(TaskResultDoesNotExist)


async def test_a_task_that_does_not_end_in_time(database: str, conn: asyncpg.Connection, join: Join) -> None:
    result = await tasks.add.aenqueue(1, 2)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match="ended within"):
            await join(result, timeout)
    assert await result.acancel()
    assert (await join(result, 0)).is_finished
    if (changes := resources(backend.config).changes).number:
        raise AssertionError(changes.number)


async def test_a_cancelled_join_leaves_nothing_behind(database: str) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(5)]
    changes = resources(backend.config).changes
    for wait in (results[0].ajoin, lambda: aiotasks.gather_results(results)):
        waiting = asyncio.create_task(_awaited(wait()))
        await until(lambda: changes.number)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert (changes.number, changes.is_busy) == (0, False)
    async for _ in _until_first(results, changes):
        break
    await until(lambda: changes.number == 0)


async def _until_first(results: Any, changes: Any) -> AsyncIterator[Any]:
    await results[3].acancel()
    async for result in aiotasks.as_completed(results):
        assert changes.number
        yield result


# --- Several


async def test_results_come_in_the_order_of_their_ends(configure: Configure, ledger: Ledger) -> None:
    configure(queues=["default", "none"])
    results = [await tasks.add.using(queue_name="none").aenqueue(n, 0) for n in range(6)]
    seen: list[int] = []
    async with asyncio.timeout(60):
        await results[4].acancel()
        async for result in aiotasks.as_completed([*results, results[4]]):
            number = results.index(result)
            seen.append(number)
            if len(seen) >= 2 and len(seen) < 7:
                following = next(n for n in (4, 2, 5, 0, 3, 1) if not results[n].is_finished)
                await postgres_result(await backend.aget_result(results[following].id)).acancel()
    assert seen == [4, 4, 2, 5, 0, 3, 1]


async def test_all_results_in_their_order(configure: Configure, ledger: Ledger) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(20)]
    results.append(await tasks.fail.aenqueue("ValueError"))
    async with aiotasks.Worker():
        found = await aiotasks.gather_results(results)
    assert found == results
    assert [result.return_value for result in found[:20]] == [n + 1 for n in range(20)]
    assert found[20].status == TaskResultStatus.FAILED
    assert await aiotasks.gather_results([]) == []


async def test_some_that_do_not_end_in_time(database: str) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(3)]
    await results[1].acancel()
    seen: list[PostgresTaskResult] = []

    async def see() -> None:
        async for result in aiotasks.as_completed(results, timeout=0.2):
            seen.append(result)  # noqa: PERF401  # what was seen before the error

    with pytest.raises(TimeoutError, match=r"^2 tasks haven't ended within 0\.2 s\.$"):
        await see()
    assert seen == [results[1]]


async def test_what_has_ended_before_comes_in_the_order_of_its_ends(database: str) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(8)]
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    for n in order:
        await postgres_result(await backend.aget_result(results[n].id)).acancel()
    assert [results.index(result) async for result in aiotasks.as_completed(results)] == order


async def test_ends_while_the_caller_is_busy_come_before_the_timeout(database: str) -> None:
    first, second, third = [await tasks.add.aenqueue(n, 1) for n in range(3)]
    seen: list[PostgresTaskResult] = []

    async def see() -> None:
        end = asyncio.get_running_loop().time() + 0.2
        async for result in aiotasks.as_completed([first, second, third], timeout=0.1):
            seen.append(result)
            if result is first:
                await postgres_result(await backend.aget_result(second.id)).acancel()
                await until(lambda: asyncio.get_running_loop().time() > end)

    await first.acancel()
    with pytest.raises(TimeoutError, match=r"^1 tasks haven't ended within 0\.1 s\.$"):
        await see()
    assert seen == [first, second]


@pytest.mark.parametrize("number", [1, 3])
async def test_the_last_look_is_at_the_deadline(
    database: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where nobody tells of ends, and the next poll is still to come."""
    results = [await tasks.add.aenqueue(n, 1) for n in range(number)]
    for result in results:
        await postgres_result(await backend.aget_result(result.id)).acancel()
    monkeypatch.setattr(Changes, "_look", lambda self: None)
    assert await aiotasks.gather_results(results, timeout=0.05) == results
    assert all(result.is_finished for result in results)


@pytest.mark.parametrize("timeout", [0, 0.05])
@pytest.mark.parametrize("number", [1, 3])
async def test_the_time_limit_holds_while_the_database_is_away(
    database: str, monkeypatch: pytest.MonkeyPatch, number: int, timeout: float
) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Any:
        raise utils.OperationalError("away") from ConnectionResetError()

    results = [await tasks.add.aenqueue(n, 1) for n in range(number)]
    await close_pools()  # whose look-ups know the Store's own method
    monkeypatch.setattr(joining, "LAST_LOOK", 0.1)
    for name in ("select_jobs", "select_ended_jobs", "await_jobs"):
        monkeypatch.setattr(Store, name, fail)
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError, match="ended within"):
            await aiotasks.gather_results(results, timeout=timeout)


def changes_of(result: Any) -> Changes:
    return resources(result.task.get_backend().config).changes


async def test_several_backends(database: str, settings: Any, conn: asyncpg.Connection) -> None:
    settings.TASKS = {
        name: {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POOL_MAX_SIZE": size}}
        for name, size in (("default", 5), ("other", 6))
    }
    first = await tasks.add.using(backend="default").aenqueue(1, 1)
    second = await tasks.add.using(backend="other").aenqueue(1, 1)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(aiotasks.gather_results([first, second]))
        await until(lambda: changes_of(second).number)
        assert await second.acancel()
        assert await first.acancel()
        assert await waiting == [first, second]
    await close_pools()


@pytest.mark.parametrize("aliases", [("default", "other"), ("other", "default")])
async def test_backends_with_one_id(
    database: str, settings: Any, conn: asyncpg.Connection, aliases: tuple[str, str]
) -> None:
    """Neither shows the other's task, and nothing of either is left behind."""
    settings.TASKS = {
        name: {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POOL_MAX_SIZE": size}}
        for name, size in (("default", 5), ("other", 6))
    }
    results = {alias: await tasks.add.using(backend=alias).aenqueue(1, 1) for alias in aliases}
    stranger = results["other"]
    set_frozen(stranger, "id", results["default"].id)
    assert await results["default"].acancel()
    with pytest.raises(TaskResultDoesNotExist, match=stranger.id):
        async with asyncio.timeout(30):
            await aiotasks.gather_results([results[alias] for alias in aliases])
    assert not stranger.is_finished
    assert [changes_of(result).number for result in results.values()] == [0, 0]
    await close_pools()


async def test_a_task_that_is_gone_is_known_before_others_end(database: str) -> None:
    """Also where it was found together with one that has ended."""
    ended, waits = [await tasks.add.aenqueue(n, 1) for n in range(2)]
    assert await ended.acancel()
    gone = await _gone()
    seen: list[PostgresTaskResult] = []

    async def see() -> None:
        async for result in aiotasks.as_completed([ended, gone, waits]):
            seen.append(result)  # noqa: PERF401  # what was seen before the error

    with pytest.raises(TaskResultDoesNotExist, match=gone.id):
        await asyncio.wait_for(see(), 30)
    assert seen in ([ended], [])


async def test_the_last_look_waits_for_no_other_database(
    database: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TASKS = {
        name: {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POOL_MAX_SIZE": size}}
        for name, size in (("default", 5), ("other", 6))
    }
    away = await tasks.add.using(backend="default").aenqueue(1, 1)
    ended = await tasks.add.using(backend="other").aenqueue(1, 1)
    assert await postgres_result(await ended.task.get_backend().aget_result(ended.id)).acancel()
    select_jobs = Store.select_jobs

    async def select(self: Store, ids: Any, alias: str) -> Any:
        if alias == "default":
            raise utils.OperationalError("away") from ConnectionResetError()
        return await select_jobs(self, ids, alias)

    await close_pools()  # as above
    monkeypatch.setattr(Store, "select_jobs", select)
    monkeypatch.setattr(joining, "LAST_LOOK", 0.5)
    seen: list[PostgresTaskResult] = []

    async def see() -> None:
        async for result in aiotasks.as_completed([away, ended], timeout=0):
            seen.append(result)  # noqa: PERF401  # what was seen before the error

    with pytest.raises(TimeoutError, match=r"^1 tasks haven't ended"):
        await see()
    assert seen == [ended]
    await close_pools()


async def test_what_is_no_result_is_refused(database: str) -> None:
    with pytest.raises(TypeError, match="Results of aiotasks' backends are wanted, not 'x'"):
        await aiotasks.gather_results(["x"])  # type: ignore[list-item]


# --- Transactions


@pytest.mark.parametrize("block", [aiotasks.atomic, aiotasks.transaction])
async def test_a_task_of_the_open_transaction(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, block: Any
) -> None:
    """It is refused at once. A task that was committed before may be waited for, as outside."""
    before = await tasks.add.aenqueue(1, 2)
    async with block():
        result = await tasks.add.aenqueue(2, 3)
        for wait in (result.ajoin, lambda: aiotasks.gather_results([before, result])):
            with pytest.raises(RuntimeError, match="no worker sees it before the commit"):
                await wait()
        async with joined(PostgresTaskResult.ajoin, before, conn) as waiting, aiotasks.Worker():
            await waiting
        assert before.return_value == 3
        assert await result.acancel()
        assert (await result.ajoin()).is_finished  # here
        with pytest.raises(TaskResultDoesNotExist):
            await (await _gone()).ajoin()
    assert resources(backend.config).changes.number == 0


async def _gone() -> PostgresTaskResult:
    result = await tasks.add.aenqueue(1, 2)
    assert (await backend.adelete_many([result])).deleted == 1
    return result


def test_a_task_of_an_open_atomic(database: str) -> None:
    before = tasks.add.enqueue(1, 2)
    with transaction.atomic():
        result = tasks.add.enqueue(2, 3)
        with pytest.raises(RuntimeError, match=r"call aiotasks\.testing\.drain\(\) first"):
            result.join()
        with pytest.raises(TimeoutError):
            before.join(timeout=0.01)
        assert result.cancel()
        assert result.join().is_finished
        with pytest.raises(RuntimeError, match="no worker sees it before the commit"):
            async_to_sync(tasks.add.enqueue(2, 3).ajoin)()


def _cancel(result: PostgresTaskResult) -> None:
    assert result.cancel()


def _save(result: PostgresTaskResult) -> None:
    backend.save_metadata(result, {"a": 1})


def _lock(result: PostgresTaskResult) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM aiotasks_task WHERE id = %s FOR UPDATE", [result.id])


@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize("change", [_cancel, _save, _lock])
def test_a_running_task_that_an_open_atomic_has_changed(
    database: str, change: Callable[[PostgresTaskResult], None], savepoint: bool
) -> None:
    """Its worker can't end it. What others have changed meanwhile is no obstacle."""
    result, other = tasks.add.enqueue(1, 2), tasks.add.enqueue(1, 2)
    with psycopg.connect(database, autocommit=True) as others:
        others.execute(
            "UPDATE aiotasks_task SET status = 'RUNNING', started_at = now(), worker_id = gen_random_uuid(), "
            "claim_id = gen_random_uuid(), worker_ids = ARRAY[gen_random_uuid()]"
        )
        with transaction.atomic():
            tasks.add.enqueue(3, 4)
            if savepoint and change is not _lock:
                with transaction.atomic():
                    change(result)
            else:
                change(result)
            others.execute("UPDATE aiotasks_task SET priority = 3 WHERE id = %s", [other.id])
            with pytest.raises(RuntimeError, match=f"{result.id} was changed or locked in the transaction"):
                result.join(timeout=10)
            with pytest.raises(RuntimeError, match=f"{result.id} was changed or locked in the transaction"):
                async_to_sync(aiotasks.gather_results)([result, other], timeout=10)
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    other.join(timeout=0)
                with others.transaction():  # of which this transaction sees nothing yet
                    others.execute("UPDATE aiotasks_task SET priority = 4 WHERE id = %s", [other.id])
                    with pytest.raises(TimeoutError):
                        async_to_sync(other.ajoin)(timeout=0)
        with pytest.raises(TimeoutError):
            result.join(timeout=0)


@pytest.mark.parametrize("block", [aiotasks.atomic, aiotasks.transaction])
async def test_a_task_that_the_open_block_has_changed(
    configure: Configure, ledger: Ledger, block: Any
) -> None:
    result = await tasks.work.aenqueue(60.0)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"RUNNING": 1})
        async with block():
            assert await postgres_result(await backend.aget_result(result.id)).acancel()
            with pytest.raises(RuntimeError, match="was changed or locked in the transaction"):
                await result.ajoin(timeout=10)
        await result.ajoin()
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]


def test_tasks_are_looked_up_together_in_an_open_transaction(database: str) -> None:
    results = [tasks.add.enqueue(n, 1) for n in range(20)]
    gather = async_to_sync(aiotasks.gather_results)
    with CaptureQueriesContext(connection) as captured, pytest.raises(TimeoutError):
        gather(results, timeout=0)
    assert len(captured) == 0
    with transaction.atomic():
        backend.cancel_many([result.id for result in results])
        with CaptureQueriesContext(connection) as captured:
            assert gather(results) == results
        assert len(captured) == 2
    assert all(result.is_finished for result in results)


# --- Sync code


async def test_sync_join_is_not_for_a_loops_thread(database: str) -> None:
    result = await tasks.add.aenqueue(1, 2)
    with pytest.raises(SynchronousOnlyOperation, match=r"use `await ajoin\(\)`"):
        result.join()


async def test_sync_joins_share_a_session(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(30)]
    join = JOINS["a thread"]
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(_awaited(join(result))) for result in results]
        marked = "SELECT count(*) FROM aiotasks_task WHERE awaited = 1"
        await until(lambda: ledger.value(marked) == 30)
        assert len(await conn.fetch(LISTENS)) == 1
        async with aiotasks.Worker():
            await asyncio.wait(waiting)
    assert [result.return_value for result in results] == [n + 1 for n in range(30)]


SCRIPT = """
import os, signal, sys, threading, time
import django
django.setup()
from tests.worker import tasks
result = tasks.add.enqueue(1, 2)
print("joins", result.id, flush=True)
try:
    result.join()
except KeyboardInterrupt:
    print("interrupted", flush=True)
if sys.argv[1] == "fork":
    pid = os.fork()
    if pid == 0:
        try:
            result.join(timeout=0.2)
        except TimeoutError:
            print("child: not in time", flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print("threads", threading.active_count(), flush=True)
result.cancel()
print(result.join().status, flush=True)
"""


@pytest.mark.parametrize("way", ["plain", "fork"])
def test_ctrl_c_ends_a_join(start: Start, ledger: Ledger, way: str) -> None:
    """And the next one has a loop again, in a forked child too."""
    process = start("-c", SCRIPT, way)
    process.wait_for("joins")
    marked = "SELECT count(*) FROM aiotasks_task WHERE awaited = 1"
    wait_until(lambda: ledger.value(marked) == 1)
    process.send(signal.SIGINT)
    process.wait_for("interrupted")
    assert process.wait() == 0
    assert "FAILED" in process.log
    if way == "fork":
        assert "child: not in time" in process.log


# --- What the database goes through


async def test_a_listener_that_is_killed_while_many_wait(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(200)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for result in results:
            group.create_task(result.ajoin())
        await until(lambda: ledger.value("SELECT count(*) FROM aiotasks_task WHERE awaited = 1") == 200)
        async with aiotasks.Worker(concurrency=5):
            while ledger.statuses() != {"SUCCESSFUL": 200}:
                await conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({LISTENS}) AS listening")
                await asyncio.sleep(0)
    assert [result.return_value for result in results] == [n + 1 for n in range(200)]


async def test_the_page_on_joins(database: str) -> None:
    with example("howto/join.md") as page:
        async with aiotasks.Worker():
            await page.run()
            await page.run()
            await page.run()
            assert await sync_to_async(page.thumbnail)("b.jpg") == "b.jpg@160"
        assert page.blocks == []
