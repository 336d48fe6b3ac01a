"""task(), PostgresTask, and what a stored path may lead to (docs/faults.md, 44)."""

import math
import pickle
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import django
import pytest
from django.tasks import Task
from django.tasks import task as django_task
from django.tasks.exceptions import InvalidTask
from django.utils import timezone

from aiotasks import PostgresTask, UnknownTask, backoff, task
from aiotasks.policies.policy import POLICIES
from aiotasks.registry import known, resolve
from aiotasks.results import PostgresTaskResult, new_result, parse_id
from tests.site import default_task_backend

from . import tasks

MODULE = "tests.unit.tasks"


@pytest.fixture(autouse=True)
def other_backends(settings: Any) -> None:
    settings.TASKS = {
        "default": {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": ["default", "emails"]},
        "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
        "immediate": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
    }


def test_the_decorator_makes_a_postgres_task() -> None:
    assert type(tasks.good) is PostgresTask
    assert isinstance(tasks.good, Task)
    assert (tasks.good.module_path, tasks.good.max_crashes) == (f"{MODULE}.good", None)
    assert (tasks.good.priority, tasks.good.queue_name, tasks.good.backend) == (0, "default", "default")
    decorated = task(priority=5, queue_name="emails", max_crashes=0, takes_context=True)(contextual)
    assert (decorated.priority, decorated.queue_name, decorated.max_crashes) == (5, "emails", 0)
    assert decorated.takes_context


def contextual(context: Any) -> None:
    pass


def test_djangos_own_decorator_makes_one_too() -> None:
    assert type(tasks.plain) is PostgresTask


@pytest.mark.parametrize("value", [-1, 32_001, 1.5, "3", True, False])
def test_max_crashes_is_checked(value: Any) -> None:
    with pytest.raises(InvalidTask, match=r"max_crashes must be a whole number from 0 to 32000") as caught:
        task(max_crashes=value)(tasks.function)
    assert repr(value) in str(caught.value)
    with pytest.raises(InvalidTask):
        tasks.good.using(max_crashes=value)


@pytest.mark.parametrize("value", [-1, 4e9, math.nan, -math.inf, "3", True, timedelta(-1), timedelta.max])
def test_keep_result_is_checked(value: Any) -> None:
    with pytest.raises(
        InvalidTask, match=r"keep_result must be seconds or a timedelta, .*, or math\.inf"
    ) as caught:
        task(keep_result=value)(tasks.function)
    assert repr(value) in str(caught.value)
    with pytest.raises(InvalidTask):
        tasks.good.using(keep_result=value)


@pytest.mark.parametrize(
    ("value", "seconds"), [(0, 0.0), (5, 5.0), (timedelta(days=2), 172_800.0), (math.inf, math.inf)]
)
def test_keep_result_is_in_seconds(value: Any, seconds: float) -> None:
    changed = tasks.good.using(keep_result=value)
    assert (changed.keep_result, type(changed.keep_result)) == (seconds, float)
    assert changed.using(priority=1).keep_result == seconds
    assert tasks.good.keep_result is None


def test_what_django_refuses_is_refused() -> None:
    with pytest.raises(InvalidTask):
        task(priority=101)(tasks.function)
    with pytest.raises(InvalidTask):
        task(queue_name="nowhere")(tasks.function)
    with pytest.raises(InvalidTask):
        task(lambda: None)


SECONDS = ["expires", "timeout", "unique_for", "keep_result"]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [90, 90.0, timedelta(seconds=90)])
def test_times_are_seconds_or_a_timedelta(name: str, value: Any) -> None:
    changed = task(**{name: value})(tasks.function)
    assert (getattr(changed, name), type(getattr(changed, name))) == (90.0, float)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, "90", True, math.nan, -math.inf, timedelta(-1), [90]])
def test_times_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        task(**{name: value})(tasks.function)
    assert "seconds or a timedelta" in str(caught.value)
    assert f"not {value!r}." in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be a whole number from 1 to 32000, not 0."),
        ({"max_attempts": 2.0}, "max_attempts must be a whole number from 1 to 32000, not 2.0."),
        ({"max_attempts": True}, "not True."),
        ({"backoff": 5}, "backoff must be a function (exception, task_result)"),
        ({"backoff": OSError}, "backoff must be a function (exception, task_result)"),
        ({"retry_on": "OSError"}, "retry_on must be an exception class, or a tuple of them, not 'OSError'."),
        ({"give_up_on": (OSError, int)}, "give_up_on must be an exception class, or a tuple of them"),
        ({"unique_key": ""}, "unique_key must be a string of at least one character"),
        ({"unique_key": b"x"}, "not b'x'."),
        ({"unique_for": "ever"}, "unique_for must be 'unfinished', 'waiting', or seconds"),
        ({"on_conflict": "ignore"}, "on_conflict must be one of 'return', 'raise', 'replace', not 'ignore'."),
        ({"on_conflict": "replace", "unique_for": "unfinished"}, "unique_for can only be 'waiting'"),
        ({"keep_run_after": True}, "keep_run_after=True is for on_conflict='replace'"),
        ({"keep_run_after": 1}, "keep_run_after must be True or False, not 1."),
    ],
)
def test_a_bad_policy_is_an_invalid_task_that_names_the_value(given: Any, message: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        task(**given)(tasks.function)
    assert message in str(caught.value)
    if django.VERSION >= (6, 1):
        decorator: Any = django_task  # whose keywords the stubs don't know
        with pytest.raises(InvalidTask) as of_django:
            decorator(**given)(tasks.function)
        assert str(of_django.value) == str(caught.value)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.0's decorator takes no keywords")
def test_djangos_own_decorator_takes_policies() -> None:
    decorator: Any = django_task
    policies = {"max_attempts": 5, "retry_on": OSError, "expires": timedelta(hours=1), "unique_key": "key"}
    made = decorator(priority=3, **policies)(tasks.function)
    assert made == task(priority=3, max_attempts=5, retry_on=OSError, expires=3600, unique_key="key")(
        tasks.function
    )
    assert (made.max_attempts, made.retry_on, made.expires) == (5, (OSError,), 3600.0)


@pytest.mark.parametrize(
    "given",
    [
        {"max_attempts": 2},
        {"backoff": tasks.function},
        {"timeout": 1},
        {"retry_on": OSError},
        {"give_up_on": OSError},
        {"unique_for": "waiting"},
        {"on_conflict": "raise"},
        {"keep_run_after": True},
    ],
)
def test_using_leaves_to_the_code_how_a_task_is_run(given: Any) -> None:
    (name,) = given
    with pytest.raises(
        TypeError, match=rf"using\(\) takes no {name}: .* belongs to its code.*@task\({name}="
    ):
        tasks.good.using(**given)
    for other in ({"max_crashes": 1}, {"keep_result": 1}, {"expires": 1}, {"unique_key": "x"}):
        assert tasks.good.using(**other) != tasks.good


def test_using_changes_what_is_given_and_nothing_else() -> None:
    when = datetime.now(UTC)
    changed = tasks.good.using(priority=3, queue_name="emails", run_after=when, max_crashes=2)
    assert type(changed) is PostgresTask
    assert (changed.priority, changed.queue_name, changed.run_after, changed.max_crashes) == (
        3,
        "emails",
        when,
        2,
    )
    assert changed.func is tasks.good.func
    again = changed.using(priority=0)
    assert (again.priority, again.queue_name, again.run_after, again.max_crashes) == (0, "emails", when, 2)
    assert tasks.good.using() == tasks.good
    assert tasks.good.priority == 0


def test_over_another_backend_the_policies_are_ignored() -> None:
    over_dummy = tasks.sync_good.using(backend="dummy", max_crashes=1)
    assert (over_dummy.enqueue().status, over_dummy.max_crashes) == ("READY", 1)
    assert tasks.sync_good.using(backend="immediate").enqueue().status == "SUCCESSFUL"
    assert task(backend="dummy")(tasks.function).backend == "dummy"


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 made tasks picklable")
def test_a_task_is_pickled() -> None:
    changed = tasks.good.using(priority=3, max_crashes=2)
    assert pickle.loads(pickle.dumps(changed)) == changed
    all_policies = tasks.with_policies.using(unique_key="a key", keep_result=math.inf)
    again = pickle.loads(pickle.dumps(all_policies))
    assert again == all_policies
    assert (again.backoff, again.retry_on, again.unique_for) == (tasks.backoff, (OSError,), "waiting")


def test_a_pickle_has_what_the_code_does_not_say() -> None:
    """The release before knows no ``expires``; and a lambda can't be pickled."""
    expiring = tasks.good.using(expires=3)
    for plain, policies in ((tasks.good, set()), (tasks.with_lambdas, set()), (expiring, {"expires"})):
        (kwargs,) = plain.__reduce__()[1]
        assert set(kwargs) & set(POLICIES) == policies
        assert pickle.loads(pickle.dumps(plain)) == plain
    none = tasks.with_policies.using(expires=None)
    assert pickle.loads(pickle.dumps(none)).expires is None
    with pytest.raises(ValueError, match="to point to a Task instance"):
        PostgresTask._reconstruct({"func": f"{MODULE}.nowhere"})


def test_a_result_of_a_release_with_fewer_fields_is_unpickled() -> None:
    result: Any = new_result(tasks.good, "0" * 32, timezone.now(), [1], {}, "default", None)
    again = object.__new__(PostgresTaskResult)
    again.__setstate__(result.__getstate__()[:-3])
    assert again == result
    assert (again.failures, again.is_duplicate) == (0, False)
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize(
    "bad", [backoff.exponential, backoff.linear, lambda: 1.0, lambda error: 1.0, lambda e, r, more: 1.0]
)
def test_a_backoff_takes_two_arguments(bad: Any) -> None:
    with pytest.raises(InvalidTask, match=r"backoff must be a function \(exception, task_result\)"):
        task(backoff=bad)(tasks.function)


def test_times_that_no_float_holds_are_refused() -> None:
    with pytest.raises(InvalidTask, match="expires must be seconds or a timedelta"):
        tasks.good.using(expires=10**400)


def test_a_path_leads_to_its_task() -> None:
    assert resolve(f"{MODULE}.good") is tasks.good
    assert known(f"{MODULE}.good", {}) is tasks.good
    assert known(f"{MODULE}.never_asked_for", {}) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("subprocess.call", "it is a function, not a Task"),
        ("os.system", "not a Task"),
        ("builtins.eval", "not a Task"),
        (f"{MODULE}.function", "it is a function, not a Task"),
        (f"{MODULE}.text", "it is a str, not a Task"),
        (f"{MODULE}.alias_of_good", f"the path of the Task there is '{MODULE}.good'"),
        ("tests.unit.test_tasks.tasks.good", "ModuleNotFoundError"),
        (f"{MODULE}.good.func", "ModuleNotFoundError"),
        (f"{MODULE}.gone", "ImportError"),
        ("tests.unit.no_such_module.good", "ModuleNotFoundError"),
        ("tests.unit.broken.good", "RuntimeError: this module is broken"),
        ("good", "ImportError"),
        ("", "ImportError"),
        (".good", "ValueError"),
        ("a\0b.c", ""),
    ],
)
def test_nothing_but_a_task_under_its_own_name_is_found(path: str, reason: str) -> None:
    with pytest.raises(UnknownTask) as caught:
        resolve(path)
    assert caught.value.task_path == path
    assert repr(path) in str(caught.value)
    assert reason in str(caught.value)
    assert isinstance(caught.value, ImportError)


def test_a_module_that_was_broken_may_be_mended() -> None:
    """A rolling deploy: what wasn't found is looked for again."""
    with pytest.raises(UnknownTask):
        resolve("tests.unit.later.good")
    later = type(sys)("tests.unit.later")

    def good() -> None:
        pass

    good.__module__, good.__qualname__ = "tests.unit.later", "good"
    vars(later)["good"] = task(good)
    sys.modules["tests.unit.later"] = later
    try:
        assert resolve("tests.unit.later.good") is vars(later)["good"]
    finally:
        del sys.modules["tests.unit.later"]


def test_ids() -> None:
    id = uuid4()
    assert parse_id(str(id)) == id
    for wrong in ("", "x", str(id)[:-1], "\0", 5, None, b"x"):
        assert parse_id(wrong) is None  # type: ignore[arg-type]
    assert isinstance(parse_id(str(id).upper()), UUID)
    assert default_task_backend.task_class is PostgresTask
