"""aiotasks retry, cancel, delete and run-now: what they change, what they ask, and what they answer."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.db import utils

from aiotasks import bulk
from aiotasks.management.usage import UsageError
from aiotasks.store.bulk import BulkStatements
from tests.worker.harness import wait_until

from .conftest import run
from .test_usage import at_the_command_line

type Fill = Callable[..., None]
type Sql = psycopg.Connection


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH", 3)
    monkeypatch.setattr(bulk, "LOCKED_FOR", 0.2)


def ids(sql: Sql, status: str | None = None) -> list[UUID]:
    found = sql.execute(
        "SELECT id FROM aiotasks_task WHERE %(s)s::text IS NULL OR status = %(s)s ORDER BY id", {"s": status}
    )
    return [row[0] for row in found]


def number(sql: Sql, status: str) -> int:
    return len(ids(sql, status))


@pytest.fixture
def locked(sql: Sql, database: str) -> Iterator[Callable[[UUID], psycopg.Connection]]:
    """Lock a task until the connection is rolled back."""
    with psycopg.connect(database) as other:

        def lock(id: UUID) -> psycopg.Connection:
            other.execute("SELECT FROM aiotasks_task WHERE id = %s FOR UPDATE", (id,))
            return other

        yield lock
        other.rollback()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What a person at a terminal answers."""

    def say(text: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(text))

    return say


# --- What they do


@pytest.mark.parametrize(
    ("command", "before", "after", "says"),
    [
        ("retry", "FAILED", "READY", "7 retried."),
        ("cancel", "READY", "FAILED", "7 cancelled."),
        ("cancel", "SCHEDULED", "FAILED", "7 cancelled."),
        ("run-now", "SCHEDULED", "READY", "7 due now."),
        ("delete", "SUCCESSFUL", None, "7 deleted."),
    ],
)
def test_by_a_filter(fill: Fill, sql: Sql, command: str, before: str, after: str | None, says: str) -> None:
    fill(before, 7, "emails")
    fill(before, 2, "other")
    assert run(command, "--queue", "emails", "--yes") == (0, f"{says}\n")
    assert number(sql, before) == 2
    assert after is None or number(sql, after) == 7
    assert run(command, "--all", "--yes")[0] == 0
    assert number(sql, before) == 0


def test_by_ids(fill: Fill, sql: Sql) -> None:
    """They are named, so nothing is asked; all must have been done."""
    fill("FAILED", 3)
    fill("READY", 1)
    first, *others = ids(sql, "FAILED")
    assert run("retry", str(first)) == (0, "1 retried.\n")
    (ready,) = set(ids(sql, "READY")) - {first}
    nowhere = uuid4()
    code, text = run("retry", *map(str, [*others, ready, nowhere]))
    assert code == 1
    assert text.splitlines() == [
        "2 retried, 1 refused, 1 missing.",
        "",
        "task                                  is not retried",
        f"{ready}  it isn't FAILED",
        f"{nowhere}  there is no such task",
    ]


def test_who_has_taken_a_unique_key_is_named(fill: Fill, sql: Sql) -> None:
    fill("FAILED", 2)
    fill("READY", 1)
    (holder,), (lost, _) = ids(sql, "READY"), ids(sql, "FAILED")
    sql.execute("UPDATE aiotasks_task SET unique_key = 'k' WHERE id = %s", (holder,))
    sql.execute("UPDATE aiotasks_task SET former_key = 'k' WHERE id = %s", (lost,))
    code, text = run("retry", "--all", "--dry-run", "--json")
    dry = json.loads(text)
    assert (code, dry["dry_run"], dry["counts"]["would_change"], dry["counts"]["key_taken"]) == (
        0,
        True,
        1,
        1,
    )
    code, text = run("retry", "--all", "--yes")
    assert (code, text.splitlines()[-1]) == (0, f"{lost}  task {holder} has its unique key")
    code, text = run("retry", str(lost), "--json")
    assert code == 1
    answer = json.loads(text)
    assert answer["action"] == "retry"
    assert answer["left"] == [{"id": str(lost), "why": "key_taken", "key_holder": str(holder)}]


@pytest.mark.parametrize(("command", "done"), [("retry", "retried"), ("delete", "deleted")])
def test_a_dry_run_changes_nothing(fill: Fill, sql: Sql, command: str, done: str) -> None:
    fill("FAILED", 4)
    fill("RUNNING", 1)
    before = sql.execute("SELECT * FROM aiotasks_task ORDER BY id").fetchall()
    assert run(command, "--status", "failed", "--dry-run") == (0, f"Dry run: 4 would be {done}.\n")
    (running,) = ids(sql, "RUNNING")
    code, text = run(command, str(running), "--dry-run")
    assert (code, text.splitlines()[0]) == (1, f"Dry run: 0 would be {done}; 1 refused.")
    assert sql.execute("SELECT * FROM aiotasks_task ORDER BY id").fetchall() == before


def test_what_is_locked_is_named_and_may_be_repeated(
    fill: Fill, sql: Sql, locked: Callable[[UUID], psycopg.Connection]
) -> None:
    fill("FAILED", 5)
    id = ids(sql)[2]
    lock = locked(id)
    code, text = run("retry", "--status", "FAILED", "--yes")
    assert (code, text.splitlines()[0]) == (1, "4 retried, 1 locked.")
    assert text.splitlines()[-1] == f"{id}  another transaction has it locked; give the command again"
    lock.rollback()
    assert run("retry", "--status", "FAILED", "--yes") == (0, "1 retried.\n")


def test_since_is_of_the_end_for_a_retry(fill: Fill, sql: Sql) -> None:
    fill("FAILED", 3)
    old, new, _ = ids(sql)
    sql.execute("UPDATE aiotasks_task SET enqueued_at = now() - interval '2 d'")
    sql.execute("UPDATE aiotasks_task SET finished_at = now() - interval '2 h' WHERE id <> %s", (new,))
    assert run("retry", "--since", "1h", "--yes") == (0, "1 retried.\n")
    assert ids(sql, "READY") == [new]
    assert run("delete", "--since", "1h", "--yes") == (0, "Nothing.\n")
    sql.execute("UPDATE aiotasks_task SET enqueued_at = now() WHERE id = %s", (old,))
    assert run("delete", "--since", "1h", "--yes") == (0, "1 deleted.\n")
    assert old not in ids(sql)


# --- What they ask


@pytest.mark.parametrize(("said", "deleted"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_question_before_many(
    fill: Fill,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[str], None],
    said: str,
    deleted: bool,
) -> None:
    fill("FAILED", 7, "emails")
    answer(said)
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    code = at_the_command_line("delete", "--queue", "emails", "--plain")
    assert "Delete 7 tasks (queue emails)? [y/N] " in err.getvalue()
    assert (code, number(sql, "FAILED")) == ((0, 0) if deleted else (1, 7))
    assert ("7 deleted." in out.getvalue()) is deleted
    assert ("Nothing was done." in err.getvalue()) is not deleted


def test_without_a_terminal_it_needs_yes(
    fill: Fill, sql: Sql, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("FAILED", 1)
    monkeypatch.setattr("sys.stdin", StringIO("y\n"))
    assert at_the_command_line("delete", "--status", "failed") == 2
    err = capsys.readouterr().err
    assert err.startswith("aiotasks: Delete 1 task (FAILED)? Give --yes")
    assert err.count("\n") == 1
    assert number(sql, "FAILED") == 1
    # There is nothing to ask about.
    assert at_the_command_line("delete", "--status", "successful") == 0
    assert capsys.readouterr() == ("", "No task is meant.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["retry"], "Give ids, filters, or --all"),
        (["delete", str(UUID(int=7)), "--queue", "x"], "Give ids, filters, or --all"),
        (["delete", "--queue", "x", "--all"], "Give ids, filters, or --all"),
        (["retry", "0198"], "'0198' is not the id of a task"),
        (["retry", "--status", "done"], "--status must be one of SCHEDULED"),
        (["retry", "--since", "yesterday"], "--since must be a time such as"),
        (["delete", "--status", "failed", "--queue", ""], "--queue is empty: give a value, or leave"),
        (["cancel", "--task", "x", "--since", ""], "--since is empty"),
        (["retry", "--worker", "web-1"], "--worker must be the id of a worker"),
        (["retry", "--status", "ready"], "READY tasks are not retried, only those that are FAILED"),
        (
            ["cancel", "--status", "failed"],
            "FAILED tasks are not cancelled, only those that are SCHEDULED or",
        ),
        (["run-now", "--status", "failed"], "FAILED tasks are not run now, only those that are SCHEDULED"),
    ],
)
def test_mistakes(database: str, arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run(*arguments, "--yes")
    assert caught.value.returncode == 2


# --- Ends in the middle


def test_an_interrupt_says_how_far_it_is_and_the_next_goes_on(
    fill: Fill, sql: Sql, locked: Callable[[UUID], psycopg.Connection], worker_env: dict[str, str]
) -> None:
    """It is interrupted while it waits for a row that is locked."""
    fill("FAILED", 1200)
    lock = locked(ids(sql)[600])
    patient = (
        "import django; django.setup(); from aiotasks import bulk; bulk.LOCKED_FOR = 600.0;"
        "from django.core.management import execute_from_command_line as run;"
        "run(['manage.py', 'aiotasks', 'retry', '--all', '--yes'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", patient],
        env=worker_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: number(sql, "FAILED") == 1 or process.poll() is not None, 100)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    # The count of the last batch may be missing.
    assert re.fullmatch(
        r"Interrupted\. So far: [0-9,]+ retried, 1 locked\. Give the command again to go on\.\n", err
    )
    lock.rollback()
    assert run("retry", "--all", "--yes") == (0, "1 retried.\n")


def test_a_failure_says_how_far_it_is(
    fill: Fill, sql: Sql, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("FAILED", 7)
    retry = BulkStatements.retry_jobs
    calls: list[Any] = []

    async def fail_the_third(self: BulkStatements, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise utils.DataError("a broken page")
        return await retry(self, *args)

    monkeypatch.setattr(BulkStatements, "retry_jobs", fail_the_third)
    assert at_the_command_line("retry", "--all", "--yes") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "a broken page" in err
    assert "So far: 6 retried. Give the command again to go on." in err
    assert number(sql, "READY") == 6
