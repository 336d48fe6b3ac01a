"""Django's connections in the worker's threads: kept, checked, given back, and nobody's but one task's."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest
from django.db import connections
from django.db.backends.signals import connection_created
from django.tasks import TaskResultStatus

import aiotasks
from aiotasks.rows import AnyResult
from aiotasks.worker.process.default_executor import DefaultExecutor
from tests.site import default_task_backend, postgres_connection

from . import connection_tasks as tasks
from .harness import TIMEOUT, Configure, Ledger, Start, until


@pytest.fixture(autouse=True)
def clean_slate(configure: Configure) -> Iterator[None]:
    tasks.arrived.clear()
    tasks.go.clear()
    yield
    tasks.go.set()
    while tasks.left_cursors:
        tasks.left_cursors.pop().close()


@pytest.fixture
def pooled(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Django's pool of four connections in this process."""
    connections.close_all()  # of this thread, which has them without a pool
    options = {"pool": {"min_size": 1, "max_size": 4, "timeout": 20}}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    yield
    connections.close_all()
    postgres_connection().close_pool()


async def outcomes(results: Sequence[AnyResult]) -> list[Any]:
    found = []
    for result in results:
        await result.arefresh()
        assert result.status == TaskResultStatus.SUCCESSFUL, (result.status, result.errors)
        found.append(result.return_value)
    return found


async def one(worker: aiotasks.Worker, task: Any, *args: Any) -> Any:
    """Run a task and return its value."""
    result = await task.aenqueue(*args)
    await worker.wait_until_empty()
    return (await outcomes([result]))[0]


# --- Kept from task to task


@pytest.mark.parametrize("age", [0, 600, None])
async def test_a_thread_keeps_its_connection_from_task_to_task(
    configure: Configure, database: str, monkeypatch: pytest.MonkeyPatch, age: int | None
) -> None:
    """CONN_MAX_AGE = 0 would have every task connect anew. One that is cut is replaced before a task."""
    asyncio.get_running_loop().set_default_executor(DefaultExecutor(1))
    configure(ASYNC_DB_THREADS=1)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", age)
    admin = await asyncpg.connect(database)
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for task in (tasks.backend, tasks.backend_sync, tasks.backend_in_executor):
            pids = [await one(worker, task) for _ in range(3)]
            assert len(set(pids)) == 1
            await admin.fetchval("SELECT pg_terminate_backend($1, 5000)", pids[0])
            assert await one(worker, task) != pids[0]
    await admin.close()


async def test_an_age_is_a_limit(
    configure: Configure, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ASYNC_DB_THREADS=1)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 1e-6)
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for task in (tasks.backend, tasks.backend_sync):
            assert len({await one(worker, task) for _ in range(3)}) == 3


async def test_a_minute_without_use_closes(
    configure: Configure, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("worker.thread_pool", "db.connection_thread"):
        monkeypatch.setattr(f"aiotasks.{module}.IDLE_TIMEOUT", 0.1)
    asyncio.get_running_loop().set_default_executor(DefaultExecutor())
    admin = await asyncpg.connect(database)
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for task in (tasks.backend, tasks.backend_sync, tasks.backend_in_executor):
            pid = await one(worker, task)

            async def has_gone(pid: int = pid) -> bool:
                return not await admin.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid
                )

            await until(has_gone)
    await admin.close()


# --- Django's pool


async def test_more_tasks_than_the_pool_has_connections(pooled: None, database: str) -> None:
    """A task that has made its query and does something else holds none."""
    waiting = await default_task_backend.aenqueue_many(tasks.count_and_wait, [((8,), {})] * 8)
    async with aiotasks.Worker(threads=10) as worker, asyncio.timeout(2 * TIMEOUT):
        await until(lambda: len(tasks.arrived) >= 8)
        sync = await default_task_backend.aenqueue_many(tasks.count_sync, [((), {})] * 20)
        await worker.wait_until_empty()
    await outcomes([*waiting, *sync])


async def test_a_pool_of_dead_connections(pooled: None, database: str) -> None:
    """The server has ended them all while they lay in the pool: no task gets one."""
    asyncio.get_running_loop().set_default_executor(DefaultExecutor())
    admin = await asyncpg.connect(database)
    async with aiotasks.Worker(threads=4) as worker, asyncio.timeout(2 * TIMEOUT):
        for _ in range(2):  # threads that are new, and threads that have had a connection
            pool = postgres_connection().pool
            pool.open()
            pool.resize(4, 4)
            await asyncio.to_thread(pool.wait)
            lying = [one.info.backend_pid for one in pool._pool]
            for pid in lying:
                await admin.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
            assert lying
            kinds = (tasks.backend, tasks.backend_sync, tasks.backend_in_executor)
            results = [await kind.aenqueue() for kind in kinds * 2]
            await worker.wait_until_empty()
            assert not set(lying) & set(await outcomes(results))
    await admin.close()


# --- DEBUG


async def test_logged_queries_are_the_tasks_own(
    configure: Configure, database: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(ASYNC_DB_THREADS=1)
    settings.DEBUG = True
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for task in (tasks.logged_queries, tasks.alogged_queries):
            counts = [await one(worker, task) for _ in range(4)]
            assert counts[1:] == [1, 1, 1]
    await until(lambda: "DEBUG is True" in caplog.text)
    assert caplog.text.count("DEBUG is True") == 1


# --- Sessions


@pytest.mark.parametrize("way", ["set_config", "mixed"])
async def test_no_task_sees_a_strangers_session(configure: Configure, ledger: Ledger, way: str) -> None:
    """Many at a time change theirs while others only look; two threads would do for all."""
    configure(ASYNC_DB_THREADS=2)
    ways = [way] * 30 if way in tasks.WAYS else [*(set(tasks.WAYS) - {"advisory"})] * 3 + ["advisory"]
    number = len(ways)
    looking = await default_task_backend.aenqueue_many(
        tasks.look_until_told, [((way, "stranger"), {}) for way in tasks.WAYS]
    )
    arguments: list[Any] = [((way, f"tenant {n}", number), {}) for n, way in enumerate(ways)]
    changing = await default_task_backend.aenqueue_many(tasks.change_and_look, arguments)
    async with aiotasks.Worker(concurrency=50) as worker, asyncio.timeout(2 * TIMEOUT):
        await until(lambda: len(tasks.arrived) >= number)
        later = await default_task_backend.aenqueue_many(
            tasks.look_until_told, [((way, "later"), {}) for way in tasks.WAYS]
        )
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": number, "RUNNING": 2 * len(tasks.WAYS)})
        tasks.go.set()
        await worker.wait_until_empty()
    assert await outcomes(changing) == [["", f"tenant {n}", f"tenant {n}"] for n in range(number)]
    assert await outcomes([*looking, *later]) == [[""]] * 2 * len(tasks.WAYS)


async def test_a_sync_task_leaves_no_session_behind(configure: Configure, database: str) -> None:
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for way in tasks.WAYS:
            for tenant in "ab":
                assert await one(worker, tasks.change_sync, way, tenant) == ["", tenant]
            assert await one(worker, tasks.look_sync, way, "c") == ""


async def test_a_pool_gets_no_changed_session_back(pooled: None, database: str) -> None:
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for way in ("set_config", "temp", "copy", "raw"):
            tasks.arrived.clear()
            changing = await default_task_backend.aenqueue_many(
                tasks.change_and_look, [((way, str(n), 2), {}) for n in range(2)]
            )
            await worker.wait_until_empty()
            assert await outcomes(changing) == [["", "0", "0"], ["", "1", "1"]]
            for task in (tasks.change_sync, tasks.change_and_close):
                assert await one(worker, task, way, "x") == ["", "x"]
            assert {await one(worker, tasks.look_sync, way, "y") for _ in range(6)} == {""}


async def test_what_a_task_leaves_open_ends_with_it(configure: Configure, database: str) -> None:
    configure(ASYNC_DB_THREADS=1)
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        for what in tasks.LEFT:
            for leave, check in ((tasks.aleave, tasks.acheck_clean), (tasks.leave, tasks.check_clean)):
                for _ in range(2):
                    await one(worker, leave, what)
                    assert await one(worker, check), what


async def test_a_call_that_outlasts_its_task_leaves_no_session(configure: Configure, database: str) -> None:
    configure(ASYNC_DB_THREADS=1)
    async with aiotasks.Worker() as worker, asyncio.timeout(2 * TIMEOUT):
        for way in tasks.WAYS:
            await tasks.change_and_be_cancelled.aenqueue(way)
            await until(lambda way=way: way in tasks.arrived)
            tasks.go.set()
            assert await one(worker, tasks.look_until_told, way, "x") == [""]


async def test_a_check_takes_no_session_from_its_task(
    configure: Configure, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new connection wouldn't have the tenant that the task has set."""
    monkeypatch.setattr("aiotasks.worker.running.orm_threads.CHECK_AFTER", 0.0)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 1e-6)
    async with aiotasks.Worker() as worker, asyncio.timeout(2 * TIMEOUT):
        for way in tasks.WAYS:
            assert await one(worker, tasks.change_and_outlast, way, "x") == ["x"]


async def test_server_side_cursors_keep_their_connection(pooled: None, database: str) -> None:
    results = await default_task_backend.aenqueue_many(tasks.iterate, [((4,), {})] * 4)
    async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
        await worker.wait_until_empty()
        assert await outcomes(results) == [4] * 4
        assert await one(worker, tasks.acheck_clean)


async def test_what_a_site_sets_for_every_session_is_no_tasks(configure: Configure, database: str) -> None:
    """Nor is the execute wrapper that it installs."""
    configure(ASYNC_DB_THREADS=1)

    def wrapper(execute: Any, *args: Any) -> Any:
        return execute(*args)

    def receiver(connection: Any, **kwargs: Any) -> None:
        connection.cursor().execute("SET test.site = 'x'")
        if wrapper not in connection.execute_wrappers:
            connection.execute_wrappers.append(wrapper)

    connection_created.connect(receiver)
    try:
        async with aiotasks.Worker(threads=1) as worker, asyncio.timeout(2 * TIMEOUT):
            for task in (tasks.backend, tasks.backend_sync):
                assert len({await one(worker, task) for _ in range(3)}) == 1
            for change, look in (
                (tasks.change_and_look, tasks.look_until_told),
                (tasks.change_sync, tasks.look_sync),
            ):
                tasks.arrived.clear()
                tasks.go.set()
                arguments = ("set", "a", 1) if change is tasks.change_and_look else ("set", "a")
                found = await one(worker, change, *arguments)
                assert set(found[1:]) == {"a"}
                assert "a" not in await one(worker, look, "set", "b")
    finally:
        connection_created.disconnect(receiver)


# --- A machine that refuses threads


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads whose names begin like one of these can't be started; what was tried is added."""
    start = threading.Thread.start
    refused: list[str] = []

    def start_or_not(thread: threading.Thread) -> None:
        if any(thread.name.startswith(name) for name in refused):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    for module in ("thread_pool", "running.orm_threads"):
        monkeypatch.setattr(f"aiotasks.worker.{module}.RETRY_DELAY", 0.1)
    return refused


async def test_what_no_thread_can_be_had_for_is_given_back(
    configure: Configure, ledger: Ledger, refuse: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It isn't executed later on, has spent nothing, and runs once there are threads again."""
    configure(POLL_INTERVAL=0.1)
    refuse.append("aiotasks-sync")
    results = await default_task_backend.aenqueue_many(tasks.backend_sync, [((), {})] * 20)
    async with aiotasks.Worker(threads=3) as worker, asyncio.timeout(2 * TIMEOUT):
        await until(lambda: caplog.text.count("refuses another thread"))
        await asyncio.sleep(0.5)
        ready = {("READY", 0)}
        await until(
            lambda: set(ledger.rows("SELECT status, cardinality(worker_ids) FROM aiotasks_task")) == ready
        )
        refuse.clear()
        await worker.wait_until_empty()
    assert len(set(await outcomes(results))) <= 3
    assert [result.attempts for result in results] == [1] * 20
    assert caplog.text.count("refuses another thread") == 1


async def test_with_few_threads_the_lane_takes_fewer(
    configure: Configure, ledger: Ledger, refuse: list[str]
) -> None:
    configure(POLL_INTERVAL=0.1)
    refuse.append("aiotasks-sync-2")
    results = await default_task_backend.aenqueue_many(tasks.count_sync, [((), {})] * 20)
    async with aiotasks.Worker(threads=5) as worker, asyncio.timeout(2 * TIMEOUT):
        await worker.wait_until_empty()
        assert worker.engine.sync_threads.capacity() <= 2
    await outcomes(results)
    assert {result.attempts for result in results} == {1}


async def test_orm_calls_wait_for_a_thread(configure: Configure, database: str, refuse: list[str]) -> None:
    refuse.append("aiotasks-orm")
    results = await default_task_backend.aenqueue_many(tasks.backend, [((), {})] * 20)
    async with aiotasks.Worker() as worker, asyncio.timeout(2 * TIMEOUT):
        await until(lambda: len(worker.engine.orm_threads.waiting) >= 20)
        await asyncio.sleep(1)  # ten tries
        refuse.clear()
        await worker.wait_until_empty()
    await outcomes(results)


async def test_few_file_descriptors_fail_no_task(configure: Configure, ledger: Ledger, start: Start) -> None:
    await default_task_backend.aenqueue_many(tasks.count_sync, [((), {})] * 20)
    await default_task_backend.aenqueue_many(tasks.backend, [((), {})] * 20)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    code = (
        f"{limited}; from aiotasks.worker.process.cli import main; raise SystemExit(main(['--until-empty']))"
    )
    process = start("-c", code, options={"POOL_MAX_SIZE": 2})
    assert await asyncio.to_thread(process.wait, 2 * TIMEOUT) == 0
    assert ledger.statuses() == {"SUCCESSFUL": 40}
    assert "refuses another thread" in process.log
