"""What belongs to a worker refuses from a task's context: tasks can't stop it, nor change it for others."""

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

import aiotasks
from aiotasks.exceptions import WorkerLost
from aiotasks.rows import AnyResult
from tests.site import postgres_result

from . import belonging_tasks, loop_ways, tasks
from .harness import Configure, Ledger, Start, until, wait_until

LOOPS = {"uvloop": "", "asyncio": "import sys; sys.modules['uvloop'] = None\n"}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_cannot_take_its_worker_down(
    start_worker: Start, ledger: Ledger, tmp_path: Path, worker_env: dict[str, str], loop: str
) -> None:
    """Whatever they try, one worker runs them all and their neighbours, and ends by SIGTERM with 0."""
    (tmp_path / "sitecustomize.py").write_text(LOOPS[loop])
    worker = start_worker("--grace", "1", env={"PYTHONPATH": f"{tmp_path}:{worker_env['PYTHONPATH']}"})
    assert f"at a time on {loop}\n" in worker.log
    end = tmp_path / "end"
    neighbours = [tasks.wait_for_file.enqueue(str(end)), tasks.wait_for_file_sync.enqueue(str(end))]
    wait_until(lambda: ledger.statuses().get("RUNNING") == 2)
    tried: dict[tuple[str, str], AnyResult] = {}
    # What a task has started itself, others can cancel, so each that does comes alone.
    cancelling = [[way] for way in loop_ways.WAYS if way.startswith("cancel")]
    for ways in [[way for way in loop_ways.WAYS if [way] not in cancelling], *cancelling]:
        for name, task in (("", tasks.reach_for_loop), ("sync", tasks.reach_for_loop_sync)):
            tried |= {(way, name): task.enqueue(way) for way in ways}
            wait_until(lambda: "READY" not in ledger.statuses() and ledger.statuses()["RUNNING"] == 2)
    outcomes = {}
    for key, result in tried.items():
        result.refresh()
        assert len(result.worker_ids) == 1, key
        outcomes[key] = result.errors[0].exception_class_path.rpartition(".")[2] if result.errors else None
    expected = {
        (way, lane): errors.get(way)
        for lane, errors in (("", loop_ways.REFUSED), ("sync", loop_ways.REFUSED_SYNC))
        for way in loop_ways.WAYS
    }
    assert outcomes == expected
    after = [tasks.add.enqueue(1, 2), tasks.add_sync.enqueue(1, 2), tasks.query.enqueue(0.0)]
    wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in after))
    end.touch()
    wait_until(lambda: "RUNNING" not in ledger.statuses())
    assert [ledger.task(one.id).return_value for one in neighbours] == [worker.pid] * 2
    assert "call shutdown_asyncgens() of the worker's event loop" in worker.log
    # One that waits for the worker itself can't be cancelled, nor does that cancel what it waits for.
    waiting = tasks.reach_for_loop.enqueue("gather_others")
    wait_until(lambda: ledger.task(waiting.id).status == "RUNNING")
    postgres_result(waiting).cancel()
    wait_until(lambda: "which isn't its own id=" + waiting.id in worker.log)
    last = tasks.add.enqueue(1, 2)
    wait_until(lambda: ledger.task(last.id).status == "SUCCESSFUL")
    assert worker.stop() == 0


def test_what_kills_workers_fails_and_the_rest_is_done(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """However a worker ends, MAX_CRASHES holds, and its supervisor goes on: no task can send it a signal."""
    options = {"LEASE_TIMEOUT": 2, "MAX_CRASHES": 2}
    # Before the start: a worker that dies before it has said that it is ready made its supervisor give up.
    poison = [tasks.leave_process.enqueue(1), tasks.leave_process.enqueue(0), tasks.kill_worker.enqueue()]
    supervisor = start("-m", "aiotasks.worker", "--processes", "2", "--grace", "10", options=options)
    wait_until(lambda: ledger.statuses() == {"FAILED": len(poison)}, timeout=90)
    for result in poison:
        result.refresh()
        assert [error.exception_class for error in result.errors] == [WorkerLost] * 2
    end = tmp_path / "end"
    neighbours = [tasks.wait_for_file.enqueue(str(end)), tasks.wait_for_file_sync.enqueue(str(end))]
    refused = [
        tasks.kill.enqueue(*sent)
        for sent in [
            ("supervisor", signal.SIGTERM),
            ("supervisor", signal.SIGKILL),
            ("group", signal.SIGINT),
            ("killpg", signal.SIGQUIT),
        ]
    ]
    wait_until(lambda: ledger.statuses() == {"FAILED": len(poison) + len(refused), "RUNNING": 2}, timeout=60)
    for result in refused:
        result.refresh()
        assert [error.exception_class for error in result.errors] == [PermissionError]
    end.touch()
    wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in neighbours))
    assert supervisor.stop() == 0, supervisor.log


def test_the_default_executor_is_the_tasks_alone(
    start_worker: Start, ledger: Ledger, tmp_path: Path, worker_env: dict[str, str]
) -> None:
    """A worker imports tasks and looks up its database's host name whatever they do in there."""
    (tmp_path / "sitecustomize.py").write_text(LOOPS["asyncio"])  # uvloop looks names up by itself
    env = {"PYTHONPATH": f"{tmp_path}:{worker_env['PYTHONPATH']}", "AIOTASKS_DB_HOST": "localhost"}
    worker = start_worker("--grace", "10", env=env, options={"POLL_INTERVAL": 1})
    end = tmp_path / "end"
    occupying = [belonging_tasks.wait_for_file_in_executor.enqueue(str(end)) for _ in range(40)]
    wait_until(lambda: ledger.statuses() == {"RUNNING": len(occupying)})
    late = tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2)
    ledger.connection.execute(
        "UPDATE aiotasks_task SET task_path = 'tests.worker.late_module.late', args = '[]', "
        "status = 'READY', ready_at = now() WHERE id = %s",
        [late.id],
    )
    wait_until(lambda: ledger.task(late.id).status in ("SUCCESSFUL", "FAILED"))
    cut = ledger.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'aiotasks' AND datname = current_database()"
    )
    assert len(cut) > 2
    after = tasks.add.enqueue(1, 2)
    wait_until(lambda: ledger.task(after.id).status == "SUCCESSFUL")
    end.touch()
    wait_until(lambda: set(ledger.statuses()) == {"SUCCESSFUL"})
    assert ledger.task(late.id).return_value == "tests.worker.late_module"
    assert worker.stop() == 0


async def test_an_embedded_worker_does_not_end_silently(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Its loop is the site's: whatever is on it can cancel its parts."""
    configure()
    async with aiotasks.Worker(grace=0) as worker:
        (claimer,) = [one for one in asyncio.all_tasks() if one.get_name() == "aiotasks claimer"]
        claimer.cancel()
        await worker.wait()
    await until(lambda: "The worker has ended; this process runs no more tasks" in caplog.text)
    assert ledger.workers() == 0


async def test_tasks_of_an_embedded_worker_are_protected_from_each_other(
    configure: Configure, ledger: Ledger
) -> None:
    configure()
    tasks.seen.clear()
    async with aiotasks.Worker(grace=0):
        held = await tasks.wait_for_release.aenqueue("held")
        await until(lambda: tasks.seen == ["held"])
        await belonging_tasks.cancel_running.aenqueue("tests.worker.tasks.wait_for_release")
        await until(lambda: ledger.statuses() == {"RUNNING": 1, "SUCCESSFUL": 1})
        tasks.waiting["held"].set_result(None)
        await until(lambda: ledger.task(held.id).status == "SUCCESSFUL")
