"""``aiotasks completion``: scripts that the shells take, and what bash completes with its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError

from aiotasks.management.completion import SHELLS
from tests.conftest import ROOT

from .conftest import run

pytest.importorskip("shtab")

# What readline calls for the last of the words, and what it would offer.
COMPLETE = """
source "$1"; shift
complete -p aiotasks >&2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_aiotasks
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} isn't installed")
    return str(request.param)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bash's, printed by a process without settings."""
    path = tmp_path_factory.mktemp("completion") / "aiotasks"
    done = subprocess.run(
        [sys.executable, "-m", "aiotasks", "completion", "bash"],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "", "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    path.write_text(done.stdout)
    return path


def test_the_shell_takes_the_script(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(run("completion", shell)[1])
    assert path.stat().st_size > 1_000
    subprocess.run([shell, "-n", path], check=True)


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["sta"], ["status"]),
        (["limits", "re"], ["reset", "resume"]),
        (["status", "--j"], ["--json"]),
        (["worker", "--proc"], ["--processes"]),
        (["schedules", "add", "x", "y", "--missed", "l"], ["last"]),
        (["completion", ""], ["bash", "zsh"]),
        (["nothing-like-it"], []),
    ],
)
def test_bash_completes(script: Path, words: list[str], offers: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", script, "aiotasks", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == offers
    assert done.stderr == "complete -o bashdefault -F _shtab_aiotasks aiotasks\n"


def test_without_shtab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(CommandError, match=r"^Completion needs shtab, .*'django-aiotasks\[cli\]'"):
        run("completion", "bash")
