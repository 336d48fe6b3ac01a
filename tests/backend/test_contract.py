"""Django's contract for a backend, clause by clause: enqueueing and results."""

import subprocess
import sys
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.tasks import Task, TaskResult, TaskResultStatus, task, task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TASK_REFRESH_ATTRS
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.utils import timezone
from pytest_django import Settings

from aiotasks import UnknownTask
from aiotasks.backend import PostgresBackend
from aiotasks.rows import AnyResult, AnyTask
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure, until

from .support import DEADLINE, Api, fields_of, finished, run_all, times_of, worker

READY, RUNNING, FAILED, SUCCESSFUL = (
    TaskResultStatus.READY,
    TaskResultStatus.RUNNING,
    TaskResultStatus.FAILED,
    TaskResultStatus.SUCCESSFUL,
)

# --- The backend itself ------------------------------------------------------------------------


def test_it_is_a_backend_of_django() -> None:
    backend = task_backends["default"]
    assert isinstance(backend, PostgresBackend)
    assert isinstance(backend, BaseTaskBackend)
    assert default_task_backend.alias == "default"


@pytest.mark.parametrize(
    "flag", ["supports_defer", "supports_async_task", "supports_get_result", "supports_priority"]
)
def test_it_supports_everything(flag: str) -> None:
    assert getattr(PostgresBackend, flag) is True


def test_making_one_connects_to_nothing_and_imports_no_models() -> None:
    """Instances are made when tasks are defined: before the app registry is ready."""
    code = """
import socket, sys
class NoSocket(socket.socket):
    def connect(self, *args): raise AssertionError("connected")
socket.socket = NoSocket
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "HOST": "192.0.2.1", "NAME": "x"}},
    INSTALLED_APPS=["aiotasks"],
    TASKS={"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"NO_SUCH": 1}}},
)
from django.tasks import task
def f(): pass
f.__module__ = "somewhere"
t = task(f)
assert type(t).__name__ == "PostgresTask", t
t.using(priority=3)
t.get_backend().check
t.get_backend().close()
assert "aiotasks.models" not in sys.modules
assert "aiotasks.worker" not in sys.modules
from django.apps import apps
assert not apps.ready
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_needs_no_settings() -> None:
    code = "import aiotasks, sys; assert 'django.conf' not in sys.modules; print(aiotasks.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr


def test_a_bad_option_is_told_when_it_is_needed_and_by_name(configure: Configure) -> None:
    configure(POOL_SIZE=3)
    with pytest.raises(ImproperlyConfigured, match="'POOL_SIZE'"):
        _ = default_task_backend.config


def test_omitted_queues_mean_the_default_one(settings: Settings) -> None:
    settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend"}}
    assert task_backends["default"].queues == {"default"}
    with pytest.raises(InvalidTask, match="'other'"):
        tasks.add.using(queue_name="other")
    tasks.add.using(queue_name="default")


def test_empty_queues_mean_any_name() -> None:
    assert tasks.add.using(queue_name="any name at all").queue_name == "any name at all"


@pytest.mark.parametrize("name", ["", "a\x00b", "a\nb", "x" * 201, 5, None])
def test_a_name_that_postgresql_or_notify_could_not_carry_is_no_queue(name: str) -> None:
    with pytest.raises(InvalidTask, match="queue_name"):
        task(queue_name=name)(tasks.plain_function)


@pytest.mark.parametrize("bad", [timedelta(seconds=5), "2030-01-01", 5])
def test_run_after_must_be_a_time(bad: Any) -> None:
    with pytest.raises(InvalidTask, match="run_after"):
        tasks.add.using(run_after=bad)


@pytest.mark.parametrize("bad", [-1, 1.5, True, "3", 32_001])
def test_max_crashes_must_be_a_number_of_crashes(bad: Any) -> None:
    with pytest.raises(InvalidTask, match="max_crashes"):
        tasks.fragile.using(max_crashes=bad)


def test_using_keeps_what_it_is_not_given() -> None:
    changed = tasks.fragile.using(queue_name="q")
    assert (changed.max_crashes, changed.priority, changed.queue_name) == (0, 5, "q")
    assert type(changed) is type(tasks.fragile)


def test_task_enqueue_is_djangos_own() -> None:
    """Monitoring packages patch it."""
    for name in ("enqueue", "aenqueue", "get_result", "aget_result", "call", "acall"):
        assert getattr(type(tasks.add), name) is getattr(Task, name)


def test_results_are_djangos_own() -> None:
    assert issubclass(PostgresBackend.task_class, Task)


async def test_close_all_closes_and_leaves_it_usable(database: str, api: Api) -> None:
    await api.enqueue(tasks.add, 1, 2)
    task_backends.close_all()
    task_backends["default"].close()  # type: ignore[attr-defined]  # Django's, by BaseConnectionHandler
    await api.enqueue(tasks.add, 1, 2)


# --- Enqueueing --------------------------------------------------------------------------------


async def test_enqueue_returns_a_ready_result(database: str, api: Api) -> None:
    before = timezone.now()
    result = await api.enqueue(tasks.add, 1, b=2)
    assert isinstance(result, TaskResult)
    assert result.task is tasks.add
    assert result.status is READY
    assert not result.is_finished
    assert result.enqueued_at is not None
    assert before <= result.enqueued_at <= timezone.now()
    assert result.started_at is result.finished_at is result.last_attempted_at is None
    assert (result.args, result.kwargs, result.backend) == ([1], {"b": 2}, "default")
    assert (result.errors, result.worker_ids, result.attempts) == ([], [], 0)
    with pytest.raises(ValueError, match=r"^Task has not finished yet$"):
        _ = result.return_value


async def test_the_row_is_there_at_once(database: str, api: Api, conn: asyncpg.Connection) -> None:
    result = await api.enqueue(tasks.add, 1, b=2)
    row = await conn.fetchrow("SELECT * FROM aiotasks_task")
    assert row["id"] == UUID(result.id)
    assert row["id"].version == 7
    assert (row["status"], row["task_path"], row["lane"]) == ("READY", "tests.tasks.add", "thread")
    assert (row["args"], row["kwargs"]) == ("[1]", '{"b":2}')
    assert row["ready_at"] is not None
    assert row["enqueued_at"] == result.enqueued_at
    assert (row["crashes"], row["claim_id"], row["worker_id"]) == (0, None, None)


async def test_the_lane_is_the_functions_kind(database: str, api: Api, conn: asyncpg.Connection) -> None:
    await api.enqueue(tasks.aadd, 1, 2)
    assert await conn.fetchval("SELECT lane FROM aiotasks_task") == "loop"


async def test_ids_are_short_strings_of_their_own(database: str, api: Api) -> None:
    ids = [(await api.enqueue(tasks.noop)).id for _ in range(5)]
    assert len(set(ids)) == 5
    assert all(isinstance(id, str) and 0 < len(id) < 64 for id in ids)
    assert ids == sorted(ids)  # version 7: later ones sort later


async def test_what_the_task_says_is_stored_and_read_back(
    database: str, api: Api, conn: asyncpg.Connection
) -> None:
    result = await api.enqueue(tasks.fragile.using(queue_name="q", priority=-7))
    row = await conn.fetchrow("SELECT queue_name, priority, max_crashes FROM aiotasks_task")
    assert tuple(row) == ("q", -7, 0)
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.task == result.task
    assert (found.task.queue_name, found.task.priority, found.task.max_crashes) == ("q", -7, 0)
    assert type(found.task) is type(tasks.fragile)


async def test_a_policy_of_using_is_stored(database: str, api: Api, conn: asyncpg.Connection) -> None:
    result = await api.enqueue(tasks.add.using(max_crashes=7), 1, 2)
    assert await conn.fetchval("SELECT max_crashes FROM aiotasks_task") == 7
    found = await api.call(default_task_backend, "get_result", result.id)
    assert found.task.max_crashes == 7


@pytest.mark.parametrize("priority", [-100, 0, 100, 5.0])
async def test_all_priorities_are_kept(database: str, api: Api, priority: Any) -> None:
    result = await api.enqueue(tasks.add.using(priority=priority), 1, 2)
    assert (await api.call(default_task_backend, "get_result", result.id)).task.priority == priority


@pytest.mark.parametrize("priority", [-101, 101, 1.5])
def test_djangos_limits_of_priority_hold(priority: Any) -> None:
    with pytest.raises(InvalidTask, match="priority"):
        tasks.add.using(priority=priority)


async def test_the_task_is_validated_again(database: str, api: Api, settings: Settings) -> None:
    """QUEUES may have changed since the Task was made."""
    there = tasks.add.using(queue_name="going")
    settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": ["left"]}}
    with pytest.raises(InvalidTask, match="'going'"):
        await api.enqueue(there, 1, 2)


async def test_a_call_by_keyword_is_djangos_way_too(database: str, api: Api) -> None:
    result = await api.call(default_task_backend, "enqueue", task=tasks.add, args=[1], kwargs={"b": 2})
    assert (result.args, result.kwargs) == ([1], {"b": 2})
    found = await api.call(default_task_backend, "get_result", result_id=result.id)
    assert found.id == result.id


async def test_a_tasks_own_args_and_kwargs_parameters_are_no_others(database: str, api: Api) -> None:
    result = await api.enqueue(tasks.echo, args=1, kwargs=2, task=3, route=5, owner=6)
    assert result.kwargs == {"args": 1, "kwargs": 2, "task": 3, "route": 5, "owner": 6}


@pytest.mark.parametrize(
    ("unreachable", "reason"),
    [
        (tasks.hidden_task, "not a Task"),
        (tasks.first_replaced, "another function"),
    ],
)
async def test_a_task_that_no_worker_could_find_is_refused(
    database: str, api: Api, conn: asyncpg.Connection, unreachable: AnyTask, reason: str
) -> None:
    with pytest.raises(InvalidTask, match=reason):
        await api.enqueue(unreachable)
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 0


async def test_a_task_whose_module_is_gone_is_refused(
    database: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.noop.func, "__module__", "no.such.module")
    with pytest.raises(InvalidTask, match="No module named"):
        await api.enqueue(tasks.noop)


async def test_override_settings_works(database: str, api: Api, configure: Configure) -> None:
    configure(MAX_ARGUMENT_SIZE=20)
    with pytest.raises(ValueError, match="limit is 20"):
        await api.enqueue(tasks.echo, "x" * 30)
    configure(MAX_ARGUMENT_SIZE=60)
    await api.enqueue(tasks.echo, "x" * 30)


# --- Normalisation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (b"\xc3\xa4", "ä"),
        ({"a": (1,)}, {"a": [1]}),
        ({b"k": b"v"}, {"k": "v"}),
        (range(3), [0, 1, 2]),
        (-0.0, -0.0),
        ({"z": 1, "a": 2}, {"z": 1, "a": 2}),
        (True, True),
        (None, None),
    ],
)
async def test_arguments_are_normalised(database: str, api: Api, given: Any, kept: Any) -> None:
    result = await api.enqueue(tasks.echo, given, key=given)
    assert repr((result.args, result.kwargs)) == repr(([kept], {"key": kept}))
    found = await api.call(default_task_backend, "get_result", result.id)
    assert repr((found.args, found.kwargs)) == repr(([kept], {"key": kept}))


async def test_the_callers_own_lists_stay_the_callers(database: str, api: Api) -> None:
    inner = [2]
    result = await api.enqueue(tasks.echo, [1, inner])
    inner.append(3)
    assert result.args == [[1, [2]]]


# --- Looking results up ------------------------------------------------------------------------


async def test_get_result_finds_it(database: str, api: Api) -> None:
    result = await api.enqueue(tasks.add, 1, b=2)
    for owner in (default_task_backend, tasks.add):
        found = await api.call(owner, "get_result", result.id)
        assert isinstance(found, TaskResult)
        assert fields_of(found) == fields_of(result)


@pytest.mark.parametrize(
    "id",
    [
        "",
        "nonsense",
        "12345678-1234",
        "967e26e7-f6ed-4dd3-88a9-e42248288ef0",
        "x" * 10_000,
        "\x00",
        "\ud800",
        5,
        None,
        b"x",
    ],
)
async def test_a_missing_or_malformed_id_does_not_exist(database: str, api: Api, id: Any) -> None:
    for owner in (default_task_backend, tasks.add):
        with pytest.raises(TaskResultDoesNotExist):
            await api.call(owner, "get_result", id)


async def test_another_tasks_result_is_a_mismatch(database: str, api: Api) -> None:
    result = await api.enqueue(tasks.add, 1, 2)
    with pytest.raises(TaskResultMismatch, match=r"tests\.tasks\.add"):
        await api.call(tasks.aadd, "get_result", result.id)
    assert (await api.call(tasks.add.using(priority=5), "get_result", result.id)).id == result.id


async def test_a_result_whose_task_is_gone_says_so(database: str, api: Api, conn: asyncpg.Connection) -> None:
    result = await api.enqueue(tasks.add, 1, 2)
    await conn.execute("UPDATE aiotasks_task SET task_path = 'tests.tasks.gone'")
    with pytest.raises(UnknownTask, match=r"'tests\.tasks\.gone'"):
        await api.call(default_task_backend, "get_result", result.id)
    await conn.execute("UPDATE aiotasks_task SET task_path = 'subprocess.call'")
    with pytest.raises(UnknownTask, match="not a Task"):
        await api.call(default_task_backend, "get_result", result.id)


async def test_a_queue_that_has_left_queues_is_no_obstacle(
    database: str, api: Api, settings: Settings
) -> None:
    result = await api.enqueue(tasks.add.using(queue_name="going"), 1, 2)
    settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": ["left"]}}
    assert (await api.call(default_task_backend, "get_result", result.id)).task.queue_name == "going"


async def test_two_aliases_on_one_database_do_not_see_each_other(
    database: str, either: Api, settings: Settings
) -> None:
    one = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
    settings.TASKS = {"default": one, "other": one}
    other = tasks.aadd.using(backend="other")
    mine, theirs = await either.enqueue(tasks.aadd, 1, 2), await either.enqueue(other, 3, 4)
    with pytest.raises(TaskResultDoesNotExist):
        await either.call(task_backends["other"], "get_result", mine.id)
    with pytest.raises(TaskResultDoesNotExist):
        await either.call(tasks.aadd, "get_result", theirs.id)
    await run_all(backend="other")
    await either.call(mine, "refresh")
    await either.call(theirs, "refresh")
    assert (mine.status, theirs.status, theirs.return_value) == (READY, SUCCESSFUL, 7)
    assert (theirs.backend, theirs.task.backend) == ("other", "other")
    await run_all()
    await either.call(mine, "refresh")
    assert mine.return_value == 3


# --- The life of a result ----------------------------------------------------------------------


@pytest.mark.parametrize("add", [tasks.add, tasks.aadd], ids=["sync task", "coroutine task"])
async def test_a_success(database: str, either: Api, add: AnyTask) -> None:
    result = await either.enqueue(add, 1, b=2)
    await run_all()
    assert result.status is READY  # refreshed only when told to
    await either.call(result, "refresh")
    assert result.status is SUCCESSFUL
    assert type(result.status) is TaskResultStatus
    assert result.is_finished
    assert result.return_value == 3
    assert result.errors == []
    assert result.attempts == len(result.worker_ids) == 1
    UUID(result.worker_ids[0])
    assert isinstance(result.worker_ids[0], str)
    enqueued, started, attempted, ended = times = times_of(result)
    assert started == attempted <= ended
    assert all(timezone.is_aware(time) for time in times)
    assert abs(ended - enqueued) < timedelta(minutes=1)


@pytest.mark.parametrize("fail", [tasks.fail, tasks.afail], ids=["sync task", "coroutine task"])
async def test_a_failure(database: str, either: Api, fail: AnyTask) -> None:
    result = await either.enqueue(fail, "out of paper")
    await run_all()
    await either.call(result, "refresh")
    assert result.status is FAILED
    assert result.is_finished
    assert result.attempts == 1
    assert result.finished_at is not None
    with pytest.raises(ValueError, match=r"^Task failed$"):
        _ = result.return_value
    (error,) = result.errors
    assert error.exception_class_path == "builtins.ValueError"
    assert error.exception_class is ValueError
    lines = error.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: out of paper"
    assert any("tests/tasks.py" in line for line in lines)


async def test_running_shows(database: str, either: Api) -> None:
    result = await either.enqueue(tasks.asleep, 60)
    async with worker(grace=0):

        async def is_running() -> bool:
            await either.call(result, "refresh")
            return result.status is RUNNING

        await until(is_running)
        assert not result.is_finished
        assert result.attempts == 1
        assert result.started_at == result.last_attempted_at is not None
        assert result.finished_at is None
        with pytest.raises(ValueError, match=r"^Task has not finished yet$"):
            _ = result.return_value
    await either.call(result, "refresh")
    assert result.status is READY  # ready again: given back by a worker that has gone
    assert result.finished_at is None


async def test_a_second_attempt_keeps_the_first_start(
    database: str, either: Api, conn: asyncpg.Connection
) -> None:
    """A worker that died took one attempt: READY again, and two worker ids in the end."""
    result = await either.enqueue(tasks.aadd, 1, 2)
    async with worker():
        await finished(result)
    await conn.execute("UPDATE aiotasks_task SET status = 'READY', ready_at = now(), finished_at = NULL")
    await either.call(result, "refresh")
    assert (result.status, result.attempts, result.finished_at) == (READY, 1, None)
    first = result.started_at
    await run_all()
    await either.call(result, "refresh")
    assert result.attempts == len(set(result.worker_ids)) == 2
    _, started, attempted, _ = times_of(result)
    assert started == first
    assert started < attempted


@pytest.mark.parametrize(
    ("raising", "name"), [(tasks.raise_bad, "sync task"), (tasks.araise_bad, "coroutine task")]
)
async def test_an_error_is_stored_whether_or_not_its_class_can_be_imported(
    database: str, either: Api, raising: AnyTask, name: str
) -> None:
    result = await either.enqueue(raising, "local class")
    await run_all()
    await either.call(result, "refresh")
    (error,) = result.errors
    assert error.exception_class_path == "tests.tasks._local_class.<locals>.Local"
    assert "of a class that can't be imported" in error.traceback
    with pytest.raises(ImportError):
        _ = error.exception_class


@pytest.mark.parametrize("exits", [tasks.exit_now, tasks.aexit_now], ids=["sync task", "coroutine task"])
async def test_system_exit_fails_the_task_alone(database: str, either: Api, exits: AnyTask) -> None:
    exiting = await either.enqueue(exits)
    async with worker():
        await finished(exiting)
        after = await either.enqueue(tasks.aadd, 1, 2)
        await finished(after)
    assert exiting.status is FAILED
    assert exiting.errors[0].exception_class is SystemExit
    assert after.return_value == 3


async def test_none_is_a_return_value(database: str, either: Api) -> None:
    result = await either.enqueue(tasks.noop)
    await run_all()
    await either.call(result, "refresh")
    assert result.return_value is None
    assert result.status is SUCCESSFUL


async def test_refresh_copies_what_django_says_and_nothing_else(database: str, either: Api) -> None:
    result = await either.enqueue(tasks.echo, [1])
    task, args = result.task, result.args
    await run_all()
    await either.call(result, "refresh")
    found = await either.call(default_task_backend, "get_result", result.id)
    assert set(fields_of(result)) >= TASK_REFRESH_ATTRS
    for name in TASK_REFRESH_ATTRS:
        assert getattr(result, name) == getattr(found, name)
    assert result.task is task
    assert result.args is args
    assert result.return_value == [[[1]], {}]


async def test_refresh_of_a_row_that_was_pruned(database: str, api: Api, conn: asyncpg.Connection) -> None:
    result = await api.enqueue(tasks.noop)
    await conn.execute("DELETE FROM aiotasks_task")
    with pytest.raises(TaskResultDoesNotExist):
        await api.call(result, "refresh")


async def test_two_look_ups_share_nothing(database: str, either: Api) -> None:
    """Concurrent look-ups of one id are one row in one statement, but two results."""
    import asyncio

    result = await either.enqueue(tasks.echo, [1])
    await run_all()
    one, two = await asyncio.gather(
        *(either.call(default_task_backend, "get_result", result.id) for _ in range(2))
    )
    one.worker_ids.append("x")
    one.args.append("x")
    one.return_value.append("x")
    assert (len(two.worker_ids), two.args, two.return_value) == (1, [[1]], [[[1]], {}])


# --- The context -------------------------------------------------------------------------------


@pytest.mark.parametrize("describe", [tasks.describe, tasks.adescribe], ids=["sync task", "coroutine task"])
async def test_the_context_is_handed_to_a_task_that_takes_it(
    database: str, either: Api, conn: asyncpg.Connection, describe: AnyTask
) -> None:
    result = await either.enqueue(describe, 1, 2)
    assert result.args == [1, 2]
    await run_all()
    await either.call(result, "refresh")
    assert result.return_value == {
        "attempt": 1,
        "id": result.id,
        "status": "RUNNING",
        "args": [1, 2],
        "kwargs": {},
        "worker_ids": result.worker_ids,
        "values": [1, 2],
    }
    await conn.execute("UPDATE aiotasks_task SET status = 'READY', ready_at = now()")
    await run_all()
    await either.call(result, "refresh")
    assert result.return_value["attempt"] == 2


# --- Where tasks run ---------------------------------------------------------------------------


async def test_call_and_acall_run_it_here(api: Api) -> None:
    assert await api.call(tasks.add, "call", 1, 2) == 3
    assert await api.call(tasks.aadd, "call", 1, 2) == 3


async def test_both_kinds_run_side_by_side(database: str, either: Api) -> None:
    here = await tasks.awhere.aenqueue()
    there = await tasks.where.aenqueue()
    await run_all()
    await here.arefresh()
    await there.arefresh()
    assert here.return_value[1] is True
    assert there.return_value[0] != here.return_value[0]
    assert there.return_value[1] is False


async def test_tasks_enqueue_tasks(database: str, either: Api, conn: asyncpg.Connection) -> None:
    for one in (tasks.chain, tasks.achain, tasks.bridge):
        await either.enqueue(one, 3)
    await run_all()
    rows = await conn.fetch("SELECT task_path, count(*) FROM aiotasks_task GROUP BY 1 ORDER BY 1")
    assert {row[0].rpartition(".")[2]: row[1] for row in rows} == {"achain": 8, "bridge": 1, "chain": 4}
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status <> 'SUCCESSFUL'") == 0


# --- Pickling ----------------------------------------------------------------------------------

pickles = pytest.mark.skipif(not hasattr(Task, "_reconstruct"), reason="Django 6.0's Tasks don't pickle")


@pickles
def test_tasks_pickle() -> None:
    import pickle

    for one in (tasks.add, tasks.fragile, tasks.fragile.using(queue_name="q", priority=-3)):
        twin = pickle.loads(pickle.dumps(one))
        assert twin == one
        assert type(twin) is type(one)


@pickles
async def test_results_pickle(database: str, either: Api) -> None:
    import pickle

    result = await either.enqueue(tasks.fail, "x")
    assert pickle.loads(pickle.dumps(result)) == result
    await run_all()
    found = await either.call(default_task_backend, "get_result", result.id)
    twin = pickle.loads(pickle.dumps(found))
    assert twin == found
    assert twin.errors[0].exception_class is ValueError
    await either.call(twin, "refresh")


@pickles
def test_unpickling_validates(settings: Settings) -> None:
    import pickle

    data = pickle.dumps(tasks.add.using(queue_name="going"))
    settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": ["left"]}}
    with pytest.raises(InvalidTask, match="'going'"):
        pickle.loads(data)


# --- The wrong kind of method --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["enqueue", "enqueue_many", "get_result"])
def test_sync_and_async_methods_go_in_pairs(name: str) -> None:
    import inspect

    assert inspect.iscoroutinefunction(getattr(PostgresBackend, f"a{name}"))
    assert callable(getattr(PostgresBackend, name))


async def test_sync_methods_work_in_any_thread(database: str) -> None:
    import asyncio

    from django.db import connections

    def in_thread() -> AnyResult:
        try:
            result = tasks.add.enqueue(1, 2)
            result.refresh()
            return tasks.add.get_result(result.id)
        finally:
            connections.close_all()

    assert (await asyncio.to_thread(in_thread)).status is READY
    assert (await sync_to_async(in_thread, thread_sensitive=False)()).status is READY
