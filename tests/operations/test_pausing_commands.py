"""aiotasks pause and resume."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from aiotasks.management.usage import UsageError
from aiotasks.operations.pauses import list_pauses

from .conftest import run, status
from .test_usage import at_the_command_line

type Sql = psycopg.Connection


def test_a_queue_until_it_is_resumed(sql: Sql) -> None:
    assert run("pause", "--queue", "reports", "--reason", "the warehouse moves") == (
        0,
        "Queue reports is paused until it is resumed. Tasks that run go on.\n",
    )
    (found,) = list_pauses()
    assert (found.kind, found.name, found.reason) == ("queue", "reports", "the warehouse moves")
    assert status()["pauses"][0]["name"] == "reports"
    assert run("resume", "--queue", "reports") == (0, "Queue reports goes on.\n")
    assert run("resume", "--queue", "reports") == (0, "Queue reports wasn't paused.\n")
    assert list_pauses() == []


def test_a_task_for_a_time(sql: Sql) -> None:
    before = datetime.now(UTC)
    code, text = run("pause", "--task", "tests.tasks.noop", "--until", "30m", "--json")
    answer = json.loads(text)
    assert (code, answer["kind"], answer["name"], answer["reason"]) == (0, "task", "tests.tasks.noop", "")
    (found,) = list_pauses()
    assert found.until is not None
    assert timedelta(0) <= found.until - before - timedelta(minutes=30) < timedelta(minutes=1)
    code, text = run("pause", "--task", "tests.tasks.noop", "--until", "2100-01-01T00:00Z")
    assert "is paused until 2100-01-01 00:00:00+00:00." in text
    assert json.loads(run("resume", "--task", "tests.tasks.noop", "--json")[1]) == {"was_paused": True}


def test_a_name_that_may_be_a_mistake(sql: Sql, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "QUEUES": ["emails", "default"]}}
    assert at_the_command_line("pause", "--queue", "email") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Queue email is paused")
    assert err == "QUEUES of TASKS['default'] doesn't have 'email'. Did you mean 'emails'?\n"
    assert at_the_command_line("pause", "--task", "tests.tasks.nop") == 0
    assert "module 'tests.tasks' has no 'nop'" in capsys.readouterr().err
    assert at_the_command_line("pause", "--queue", "emails") == 0
    assert at_the_command_line("resume", "--task", "tests.tasks.nop") == 0
    assert capsys.readouterr().err == ""
    assert len(list_pauses()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pause"], "one of the arguments --queue --task is required"),
        (["resume"], "one of the arguments --queue --task is required"),
        (["pause", "--queue", "a", "--task", "b"], "not allowed with argument --queue"),
        (["pause", "--queue", ""], "--queue must be a name, not ''"),
        (["resume", "--task", ""], "--task must be a name, not ''"),
        (["pause", "--queue", "a", "--until", "soon"], "argument --until: it must be a time such as"),
        (["pause", "--queue", "a", "--reason", "x" * 1001], "--reason must be a text of at most 1000"),
    ],
)
def test_mistakes(database: str, arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run(*arguments)
    assert caught.value.returncode == 2
    assert list_pauses() == []
