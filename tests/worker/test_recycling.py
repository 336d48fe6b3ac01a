"""``--max-tasks`` and ``--max-rss``: a worker makes way for another process, and no task notices."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiotasks.worker.process.recycling import JITTER, Limits
from tests.site import default_task_backend

from . import tasks
from .harness import Ledger, Start, until, wait_until
from .test_health import processes, status
from .test_supervisor import READY, WAIT, python, running, said, workers_of

__all__ = ["said"]

QUICK = {"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 1}


def add_some(number: int) -> None:
    default_task_backend.enqueue_many(tasks.add, [((1, 2), {})] * number)


def assert_nothing_counted(ledger: Ledger) -> None:
    """Every task has run once."""
    rows = ledger.rows("SELECT status, crashes, cardinality(worker_ids) AS runs FROM aiotasks_task")
    assert {(row.status, row.crashes, row.runs) for row in rows} == {("SUCCESSFUL", 0, 1)}


def test_limits_are_lower_at_random() -> None:
    drawn = [Limits(1000, 2**30).drawn() for _ in range(200)]
    for tasks_, rss in drawn:
        assert tasks_ is not None
        assert rss is not None
        assert 1000 * (1 - JITTER) <= tasks_ <= 1000
        assert 2**30 * (1 - JITTER) <= rss <= 2**30
    assert len(set(drawn)) > 100
    assert Limits().drawn() == (None, None)
    assert Limits(1, 1).drawn() == (1, 1)


def test_the_next_one_serves_before_the_old_one_ends(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """``--reload`` gives one worker a supervisor."""
    go = tmp_path / "go"
    worker = start(
        *("-m", "aiotasks.worker", "--reload", "--max-tasks", "3", "--health-port", "0"), options=QUICK
    )
    wait_until(lambda: status(worker, "/readyz") == 200)
    (old,) = workers_of(worker)
    long = tasks.wait_for_file.enqueue(os.fspath(go))
    wait_until(lambda: ledger.task(long.id).status == "RUNNING")
    add_some(3)
    worker.wait_for(f"Starting another worker in the place of one pid={old} ")
    wait_until(lambda: [one["process"] for one in processes(worker) if not one["ready"]] == ["0"])
    (new,) = workers_of(worker) - {old}
    after = tasks.work.enqueue()
    wait_until(lambda: ledger.task(after.id).status == "SUCCESSFUL")
    assert ledger.task(after.id).return_value == new
    assert ledger.task(long.id).status == "RUNNING"
    assert [one["process"] for one in processes(worker) if one["ready"]] == ["0b"]
    assert status(worker, "/readyz") == 200
    go.touch()
    worker.wait_for(f"A worker has made way for another pid={old}\n")
    assert workers_of(worker) == {new}
    assert ledger.task(long.id).return_value == old
    assert_nothing_counted(ledger)
    assert worker.stop() == 0
    assert "A worker has ended" not in worker.log


def test_alone_it_ends_to_be_started_again(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    go = tmp_path / "go"
    worker = start("-m", "aiotasks.worker", "--max-tasks", "3", "--health-port", "0", "--grace", "0")
    long = tasks.wait_for_file.enqueue(os.fspath(go))
    wait_until(lambda: ledger.task(long.id).status == "RUNNING")
    add_some(3)
    worker.wait_for("the worker stops to be started again tasks=3 limit=3\n")
    wait_until(lambda: status(worker, "/readyz") == 503)
    assert ledger.task(long.id).status == "RUNNING"
    go.touch()
    assert worker.wait() == 75
    assert_nothing_counted(ledger)
    assert ledger.workers() == 0


def test_a_channel_that_it_has_inherited_is_not_its_own(start: Start, ledger: Ledger) -> None:
    """A task of an older release's worker has started this one, and left it the variable."""
    code = """
import os, socket
from aiotasks.worker.process import cli
pair = socket.socketpair()
os.environ["AIOTASKS_REPORTS"] = str(pair[0].fileno())
raise SystemExit(cli.main())
"""
    worker = start("-c", code, "--max-tasks", "1")
    add_some(1)
    assert worker.wait() == 75
    assert_nothing_counted(ledger)


@pytest.mark.parametrize("supervised", [False, True])
def test_a_signal_ends_the_wait_for_running_tasks(
    start: Start, ledger: Ledger, tmp_path: Path, supervised: bool
) -> None:
    arguments = ["--reload"] if supervised else []
    worker = start("-m", "aiotasks.worker", "--max-tasks", "1", "--grace", "0.1", *arguments, options=QUICK)
    long = tasks.wait_for_file.enqueue(os.fspath(tmp_path / "never"))
    wait_until(lambda: ledger.task(long.id).status == "RUNNING")
    add_some(1)
    worker.wait_for("stopping, running=1 grace=600")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    row = ledger.task(long.id)
    assert (row.status, row.worker_ids, row.crashes) == ("READY", [], 0)


@pytest.mark.parametrize("failing", [False, True])
def test_until_empty_counts_failures_and_no_recycling(start: Start, ledger: Ledger, failing: bool) -> None:
    if failing:
        tasks.fail.enqueue("ValueError")
    default_task_backend.enqueue_many(tasks.work, [((0.1,), {})] * 60)
    worker = start(
        *("-m", "aiotasks.worker", "--processes", "2", "--until-empty", "--max-tasks", "4"),
        *("--concurrency", "1"),
    )
    assert worker.wait(120) == (3 if failing else 0)
    assert "A worker has made way for another" in worker.log
    assert ledger.statuses() == {"SUCCESSFUL": 60, **({"FAILED": 1} if failing else {})}
    assert not ledger.value("SELECT sum(crashes) FROM aiotasks_task")


def test_memory(start: Start, ledger: Ledger) -> None:
    worker = start("-m", "aiotasks.worker", "--max-rss", "1")
    assert worker.wait() == 75
    assert "the worker stops to be started again rss_mb=" in worker.log


RECYCLE = """
import json, struct
body = json.dumps({"say": "recycle"}).encode()
os.write(int(os.environ["AIOTASKS_REPORTS"]), struct.pack("!I", len(body)) + body)
"""


async def test_one_whose_successor_cannot_start_goes_on(said: Any, tmp_path: Path) -> None:
    first = f"""
try:
    os.mkdir({os.fspath(tmp_path / "lives")!r})
except FileExistsError:
    sys.exit(1)
"""
    async with running(python(first + READY + RECYCLE + WAIT)) as supervising:
        await until(lambda: len(said("has ended.* exit=1")) >= 3)
        assert not supervising.done()
        (pid,) = said(r"in the place of one pid=(\d+)")
        assert psutil.Process(int(pid)).is_running()
    assert not said("made way")
    assert supervising.result() == 0


async def test_one_that_cannot_be_asked_to_make_way_any_more_is_stopped(said: Any) -> None:
    broken = "os.write(int(os.environ['AIOTASKS_REPORTS']), b'\\0\\0\\0\\1x');"
    async with running(python(READY + RECYCLE + broken + WAIT)):
        await until(lambda: said("has ended before it made way .* signal=15"))


async def test_those_that_make_way_too_soon_wait(said: Any) -> None:
    drained = "os.read(int(os.environ['AIOTASKS_REPORTS']), 100); sys.exit(76)"
    async with running(python(READY + RECYCLE + drained)):
        await until(lambda: len(said("in the place of one")) >= 3)
    assert said(r"in the place of one .* pause=(.*)$")[:3] == ["0.01", "0.02", "0.04"]
    assert said("made way")
