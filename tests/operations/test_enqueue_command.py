"""aiotasks enqueue: a task by its path, and the exit code of its end."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.core.management.base import CommandError
from django.tasks import default_task_backend
from django.utils import timezone

from aiotasks.exceptions import UnknownTask
from aiotasks.management.usage import UsageError
from aiotasks.operations.enqueue import aenqueue_path, enqueue_path
from tests.worker.harness import Start, start, start_worker

from .conftest import run

__all__ = ["start", "start_worker"]

type Sql = psycopg.Connection


def only_row(sql: Sql) -> dict[str, Any]:
    cursor = sql.execute("SELECT * FROM aiotasks_task")
    (row,) = cursor.fetchall()
    return dict(zip([column.name for column in cursor.description or ()], row, strict=True))


def test_it_is_enqueued_with_its_arguments(sql: Sql) -> None:
    code, text = run("enqueue", "tests.tasks.echo", "1", '"a"', "[null]", "--kwargs", '{"x": {"y": -1.5}}')
    row = only_row(sql)
    assert (code, text) == (0, f"Enqueued task {row['id']}.\n")
    assert (row["task_path"], row["status"]) == ("tests.tasks.echo", "READY")
    assert (row["args"], row["kwargs"]) == ([1, "a", [None]], {"x": {"y": -1.5}})


def test_in_place_of_the_tasks_own_values(sql: Sql) -> None:
    before = datetime.now(UTC)
    code, text = run(
        *("enqueue", "tests.tasks.add", "-1", "2", "--queue", "emails", "--priority", "-7", "--at", "5m"),
        "--json",
    )
    row = only_row(sql)
    assert code == 0
    assert json.loads(text) == {
        "id": str(row["id"]),
        "is_duplicate": False,
        "status": "READY",
        "return_value": None,
        "error": None,
    }
    assert (row["args"], row["queue_name"], row["priority"]) == ([-1, 2], "emails", -7)
    assert row["status"] == "SCHEDULED"
    assert timedelta(0) <= row["run_after"] - before - timedelta(minutes=5) < timedelta(minutes=1)


def test_a_time_is_in_the_current_zone(sql: Sql) -> None:
    with timezone.override("America/New_York"):
        assert run("enqueue", "tests.tasks.noop", "--at", "2100-07-01T12:00")[0] == 0
    assert only_row(sql)["run_after"] == datetime(2100, 7, 1, 16, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["tests.tasks.nothing"],
            "'tests.tasks.nothing' is not a task .* module 'tests.tasks' has no 'nothing'",
        ),
        (["nowhere.at.all"], "is not a task that can be run here: there is no module 'nowhere'"),
        (["tests.tasks.add", "1"], r"tests.tasks.add\(\) missing 1 required positional argument: 'b'"),
        (["tests.tasks.noop", "--priority", "101"], "priority must be"),
        (["tests.tasks.noop", "--priority", "x"], "argument --priority: invalid int value: 'x'"),
        (["tests.tasks.echo", "abc"], """'abc' isn't JSON; as a text it is written '"abc"'"""),
        (["tests.tasks.echo", "[" * 100_000], "isn't JSON"),
        (["tests.tasks.echo", "--kwargs", "[]"], r"argument --kwargs: '\[\]' isn't a JSON object"),
        (["tests.tasks.echo", "--at", "soon"], "argument --at: it must be a time such as .*, not 'soon'"),
        (["tests.tasks.echo", "--at", "999999w"], "argument --at: '999999w' is too far ahead"),
        (["tests.tasks.echo", "--wait", "--timeout", "-1"], "'-1' isn't a number of seconds"),
        (["tests.tasks.echo", "--timeout", "5"], "--timeout is for --wait"),
    ],
)
def test_mistakes(sql: Sql, arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        run("enqueue", *arguments)
    assert caught.value.returncode == 2
    assert sql.execute("SELECT count(*) FROM aiotasks_task").fetchone() == (0,)


def test_a_task_whose_key_is_taken(sql: Sql) -> None:
    assert run("enqueue", "tests.unique_tasks.once")[0] == 0
    id = only_row(sql)["id"]
    assert run("enqueue", "tests.unique_tasks.once") == (
        0,
        f"Not enqueued, because task {id} has its key.\n",
    )
    assert json.loads(run("enqueue", "tests.unique_tasks.once", "--json")[1])["is_duplicate"] is True
    assert run("enqueue", "tests.unique_tasks.refuse")[0] == 0
    with pytest.raises(CommandError, match="holds the unique key 'refuse'") as caught:
        run("enqueue", "tests.unique_tasks.refuse")
    assert caught.value.returncode == 1


def enqueue(worker_env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """In a process of its own: a join keeps connections for those that follow."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "aiotasks", "enqueue", *arguments],
        env=worker_env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_waiting_has_the_exit_code_of_the_end(start_worker: Start, worker_env: dict[str, str]) -> None:
    start_worker()
    code, out, err = enqueue(worker_env, "tests.tasks.add", "1", "2", "--wait")
    assert (code, out) == (0, "SUCCESSFUL: 3\n")
    assert err.startswith("Enqueued task ")
    assert enqueue(worker_env, "tests.tasks.fail", '"none left"', "--wait")[:2] == (
        3,
        "FAILED: ValueError: none left\n",
    )
    code, out, _ = enqueue(worker_env, "tests.tasks.fail", "--wait", "--json")
    ended = json.loads(out)
    assert (code, ended["status"], ended["error"]["class"]) == (3, "FAILED", "builtins.ValueError")
    assert "no luck" in ended["error"]["traceback"]


def test_waiting_ends_after_its_timeout(sql: Sql, worker_env: dict[str, str]) -> None:
    code, out, _ = enqueue(worker_env, "tests.tasks.noop", "--wait", "--timeout", "0.1")
    assert (code, out) == (4, "It hasn't ended: it is READY.\n")
    assert only_row(sql)["status"] == "READY"


async def test_by_code(database: str) -> None:
    result = await aenqueue_path("tests.tasks.add", [1], {"b": 2}, queue="emails", priority=3)
    found = await default_task_backend.aget_result(result.id)
    assert (found.task.module_path, found.args, found.kwargs) == ("tests.tasks.add", [1], {"b": 2})
    assert (found.task.queue_name, found.task.priority) == ("emails", 3)


def test_by_sync_code(database: str) -> None:
    result = enqueue_path("tests.tasks.noop")
    assert default_task_backend.get_result(result.id).task.module_path == "tests.tasks.noop"
    with pytest.raises(UnknownTask):
        enqueue_path("subprocess.call")
