"""How tasks are run: lanes and slots, what they may raise, what they see of each other."""

import asyncio
import gc
import logging
import sys
import threading
from typing import Any

import asyncpg
import pytest
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished, task_started

import aiotasks
from aiotasks.registry import resolve
from aiotasks.rows import AnyResult, Job
from aiotasks.store.loop import close_pools
from aiotasks.worker.ownership import Ownership
from aiotasks.worker.running import imports as imports_module
from tests.site import default_task_backend

from . import tasks
from .harness import TIMEOUT, Configure, Ledger, until, wait_until


@pytest.fixture(autouse=True)
def clean_slate(configure: Configure) -> Any:
    tasks.seen.clear()
    tasks.released.clear()
    yield
    tasks.released.set()


async def drain(**parameters: Any) -> None:
    async with aiotasks.Worker(grace=5, **parameters) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()


async def outcome(result: AnyResult) -> Any:
    await result.arefresh()
    if result.status == TaskResultStatus.SUCCESSFUL:
        return result.return_value
    return [error.exception_class_path for error in result.errors]


# --- Lanes and slots


async def test_both_kinds_run_where_they_belong(database: str) -> None:
    loop = await tasks.where.aenqueue()
    thread = await tasks.where_sync.aenqueue()
    await drain()
    assert await outcome(loop) == [threading.current_thread().name, "tests.worker.tasks.where"]
    assert (await outcome(thread))[0].startswith("aiotasks-sync-")


async def test_slots_are_a_limit(database: str) -> None:
    await default_task_backend.aenqueue_many(tasks.count_parallel, [((0.02,), {})] * 20)
    await drain(concurrency=4, threads=1)
    assert max(tasks.seen) == 4
    tasks.seen.clear()
    await default_task_backend.aenqueue_many(tasks.count_parallel_sync, [((0.02,), {})] * 12)
    await drain(concurrency=1, threads=3)
    assert max(tasks.seen) == 3
    assert len(tasks.seen) == 12


async def test_slots_are_a_limit_after_no_ops_too(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a large claim brings too much is given back, and keeps its place."""
    monkeypatch.setattr(
        "aiotasks.worker.claiming.overclaim.AT_ONCE_TIME", 3600
    )  # the largest claim, on any machine
    monkeypatch.setattr("aiotasks.worker.claiming.overclaim.AT_ONCE_FACTOR", 1000)
    monkeypatch.setattr("aiotasks.worker.claiming.overclaim.AT_ONCE_GROWTH", 1000)
    # Else the claim with the first task that waits may be one by the slots.
    monkeypatch.setattr("aiotasks.worker.claiming.budget.CLAIMS_BEYOND_IN_A_ROW", 3600)
    monkeypatch.setattr("aiotasks.worker.claiming.intake.PATIENCE", 3600)
    names = [str(n) for n in range(60)]
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 600)
    await default_task_backend.aenqueue_many(tasks.wait_for_release, [((name,), {}) for name in names])
    places = "SELECT id, ready_at FROM aiotasks_task WHERE status = 'READY'"
    before = set(await conn.fetch(places))
    give_back = Ownership.give_back
    dropped: list[Job] = []

    def watched_give_back(self: Ownership, job: Job) -> None:
        dropped.append(job)
        give_back(self, job)

    # Before the worker starts, because all may be done before the block begins.
    monkeypatch.setattr(Ownership, "give_back", watched_give_back)
    async with aiotasks.Worker(concurrency=5, threads=1) as worker, asyncio.timeout(TIMEOUT):
        runner = worker.engine.runner
        start = runner.start
        counts: list[int] = []

        def watched(job: Any) -> bool:
            at_once = start(job)
            counts.append(worker.engine.slots.taken("loop"))
            return at_once

        monkeypatch.setattr(runner, "start", watched)

        async def all_but_five() -> bool:
            rows = await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1")
            return dict(rows) == {"SUCCESSFUL": 600, "RUNNING": 5, "READY": 55}

        await until(all_but_five)
        assert dropped
        given_back = set(await conn.fetch(places))
        assert len(given_back) == 55
        assert given_back < before
        for name in names:
            await until(lambda name=name: name in tasks.waiting)
            tasks.waiting[name].set_result(None)
        await worker.wait_until_empty()
    assert max(counts) == 5
    assert tasks.seen == names
    done = "SELECT count(*) FROM aiotasks_task WHERE status = 'SUCCESSFUL' AND cardinality(worker_ids) = 1"
    assert await conn.fetchval(done) == 660


@pytest.mark.parametrize("end", ["they turn out to be long", "stop"])
async def test_slots_are_a_limit_after_short_sync_tasks_too(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What was claimed ahead of the threads is given back, and keeps its place."""
    monkeypatch.setattr(
        "aiotasks.worker.claiming.prefetch.AHEAD_TIME", 3600
    )  # as many as may be, on any machine
    if end == "stop":
        monkeypatch.setattr("aiotasks.worker.claiming.prefetch.PATIENCE", 3600)
    await default_task_backend.aenqueue_many(tasks.add_sync, [((1, 2), {})] * 200)

    async def is_given_back() -> bool:
        statuses = await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1")
        return dict(statuses) == {"SUCCESSFUL": 200, "RUNNING": 3, "READY": 27}

    async with aiotasks.Worker(concurrency=1, threads=3) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        backlog = worker.engine.claimer.prefetch
        for _ in range(200):
            backlog.took(0.001)  # on a busy machine some weren't short
        await default_task_backend.aenqueue_many(tasks.wait_in_thread, [((str(n),), {}) for n in range(30)])
        if end == "stop":
            await until(lambda: len(tasks.seen) >= 3 and backlog.claim_ids)
            stopping = asyncio.ensure_future(worker.stop())
        else:
            await until(lambda: backlog.ahead() == 0)  # it has learnt from that
        await until(is_given_back)
        assert worker.engine.slots.taken("thread") == 3
        unspent = await conn.fetch("SELECT worker_ids, ready_at FROM aiotasks_task WHERE status = 'READY'")
        assert {tuple(row["worker_ids"]) for row in unspent} == {()}
        (enqueued,) = await conn.fetch("SELECT DISTINCT ready_at FROM aiotasks_task WHERE status = 'RUNNING'")
        assert {row["ready_at"] for row in unspent} == {enqueued["ready_at"]}
        tasks.released.set()
        if end == "stop":
            await stopping
        else:
            await worker.wait_until_empty()
    once = "SELECT count(*) FROM aiotasks_task WHERE status = 'SUCCESSFUL' AND cardinality(worker_ids) = 1"
    assert await conn.fetchval(once) == (203 if end == "stop" else 230)


async def test_what_waits_for_a_thread_is_not_started_under_a_lease_that_was_lost(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4: somebody else may have it by then."""
    configure(LEASE_TIMEOUT=3)
    monkeypatch.setattr("aiotasks.worker.claiming.prefetch.AHEAD_TIME", 3600)
    monkeypatch.setattr("aiotasks.worker.claiming.prefetch.PATIENCE", 3600)
    await default_task_backend.aenqueue_many(tasks.add_sync, [((1, 2), {})] * 200)
    await default_task_backend.aenqueue_many(tasks.wait_in_thread, [((str(n),), {}) for n in range(30)])
    async with aiotasks.Worker(concurrency=1, threads=3) as worker, asyncio.timeout(TIMEOUT):
        engine = worker.engine
        # Not at once if the claim for the three was the one in five that goes by the slots.
        await until(lambda: len(tasks.seen) >= 3 and engine.claimer.prefetch.claim_ids)
        lost = engine.lease.worker_id
        engine.heartbeat.renounce()
        await until(lambda: engine.lease.worker_id not in (None, lost))
        tasks.released.set()
        await worker.wait_until_empty()
    started = (
        "SELECT count(*) FROM aiotasks_task WHERE task_path LIKE '%wait_in_thread' AND worker_ids[1] = $1"
    )
    assert await conn.fetchval(started, lost) == 3


async def test_one_import_for_all_that_wait_for_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def slow(task_path: str, aliases: Any) -> Any:
        threads.append(threading.current_thread().name)
        assert tasks.released.wait(TIMEOUT)
        return resolve(task_path, aliases)

    await default_task_backend.aenqueue_many(tasks.note, [((str(n),), {}) for n in range(20)])
    monkeypatch.setattr("aiotasks.registry._resolved", {})
    monkeypatch.setattr(imports_module, "resolve", slow)
    async with aiotasks.Worker(concurrency=10, threads=1) as worker:
        await until(lambda: worker.engine.slots.taken("loop") == 10)
        assert tasks.seen == []
        tasks.released.set()
        await worker.wait_until_empty()
    assert sorted(tasks.seen, key=int) == [str(n) for n in range(20)]
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


async def test_who_is_cancelled_during_an_import_takes_nobody_with_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def slow(task_path: str, aliases: Any) -> Any:
        assert tasks.released.wait(TIMEOUT)
        return resolve(task_path, aliases)

    results = await default_task_backend.aenqueue_many(tasks.note, [((str(n),), {}) for n in range(3)])
    monkeypatch.setattr("aiotasks.registry._resolved", {})
    monkeypatch.setattr(imports_module, "resolve", slow)
    async with aiotasks.Worker() as worker:
        runner, slots = worker.engine.runner, worker.engine.slots
        await until(lambda: slots.taken("loop") == 3)
        (first,) = (execution for execution in runner.running if str(execution.job.id) == results[0].id)
        runner.cancel(first, "cancelled")
        await until(lambda: slots.taken("loop") == 2)
        tasks.released.set()
        await worker.wait_until_empty()
    assert [await outcome(result) for result in results] == [["aiotasks.exceptions.TaskCancelled"], "1", "2"]


async def test_a_backlog_of_sync_tasks_does_not_hold_up_coroutines(database: str) -> None:
    await default_task_backend.aenqueue_many(tasks.wait_in_thread, [(("slow",), {})] * 50)
    async with aiotasks.Worker(concurrency=2, threads=2, grace=0) as worker:
        await until(lambda: tasks.seen.count("slow") >= 2)
        results = await default_task_backend.aenqueue_many(tasks.note, [(("quick",), {})] * 20)
        await until(lambda: tasks.seen.count("quick") >= 20)
        assert tasks.seen.count("slow") == 2
        assert worker.engine.slots.taken("thread") == 2
        tasks.released.set()
        await until(lambda: tasks.seen.count("slow") >= 50)
    assert len(results) == 20


async def test_a_backlog_of_coroutines_does_not_hold_up_sync_tasks(database: str) -> None:
    await default_task_backend.aenqueue_many(tasks.wait_for_release, [(("slow",), {})] * 50)
    async with aiotasks.Worker(concurrency=2, threads=2, grace=0):
        await until(lambda: tasks.seen.count("slow") >= 2)
        results = await default_task_backend.aenqueue_many(tasks.add_sync, [((1, 2), {})] * 20)

        async def are_done() -> bool:
            return [await outcome(result) for result in results] == [3] * 20

        await until(are_done)
        assert tasks.seen.count("slow") == 2


async def test_a_lane_without_slots_is_not_served(database: str) -> None:
    loop, thread = await tasks.add.aenqueue(1, 2), await tasks.add_sync.aenqueue(1, 2)
    await drain(threads=0)
    assert (await outcome(loop), await outcome(thread)) == (3, [])
    await drain(concurrency=0)
    assert await outcome(thread) == 3


@pytest.mark.parametrize(("path", "lane"), [("where", "thread"), ("where_sync", "loop")])
async def test_a_function_that_has_changed_its_kind(
    database: str, conn: asyncpg.Connection, path: str, lane: str
) -> None:
    """It runs as what it is now, whatever lane the row is in."""
    result = await getattr(tasks, path).aenqueue()
    await conn.execute("UPDATE aiotasks_task SET lane = $1", lane)
    await drain()
    name, _ = await outcome(result)
    assert name.startswith("aiotasks-sync-") == (path == "where_sync")


async def test_idle_slots_are_filled_while_others_are_busy(database: str) -> None:
    async with aiotasks.Worker(concurrency=3, grace=0):
        await tasks.wait_for_release.aenqueue("long")
        await until(lambda: tasks.seen == ["long"])
        await default_task_backend.aenqueue_many(tasks.note, [(("short",), {})] * 30)
        await until(lambda: tasks.seen.count("short") >= 30)
        tasks.waiting["long"].set_result(None)


# --- What tasks may raise

NAMES = [*tasks.EXCEPTIONS, "sys.exit"]


def stored_class(name: str, *, coroutine: bool) -> str:
    if name == "sys.exit":
        return "builtins.SystemExit"
    if coroutine and name == "StopIteration":
        return "builtins.RuntimeError"  # PEP 479
    kind = type(tasks.EXCEPTIONS[name])
    return f"{kind.__module__}.{kind.__qualname__}"


async def test_whatever_a_task_raises_fails_it_alone(database: str) -> None:
    """27, 28: and the worker goes on."""
    results = [
        (name, task.func.__name__, await task.aenqueue(name))
        for task in (tasks.fail, tasks.fail_at_once, tasks.fail_sync)
        for name in NAMES
    ]
    async with aiotasks.Worker() as worker:
        await worker.wait_until_empty()
        after = await tasks.add.aenqueue(1, 2)
        await worker.wait_until_empty()
    for name, function, result in results:
        assert await outcome(result) == [stored_class(name, coroutine=function != "fail_sync")], (
            name,
            function,
        )
        assert result.status == TaskResultStatus.FAILED
        assert f"in {function}" in result.errors[0].traceback
    assert await outcome(after) == 3


@pytest.mark.parametrize("task", [tasks.cancel_itself, tasks.cancel_itself_last])
async def test_a_task_that_cancels_itself(database: str, task: Any) -> None:
    """28: a failure, unlike our own cancel; once it has returned it is too late."""
    result = await task.aenqueue()
    await drain()
    expected = (
        ["asyncio.exceptions.CancelledError"] if task is tasks.cancel_itself else "returned all the same"
    )
    assert await outcome(result) == expected
    assert result.attempts == 1


async def test_a_return_value_that_json_can_not_hold(database: str) -> None:
    result = await tasks.unserialisable.aenqueue()
    await drain()
    assert await outcome(result) == ["builtins.TypeError"]
    assert "the return value" in result.errors[0].traceback


def test_children_that_exit_do_not_stop_the_worker(start_worker: Any, ledger: Ledger) -> None:
    """27: asyncio re-raises SystemExit out of the loop from any task; on a loop of our own it doesn't."""
    results = {
        (task.func.__name__, name): task.enqueue(name)
        for task in (tasks.fail_in_gather, tasks.fail_in_group, tasks.fail_in_background)
        for name in ("sys.exit", "SystemExit", "KeyboardInterrupt", "ValueError")
    }
    worker = start_worker()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 4, "FAILED": 8})
    for (function, name), result in results.items():
        result.refresh()
        if function == "fail_in_gather":
            assert [error.exception_class_path for error in result.errors] == [
                stored_class(name, coroutine=True)
            ]
        elif function == "fail_in_group":
            assert len(result.errors) == 1
            assert name in result.errors[0].traceback or "bye" in result.errors[0].traceback
    after = tasks.add.enqueue(1, 2)
    wait_until(lambda: ledger.task(after.id).status == "SUCCESSFUL")
    assert worker.stop() == 0


async def test_a_swallowed_cancellation_does_not_spin(database: str, ledger: Ledger) -> None:
    """29: asked once or twice, then left behind; its task is given back."""
    async with aiotasks.Worker(grace=0) as worker:
        result = await tasks.swallow_cancellation.aenqueue()
        await until(lambda: "begun" in tasks.seen)
        (execution,) = worker.engine.runner.running
    assert 1 <= tasks.seen.count("swallowed") <= 3
    assert worker.stuck
    assert (ledger.task(result.id).status, ledger.task(result.id).worker_ids) == ("READY", [])
    assert execution.task is not None
    assert not execution.task.done()
    tasks.released.set()
    execution.task.cancel()
    await until(execution.task.done)  # or the loop of the test wouldn't end


# --- What they see of each other


async def test_context_variables_do_not_leak(database: str) -> None:
    """36: neither between tasks, nor calls of one thread, nor from who enqueued or started the worker."""
    tasks.variable.set("of the test")
    results = await default_task_backend.aenqueue_many(
        tasks.set_variable, [((str(n),), {}) for n in range(10)]
    )
    results += await default_task_backend.aenqueue_many(
        tasks.set_variable_sync, [((str(n),), {}) for n in range(10)]
    )
    await drain(concurrency=3, threads=1)
    assert [await outcome(result) for result in results] == ["unset"] * 20
    assert tasks.variable.get() == "of the test"


async def test_waiting_tasks_are_strongly_referenced(database: str) -> None:
    """37: what awaits a future that nobody else holds isn't collected."""
    results = await default_task_backend.aenqueue_many(
        tasks.wait_for_release, [((f"{n}",), {}) for n in range(20)]
    )
    async with aiotasks.Worker() as worker:
        await until(lambda: len(tasks.seen) >= 20)
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0)
        assert len(tasks.waiting) == 20
        for future in list(tasks.waiting.values()):
            future.set_result(None)
        del future
        await worker.wait_until_empty()
    assert [await outcome(result) for result in results] == [f"{n}" for n in range(20)]


async def test_async_to_sync_lands_on_the_workers_loop(database: str) -> None:
    """39: in every thread, and many at a time."""
    results = await default_task_backend.aenqueue_many(tasks.call_async, [((), {})] * 12)
    await drain(threads=4)
    for result in results:
        loop_thread, own_thread = await outcome(result)
        assert loop_thread == threading.get_ident() != own_thread
    assert set(tasks.seen) == {asyncio.get_running_loop()}


async def test_tasks_may_enqueue(database: str) -> None:
    results = [await task.aenqueue() for task in (tasks.enqueue_from_sync, tasks.enqueue_from_async)]
    await drain()
    for result in results:
        child = await default_task_backend.aget_result(await outcome(result))
        assert await outcome(child) == 3


# --- Signals


async def test_signals_of_success_and_failure(database: str) -> None:
    """Sent with the backend's class as sender; task_finished after the result is stored."""
    heard: list[Any] = []

    async def started(sender: type, task_result: AnyResult, **kwargs: Any) -> None:
        heard.append(("started", task_result.id, sender.__name__, task_result.status))

    def finished(sender: type, task_result: AnyResult, **kwargs: Any) -> None:
        stored = default_task_backend.get_result(task_result.id)
        assert stored.status == task_result.status
        assert stored.finished_at == task_result.finished_at
        heard.append(("finished", task_result.id, sender.__name__, task_result.status, sys.exc_info()[0]))

    task_started.connect(started)
    task_finished.connect(finished)
    try:
        good, bad = await tasks.add.aenqueue(1, 2), await tasks.fail_sync.aenqueue("SystemExit")
        await drain()
    finally:
        task_started.disconnect(started)
        task_finished.disconnect(finished)
    expected = {
        ("started", good.id, "PostgresBackend", TaskResultStatus.RUNNING),
        ("started", bad.id, "PostgresBackend", TaskResultStatus.RUNNING),
        ("finished", good.id, "PostgresBackend", TaskResultStatus.SUCCESSFUL, None),
        ("finished", bad.id, "PostgresBackend", TaskResultStatus.FAILED, SystemExit),
    }
    assert set(heard) == expected
    assert len(heard) == 4


async def test_receivers_that_fail_harm_no_task(database: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(**kwargs: Any) -> None:
        raise RuntimeError("a receiver's own")

    task_started.connect(fail)
    task_finished.connect(fail)
    try:
        result = await tasks.add.aenqueue(1, 2)
        with caplog.at_level(logging.ERROR, "django.dispatch"):
            await drain()
    finally:
        task_started.disconnect(fail)
        task_finished.disconnect(fail)
    assert await outcome(result) == 3
    assert caplog.text.count("a receiver's own") >= 2


# --- The threads of the async ORM


async def test_async_orm_calls_run_in_parallel_on_few_connections(
    configure: Configure, database: str
) -> None:
    configure(ASYNC_DB_THREADS=3)
    results = await default_task_backend.aenqueue_many(tasks.query, [((0.03, 2), {})] * 15)
    async with aiotasks.Worker() as worker:
        await worker.wait_until_empty()
        assert len(worker.engine.orm_threads.threads) == 3
    pids = [await outcome(result) for result in results]
    assert len({pid for ran in pids for pid in ran}) == 3
    assert all(len(set(ran)) == 1 for ran in pids)  # a job stays on one connection


async def test_a_stuck_orm_thread_gets_no_new_jobs(
    configure: Configure, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ASYNC_DB_THREADS=1)
    monkeypatch.setattr("aiotasks.db.connection_thread.STUCK_AFTER", 0.1)
    async with aiotasks.Worker(concurrency=4) as worker:
        stuck = await tasks.stick.aenqueue("stuck")
        await until(lambda: tasks.seen == ["stuck"])
        (thread,) = worker.engine.orm_threads.threads
        await until(lambda: thread.is_stuck(asyncio.get_running_loop().time()))
        results = await default_task_backend.aenqueue_many(tasks.query, [((0.0, 1), {})] * 5)

        async def are_done() -> bool:
            return all([await outcome(result) for result in results])

        await until(are_done)
        assert thread.users == 1
        assert len(worker.engine.orm_threads.threads) == 2
        tasks.released.set()
        await worker.wait_until_empty()
    assert await outcome(stuck)


@pytest.mark.parametrize("task", [tasks.query, tasks.query_sync], ids=["loop", "thread"])
async def test_cut_connections_of_djangos_are_replaced(
    configure: Configure, database: str, conn: asyncpg.Connection, settings: Any, task: Any
) -> None:
    """35, 57: a thread whose connection the server has closed goes on with another, from its next job on."""
    configure(ASYNC_DB_THREADS=1)
    arguments = (0.0, 1) if task is tasks.query else ()
    pids = set()
    async with aiotasks.Worker(threads=1) as worker:
        for _ in range(4):
            result = await task.aenqueue(*arguments)
            await worker.wait_until_empty()
            pid = await outcome(result)
            assert result.status == TaskResultStatus.SUCCESSFUL
            pid = pid[0] if isinstance(pid, list) else pid
            assert pid not in pids
            pids.add(pid)
            await conn.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)


async def test_an_orm_thread_keeps_its_connection_from_job_to_job(
    configure: Configure, database: str
) -> None:
    """CONN_MAX_AGE=0 would have every job connect anew."""
    configure(ASYNC_DB_THREADS=1)
    pids = []
    async with aiotasks.Worker() as worker:
        for _ in range(3):
            result = await tasks.query.aenqueue(0.0, 1)
            await worker.wait_until_empty()
            pids += await outcome(result)
    assert len(set(pids)) == 1


async def test_no_connection_outlives_the_worker(database: str, conn: asyncpg.Connection) -> None:
    """35."""
    count = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await default_task_backend.aenqueue_many(tasks.query, [((0.0, 1), {})] * 20)
    await default_task_backend.aenqueue_many(tasks.query_sync, [((), {})] * 20)

    async def pool() -> int:
        await close_pools()
        return int(await conn.fetchval(count))

    before = await pool()
    await drain(threads=5)

    async def is_as_before() -> bool:
        return await pool() <= before

    await until(is_as_before)
