"""What commands print: into a pipe, at a terminal, and as JSON; what is stored controls no terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.core.management.base import OutputWrapper

from aiotasks.management.output import Output
from aiotasks.management.usage import UsageError
from aiotasks.operations.counts import Count
from aiotasks.operations.tables import Column, Table, as_text, columns_of, shortened

from .conftest import run

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "[bold red]x[/]",
    "a\nb",
    "a\rb",
    "\u202egnp.exe",
    "\x9b31m",
    ":boom: [/",
]
ID = str(UUID(int=2**127 + 7))


class Terminal(StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


type MakeOutput = Callable[..., tuple[Output, StringIO, StringIO]]


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> MakeOutput:
    """Make an output at a terminal of so many columns; returns it with its stdout and stderr."""

    def make(width: int = 80, **options: Any) -> tuple[Output, StringIO, StringIO]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        out, err = Terminal(), Terminal()
        return Output(Namespace(**options), OutputWrapper(out), OutputWrapper(err)), out, err

    return make


def in_pipe(**options: Any) -> tuple[Output, StringIO]:
    out = StringIO()
    return Output(Namespace(**options), OutputWrapper(out), OutputWrapper(StringIO())), out


def seen(text: str) -> list[str]:
    """The lines, without rich's own control sequences for colours."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]


def table(*cells: str) -> Table:
    columns = [Column("id"), Column("state", style={"FAILED": "red"}.get), Column("n", right=True)]
    return Table([*columns, Column("path", cut=1)], [[ID, "FAILED", "3", cell] for cell in cells])


def test_into_a_pipe_nothing_is_cut() -> None:
    output, out = in_pipe()
    output.show("Two tasks.", table("x" * 300, "y"))
    output.show("The end.")
    assert out.getvalue().splitlines() == [
        "Two tasks.",
        "",
        "id                                    state   n  path",
        f"{ID}  FAILED  3  {'x' * 300}",
        f"{ID}  FAILED  3  y",
        "",
        "The end.",
    ]


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("has_rich", [True, False])
def test_at_a_terminal_tables_fit(
    at_terminal: MakeOutput, monkeypatch: pytest.MonkeyPatch, width: int, has_rich: bool
) -> None:
    monkeypatch.setattr("aiotasks.management.output._has_rich", lambda: has_rich)
    output, out, _ = at_terminal(width)
    output.show("Tasks", table(f"shop.{'x' * 300}.charge", "shop.tasks.y"))
    title, _, heading, first, second = seen(out.getvalue())
    assert (title, heading.split()) == ("Tasks", ["id", "state", "n", "path"])
    assert first.startswith(f"{ID}  FAILED  3  ...x")
    assert first.endswith("x.charge")
    assert len(first) == width
    assert second == f"{ID}  FAILED  3  shop.tasks.y"
    assert ("\x1b[31m" in out.getvalue()) is has_rich


def test_where_it_cannot_fit_ids_stay_whole(at_terminal: MakeOutput) -> None:
    output, out, _ = at_terminal(30)
    output.show(table("a path with words " * 9))
    assert ID in out.getvalue()


def test_long_texts_are_wrapped_in_their_column(at_terminal: MakeOutput) -> None:
    output, out, _ = at_terminal(80)
    output.show(Table([Column("id"), Column("reason")], [[ID, "their API is down " * 9]]))
    lines = seen(out.getvalue())
    assert len(lines) > 3
    assert all(line.startswith(" " * len(ID)) for line in lines[2:])
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("options", "environment"),
    [({"no_color": True}, {}), ({}, {"NO_COLOR": "1"}), ({"plain": True}, {}), ({}, {"TERM": "dumb"})],
)
def test_no_colours(
    at_terminal: MakeOutput,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, bool],
    environment: dict[str, str],
) -> None:
    output, out, _ = at_terminal(**options)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output.show(table("x"))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", out.getvalue())
    assert seen(out.getvalue())[1] == f"{ID}  FAILED  3  x"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_stored_controls_no_terminal(at_terminal: MakeOutput, terminal: bool, text: str) -> None:
    output, out = at_terminal(200)[:2] if terminal else in_pipe()
    shown = text if text.isprintable() else repr(text)
    output.show(text.replace("\n", " "), Table([Column("a"), Column("b")], [["1", text]], [text]))
    lines = seen(out.getvalue())
    assert len(lines) == 5
    assert lines[3:] == [f"1  {shown}", shown]
    assert all(line.isprintable() for line in lines)


def test_a_terminal_without_unicode_gets_plain_text(at_terminal: MakeOutput) -> None:
    output, out, _ = at_terminal()
    Terminal.encoding, before = "iso8859-1", Terminal.encoding
    try:
        output.show(table("x"))
    finally:
        Terminal.encoding = before
    assert "\x1b" not in out.getvalue()


def test_wide_letters_take_two_columns() -> None:
    assert columns_of("日本e\u0301") == 5
    assert shortened("日本語日本語", 9) == "日本語..."
    assert shortened("日本語日本語", 8, keep_end=True) == "...本語"
    assert as_text([Table([Column("a"), Column("b")], [["日本", "x"], ["abc", "y"]])]).splitlines() == [
        "a     b",
        "日本  x",
        "abc   y",
    ]


def test_json_has_dataclasses_times_and_ids() -> None:
    output, out = in_pipe(json=True)
    moment = datetime(2026, 12, 1, tzinfo=UTC)
    output.json({"count": Count(3, capped=True), "at": moment, "id": UUID(ID)})
    assert json.loads(out.getvalue()) == {
        "count": {"number": 3, "capped": True},
        "at": "2026-12-01T00:00:00Z",
        "id": ID,
    }
    output.json([1, 2], line=True)
    assert out.getvalue().endswith("\n[1, 2]\n")


def test_remarks_are_no_part_of_the_answer(at_terminal: MakeOutput) -> None:
    output, out, err = at_terminal()
    output.note("Looked at 20,000 tasks.")
    assert (out.getvalue(), err.getvalue()) == ("", "Looked at 20,000 tasks.\n")


@pytest.mark.parametrize(("answer", "agrees"), [("y\n", True), ("YES\n", True), ("\n", False), ("", False)])
def test_a_question(
    at_terminal: MakeOutput, monkeypatch: pytest.MonkeyPatch, answer: str, agrees: bool
) -> None:
    output, out, err = at_terminal()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert output.confirm("Delete 12 tasks?") is agrees
    assert (out.getvalue(), err.getvalue()) == ("", "Delete 12 tasks? [y/N] ")


def test_a_question_without_a_terminal(at_terminal: MakeOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("y\n"))
    with pytest.raises(UsageError, match=r"^Delete 12 tasks\? Give --yes"):
        at_terminal()[0].confirm("Delete 12 tasks?")
    assert at_terminal(yes=True)[0].confirm("Delete 12 tasks?")


def test_progress_without_rich(at_terminal: MakeOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiotasks.management.output._has_rich", lambda: False)
    output, out, err = at_terminal()
    with output.progress(10_000) as show:
        show(1_500, "3 locked")
    assert out.getvalue() == ""
    assert err.getvalue() == "\r1,500 of 10,000 3 locked\x1b[K\r\x1b[K"
    quiet, out = in_pipe()
    with quiet.progress(None) as show:
        show(1, "x")
    assert out.getvalue() == ""


def at_a_pty(environment: dict[str, str], *arguments: str, columns: int = 100) -> str:
    """Run ``manage.py aiotasks`` with a terminal for stdout and stderr; returns what it wrote."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "django", "aiotasks", *arguments],
        env={**environment, "COLUMNS": str(columns), "TERM": "xterm-256color"},
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        written = bytearray()
        while True:
            try:
                written += os.read(leader, 65_536)
            except OSError:  # the other end is closed
                break
        os.close(leader)
    assert process.returncode == 0
    return written.decode()


def test_status_at_a_terminal(worker_env: dict[str, str], fill: Callable[..., None]) -> None:
    fill("READY", 3, "mails[red]")
    text = at_a_pty(worker_env, "status")
    assert "\x1b[1mqueue" in text
    assert re.search(r"^mails\[red\] +3 ", "\n".join(seen(text)), re.MULTILINE)
    assert "\x1b" not in at_a_pty(worker_env, "status", "--plain")


def test_rich_is_imported_for_a_terminal_alone(worker_env: dict[str, str], database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "django", "aiotasks", "status"],
        env=worker_env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| aiotasks.management.output" in re.sub(r"\| +", "| ", done.stderr)
    assert not re.search(r"\| +(rich|shtab)\b", done.stderr)


def test_prune_as_json(sql: psycopg.Connection, fill: Callable[..., None]) -> None:
    fill("SUCCESSFUL", 2)
    sql.execute("UPDATE aiotasks_task SET finished_at = now() - interval '1 h'")
    code, text = run("prune", "--older-than", "1m", "--json")
    assert (code, json.loads(text)) == (0, {"tasks": 2, "workers": 0})


def test_an_encoding_that_lacks_a_character(
    worker_env: dict[str, str], sql: psycopg.Connection, fill: Callable[..., None]
) -> None:
    fill("READY", 1, queue="a\u2192b")
    done = subprocess.run(
        [sys.executable, "-m", "aiotasks", "tasks"],
        env={**worker_env, "PYTHONIOENCODING": "iso-8859-1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"a\\u2192b" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is always full")
def test_a_full_disk_is_one_line(worker_env: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aiotasks", "tasks"],
            env=worker_env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "aiotasks: The answer can't be written: No space left on device.\n",
    )
