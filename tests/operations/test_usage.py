"""Mistakes at the command line: one line on stderr, exit code 2; and no traceback for what can't be done."""

import subprocess
import sys

import pytest
from django.core.management import CommandError

from aiotasks import __version__
from aiotasks.management.commands.aiotasks import SUBCOMMANDS, Command
from aiotasks.management.usage import UsageError

from .conftest import run

# What is wrong, and what the line says of it.
MISTAKES = [
    (["statsu"], "invalid choice: 'statsu'", "Did you mean 'status'?", "See manage.py aiotasks --help."),
    (["--nope"], "unrecognized arguments: --nope", "See manage.py aiotasks --help."),
    (["status", "--jsn"], "unrecognized arguments: --jsn", "See manage.py aiotasks status --help."),
    (["worker", "--grace", "x"], "'x' isn't a number of seconds", "manage.py aiotasks worker --help."),
    (["prune", "--older-than", "a\nb"], "'a\\nb' isn't a number with a unit"),
    (["schedules", "ad"], "Did you mean 'add'?"),
    (["schedules", "add"], "arguments are required: NAME, TASK", "manage.py aiotasks schedules add --help."),
    (["check", "--backend"], "argument --backend: expected one argument"),
]


def at_the_command_line(*arguments: str) -> int:
    """Run the command in this process as ``manage.py`` does; returns the exit code."""
    try:
        Command().run_from_argv(["/site/manage.py", "aiotasks", *arguments])
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


@pytest.mark.parametrize(("arguments", "told"), [(mistake, told) for mistake, *told in MISTAKES])
def test_a_mistake_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: list[str]
) -> None:
    assert at_the_command_line(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("aiotasks: ")
    assert err.count("\n") == 1
    for words in told:
        assert words in err


def test_call_command_raises_it() -> None:
    with pytest.raises(UsageError, match="'x' isn't a number with a unit"):
        run("prune", "--older-than", "x")
    with pytest.raises(CommandError, match="invalid choice: 'statsu'"):
        run("statsu")


def test_what_cannot_be_done_is_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert at_the_command_line("status", "--backend", "nowhere") == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("aiotasks: TASKS has no backend 'nowhere'; it has 'default'")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert at_the_command_line(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: manage.py aiotasks ")
    assert all(f"\n    {name} " in out for name in SUBCOMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert at_the_command_line("--version") == 0
    assert capsys.readouterr().out == f"aiotasks {__version__}\n"


def test_an_interrupt_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("aiotasks.management.status.run", interrupted)
    assert at_the_command_line("status") == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_is_no_traceback(worker_env: dict[str, str]) -> None:
    """As ``| head`` does: the command writes into a pipe that nobody reads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "aiotasks"],
        env=worker_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (141, "")
