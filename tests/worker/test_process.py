"""The process around a worker: its signals, its end, and the processes that tasks start."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import transaction

from aiotasks import Worker
from aiotasks.rows import AnyResult
from tests.conftest import ROOT
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker on that loop."""
    if request.param == "uvloop":
        return {}
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['uvloop'] = None\n")
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """What nohup or a shell's "&" has ignored for this run, and a process that it starts would, too."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def is_unspent(ledger: Ledger, result: AnyResult) -> bool:
    row = ledger.task(result.id)
    return (row.status, row.worker_ids, row.crashes) == ("READY", [], 0)


# --- Signals

NEVER_MEANT = [
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
    *(signal.SIGRTMIN, signal.SIGRTMIN + 1),
]


def test_signals_end_it_or_dont(start_worker: Start, ledger: Ledger, loop_env: dict[str, str]) -> None:
    worker = start_worker("--grace", "60", env={**loop_env, "TEST_USE_TZ": "0"})
    alarm = tasks.use_alarm.enqueue()
    taken = tasks.take_signals.enqueue()
    wait_until(lambda: ledger.task(taken.id).status == "SUCCESSFUL")
    wait_until(lambda: "Restored signal handlers that other code had replaced" in worker.log)
    asynchronous = tasks.work_once.enqueue(8.0)
    synchronous = tasks.work_sync.enqueue(1.0)
    wait_until(lambda: ledger.events("start") >= 2)
    for number in NEVER_MEANT:
        worker.send(number)
    worker.wait_for("Ignored signal=SIGUSR2")
    worker.send(signal.SIGUSR1)
    report = worker.wait_for("Thread aiotasks-heartbeat (daemon)")
    assert re.search(rf"loop task {asynchronous.id} tests.worker.tasks.work_once, for [\d.]+ s\n", report)
    assert re.search(rf"thread task {synchronous.id} tests.worker.tasks.work_sync, for [\d.]+ s\n", report)
    assert "in work_once\n    await asyncio.sleep(seconds)\n" in report
    assert "in work_sync\n    time.sleep(seconds)\n" in report
    assert re.search(r"The event loop last ran [\d.]+ s ago\.", report)
    worker.send(signal.SIGHUP)
    worker.wait_for("stopping, running=")
    assert worker.wait() == 0
    for result in (alarm, asynchronous, synchronous):
        assert ledger.task(result.id).status == "SUCCESSFUL"
    assert ledger.workers() == 0


def test_sigquit_gives_back_without_grace(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker("--grace", "600", "--threads", "1")
    results = [tasks.work_once.enqueue(600.0), tasks.work_sync.enqueue(600.0)]
    wait_until(lambda: ledger.events("start") >= 2)
    assert worker.stop(signal.SIGQUIT) == 0
    assert all(is_unspent(ledger, result) for result in results)
    assert ledger.workers() == 0


def test_who_runs_it_with_nohup_wants_it_to_go_on(start: Start, ledger: Ledger) -> None:
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    code += "os.execv(sys.executable, [sys.executable, '-m', 'aiotasks.worker'])"
    worker = start("-c", code)
    worker.wait_for("connections: at most")
    worker.send(signal.SIGHUP)
    result = tasks.add.enqueue(1, 2)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_the_supervisor_and_its_workers_spends_nothing(
    start: Start, ledger: Ledger, number: signal.Signals
) -> None:
    """As systemd sends the service's KillSignal."""
    grace = "600" if number == signal.SIGQUIT else "0"
    process = start(
        *("-m", "aiotasks.worker", "--processes", "2", "--concurrency", "1", "--threads", "1"),
        *("--grace", grace),
    )
    results = [tasks.work_once.enqueue(600.0), tasks.work_once.enqueue(600.0), tasks.work_sync.enqueue(600.0)]
    wait_until(lambda: ledger.events("start") >= 3)
    process.send(signal.SIGUSR2)
    process.send(signal.SIGUSR1)
    wait_until(lambda: process.log.count("Thread aiotasks-heartbeat (daemon)") >= 2)
    workers = psutil.Process(process.pid).children()
    for pid in (process.pid, *(worker.pid for worker in workers)):
        os.kill(pid, number)
    assert process.wait() == 0
    assert all(is_unspent(ledger, result) for result in results)
    assert ledger.workers() == 0


# --- A loop that hangs for good


@pytest.mark.parametrize("way", ["lock", "endless loop"])
def test_a_worker_whose_loop_hangs_is_replaced(
    start: Start, ledger: Ledger, tmp_path: Path, way: str, loop_env: dict[str, str]
) -> None:
    """The task that hangs it counts as crashed, and its neighbours are given back unspent."""
    process = start(
        *("-m", "aiotasks.worker", "--processes", "2", "--concurrency", "3"),
        options={"LOOP_TIMEOUT": 1, "LEASE_TIMEOUT": 10, "POLL_INTERVAL": 1},
        env=loop_env,
    )
    wait_until(lambda: ledger.workers() == 2)
    go = tmp_path / "go"
    neighbours = [
        task.enqueue(os.fspath(go))
        for task in (tasks.wait_for_file, tasks.wait_for_file_sync)
        for _ in range(4)
    ]
    wait_until(lambda: ledger.statuses() == {"RUNNING": 8})
    culprit = tasks.hang.enqueue(way)
    log = process.wait_for("The event loop hangs; the process ends")
    assert f"id={culprit.id} path='tests.worker.tasks.hang'" in log
    assert "in deadlock\n    lock.acquire()" in log or "in hang\n    while True" in log
    wait_until(lambda: ledger.task(culprit.id).status == "SUCCESSFUL")
    wait_until(lambda: re.search(r"starting another pid=\d+ exit=1 ", process.log))
    go.touch()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 9})
    assert ledger.task(culprit.id).crashes == 1
    assert not any(ledger.task(result.id).crashes for result in neighbours)
    assert all(len(ledger.task(result.id).worker_ids) == 1 for result in neighbours)
    assert process.stop() == 0


def test_a_worker_whose_loop_hangs_ends_when_told_to(
    start_worker: Start, ledger: Ledger, loop_env: dict[str, str]
) -> None:
    worker = start_worker("--grace", "1", env=loop_env, options={"LEASE_TIMEOUT": 600})
    results = [tasks.work_once.enqueue(600.0), tasks.work_sync.enqueue(600.0)]
    wait_until(lambda: ledger.events("start") >= 2)
    results.append(tasks.hang.enqueue())
    wait_until(lambda: ledger.events("start") >= 3)
    assert worker.stop() == 1
    assert "Ending the worker by force, because its event loop does not end" in worker.log
    assert "in deadlock\n    lock.acquire()" in worker.log
    assert all(is_unspent(ledger, result) for result in results)
    assert ledger.workers() == 0


def test_what_was_claimed_with_a_task_that_hangs_the_loop_is_given_back(
    start_worker: Start, ledger: Ledger
) -> None:
    """One claim brings them all, and the first to be started hangs in its first step."""
    worker = start_worker(options={"LOOP_TIMEOUT": 1, "LEASE_TIMEOUT": 600})
    tasks.block.enqueue(0.0)  # now it is known, so that the next begins at once
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
    with transaction.atomic():
        culprit = tasks.block.using(priority=1).enqueue(600.0)
        neighbours = [task.enqueue(0.0) for task in (tasks.work_once, tasks.work_once, tasks.work_sync)]
    assert worker.wait() == 1
    assert ledger.task(culprit.id).status == "RUNNING"
    assert all(is_unspent(ledger, result) for result in neighbours)
    assert ledger.workers() == 0


async def test_an_embedded_worker_whose_loop_hangs_gives_up_its_lease(
    ledger: Ledger, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(LOOP_TIMEOUT=1, LEASE_TIMEOUT=0.6, POLL_INTERVAL=1)
    async with Worker():
        await asyncio.create_task(_block_until(lambda: "other workers take over its tasks" in caplog.text))
        await asyncio.create_task(_block_until(lambda: ledger.rows(EXPIRED)))
        result = await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")


EXPIRED = "SELECT 1 FROM aiotasks_worker WHERE lease_expires_at < clock_timestamp()"


async def _block_until(condition: Callable[[], object]) -> None:
    wait_until(condition)


# --- The end

# Names in any order, and beside others that end a little later on a busy machine.
LEFT = {
    "a thread": r"left behind by tasks delay the exit names=(?=.*\bleft-thread\b)(?=.*\bThread-\d)",
    "executors": r"left behind by tasks delay the exit names="
    r"(?=.*\baiotasks-default-\d)(?=.*\bleft-pool_0\b)(?=.*\bleft-daemons_0\b)",
    "an asyncio task": r"left behind by tasks do not end names=left-task\n",
    "a child": r"The process ends although its atexit functions still run",
    "atexit": r"The process ends although its atexit functions still run",
    "nothing": r"INFO aiotasks.worker: until empty: [^\n]*\n\Z",
}


@pytest.mark.parametrize("left", LEFT)
def test_what_tasks_leave_behind_does_not_keep_the_process(
    start_worker: Start, ledger: Ledger, tmp_path: Path, left: str
) -> None:
    """And functions of atexit are called all the same, unless one of them hangs."""
    called = tmp_path / "called"
    tasks.leave_behind.enqueue(left, os.fspath(called))
    worker = start_worker("--until-empty", "--grace", "0", ready=False)
    code = worker.wait()
    if left == "a child":
        os.kill(int((tmp_path / "called.pid").read_text()), signal.SIGKILL)
    assert code == 0
    assert re.search(LEFT[left], worker.log)
    assert ledger.statuses() == {"SUCCESSFUL": 1}
    assert ledger.workers() == 0
    assert called.exists() is (left not in ("atexit", "a child"))


def test_it_waits_for_them_within_the_grace_and_a_signal_ends_that(start: Start, ledger: Ledger) -> None:
    tasks.leave_behind.enqueue("a thread", os.devnull)
    process = start(*("-m", "aiotasks.worker", "--processes", "2", "--grace", "600"))
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
    wait_until(lambda: process.log.count("connections: at most") >= 2)
    process.send(signal.SIGTERM)
    process.wait_for("delay the exit names=left-thread")
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_output_that_nobody_reads_does_not_keep_the_process(
    worker_env: dict[str, str], ledger: Ledger
) -> None:
    result = tasks.print_much.enqueue()
    with subprocess.Popen(
        [sys.executable, "-m", "aiotasks.worker", "--grace", "0"],
        env={**worker_env, "DJANGO_SETTINGS_MODULE": "tests.worker.settings"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            wait_until(lambda: ledger.events("start") >= 1)
            process.terminate()
            wait_until(lambda: process.poll() is not None)
        finally:
            process.kill()
    assert is_unspent(ledger, result)
    assert ledger.workers() == 0


def test_as_process_1_it_says_what_is_missing_and_ends_while_it_imports(
    start: Start, ledger: Ledger, tmp_path: Path
) -> None:
    """The kernel ignores what the first process of a container has no handler for."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    code = "import os, sys; os.execvp('unshare', ['unshare', '--fork', '--pid', *sys.argv[1:]])"
    command = ["-c", code, sys.executable, "-m", "aiotasks.worker", "--until-empty"]
    process = start(*command)
    assert process.wait() == 0
    assert "This is process 1 of its container" in process.log
    (tmp_path / "slow.py").write_text("import time; print('importing', flush=True); time.sleep(600)\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    process = start(*command, env={"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "slow"})
    process.wait_for("importing")
    (inner,) = psutil.Process(process.pid).children()
    inner.terminate()
    assert process.wait() == 128 + signal.SIGTERM


# --- Processes that tasks start

FORKS = {
    "process": -signal.SIGTERM,
    "forkserver": -signal.SIGTERM,
    "pool": [1, 2],
    "executor": [1, 2],
    "popen": [-signal.SIGTERM, 3, 0, 4],
    "exits": 7,
    "sys_exits": 8,
    "raises": 1,
    "returns": 0,
    "orm": [0, True],
    "awaits": True,
    "returns_in_executor": 0,
    "returns_in_orm_thread": 0,
}
ASYNC = ["awaits", "returns_in_executor", "returns_in_orm_thread"]


def test_children_make_a_pool_of_their_own(start_worker: Start, ledger: Ledger) -> None:
    """Django's (OPTIONS ``pool``): of the parent's they have neither the sessions nor the threads."""
    result = tasks.fork_in_thread.enqueue("orm")
    start_worker("--until-empty", ready=False, env={"TEST_DB_OPTIONS": '{"pool": {"timeout": 5}}'}).wait()
    assert ledger.task(result.id).return_value == FORKS["orm"]


def test_children_are_no_workers_and_share_nothing(
    start_worker: Start, ledger: Ledger, loop_env: dict[str, str]
) -> None:
    tasks.add.enqueue(1, 2)
    own = sessions(ledger)
    worker = start_worker("--concurrency", "1", "--threads", "1", env=loop_env)
    calls = [(tasks.fork_on_loop, way) for way in FORKS if way != "orm"]
    calls += [(tasks.fork_in_thread, way) for way in FORKS if way not in ASYNC]
    results = [task.enqueue(way) for task, way in calls]
    wait_until(lambda: ledger.statuses().keys() <= {"SUCCESSFUL", "FAILED"}, 120)
    rows = [ledger.task(result.id) for result in results]
    assert {way: row.errors for (_, way), row in zip(calls, rows, strict=True) if row.errors} == {}
    found = [(task, way, row.return_value) for (task, way), row in zip(calls, rows, strict=True)]
    assert found == [(task, way, FORKS[way]) for task, way in calls]
    assert all(row.crashes == 0 and len(row.worker_ids) == 1 for row in rows)
    assert "fenced" not in worker.log
    assert worker.log.count("INFO aiotasks.worker: worker ") == 1
    # Its loops are undisturbed: it is woken up, renews its lease and stops.
    result = tasks.add.enqueue(1, 2)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    stays = [kind.enqueue("stays") for kind in (tasks.fork_on_loop, tasks.fork_in_thread)]
    wait_until(lambda: all(ledger.task(result.id).status == "SUCCESSFUL" for result in stays))
    children = [psutil.Process(ledger.task(result.id).return_value) for result in stays]
    try:
        before = sessions(ledger) - own
        assert before
        worker.send(signal.SIGKILL)
        worker.wait()
        wait_until(lambda: not sessions(ledger) & before)
        for child in children:
            child.terminate()
        psutil.wait_procs(children, 20)
        assert not any(child.is_running() for child in children)
    finally:
        for child in children:
            if child.is_running():
                child.kill()


def test_a_child_starts_no_other_tasks(
    start_worker: Start, ledger: Ledger, loop_env: dict[str, str], tmp_path: Path
) -> None:
    """Those that were claimed with the one that forks, whose child waits for something."""
    path = tmp_path / "lines"
    worker = start_worker(env=loop_env)
    tasks.fork_on_loop.enqueue("writes", os.fspath(path))  # imports what the others need
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
    calls: list[Any] = [(("awaits",), {}), *[(("writes", os.fspath(path)), {})] * 9]
    default_task_backend.enqueue_many(tasks.fork_on_loop, calls)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 11})
    assert path.read_text().split() == [str(worker.pid)] * 10


def sessions(ledger: Ledger) -> set[int]:
    """The server's processes for other sessions with this database than the ledger's."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return {row.pid for row in ledger.rows(query)}
