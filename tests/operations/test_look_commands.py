"""``manage.py aiotasks tasks``, ``show`` and ``running``: what they print, and what mistakes get."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.core.management import CommandError

from aiotasks.db.connect import connect
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.management import tasks as module
from aiotasks.management.usage import UsageError
from aiotasks.operations import tasks as pages
from aiotasks.store.store import Store
from tests.store import rows

from .conftest import run
from .test_usage import at_the_command_line

ERROR = {
    "class": "builtins.ValueError",
    "traceback": "Traceback\n  \x1b[2J\nValueError: no [red]card\x1b[2J\n",
    "attempt": 1,
    "began": "2026-11-29T12:00:00+00:00",
    "seconds": 1.25,
    "worker": "h:7",
}


@pytest.fixture
def failed(sql: psycopg.Connection) -> UUID:
    """A task that has failed once, with what its arguments hide."""

    async def put() -> UUID:
        connection = await connect("default", timeout=10.0, statement_cache_size=0)
        try:
            store = Store(ConnectionDriver(connection))
            _, (job,) = await rows.claimed(store, kwargs='{"card": "4111-1111"}')
            await rows.fail(store, job, error=json.dumps(ERROR))
            return job.id
        finally:
            await connection.close()

    return asyncio.run(put())


def as_json(*arguments: str) -> Any:
    code, text = run(*arguments, "--json")
    assert code == 0
    return json.loads(text)


def test_a_list(sql: psycopg.Connection, failed: UUID, fill: Callable[..., None]) -> None:
    fill("READY", 3, "mails")
    code, text = run("tasks", "--status", "failed")
    assert code == 0
    header, line = text.rstrip("\n").splitlines()
    assert header.split() == ["id", "status", "task", "queue", "when", "attempts", "error"]
    assert line.startswith(f"{failed}  FAILED")
    assert "\x1b" not in text
    assert "no [red]card" in text
    answer = as_json("tasks", "--status", "failed")
    (row,) = answer["tasks"]
    assert set(row) == set(pages.TaskRow.__dataclass_fields__)
    assert (row["id"], row["error"], row["worker"]) == (
        str(failed),
        "ValueError: no [red]card\x1b[2J",
        "host:1",
    )
    assert {name: answer[name] for name in ("next", "looked_at", "complete")} == {
        "next": None,
        "looked_at": 1,
        "complete": True,
    }
    assert len(as_json("tasks", "--queue", "mails")["tasks"]) == 3
    assert run("tasks", "--queue", "none")[1] == "There is no such task.\n"


def test_pages(sql: psycopg.Connection, fill: Callable[..., None]) -> None:
    fill("READY", 5)
    seen: list[str] = []
    more: list[str] = []
    while True:
        answer = as_json("tasks", "--limit", "2", *more)
        seen += [row["id"] for row in answer["tasks"]]
        if answer["next"] is None:
            break
        more = ["--after", answer["next"]]
    assert len(set(seen)) == len(seen) == 5
    assert "Go on with --after" in run("tasks", "--limit", "2")[1]


def test_a_page_is_filled_while_there_is_time(
    sql: psycopg.Connection, fill: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LOOK_AT", 4)
    fill("FAILED", 1, "rare")
    fill("READY", 20)
    sql.execute(
        "UPDATE aiotasks_task SET id = '00000000-0000-7000-8000-000000000000' WHERE queue_name = 'rare'"
    )
    assert len(as_json("tasks", "--queue", "rare")["tasks"]) == 1
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    answer = as_json("tasks", "--queue", "rare")
    assert (answer["tasks"], answer["looked_at"]) == ([], 4)
    assert run("tasks", "--queue", "rare")[1].startswith("No such task so far.\n")


def test_one_task(sql: psycopg.Connection, failed: UUID) -> None:
    code, text = run("show", str(failed))
    assert code == 0
    assert "4111" not in text
    assert "\x1b" not in text
    for part in (
        str(failed),
        "FAILED",
        "h:7",
        "1.250 s",
        "Attempt 1:",
        "ValueError: no [red]card",
        "enqueued",
    ):
        assert part in text, part
    assert "4111-1111" in run("show", str(failed), "--arguments")[1]
    answer = as_json("show", str(failed))
    assert set(answer) == {"task", "attempts", "timeline"}
    assert "kwargs" not in answer["task"]
    assert answer["attempts"][0]["seconds"] == 1.25
    assert answer["task"]["workers"] == {answer["task"]["worker_ids"][0]: "host:1"}
    assert as_json("show", str(failed), "--arguments")["task"]["kwargs"] == '{"card": "4111-1111"}'


def test_tracebacks_of_all_attempts(sql: psycopg.Connection, failed: UUID) -> None:
    sql.execute("UPDATE aiotasks_task SET errors = errors || errors, worker_ids = worker_ids || worker_ids")
    assert run("show", str(failed))[1].count("Traceback\n") == 1
    assert run("show", str(failed), "--traceback", "all")[1].count("Traceback\n") == 2


def test_what_runs(sql: psycopg.Connection, fill: Callable[..., None], enter: Callable[..., UUID]) -> None:
    assert run("running")[1] == "No task is running.\n"
    me = enter(host="h\x1b[2J", pid=3)
    fill("RUNNING", 2, worker=me)
    report = {
        "blocked": {"seconds": 90, "task": "shop.tasks.\x1b[2J"},
        "outlasting": [{"id": str(me), "path": "shop.tasks.slow", "lane": "thread", "seconds": 61}],
        "stalled": 70,
    }
    sql.execute(
        "UPDATE aiotasks_worker SET report = %s::json, lease_expires_at = now() + interval '1 h'",
        [json.dumps(report)],
    )
    code, text = run("running")
    assert code == 0
    assert "\x1b" not in text
    for part in ("cannot be imported here", "outlasts its time", "shop.tasks.slow", "blocked for 1 min by"):
        assert part in text, part
    assert "has claimed nothing for 1 min, though tasks wait for it." in text
    answer = as_json("running")
    assert set(answer) == {"tasks", "capped", "outlasting", "workers"}
    assert [row["worker_id"] for row in answer["tasks"]] == [str(me)] * 2
    assert answer["workers"][0]["blocked"] == 90


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tasks", "--limit", "0"], "--limit must be a number from 1 to 1,000, not 0"),
        (["tasks", "--after", "x"], "--after 'x' is no place in a list"),
        (["tasks", "--after", f"t1.5,{UUID(int=1)}"], "--after is a place in a list of other tasks"),
        (["tasks", "--status", "done"], "--status must be one of"),
        (["tasks", "--since", "later"], "--since must be a time"),
        (["show", "1"], "'1' is not the id of a task: give all 36 characters of it"),
    ],
)
def test_mistakes(database: str, arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run(*arguments)


def test_a_task_that_is_not_there(database: str) -> None:
    with pytest.raises(CommandError, match=r"Backend 'default' has no task .*\. It may have been pruned"):
        run("show", str(uuid4()))


@pytest.mark.parametrize(
    ("id", "code", "says"),
    [("123", 2, "'123' is not the id of a task"), (str(UUID(int=7)), 1, "Backend 'default' has no task")],
)
def test_mistakes_of_show_are_one_line(
    database: str, capsys: pytest.CaptureFixture[str], id: str, code: int, says: str
) -> None:
    for more in ([], ["--traceback", "all"]):
        assert at_the_command_line("show", id, *more) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"aiotasks: {says}")
