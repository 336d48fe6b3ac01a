"""The process around a worker: its signals, its end, and the processes that tasks start."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from django.tasks import TaskResult

from tests.conftest import ROOT

from . import tasks
from .harness import Ledger, Start, wait_until


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


def is_unspent(ledger: Ledger, result: TaskResult) -> bool:
    row = ledger.task(result.id)
    return (row.status, row.worker_ids, row.crashes) == ("READY", [], 0)


# --- Signals

NEVER_MEANT = [
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
    *(signal.SIGRTMIN, signal.SIGRTMIN + 1),
]


def test_signals_end_it_or_dont(start_worker: Start, ledger: Ledger, loop_env: dict[str, str]) -> None:
    worker = start_worker("--grace", "60", env=loop_env)
    alarm = tasks.use_alarm.enqueue()
    taken = tasks.take_signals.enqueue()
    wait_until(lambda: ledger.task(taken.id).status == "SUCCESSFUL")
    wait_until(lambda: "Signal handlers that something else had replaced were restored" in worker.log)
    asynchronous = tasks.work_once.enqueue(8.0)
    synchronous = tasks.work_sync.enqueue(1.0)
    wait_until(lambda: ledger.events("start") == 2)
    for number in NEVER_MEANT:
        worker.send(number)
    worker.wait_for("SIGUSR2 is ignored")
    worker.send(signal.SIGUSR1)
    report = worker.wait_for("Thread aiotasks-heartbeat (daemon)")
    assert re.search(rf"loop task {asynchronous.id} tests.worker.tasks.work_once, for [\d.]+ s\n", report)
    assert re.search(rf"thread task {synchronous.id} tests.worker.tasks.work_sync, for [\d.]+ s\n", report)
    assert "in work_once\n    await asyncio.sleep(seconds)\n" in report
    assert "in work_sync\n    time.sleep(seconds)\n" in report
    assert re.search(r"The event loop has last turned [\d.]+ s ago\.", report)
    worker.send(signal.SIGHUP)
    worker.wait_for("stopping, running=")
    assert worker.wait() == 0
    for result in (alarm, asynchronous, synchronous):
        assert ledger.task(result.id).status == "SUCCESSFUL"
    assert ledger.workers() == 0


def test_sigquit_gives_back_without_grace(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker("--grace", "600", "--threads", "1")
    results = [tasks.work_once.enqueue(600.0), tasks.work_sync.enqueue(600.0)]
    wait_until(lambda: ledger.events("start") == 2)
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
    wait_until(lambda: ledger.events("start") == 3)
    process.send(signal.SIGUSR2)
    process.send(signal.SIGUSR1)
    wait_until(lambda: process.log.count("Thread aiotasks-heartbeat (daemon)") == 2)
    workers = psutil.Process(process.pid).children()
    for pid in (process.pid, *(worker.pid for worker in workers)):
        os.kill(pid, number)
    assert process.wait() == 0
    assert all(is_unspent(ledger, result) for result in results)
    assert ledger.workers() == 0
