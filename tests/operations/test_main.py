"""``aiotasks`` and ``python -m aiotasks``, as processes: with a site, without one, and with a broken one."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from aiotasks import __version__
from aiotasks.__main__ import main
from aiotasks.management.commands.aiotasks import SUBCOMMANDS
from tests.conftest import ROOT
from tests.worker import tasks
from tests.worker.harness import TIMEOUT, Ledger, Start

SITELESS = [["--version"], [], ["--help"], ["status", "--help"]]


def aiotasks(
    environment: dict[str, str], *arguments: str, settings: str | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    environment = {**environment, "DJANGO_SETTINGS_MODULE": settings or ""}
    return subprocess.run(
        [sys.executable, "-m", "aiotasks", *arguments],
        env={**environment, "PYTHONPATH": os.fspath(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", SITELESS)
@pytest.mark.parametrize("settings", [None, "nowhere.at_all"])
def test_what_needs_no_site(arguments: list[str], settings: str | None) -> None:
    done = aiotasks(dict(os.environ), *arguments, settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments == ["--version"]:
        assert done.stdout == f"aiotasks {__version__}\n"
    elif arguments == ["status", "--help"]:
        assert done.stdout.startswith("usage: python -m aiotasks status ")
    else:
        assert all(f"\n    {name} " in done.stdout for name in SUBCOMMANDS)


MISTAKES = [
    (["status"], None, "no settings: give --settings or set DJANGO_SETTINGS_MODULE."),
    (["status"], "nowhere", "the settings 'nowhere' can't be loaded: No module named 'nowhere'."),
    (["worker", "--settings", "nowhere"], None, "the settings 'nowhere' can't be loaded: "),
    (["--settings", "nowhere", "worker"], None, "the settings 'nowhere' can't be loaded: "),
    (["status", "--settings=.site"], None, "the settings '.site' aren't a module's full name."),
]


@pytest.mark.parametrize(("arguments", "settings", "told"), MISTAKES)
def test_a_site_that_cannot_be_loaded(arguments: list[str], settings: str | None, told: str) -> None:
    done = aiotasks(dict(os.environ), *arguments, settings=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"aiotasks: {told}")
    assert done.stderr.count("\n") == 1


def test_mistakes_name_the_program(worker_env: dict[str, str]) -> None:
    for arguments, told in (
        (["worker", "--grace", "x"], "See python -m aiotasks worker --help."),
        (["status", "--jsn"], "See python -m aiotasks status --help."),
        (["--settings"], "argument --settings: expected one argument. See python -m aiotasks --help."),
    ):
        done = aiotasks(worker_env, *arguments, settings="tests.worker.settings")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert told in done.stderr


@pytest.mark.parametrize("where", [0, 1, 2])
def test_settings_may_stand_anywhere(worker_env: dict[str, str], tmp_path: Path, where: int) -> None:
    """They are found in the working directory, and win over the environment."""
    (tmp_path / "mysettings.py").write_text("from tests.worker.settings import *\n")
    arguments = ["check", "--json"]
    arguments[where:where] = ["--settings", "mysettings"]
    done = aiotasks(worker_env, *arguments, settings="nowhere", cwd=tmp_path)
    assert '"name": "settings"' in done.stdout, done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker(start: Start, ledger: Ledger, processes: str) -> None:
    """A supervisor starts its workers with the same command line."""
    tasks.add.enqueue(1, 2)
    process = start("-m", "aiotasks", "worker", "--until-empty", "--processes", processes)
    assert process.wait(4 * TIMEOUT) == 0, process.log
    assert ledger.statuses() == {"SUCCESSFUL": 1}


def test_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["aiotasks"].partition(":")
    assert getattr(import_module(module), function) is main
    monkeypatch.setattr("sys.argv", ["/usr/bin/aiotasks", "worker", "--grace", "x"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "See aiotasks worker --help." in capsys.readouterr().err
