"""What a worker's process may meet: closed descriptors, a directory that has gone, modules that want the
main thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

from . import tasks
from .harness import TIMEOUT, Ledger, Start, wait_until


@pytest.mark.parametrize(
    ("closed", "command"),
    [
        ("0<&- 2>&-", "-m aiotasks.worker"),
        ("0<&- 1>&- 2>&-", "-m django aiotasks worker"),
        ("0<&- 1>&- 2>&-", "-m aiotasks.worker --processes 2"),
    ],
)
def test_standard_descriptors_may_be_closed(
    ledger: Ledger, worker_env: dict[str, str], closed: str, command: str
) -> None:
    """uvloop aborted the process at its end: a socket of its had one of these numbers."""
    results = [tasks.add.enqueue(1, 2), tasks.add_sync.enqueue(1, 2)]
    env = {**worker_env, "DJANGO_SETTINGS_MODULE": "tests.worker.settings"}
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" {command} --until-empty {closed}'], env=env, timeout=TIMEOUT
    )
    assert done.returncode == 0
    assert {ledger.task(result.id).status for result in results} == {"SUCCESSFUL"}


@pytest.mark.parametrize("installed", [True, False])
def test_a_working_directory_that_was_removed(
    ledger: Ledger, worker_env: dict[str, str], tmp_path: Path, installed: bool
) -> None:
    """The site may be installed; where it isn't, one sentence says what is missing."""
    gone = tmp_path / "gone"
    gone.mkdir()
    result = tasks.add.enqueue(1, 2)
    settings = "tests.worker.settings" if installed else "nowhere.settings"
    done = subprocess.run(
        ["sh", "-c", f'rmdir "{gone}" && exec "{sys.executable}" -m aiotasks.worker --until-empty'],
        cwd=gone,
        env={**worker_env, "DJANGO_SETTINGS_MODULE": settings, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert "Traceback" not in done.stderr
    if installed:
        assert done.returncode == 0, done.stderr
        assert ledger.task(result.id).status == "SUCCESSFUL"
    else:
        assert done.returncode == 1
        assert "has been removed" in done.stderr


def test_modules_that_want_the_main_thread(start_worker: Start, ledger: Ledger, tmp_path: Path) -> None:
    """The others are unknown, as ever, and looked at in the main thread once."""
    paths = ["main_thread.sync", "main_thread.coroutine", "broken_import.work", "nowhere.work"]
    ids = [tasks.add.enqueue(1, 2).id for _ in paths]
    for id, path in zip(ids, paths, strict=True):
        ledger.connection.execute(
            "UPDATE aiotasks_task SET task_path = %s WHERE id = %s", [f"tests.worker.{path}", id]
        )
    imports = tmp_path / "imports"
    worker = start_worker(env={"IMPORTS": os.fspath(imports)})
    wait_until(lambda: [ledger.task(id).status for id in ids] == ["SUCCESSFUL"] * 2 + ["SCHEDULED"] * 2)
    assert imports.read_text().split().count("broken") == 2
    # When it is due again, another thread looks and not the loop's.
    ledger.connection.execute("UPDATE aiotasks_task SET run_after = now() WHERE status = 'SCHEDULED'")
    wait_until(lambda: imports.read_text().split().count("broken") == 3)
    assert worker.stop() == 0
    assert imports.read_text().split().count("broken") == 3
    assert "broken for everybody" in worker.log
    assert "No module named 'tests.worker.nowhere'" in worker.log
