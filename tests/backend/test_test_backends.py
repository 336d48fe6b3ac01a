"""aiotasks.testing's ImmediateBackend and DummyBackend: tasks with policies, and no PostgreSQL."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import django
import pytest
from django.tasks import task as django_task
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

import aiotasks
from aiotasks import PostgresTaskResult, testing
from tests.conftest import ROOT
from tests.site import postgres_result

from . import policy_tasks as tasks

KINDS = ["immediate", "dummy"]


@pytest.fixture(autouse=True)
def backends(settings: Any) -> Iterator[None]:
    settings.TASKS |= {
        "immediate": {"BACKEND": "aiotasks.testing.ImmediateBackend"},
        "dummy": {"BACKEND": "aiotasks.testing.DummyBackend"},
    }
    tasks.calls.clear()
    yield
    tasks.calls.clear()


@pytest.fixture
def signals() -> Iterator[list[tuple[str, str]]]:
    """What was sent: the signal and the status; a failure's error."""
    sent: list[tuple[str, str]] = []

    def receive(signal: Any, sender: type, task_result: Any, **kwargs: Any) -> None:
        assert sender in (testing.ImmediateBackend, testing.DummyBackend)
        error = sys.exc_info()[0]
        sent.append((names[id(signal)], error.__name__ if error else str(task_result.status)))

    names = {id(task_enqueued): "enqueued", id(task_started): "started", id(task_finished): "finished"}
    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive)
    yield sent
    for signal in (task_enqueued, task_started, task_finished):
        signal.disconnect(receive)


def over(alias: str, task: Any) -> Any:
    return task.using(backend=alias)


@pytest.mark.parametrize("alias", KINDS)
def test_a_result_is_as_postgres_backends(alias: str) -> None:
    result = over(alias, tasks.by_name).enqueue("x")
    assert isinstance(result, PostgresTaskResult)
    assert UUID(result.id).version == 7
    assert (result.backend, result.args, result.kwargs) == (alias, ["x"], {})
    assert result.enqueued_at is not None


@pytest.mark.parametrize("alias", KINDS)
async def test_coroutines_and_many_at_once(alias: str) -> None:
    task = over(alias, tasks.attempt_number)
    result = await task.aenqueue()
    results = await task.get_backend().aenqueue_many(task, [((), {}), ([], {})])
    assert len({result.id for result in [result, *results]}) == 3
    if alias == "immediate":
        assert [result.return_value for result in results] == [1, 1]


@pytest.mark.parametrize("alias", KINDS)
def test_what_postgres_backend_refuses_is_refused(alias: str) -> None:
    with pytest.raises(TypeError, match="by_name"):
        over(alias, tasks.by_name).enqueue("x", "y")
    with pytest.raises(TypeError, match=r"args\[0\]"):
        over(alias, tasks.by_name).enqueue(object())
    with pytest.raises(InvalidTask, match="max_attempts must be a whole number"):
        aiotasks.task(backend=alias, max_attempts=0)(tasks.key_of)
    with pytest.raises(TypeError, match="belongs to its code"):
        over(alias, tasks.by_name).using(max_attempts=3)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.0's decorator takes no keywords")
@pytest.mark.parametrize("alias", KINDS)
def test_djangos_own_decorator_takes_policies(alias: str) -> None:
    decorator: Any = django_task  # whose keywords the stubs don't know
    made = decorator(backend=alias, max_attempts=5, timeout=timedelta(minutes=1))(tasks.key_of)
    assert (type(made), made.max_attempts, made.timeout) == (aiotasks.PostgresTask, 5, 60.0)
    with pytest.raises(InvalidTask, match=r"timeout must be seconds .*, not 'soon'"):
        decorator(backend=alias, timeout="soon")(tasks.key_of)


@pytest.mark.parametrize("name", ["ImmediateBackend", "DummyBackend"])
def test_a_site_with_it_starts(name: str, tmp_path: Path) -> None:
    """Django imports a backend while it loads the apps, when no model can be imported yet."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text("from . import tasks")
    (tmp_path / "shop/tasks.py").write_text(
        "from aiotasks import task\n@task(max_attempts=5)\ndef work(): return 1"
    )
    (tmp_path / "site_settings.py").write_text(
        "INSTALLED_APPS = ['shop', 'aiotasks']\n"
        f"TASKS = {{'default': {{'BACKEND': 'aiotasks.testing.{name}'}}}}"
    )
    code = "import django; django.setup(); from shop.tasks import work; print(work.enqueue().status)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "DJANGO_SETTINGS_MODULE": "site_settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() == ("SUCCESSFUL" if name == "ImmediateBackend" else "READY")


# --- Retries and time limits, at once


def test_attempts_follow_each_other(signals: list[tuple[str, str]]) -> None:
    result = over("immediate", tasks.third_time).enqueue("a")
    assert (result.status, result.return_value, result.attempts, len(result.errors)) == (
        "SUCCESSFUL",
        "a",
        3,
        2,
    )
    assert tasks.calls == ["a", ("backoff", LookupError, 1), "a", ("backoff", LookupError, 2), "a"]
    assert signals == [("enqueued", "READY"), *[("started", "RUNNING")] * 3, ("finished", "SUCCESSFUL")]
    assert result.started_at < result.last_attempted_at <= result.finished_at


def test_the_last_attempt_fails_the_task(signals: list[tuple[str, str]]) -> None:
    result = over("immediate", tasks.always_fails).enqueue()
    assert (result.status, result.attempts) == ("FAILED", 3)
    assert [error.exception_class for error in result.errors] == [LookupError] * 3
    assert "in always_fails" in result.errors[0].traceback
    assert signals[-1] == ("finished", "LookupError")
    assert [signal for signal, _ in signals].count("finished") == 1


@pytest.mark.parametrize(
    ("name", "attempts"),
    [("stopped_by_backoff", 1), ("not_retried", 1), ("given_up_on", 1), ("gives_up", 1), ("asks_again", 2)],
)
def test_which_errors_are_followed_by_another_attempt(name: str, attempts: int) -> None:
    result = over("immediate", getattr(tasks, name)).enqueue()
    assert (result.status, result.attempts, len(result.errors)) == ("FAILED", attempts, attempts)


def test_a_snooze_stays_ready(signals: list[tuple[str, str]]) -> None:
    result = over("immediate", tasks.snoozes).enqueue()
    assert (result.status, result.attempts, result.errors, result.finished_at) == ("READY", 0, [], None)
    assert signals == [("enqueued", "READY"), ("started", "RUNNING")]


def test_a_coroutines_time_is_limited() -> None:
    result = over("immediate", tasks.too_slow).enqueue()
    assert (result.status, result.errors[0].exception_class) == ("FAILED", aiotasks.TaskTimeout)
    result = over("immediate", tasks.own_timeout).enqueue()
    assert (result.status, result.errors[0].exception_class) == ("FAILED", TimeoutError)
    assert over("immediate", tasks.attempt_number).enqueue().return_value == 1


# --- Unique keys


def test_a_kept_task_holds_its_key() -> None:
    one = over("dummy", tasks.one)
    first = one.enqueue()
    assert one.enqueue().id == first.id
    assert len(task_backends["dummy"].results) == 1  # type: ignore[attr-defined]
    assert one.using(unique_key=None).enqueue().id != first.id
    by_name = over("dummy", tasks.by_name)
    assert by_name.enqueue("a").id == by_name.enqueue("a").id != by_name.enqueue("b").id
    assert by_name.enqueue("").id != by_name.enqueue("").id
    many = one.get_backend().enqueue_many(by_name, [(["c"], {}), (["c"], {})])
    assert many[0].id == many[1].id


def test_a_cancelled_task_holds_its_key_no_more(signals: list[tuple[str, str]]) -> None:
    one = over("dummy", tasks.one)
    first = postgres_result(one.enqueue())
    assert first.cancel()
    assert not first.cancel()
    first.refresh()
    assert (first.status, first.errors[0].exception_class) == ("FAILED", aiotasks.TaskCancelled)
    assert signals == [("enqueued", "READY"), ("finished", "TaskCancelled")]
    assert one.enqueue().id != first.id
    hourly = over("dummy", tasks.hourly)
    held = postgres_result(hourly.enqueue())
    assert held.cancel()
    assert hourly.enqueue().id == held.id
    task_backends["dummy"].clear()  # type: ignore[attr-defined]
    assert hourly.enqueue().id != held.id


def test_a_conflict_raises_or_replaces() -> None:
    first = over("dummy", tasks.strict).enqueue()
    with pytest.raises(aiotasks.DuplicateTask) as caught:
        over("dummy", tasks.strict).enqueue()
    assert (caught.value.key, caught.value.result.id) == ("strict", first.id)
    soon, later = timezone.now() + timedelta(minutes=1), timezone.now() + timedelta(minutes=2)
    for task, run_after in ((tasks.latest, later), (tasks.throttled, soon)):
        dummy: Any = over("dummy", task)
        first = dummy.using(run_after=soon).enqueue(1)
        second = dummy.using(run_after=later).enqueue(2)
        assert (second.id, second.args, second.task.run_after) == (first.id, [2], run_after)
        first.refresh()
        assert dummy.get_result(first.id).args == [2]


def test_a_task_that_enqueues_itself() -> None:
    result = over("immediate", tasks.enqueues_itself).enqueue()
    assert result.return_value == result.id
    assert tasks.calls == ["itself"]
    over("immediate", tasks.follows_up).enqueue()
    assert tasks.calls == ["itself", "follow-up", "follow-up"]
    assert over("immediate", tasks.enqueues_itself).enqueue().id != result.id


async def test_cancelling_what_has_run_is_too_late() -> None:
    result = await over("immediate", tasks.by_name).aenqueue("x")
    assert not await result.acancel()
    waiting = await over("dummy", tasks.by_name).aenqueue("x")
    assert await waiting.acancel()


def test_options_and_backoffs_are_those_of_workers(settings: Any) -> None:
    """MAX_ATTEMPTS and BACKOFF as of PostgresBackend; one that raises ends the task."""
    asked: list[tuple[int, int]] = []

    async def backoff(exception: BaseException, result: Any) -> float | None:
        asked.append((result.attempts, len(result.errors)))
        if len(asked) == 2:
            raise LookupError("of the backoff") from exception
        return 60.0

    settings.TASKS |= {
        "immediate": {
            "BACKEND": "aiotasks.testing.ImmediateBackend",
            "MAX_ATTEMPTS": 9,
            "OPTIONS": {"BACKOFF": backoff},
        }
    }
    result = over("immediate", tasks.raises).enqueue()
    assert (result.status, result.attempts, asked) == ("FAILED", 2, [(1, 1), (2, 2)])
    assert [error.exception_class_path for error in result.errors] == [
        "builtins.RuntimeError",
        "builtins.LookupError",
    ]
