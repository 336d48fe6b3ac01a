"""What an attack on the finished code has found; each test failed before its guard was there."""

import asyncio
import subprocess
import sys
import threading
import time
from datetime import timedelta
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from django.db import connection, utils
from django.tasks.signals import task_finished
from django.utils import timezone

import aiotasks
from aiotasks.db import connect as connect_module
from aiotasks.exceptions import UnknownTask
from aiotasks.registry import resolve
from aiotasks.store.store import Store
from aiotasks.worker.fleet import Fleet
from aiotasks.worker.maintenance.promoter import Promoter
from aiotasks.worker.running.sync_threads import SyncThreads
from tests.conftest import RunningServer
from tests.proxy import Proxy
from tests.site import default_task_backend, running_store
from tests.worker import tasks
from tests.worker.harness import TIMEOUT, Configure, Ledger, Start, until, wait_until

TEARDOWN = """
import asyncio, sys, django
django.setup()
import aiotasks
from tests.worker import tasks

async def main():
    worker = aiotasks.Worker()
    await worker.__aenter__()  # and never left: the loop's runner cancels everything
    result = await tasks.wait_for_release.aenqueue("never")
    while result.status != "RUNNING":
        await result.arefresh()

asyncio.run(main())
"""


async def test_a_loop_that_is_torn_down_gives_its_tasks_back(
    configure: Configure, ledger: Ledger, worker_env: dict[str, str]
) -> None:
    process = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", TEARDOWN], env=worker_env, timeout=60, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    assert ledger.statuses() == {"READY": 1}
    assert ledger.value("SELECT cardinality(worker_ids) FROM aiotasks_task") == 0


async def test_a_lock_on_one_row_holds_up_no_other(configure: Configure, ledger: Ledger) -> None:
    locked = await tasks.wait_for_release.aenqueue("locked")
    async with aiotasks.Worker() as worker:
        await until(lambda: worker.engine.runner.running)
        with ledger.connection.transaction():
            ledger.connection.execute("SELECT FROM aiotasks_task FOR UPDATE")
            (execution,) = worker.engine.runner.running
            worker.engine.runner.cancel(execution, "cancelled")
            others = [await tasks.wait_for_release.aenqueue("never") for _ in range(3)]
            for other in others:
                await until(lambda id=other.id: ledger.task(id).status == "RUNNING")
            await until(lambda: len(worker.engine.runner.running) == len(others))
            for execution in list(worker.engine.runner.running):
                worker.engine.runner.cancel(execution, "cancelled")
            for other in others:
                await until(lambda id=other.id: ledger.task(id).status == "FAILED")
            assert ledger.task(locked.id).status == "RUNNING"
        await until(lambda: ledger.task(locked.id).status == "FAILED")
        assert worker.engine.finisher.fenced == 0


async def test_a_lock_on_what_is_given_back_holds_up_no_other(configure: Configure, ledger: Ledger) -> None:
    """Else what others have finished would be written with it, or at a shutdown never."""
    locked = await tasks.wait_for_release.aenqueue("locked")
    async with aiotasks.Worker(grace=0) as worker:
        await until(lambda: worker.engine.runner.running)
        with ledger.connection.transaction():
            ledger.connection.execute("SELECT FROM aiotasks_task FOR UPDATE")
            (execution,) = worker.engine.runner.running
            worker.engine.runner.cancel(execution, "lost lease")
            other = await tasks.add.aenqueue(1, 2)
            await until(lambda: ledger.task(other.id).status == "SUCCESSFUL")
            await until(lambda: list(worker.engine.finisher.pending) == [execution])
            assert ledger.task(locked.id).status == "RUNNING"
        await until(lambda: not worker.engine.finisher.pending)
        assert worker.engine.finisher.fenced == 0
        # Given back with its place, so it runs again at once.
        await until(lambda: worker.engine.runner.running)
    assert (ledger.task(locked.id).status, ledger.task(locked.id).crashes) == ("READY", 0)


async def test_a_refused_login_is_waited_for(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that is being rotated says nothing about the results that wait."""
    finish_jobs = Store.finish_jobs
    refusals = 3

    async def refused(self: Store, finishes: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            error = utils.OperationalError("password authentication failed")
            error.__cause__ = Refusal()
            raise error
        return await finish_jobs(self, finishes)

    monkeypatch.setattr(Store, "finish_jobs", refused)
    results = [await tasks.add.aenqueue(n, 1) for n in range(5)]
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 5})
    assert refusals == 0
    for result in results:
        await result.arefresh()
        assert result.attempts == 1


class VaultError(Exception):
    """Not an OSError: what a vault's own client raises."""


class Refusal(Exception):
    sqlstate = "28P01"


async def test_an_engine_that_can_not_tell_the_password_is_waited_for(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LEASE_TIMEOUT=2.0)
    async with aiotasks.Worker() as worker:
        arguments = connect_module.connect_arguments
        asked: set[str] = set()

        def vault_is_away(alias: str) -> Any:
            asked.add(threading.current_thread().name)
            raise VaultError("the vault is away")

        monkeypatch.setattr(connect_module, "connect_arguments", vault_is_away)
        ledger.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aiotasks'"
        )
        await until(lambda: "aiotasks-heartbeat" in asked)
        monkeypatch.setattr(connect_module, "connect_arguments", arguments)
        result = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
        await until(lambda: worker.engine.lease.remaining() > 1)


async def test_a_claim_is_held_until_its_jobs_are_started(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aiotasks.Worker() as worker:
        claim_jobs = worker.engine.resources.store.claim_jobs
        held = []

        async def look(worker_id: Any, claim_id: Any, *args: Any, **kwargs: Any) -> Any:
            jobs = await claim_jobs(worker_id, claim_id, *args, **kwargs)
            held.append(claim_id in worker.engine.ownership.held_claims())
            return jobs

        monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", look)
        result = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert held
    assert all(held)


async def test_a_claim_without_an_answer_does_not_hold_up_the_end(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """31: not for longer than the grace, however long a statement may take."""
    configure(["default"], COMMAND_TIMEOUT=3600, POLL_INTERVAL=0.1)
    async with asyncio.timeout(TIMEOUT):
        async with aiotasks.Worker(grace=0.1) as worker:
            asked = asyncio.Event()

            async def hang(*args: Any, **kwargs: Any) -> Any:
                asked.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", hang)
            await asked.wait()
    assert ledger.workers() == 0


async def test_a_part_that_fails_cancels_no_claim(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """51: what it brings is given back with all the rest, and doesn't wait for the lease to run out."""
    configure(POLL_INTERVAL=0.1)
    async with aiotasks.Worker(grace=0) as worker:
        store = worker.engine.resources.store
        claim_jobs = store.claim_jobs
        claimed = asyncio.Event()

        async def fail() -> float:
            await claimed.wait()
            raise RuntimeError("a mistake of ours")

        async def answer_late(*args: Any, **kwargs: Any) -> Any:
            jobs = await claim_jobs(*args, **kwargs)
            if jobs:
                claimed.set()
                await until(lambda: worker.engine.claimer.is_stopping)
            return jobs

        monkeypatch.setattr(store, "claim_jobs", answer_late)
        monkeypatch.setattr(worker.engine.promoter, "run_once", fail)
        worker.engine.promoter.look()
        await tasks.wait_for_release.aenqueue("never")
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await worker.wait()
    assert ledger.statuses() == {"READY": 1}
    assert ledger.workers() == 0


async def test_a_wake_up_during_a_look_at_the_schedule_counts(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = running_store()
    scheduler = Promoter(
        store,
        backend="default",
        waker=SimpleNamespace(wake=lambda wakeups, since=None: None),
        peers=Fleet(),
    )
    scheduler.waiting_for = time.time() + 10
    run_once = scheduler.run_once
    looks = 0

    async def woken_meanwhile() -> float:
        nonlocal looks
        looks += 1
        looking = asyncio.ensure_future(run_once())
        await asyncio.sleep(0)
        if looks == 1:
            scheduler.look(time.time() + 20)
        return await looking

    monkeypatch.setattr(scheduler, "run_once", woken_meanwhile)
    running = asyncio.ensure_future(scheduler.run())
    await until(lambda: looks >= 2)  # else a minute later
    running.cancel()
    await asyncio.wait([running])


def test_a_module_that_exits_when_imported_is_an_unknown_task(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTask, match="SystemExit"):
        resolve("leaves_at_once.task")


async def test_a_driver_that_can_not_close_does_not_end_a_thread(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("close() failed")

    monkeypatch.setattr("aiotasks.db.thread_sessions.ThreadSession.is_private", lambda session: True)
    monkeypatch.setattr("aiotasks.db.thread_sessions.ThreadSession.discard", lambda session: broken())
    threads = SyncThreads(1)
    ran = []

    def run(n: int) -> None:
        connection.ensure_connection()
        ran.append(n)

    for n in range(3):
        await asyncio.wait_for(threads.run(partial(run, n)), 10)
    threads.close()
    assert ran == [0, 1, 2]


async def test_a_receiver_that_hangs_holds_up_no_rescue(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    """Else one monitoring service that is away, and one poison task, would keep all lost tasks RUNNING."""
    configure(LEASE_TIMEOUT=1)
    waits = asyncio.Event()

    async def receiver(**kwargs: Any) -> None:
        waits.set()
        await asyncio.Event().wait()

    await running_of_nobody(conn, "kill_worker_fatally", crashes=2)
    task_finished.connect(receiver)
    try:
        async with aiotasks.Worker(grace=0):
            await waits.wait()
            assert ledger.statuses() == {"FAILED": 1}
            await running_of_nobody(conn, "wait_for_release", crashes=0)
            await until(lambda: ledger.value("SELECT max(crashes) FROM aiotasks_task WHERE crashes < 2") == 1)
    finally:
        task_finished.disconnect(receiver)


async def running_of_nobody(conn: asyncpg.Connection, name: str, *, crashes: int) -> None:
    """A task that a worker has left behind whose row has gone."""
    await conn.execute(
        """
        INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, args, kwargs,
            errors, worker_ids, crashes, enqueued_at, ready_at, claim_id, worker_id, last_attempted_at)
        SELECT new.id, 'default', 'default', $1, 'loop', 0, 'RUNNING', '["x"]', '{}',
            '{}', ARRAY[new.id], $2, now(), now(), new.id, new.id, now()
        FROM gen_random_uuid() AS new (id)
        """,
        f"tests.worker.tasks.{name}",
        crashes,
    )


async def test_a_due_task_that_is_locked_is_no_reason_to_spin(configure: Configure, ledger: Ledger) -> None:
    """Else every worker would ask a thousand times a second for as long as somebody's transaction is open."""
    result = await tasks.add.using(run_after=timezone.now() + timedelta(days=1)).aenqueue(1, 2)
    ledger.rows("UPDATE aiotasks_task SET run_after = now() - interval '1 s' RETURNING id")
    store = running_store()
    scheduler = Promoter(
        store,
        backend="default",
        waker=SimpleNamespace(wake=lambda wakeups, since=None: None),
        peers=Fleet(),
    )
    with ledger.connection.transaction():
        ledger.connection.execute("SELECT FROM aiotasks_task FOR UPDATE")
        assert await scheduler.run_once() == 0.2
    assert await scheduler.run_once() == inf
    assert ledger.task(result.id).status == "READY"


async def test_a_heartbeat_that_dies_ends_the_worker(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lease it would stay, and never claim anything again."""
    configure(LEASE_TIMEOUT=1)

    async def broken(*args: Any, **kwargs: Any) -> bool:
        raise ValueError("a mistake of a driver's")

    await tasks.wait_for_release.aenqueue("never")
    # Nor is the grace for what runs, which may outlast the lease.
    async with asyncio.timeout(TIMEOUT), aiotasks.Worker(grace=3600) as worker:
        await until(lambda: worker.engine.runner.running)
        monkeypatch.setattr(Store, "renew_lease", broken)
        with pytest.raises(ExceptionGroup) as caught:
            await worker.wait()
    assert caught.group_contains(RuntimeError, match="The heartbeat has died")
    assert ledger.statuses() == {"READY": 1}
    assert ledger.workers() == 0


def test_a_signal_at_the_start_does_not_wait_for_a_silent_line(
    start: Start, ledger: Ledger, pg: RunningServer
) -> None:
    with Proxy(pg.host, pg.port) as line:
        line.mode = "blackhole"
        options = {"COMMAND_TIMEOUT": 600}
        process = start("-m", "aiotasks.worker", options=options, env={"AIOTASKS_DB_PORT": str(line.port)})
        wait_until(lambda: line.connections)
        assert process.stop() == 0


# Its heartbeat dies as soon as a task has begun.
FAILING = """
import sys
from aiotasks.store.store import Store
from aiotasks.worker.process.cli import main
from tests.worker import tasks

async def renew(self, *args, **kwargs):
    if tasks.seen:
        raise ValueError("a mistake of a driver's")
    return await renew_lease(self, *args, **kwargs)

renew_lease, Store.renew_lease = Store.renew_lease, renew
sys.exit(main(["--grace", "3600"]))  # which is for what has a lease
"""


@pytest.mark.parametrize(
    "task",
    [tasks.sleep_in_executor, tasks.wait_in_thread, tasks.never_end],
    ids=["executor", "thread", "coroutine"],
)
def test_a_worker_that_fails_leaves_whatever_its_tasks_do(start: Start, ledger: Ledger, task: Any) -> None:
    """Its supervisor would take it for alive."""
    task.enqueue()
    process = start("-c", FAILING, options={"LEASE_TIMEOUT": 1})
    assert process.wait() == 1
    assert "RuntimeError: The heartbeat has died." in process.log
    assert ledger.statuses() == {"READY": 1}


async def test_tasks_in_transaction_blocks_leave_the_worker_its_connections(
    configure: Configure, ledger: Ledger
) -> None:
    """They had all of the pool: nothing was claimed or finished until one of them ended."""
    configure(POOL_MAX_SIZE=4)
    tasks.seen.clear()
    tasks.released.clear()
    async with aiotasks.Worker():
        await default_task_backend.aenqueue_many(tasks.hold_block, [((), {})] * 6)
        await until(lambda: tasks.seen == ["block"] * 2)
        other = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(other.id).status == "SUCCESSFUL")
        assert tasks.seen == ["block"] * 2
        tasks.released.set()
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 7})
