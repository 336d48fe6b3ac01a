"""The database goes away, comes back, or cuts connections, under workers that are real processes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import aiotasks
from aiotasks.db import listener as listener_module
from aiotasks.db.connect import connect
from aiotasks.demo.postgres import PostgresServer
from tests.faults.away import LISTENERS, Away, environment
from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until

QUICK = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1, "COMMAND_TIMEOUT": 2}


@pytest.fixture
def away(own_server: PostgresServer) -> Iterator[Away]:
    away = Away(own_server)
    away.rows("TRUNCATE aiotasks_task, aiotasks_worker, ledger")
    yield away
    away.close()


def test_immediate_restarts_under_load_lose_nothing(start_worker: Start, away: Away) -> None:
    """12: no worker exits, every task reaches its end."""
    env = environment(away.server)
    workers = [
        start_worker("--concurrency", "10", "--threads", "4", options=QUICK, env=env, ready=False)
        for _ in range(2)
    ]
    for worker in workers:
        worker.wait_for("connections: at most")
    total = 0
    for _ in range(3):
        away.enqueue("work", 0.02, count=100)
        away.enqueue("work_sync", 0.02, count=20, lane="thread")
        total += 120
        done = away.statuses().get("SUCCESSFUL", 0)
        wait_until(lambda done=done: away.statuses().get("SUCCESSFUL", 0) > done + 10)
        away.server.restart("immediate")
    away.enqueue("work", 0.0, count=50)
    wait_until(lambda: away.statuses() == {"SUCCESSFUL": total + 50})
    ended = "SELECT count(DISTINCT task_id) FROM ledger WHERE event = 'end'"
    assert away.value(ended) == total + 50
    assert all(worker.is_alive() for worker in workers)
    assert [worker.stop() for worker in workers] == [0, 0]
    assert away.value("SELECT count(*) FROM aiotasks_worker") == 0
    assert "Traceback" not in "".join(worker.log for worker in workers)


def test_a_crash_of_the_server_takes_back_no_metadata(
    start_worker: Start, away: Away, tmp_path: Path
) -> None:
    """80: what a task has saved is there at its end, though nothing has changed since."""
    worker = start_worker("--concurrency", "20", options=QUICK, env=environment(away.server))
    path, steps = tmp_path / "step", 4
    away.enqueue("notes_steps", str(path), steps, count=20)
    for step in range(steps):
        saved = f"SELECT count(*) FROM aiotasks_task WHERE metadata->>'step {step}' IS NOT NULL"
        wait_until(lambda saved=saved: away.value(saved) == 20)
        away.server.restart("immediate")
        Path(f"{path}{step}").touch()
    wait_until(lambda: away.statuses() == {"SUCCESSFUL": 20})
    every_step = {f"step {step}": True for step in range(steps)}
    assert away.rows("SELECT metadata FROM aiotasks_task") == [(every_step,)] * 20
    assert away.value("SELECT max(cardinality(worker_ids)) FROM aiotasks_task") == 1
    assert worker.stop() == 0


def test_an_outage_longer_than_a_lease_is_nobodys_crash(start_worker: Start, away: Away) -> None:
    """53: both workers keep their tasks, and neither rescues the other's."""
    env = environment(away.server)
    workers = [
        start_worker(
            "--concurrency",
            "5",
            "--threads",
            "5",
            options=QUICK,
            env=env,
            ready=False,
        )
        for _ in range(2)
    ]
    for worker in workers:
        worker.wait_for("connections: at most")
    away.enqueue("work", 6.0, count=8)
    away.enqueue("work_sync", 6.0, count=8, lane="thread")
    wait_until(lambda: away.value("SELECT count(*) FROM ledger WHERE event = 'start'") >= 16)
    away.server.stop("fast")
    for worker in workers:
        worker.wait_for("cannot be renewed")
    time.sleep(4.0)  # load: an outage of two leases
    away.server.start()
    wait_until(lambda: away.statuses() == {"SUCCESSFUL": 16})
    assert away.value("SELECT count(*) FROM ledger WHERE event = 'start'") == 16
    assert away.value("SELECT max(cardinality(worker_ids)) FROM aiotasks_task") == 1
    assert away.value("SELECT max(crashes) FROM aiotasks_task") == 0
    log = "".join(worker.log for worker in workers)
    assert "Rescued" not in log
    assert "fenced" not in log
    assert [worker.stop() for worker in workers] == [0, 0]


def test_sigterm_while_the_database_is_away(start_worker: Start, away: Away) -> None:
    """It leaves on time; what it couldn't write is another's to rescue."""
    env = environment(away.server)
    options = {**QUICK, "LEASE_TIMEOUT": 1}
    worker = start_worker("--grace", "0.5", options=options, env=env)
    away.enqueue("work", 60.0)
    wait_until(lambda: away.statuses() == {"RUNNING": 1})
    away.server.stop("fast")
    try:
        worker.wait_for("cannot be renewed")
        assert worker.stop() == 0
        assert "Traceback" not in worker.log
    finally:
        away.server.start()
    away.rows("UPDATE aiotasks_task SET args = '[0]'")
    assert start_worker("--until-empty", options=options, env=env, ready=False).wait() == 0
    assert away.statuses() == {"SUCCESSFUL": 1}


def test_a_worker_waits_for_a_server_that_starts(start_worker: Start, away: Away) -> None:
    env = environment(away.server)
    away.enqueue("work", 0.0)
    away.server.stop("fast")
    try:
        worker = start_worker("--until-empty", options=QUICK, env=env, ready=False)
        worker.wait_for("the worker waits for its database")
        assert worker.is_alive()
    finally:
        away.server.start()
    assert worker.wait() == 0
    assert away.statuses() == {"SUCCESSFUL": 1}
    assert "Traceback" not in worker.log


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    start_worker: Start, away: Away
) -> None:
    """For each loop of the worker, however many tries it takes."""
    worker = start_worker(options={**QUICK, "POLL_INTERVAL": 0.2}, env=environment(away.server))
    parts = ["claims", "lease", "listener of default"]
    away.server.stop("fast")
    for part in parts:
        worker.wait_for(f"part={part!r} error=")
    time.sleep(1.0)  # load: several tries of each
    away.server.start()
    for part in parts:
        worker.wait_for(f"Outage ended part={part!r}")
    for part in parts:
        assert worker.log.count(f"part={part!r} error=") == 1
        assert worker.log.count(f"Outage ended part={part!r} seconds=") == 1
    assert worker.stop() == 0


def test_cut_connections_lose_nothing(start_worker: Start, ledger: Ledger) -> None:
    """15: all of the worker's, the listener's too, again and again under load."""
    worker = start_worker("--concurrency", "10", "--threads", "4", options=QUICK)
    stop = threading.Event()

    def cut() -> None:
        with psycopg.connect(ledger.connection.info.dsn, autocommit=True) as connection:
            while not stop.wait(0.15):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'aiotasks'"
                )

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        for _ in range(3):
            default_task_backend.enqueue_many(tasks.work, [((0.02,), {})] * 60)
            default_task_backend.enqueue_many(tasks.work_sync, [((0.02,), {})] * 20)
            time.sleep(0.3)  # load: so that the cuts fall between and into batches
        wait_until(lambda: ledger.statuses().get("SUCCESSFUL", 0) > 50)
    finally:
        stop.set()
        cutter.join()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 240})
    assert worker.is_alive()
    # The pool is whole again, and LISTEN is back: what comes now starts at once, long before a poll.
    assert ledger.value("SELECT count(DISTINCT task_id) FROM ledger WHERE event = 'end'") == 240
    assert worker.stop() == 0
    assert ledger.workers() == 0


def listeners(ledger: Ledger) -> list[int]:
    return [row.pid for row in ledger.rows(LISTENERS)]


def test_the_listener_comes_back(start_worker: Start, ledger: Ledger) -> None:
    """15, 16: no poll for an hour, so whatever starts was heard of, or looked for when LISTEN was back."""
    worker = start_worker(options={"POLL_INTERVAL": 3600})
    for _ in range(5):
        (listener,) = wait_until(lambda: listeners(ledger))
        ledger.rows("SELECT pg_terminate_backend(%s)", listener)
        during = tasks.work.enqueue()  # while it reconnects, perhaps
        wait_until(lambda during=during: ledger.task(during.id).status == "SUCCESSFUL")
        wait_until(lambda listener=listener: (now := listeners(ledger)) and listener not in now)
        after = tasks.work.enqueue()
        wait_until(lambda after=after: ledger.task(after.id).status == "SUCCESSFUL")
    assert "Outage began: NOTIFY is not received" in worker.log
    assert worker.stop() == 0


async def test_what_was_enqueued_while_nobody_listened_is_found(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16: LISTEN first, then a claim at once."""
    configure(POLL_INTERVAL=3600)
    async with aiotasks.Worker() as worker:
        gate = threading.Event()

        async def wait_and_connect(*args: Any, **kwargs: Any) -> Any:
            await until(gate.is_set)
            return await connect(*args, **kwargs)

        monkeypatch.setattr(listener_module, "connect", wait_and_connect)
        (pid,) = listeners(ledger)
        ledger.rows("SELECT pg_terminate_backend(%s)", pid)
        listening = worker.engine.resources.wakeups.listening
        await until(lambda: not listening.is_set())
        # By SQL, as from another process: nobody in this one is told.
        ledger.rows(
            "INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, "
            "args, kwargs, errors, worker_ids, crashes, enqueued_at, ready_at) "
            "VALUES (gen_random_uuid(), 'default', 'default', 'tests.worker.tasks.add', 'loop', 0, 'READY', "
            "'[1, 2]', '{}', '{}', '{}', 0, now(), now()) RETURNING id"
        )
        assert ledger.statuses() == {"READY": 1}
        gate.set()
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})


def test_finishes_blocked_by_a_lock_go_through_later(start_worker: Start, ledger: Ledger) -> None:
    """12: a statement that runs into its timeout is repeated; nothing is lost, nothing runs twice."""
    worker = start_worker(options={**QUICK, "LEASE_TIMEOUT": 30, "COMMAND_TIMEOUT": 0.3})
    result = tasks.work.enqueue(0.3)
    wait_until(lambda: ledger.events("start") >= 1)
    with psycopg.connect(ledger.connection.info.dsn) as blocker:
        blocker.execute("LOCK TABLE aiotasks_task IN EXCLUSIVE MODE")
        worker.wait_for("outcomes wait for the database")
        blocker.rollback()
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert ledger.events("start") == 1
    assert worker.stop() == 0
    assert "fenced" not in worker.log
