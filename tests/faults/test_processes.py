"""Workers that are killed, stopped and told to go, as real processes."""

import signal

import pytest
from django.tasks import TaskResultStatus

from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Ledger, Start, wait_until

SHORT_LEASE = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1}


def test_kill_9_loses_nothing(start_worker: Start, ledger: Ledger) -> None:
    """6: what a killed worker ran is recovered by another, and nothing but that runs twice."""
    victim = start_worker("--concurrency", "10", "--threads", "5", options=SHORT_LEASE)
    default_task_backend.enqueue_many(tasks.work, [((0.2,), {})] * 45)
    default_task_backend.enqueue_many(tasks.work_sync, [((0.2,), {})] * 20)
    wait_until(lambda: ledger.events("end") >= 15 and ledger.statuses().get("RUNNING", 0) >= 5)
    victim.kill()
    # What it had sent by then, the server has done.
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiotasks' AND state <> 'idle'"
    wait_until(lambda: ledger.value(sessions) == 0)
    in_flight = ledger.statuses()["RUNNING"]
    assert in_flight > 0  # those in the 15 slots, and those whose outcomes weren't written yet
    rescuer = start_worker("--concurrency", "30", "--threads", "20", options=SHORT_LEASE)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 65})
    repeated = ledger.value(
        "SELECT count(*) FROM "
        "(SELECT task_id FROM ledger WHERE event = 'start' GROUP BY 1 HAVING count(*) > 1) AS again"
    )
    assert repeated <= in_flight
    crashed = ledger.rows(
        "SELECT cardinality(worker_ids) AS attempts, errors::text[] FROM aiotasks_task WHERE crashes > 0"
    )
    assert len(crashed) == in_flight
    assert all(row.attempts == 2 and "WorkerLost" in row.errors[0] for row in crashed)
    wait_until(lambda: ledger.workers() == 1)  # the dead one's row is cleared away
    assert rescuer.stop() == 0
    assert ledger.workers() == 0


def test_sigstop_past_the_lease_overwrites_nothing(start_worker: Start, ledger: Ledger) -> None:
    """1: the paused worker's result is rejected while another runs the task; it goes on under a new id."""
    zombie = start_worker("--concurrency", "1", options=SHORT_LEASE)
    result = tasks.work_longer_again.enqueue(1.0, 4.0)
    wait_until(lambda: ledger.events("start") >= 1)
    zombie.send(signal.SIGSTOP)
    first = ledger.task(result.id)
    other = start_worker("--concurrency", "1", options=SHORT_LEASE)
    wait_until(lambda: ledger.events("start") >= 2)
    second = ledger.task(result.id)
    assert second.claim_id != first.claim_id
    zombie.send(signal.SIGCONT)
    zombie.wait_for("Result rejected (fenced)")
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert ledger.task(result.id).claim_id == second.claim_id
    result.refresh()
    assert result.return_value == other.pid
    assert ledger.events("start") == 2
    assert other.stop() == 0
    again = tasks.work.enqueue()
    wait_until(lambda: ledger.task(again.id).status == "SUCCESSFUL")  # by the former zombie
    assert zombie.stop() == 0
    assert ledger.workers() == 0


def test_poison_fails_after_three_crashes(start_worker: Start, ledger: Ledger) -> None:
    """7: a task that kills its worker is given up, and its neighbours succeed."""
    poison = tasks.kill_worker.enqueue()
    fatal = tasks.kill_worker_fatally.enqueue()
    neighbours = default_task_backend.enqueue_many(tasks.work, [((), {})] * 3)
    for _ in range(4):
        # Not until it is ready: it may be dead before it could say so.
        worker = start_worker("--concurrency", "1", ready=False, options=SHORT_LEASE)
        assert worker.wait() == -signal.SIGKILL
    worker = start_worker("--concurrency", "1", options=SHORT_LEASE)
    wait_until(lambda: ledger.statuses() == {"FAILED": 2, "SUCCESSFUL": 3})
    assert ledger.events("start", poison.id) == 3
    assert ledger.events("start", fatal.id) == 1
    for result, crashes in ((poison, 3), (fatal, 1)):
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
        assert [error.exception_class_path for error in result.errors] == [
            "aiotasks.exceptions.WorkerLost"
        ] * crashes
        assert ledger.task(result.id).crashes == crashes
    for result in neighbours:
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL
    assert worker.stop() == 0


def test_a_blocked_loop_keeps_its_tasks(start_worker: Start, ledger: Ledger) -> None:
    """3: the heartbeat's thread renews the lease while a coroutine blocks the loop for over two of them."""
    blocked = start_worker("--concurrency", "5", options=SHORT_LEASE)
    beside = tasks.work.enqueue(0.5)
    wait_until(lambda: ledger.events("start") >= 1)
    result = tasks.block.enqueue(5.0)
    wait_until(lambda: ledger.events("start") >= 2)
    other = start_worker("--concurrency", "5", options=SHORT_LEASE)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    assert ledger.events("start") == 2
    assert [len(ledger.task(one.id).worker_ids) for one in (beside, result)] == [1, 1]
    assert blocked.log.count("The event loop is blocked") == 1
    assert "task='tests.worker.tasks.block'" in blocked.log
    assert "time.sleep(seconds)" in blocked.log  # where it was seen
    assert "fenced" not in blocked.log
    assert "Rescued" not in other.log
    assert [other.stop(), blocked.stop()] == [0, 0]


def test_a_worker_whose_gil_is_held_is_fenced(start_worker: Start, ledger: Ledger) -> None:
    """3: it can't renew, so another runs its task; its own outcome comes too late."""
    workers = [start_worker("--concurrency", "1", options=SHORT_LEASE) for _ in range(2)]
    result = tasks.hold_gil.enqueue(6.0)
    wait_until(lambda: ledger.events("start") >= 1)
    owner = str(ledger.task(result.id).worker_ids[0])
    held, other = sorted(workers, key=lambda worker: owner not in worker.log)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    finished = ledger.task(result.id)
    assert finished.crashes == 1
    held.wait_for("Result rejected (fenced)")
    assert ledger.task(result.id) == finished
    assert [other.stop(), held.stop()] == [0, 0]


def test_sigterm_lets_running_tasks_finish(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker("--concurrency", "2", "--threads", "2")
    default_task_backend.enqueue_many(tasks.work, [((1.0,), {})] * 4)
    default_task_backend.enqueue_many(tasks.work_sync, [((1.0,), {})] * 4)
    wait_until(lambda: ledger.events("start") >= 4)
    assert worker.stop() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 4, "READY": 4}
    assert ledger.events("start") == 4
    assert ledger.workers() == 0
    assert "stopped" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_beyond_the_grace_tasks_go_back_unspent(start_worker: Start, ledger: Ledger, number: int) -> None:
    """30, 31: coroutines are cancelled, threads left behind; all is READY again, the exit on time."""
    worker = start_worker("--grace", "0.5")
    results = [
        tasks.work.enqueue(60.0),
        tasks.clean_up_when_cancelled.enqueue(),
        tasks.swallow_cancellation.enqueue(),
        tasks.work_sync.enqueue(60.0),
    ]
    wait_until(lambda: ledger.events("start") >= 4)
    assert worker.stop(number) == 0
    for result in results:
        row = ledger.task(result.id)
        assert (row.status, row.claim_id, row.worker_ids, row.started_at) == ("READY", None, [], None)
        assert (row.crashes, row.errors) == (0, [])
    assert ledger.events("cleaned") == 1
    assert ledger.workers() == 0
    assert worker.log.count("outlasted the shutdown") == 2
    assert "Traceback" not in worker.log


def test_a_second_signal_forces(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker("--grace", "600")
    results = [tasks.work.enqueue(60.0), tasks.work_sync.enqueue(60.0)]
    wait_until(lambda: ledger.events("start") >= 2)
    worker.send(signal.SIGTERM)
    worker.wait_for("stopping")
    assert worker.is_alive()
    assert worker.stop(signal.SIGINT) == 0
    assert [ledger.task(result.id).status for result in results] == ["READY", "READY"]
    assert ledger.workers() == 0


def test_sigterm_under_load_leaves_nothing_running(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker("--grace", "5")
    default_task_backend.enqueue_many(tasks.add, [((1, 2), {})] * 3000)
    default_task_backend.enqueue_many(tasks.add_sync, [((1, 2), {})] * 300)
    wait_until(lambda: ledger.statuses().get("SUCCESSFUL", 0) > 100)
    assert worker.stop() == 0
    assert ledger.statuses().keys() <= {"SUCCESSFUL", "READY"}
    spent = "SELECT count(*) FROM aiotasks_task WHERE status = 'READY' AND cardinality(worker_ids) > 0"
    assert ledger.value(spent) == 0
    assert ledger.workers() == 0
    rest = start_worker("--until-empty")
    assert rest.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 3300}


def test_a_signal_during_the_start_ends_it(start_worker: Start, ledger: Ledger) -> None:
    """Also while it waits for a database that is away."""
    worker = start_worker(ready=False, env={"AIOTASKS_DB_PORT": "1"})
    worker.wait_for("waits for its database")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log
