"""What a worker's process may be started with: closed descriptors, a directory that has gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

from . import tasks
from .harness import TIMEOUT, Ledger


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
