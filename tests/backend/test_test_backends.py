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
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
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
    again = one.enqueue()
    assert (again.id, again.is_duplicate, first.is_duplicate) == (first.id, True, False)
    assert one.get_backend().get_result(first.id).is_duplicate is False
    assert len(task_backends["dummy"].results) == 1  # type: ignore[attr-defined]
    assert one.using(unique_key=None).enqueue().id != first.id
    by_name = over("dummy", tasks.by_name)
    assert by_name.enqueue("a").id == by_name.enqueue("a").id != by_name.enqueue("b").id
    assert by_name.enqueue("").id != by_name.enqueue("").id
    many = one.get_backend().enqueue_many(by_name, [(["c"], {}), (["c"], {})])
    assert many[0].id == many[1].id
    assert [each.is_duplicate for each in many] == [False, True]


def test_keys_are_made_as_postgres_backend_makes_them() -> None:
    """One check of the function and what it returns."""
    odd, long = over("dummy", tasks.odd), "é" * 1001
    with pytest.raises(ValueError, match=r"unique_key of tests\.backend\.policy_tasks\.odd failed: KeyError"):
        odd.enqueue("raise")
    with pytest.raises(TypeError, match="must return a str or None, not 1"):
        odd.enqueue(1)
    with pytest.raises(ValueError, match="at least one character"):
        odd.enqueue("")
    assert task_backends["dummy"].results == []  # type: ignore[attr-defined]
    with pytest.raises(aiotasks.DuplicateTask) as caught:
        [over("dummy", tasks.strict.using(unique_key=long)).enqueue() for _ in range(2)]
    assert caught.value.key.startswith("sha256:")


@pytest.mark.parametrize("alias", KINDS)
def test_a_limit_counts_for_nothing_but_its_keys_are_checked(alias: str) -> None:
    of_tenant = over(alias, tasks.of_tenant)
    for value in (42, None):
        assert of_tenant.enqueue(value).args == [value]
    with pytest.raises(
        TypeError, match=r"^The key of limit 'tests.tenant' of .*of_tenant must be .*, not 1\.5\.$"
    ):
        of_tenant.enqueue(1.5)
    assert of_tenant.using(limit_key="eu").enqueue(1.5).args == [1.5]
    assert tasks.calls == ([42, None, 1.5] if alias == "immediate" else [])


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
    assert caught.value.result.is_duplicate
    soon, later = timezone.now() + timedelta(minutes=1), timezone.now() + timedelta(minutes=2)
    for task, run_after in ((tasks.latest, later), (tasks.throttled, soon)):
        dummy: Any = over("dummy", task)
        first = dummy.using(run_after=soon).enqueue(1)
        second = dummy.using(run_after=later).enqueue(2)
        assert (second.id, second.args, second.task.run_after) == (first.id, [2], run_after)
        assert second.is_duplicate
        first.refresh()
        assert dummy.get_result(first.id).args == [2]


def test_another_tasks_key_is_not_replaced() -> None:
    first = over("dummy", tasks.one.using(unique_key="latest")).enqueue()
    with pytest.raises(aiotasks.DuplicateTask) as caught:
        over("dummy", tasks.latest).enqueue(1)
    assert caught.value.result.id == first.id
    assert task_backends["dummy"].get_result(first.id).args == []


def test_a_replaced_task_keeps_its_queue(settings: Any) -> None:
    settings.TASKS |= {"dummy": {"BACKEND": "aiotasks.testing.DummyBackend", "QUEUES": []}}
    over("dummy", tasks.latest).enqueue(1)
    again = over("dummy", tasks.latest).using(queue_name="urgent", priority=7).enqueue(2)
    assert (again.task.queue_name, again.task.priority, again.args) == ("default", 7, [2])


def test_a_task_that_enqueues_itself() -> None:
    result = over("immediate", tasks.enqueues_itself).enqueue()
    assert result.return_value == [result.id, True]
    assert not result.is_duplicate
    assert tasks.calls == ["itself"]
    for follows_up in (tasks.follows_up, tasks.replaces_itself):
        assert over("immediate", follows_up).enqueue().return_value == [False]
    assert tasks.calls == ["itself", *["follow-up"] * 4]
    assert over("immediate", tasks.enqueues_itself).enqueue().id != result.id


async def test_cancelling_what_has_run_is_too_late() -> None:
    result = await over("immediate", tasks.by_name).aenqueue("x")
    assert not await result.acancel()
    waiting = await over("dummy", tasks.by_name).aenqueue("x")
    assert await waiting.acancel()


def test_a_return_value_that_cannot_be_stored_fails_the_task_at_once(
    settings: Any, signals: list[tuple[str, str]]
) -> None:
    """As workers do: another attempt would do again what the body has done to its end."""
    result = over("immediate", tasks.returns_a_set).enqueue()
    assert (result.status, result.attempts, result.errors[0].exception_class) == ("FAILED", 1, TypeError)
    assert "the return value" in result.errors[0].traceback
    assert signals[-1] == ("finished", "TypeError")
    settings.TASKS |= {
        "immediate": {
            "BACKEND": "aiotasks.testing.ImmediateBackend",
            "OPTIONS": {"MAX_RESULT_SIZE": 4},
        }
    }
    result = over("immediate", tasks.third_time).enqueue("long")
    assert result.errors[-1].exception_class is ValueError


@pytest.mark.parametrize("beside", [True, False])
def test_max_attempts_of_the_settings(settings: Any, beside: bool) -> None:
    params: dict[str, Any] = {"MAX_ATTEMPTS": 4}
    settings.TASKS |= {
        "immediate": {
            "BACKEND": "aiotasks.testing.ImmediateBackend",
            **(params if beside else {"OPTIONS": params}),
        }
    }
    assert over("immediate", tasks.raises).enqueue().attempts == 4
    assert over("immediate", tasks.always_fails).enqueue().attempts == 3  # its own


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


# --- Metadata


@pytest.mark.parametrize("alias", KINDS)
async def test_metadata_is_kept_and_merged(alias: str) -> None:
    task = over(alias, tasks.by_name).using(metadata={"a": (1,), "b": 1})
    backend = task.get_backend()
    assert backend.supports_metadata is True
    result = postgres_result(await task.aenqueue("x"))
    assert result.metadata == {"a": [1], "b": 1}
    await backend.asave_metadata(result, {"b": 2, "c": 3})
    if alias == "dummy":
        backend.save_metadata(result.id, {"c": 4})
        (result,) = backend.results
    assert result.metadata == {"a": [1], "b": 2, "c": 4 if alias == "dummy" else 3}
    for bad, kind in ({"_a": 1}, ValueError), ({"a": object()}, TypeError), ({"d": "x" * 65_530}, ValueError):
        with pytest.raises(kind):
            backend.save_metadata(result, bad)
    with pytest.raises(TaskResultDoesNotExist):
        backend.save_metadata("unknown", {"a": 1})
    with pytest.raises(InvalidTask, match="'_a'"):
        task.using(metadata={"_a": 1})


def test_a_replaced_task_has_the_metadata_of_the_later_call() -> None:
    task = over("dummy", tasks.latest)
    task.using(metadata={"call": 1, "only": 1}).enqueue("x")
    assert postgres_result(task.using(metadata={"call": 2}).enqueue("y")).metadata == {"call": 2}


@pytest.mark.parametrize("task", [tasks.notes, tasks.notes_sync])
def test_a_task_that_runs_at_once_changes_its_metadata(task: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = postgres_result(over("immediate", task).using(metadata={"given": 1}).enqueue(2))
    assert result.attempts == 2
    assert result.return_value == [{"given": 1, "attempts": 1}, {"given": 1}]  # the second finds the first's
    progress = result.metadata.pop("progress")
    assert (progress["done"], progress["total"]) == (99, 100)
    assert result.metadata["attempts"] == 2
    assert result.metadata["saved"] == "by an id"
    assert tasks.calls[-1] == {"given": 1, "attempts": 1}  # the backoff's
    assert "Metadata" not in caplog.text


def test_metadata_that_cannot_be_stored_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    result = postgres_result(over("immediate", tasks.notes_badly).enqueue())
    assert (result.return_value, result.metadata) == (1, {"good": 1})
    assert "Metadata could not be saved; the task has those of its last save" in caplog.text


async def test_a_join_has_nothing_to_wait_for() -> None:
    """A task has ended within its enqueue(), or never will."""
    result = await over("immediate", tasks.by_name).aenqueue("x")
    assert await result.ajoin() is result
    assert result.join().is_finished
    with pytest.raises(RuntimeError, match="ImmediateBackend runs a task within its enqueue"):
        await (await over("immediate", tasks.snoozes).aenqueue()).ajoin()
    assert await aiotasks.gather_results([result]) == [result]
    kept = await over("dummy", tasks.one).aenqueue()
    for wait in (kept.ajoin, lambda: aiotasks.gather_results([kept])):
        with pytest.raises(RuntimeError, match="DummyBackend runs no tasks"):
            await wait()
    assert await kept.acancel()
    assert (await kept.ajoin()).is_finished
