"""`--reload`: what counts as a change, and a worker whose code changes while it runs tasks."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from aiotasks.worker.process import reload
from aiotasks.worker.process.reload import Code, code_folders
from tests.conftest import ROOT

from . import tasks
from .harness import Ledger, Start, wait_until
from .test_supervisor import workers_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reload, "SCAN_INTERVAL", 0.01)
    monkeypatch.setattr(reload, "SETTLED", 0.02)
    for path in ("app/models.py", "app/views.py", ".git/hook.py", "aenv/pyvenv.cfg", "aenv/lib/code.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    return tmp_path


@pytest.mark.parametrize("change", ["changed", "gone", "new", "older"])
async def test_a_change_is_noticed(folder: Path, change: str) -> None:
    code = Code([os.fspath(folder)])
    changing = asyncio.create_task(code.change())
    path = folder / "app/views.py"
    match change:
        case "changed":
            path.write_text("changed")
        case "gone":
            path.unlink()
        case "new":
            path = folder / "new.py"
            path.touch()
        case "older":  # as git may leave it
            os.utime(path, (1, 1))
    assert await asyncio.wait_for(changing, 10) == f"path={os.fspath(path)!r}"


async def test_several_changes_are_one(folder: Path) -> None:
    code = Code([os.fspath(folder)])
    change = asyncio.create_task(code.change())
    for number in range(20):
        (folder / f"{number}.py").write_text("")
        await asyncio.sleep(0.005)
    await asyncio.wait_for(change, 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(code.change(), 0.1)


@pytest.mark.parametrize(
    "name", [".git/hook.py", "aenv/lib/code.py", "app/notes.txt", "app/__pycache__/a.py"]
)
async def test_what_is_no_code_of_the_site(folder: Path, name: str) -> None:
    code = Code([os.fspath(folder)])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("changed")
    (folder / "app/views.py").touch()
    assert await asyncio.wait_for(code.change(), 10) == f"path={os.fspath(folder / 'app/views.py')!r}"


async def test_a_folder_that_goes(folder: Path) -> None:
    code = Code([os.fspath(folder), os.fspath(folder / "nowhere")])
    (folder / "app/models.py").unlink()
    (folder / "app/views.py").unlink()
    (folder / "app").rmdir()
    assert "models.py" in await asyncio.wait_for(code.change(), 10)


def test_the_folders_of_the_sites_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path, os.fspath(tmp_path / "nowhere"), "/"])
    folders = code_folders()
    assert os.fspath(tmp_path.resolve()) in folders
    assert os.fspath(ROOT) in folders
    assert not any("site-packages" in folder or "/lib/python" in folder for folder in folders)
    assert "/" not in folders


CODE = """
import sys
from aiotasks.worker.process import cli, reload, supervisor
reload.SCAN_INTERVAL, supervisor.RELOAD_GRACE = 0.1, 0.2
sys.exit(cli.main())
"""


def test_reload(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """What runs is given back unspent and run by the new code; code that is broken waits to be mended."""
    edited = tmp_path / "edited.py"
    edited.write_text("LEASE = 11\n")
    (tmp_path / "site_settings.py").write_text(
        "from tests.worker.settings import *\n"
        "from edited import LEASE\n"
        "TASKS['default']['OPTIONS']['LEASE_TIMEOUT'] = LEASE\n"
    )
    process = start(
        *("-c", CODE, "--reload", "--settings", "site_settings"),
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    process.wait_for("lease: 11 s")
    before = workers_of(process)
    results = [tasks.work.enqueue(60.0), tasks.work_sync.enqueue(60.0)]
    wait_until(lambda: ledger.events("start") >= 2)

    edited.write_text("LEASE = 12.5\n")
    process.wait_for("lease: 12.5 s")
    assert f"The code has changed; restarting workers processes=1 path={os.fspath(edited)!r}" in process.log
    assert not before & workers_of(process)
    wait_until(lambda: ledger.events("start") >= 4)
    for result in results:
        row = ledger.task(result.id)
        assert (row.status, len(row.worker_ids), row.crashes, row.errors) == ("RUNNING", 1, 0, [])

    edited.write_text("LEASE = \n")
    process.wait_for("waiting for the next change of the code")
    assert process.log.count("SyntaxError") == 1
    assert workers_of(process) == set()
    for result in results:
        row = ledger.task(result.id)
        assert (row.status, row.worker_ids, row.crashes, row.errors) == ("READY", [], 0, [])

    edited.write_text("LEASE = 13\n")
    process.wait_for("lease: 13 s")
    wait_until(lambda: ledger.events("start") >= 6)
    assert "A worker has ended" not in process.log
    process.send(signal.SIGTERM)
    process.wait_for("Stopping processes=1")
    assert process.stop() == 0
    assert ledger.statuses() == {"READY": 2}
    assert ledger.workers() == 0
