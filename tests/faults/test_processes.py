"""Workers that are killed, stopped and told to go, as real processes."""

import signal

from django.tasks import TaskResultStatus, default_task_backend

from tests.worker import tasks
from tests.worker.harness import Ledger, Start, wait_until

SHORT_LEASE = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1}


def test_kill_9_loses_nothing(start_worker: Start, ledger: Ledger) -> None:
    """6: what a killed worker ran is recovered by another, and nothing but that runs twice."""
    victim = start_worker("--concurrency", "10", "--threads", "5", options=SHORT_LEASE)
    default_task_backend.enqueue_many(tasks.work, [((0.2,), {})] * 45)
    default_task_backend.enqueue_many(tasks.work_sync, [((0.2,), {})] * 20)
    wait_until(lambda: ledger.events("end") >= 15)
    victim.kill()
    in_flight = ledger.statuses()["RUNNING"]
    assert 0 < in_flight <= 15
    rescuer = start_worker("--concurrency", "30", "--threads", "20", options=SHORT_LEASE)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 65})
    repeated = ledger.value(
        "SELECT count(*) FROM (SELECT task_id FROM ledger WHERE event = 'start' GROUP BY 1 HAVING count(*) > 1) AS again"
    )
    assert repeated <= in_flight
    crashed = ledger.rows("SELECT cardinality(worker_ids) AS attempts, errors::text[] FROM aiotasks_task WHERE crashes > 0")
    assert len(crashed) == in_flight
    assert all(row.attempts == 2 and "WorkerLost" in row.errors[0] for row in crashed)
    wait_until(lambda: ledger.workers() == 1)  # the dead one's row is cleared away
    assert rescuer.stop() == 0
    assert ledger.workers() == 0


def test_sigstop_past_the_lease_overwrites_nothing(start_worker: Start, ledger: Ledger) -> None:
    """1: the paused worker's outcome is fenced off when it comes back, and it goes on under a new id."""
    zombie = start_worker("--concurrency", "1", options=SHORT_LEASE)
    result = tasks.work_sync.enqueue(1.0)
    wait_until(lambda: ledger.events("start") == 1)
    zombie.send(signal.SIGSTOP)
    first = ledger.task(result.id)
    other = start_worker("--concurrency", "1", options=SHORT_LEASE)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    finished = ledger.task(result.id)
    assert finished.claim_id != first.claim_id
    zombie.send(signal.SIGCONT)
    zombie.wait_for("a late outcome was fenced off")
    assert ledger.task(result.id) == finished
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
        worker = start_worker("--concurrency", "1", options={**SHORT_LEASE, "LEASE_TIMEOUT": 1})
        wait_until(lambda worker=worker: not worker.is_alive() or set(ledger.statuses()) == {"FAILED", "SUCCESSFUL"})
        if worker.is_alive():
            break
        assert worker.wait() == -signal.SIGKILL
    wait_until(lambda: set(ledger.statuses()) == {"FAILED", "SUCCESSFUL"})
    assert ledger.events("start", poison.id) == 3
    assert ledger.events("start", fatal.id) == 1
    for result, crashes in ((poison, 3), (fatal, 1)):
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
        assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.WorkerLost"] * crashes
        assert ledger.task(result.id).crashes == crashes
    for result in neighbours:
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL
    assert worker.stop() == 0
