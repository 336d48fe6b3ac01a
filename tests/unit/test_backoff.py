"""The ready-made backoffs, and what a failed attempt leads to."""

import pickle
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.tasks import Task

from aiotasks import GiveUp, Retry, Snooze, TaskTimeout, backoff, task
from aiotasks.backoff import ReadyMade
from aiotasks.conf import Options
from aiotasks.exceptions import InvalidRow
from aiotasks.rows import AnyTask
from aiotasks.worker.running.verdict import Delay, judge, most_attempts, seconds_of


def times(of: ReadyMade, number: int = 6) -> list[float]:
    return [of.after(failures) for failures in range(1, number + 1)]


def test_without_jitter_they_are_what_their_docstrings_say() -> None:
    assert times(backoff.exponential(jitter=False, longest=10)) == [1, 2, 4, 8, 10, 10]
    assert times(backoff.exponential(0.5, factor=3, jitter=False), 3) == [0.5, 1.5, 4.5]
    assert times(backoff.linear(2, jitter=False, longest=9)) == [2, 4, 6, 8, 9, 9]
    assert times(backoff.constant(timedelta(minutes=1), jitter=False), 2) == [60, 60]
    assert backoff.exponential(jitter=False).after(32_000) == 3600  # beyond what a float holds
    assert backoff.exponential(0, jitter=False).after(32_000) == 0


@pytest.mark.parametrize("of", [backoff.exponential(), backoff.linear(3), backoff.constant(5)])
def test_jitter_takes_a_random_part(of: ReadyMade) -> None:
    whole = pickle.loads(pickle.dumps(of))
    object.__setattr__(whole, "jitter", False)
    found = [of.after(4) for _ in range(200)]
    assert all(0 <= seconds <= whole.after(4) for seconds in found)
    assert len(set(found)) > 100


def test_they_are_values() -> None:
    for made in (backoff.exponential(2), backoff.linear(2), backoff.constant(2)):
        assert pickle.loads(pickle.dumps(made)) == made
        assert hash(made) == hash(pickle.loads(pickle.dumps(made)))
    assert backoff.exponential(2) != backoff.exponential(3)


def test_they_count_failed_executions() -> None:
    """Not attempts, of which a crash, a snooze or a shutdown takes one as well."""
    plain = backoff.linear(1, jitter=False)
    result = SimpleNamespace(failures=3, errors=["…"] * 7, attempts=9)
    assert plain(ValueError(), result) == 3
    del result.failures  # of another backend, as in tests
    assert plain(ValueError(), result) == 7


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: backoff.exponential(-1),
            "first must be seconds or a timedelta, from 0 to 100 years, not -1.",
        ),
        (lambda: backoff.exponential(factor=0.5), "factor must be a number from 1 to 1e+06, not 0.5."),
        (lambda: backoff.exponential(factor=True), "factor must be a number from 1 to 1e+06, not True."),
        (lambda: backoff.exponential(factor=10**400), "factor must be a number from 1 to 1e"),
        (lambda: backoff.linear(10**400), "step must be seconds"),
        (lambda: backoff.linear("1"), "step must be seconds"),  # type: ignore[arg-type]
        (lambda: backoff.constant(float("nan")), "seconds must be seconds"),
        (lambda: backoff.constant(1, longest=True), "longest must be seconds"),
        (lambda: backoff.constant(1, jitter=1), "jitter must be True or False, not 1."),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        make()
    assert str(caught.value).startswith(told)


# --- The verdict


def plain() -> None: ...


def ask(exception: BaseException, task_result: Any) -> float:
    return 7.0


OPTIONS = Options()


def verdict(error: BaseException, failures: int = 1, options: Options = OPTIONS, **policy: Any) -> Any:
    return judge(task(**policy)(plain), options, failures, error)


def test_a_task_has_one_attempt_unless_it_asks_for_more() -> None:
    assert verdict(ValueError()) is None
    assert verdict(ValueError(), max_attempts=2) is backoff.DEFAULT
    assert verdict(ValueError(), 2, max_attempts=2) is None
    assert verdict(ValueError(), 2, max_attempts=3, backoff=ask) is ask


def test_options_are_for_tasks_that_say_nothing() -> None:
    options = Options(max_attempts=3, backoff=ask)
    assert verdict(ValueError(), 2, options) is ask
    assert verdict(ValueError(), 3, options) is None
    assert verdict(ValueError(), 1, options, max_attempts=1) is None
    assert verdict(ValueError(), 1, options, backoff=backoff.linear()) == backoff.linear()
    django_task: AnyTask = Task(
        priority=0, func=plain, backend="default", queue_name="default", run_after=None
    )
    assert judge(django_task, options, 2, ValueError()) is ask
    assert most_attempts(django_task, options) == 3
    by_path = Options(max_attempts=2, backoff=f"{__name__}.ask")
    assert verdict(ValueError(), 1, by_path) is ask
    with pytest.raises(ImportError):
        verdict(ValueError(), 1, Options(max_attempts=2, backoff="nowhere.backoff"))
    with pytest.raises(ValueError, match="must be a function"):
        verdict(ValueError(), 1, Options(max_attempts=2, backoff=f"{__name__}.OPTIONS"))


def test_classes_decide_with_their_subclasses() -> None:
    only: Any = {"max_attempts": 5, "backoff": ask, "retry_on": OSError}
    assert verdict(ConnectionResetError(), **only) is ask
    assert verdict(TaskTimeout(), **only) is ask  # a TimeoutError, which is an OSError
    assert verdict(ValueError(), **only) is None
    but: Any = {"max_attempts": 5, "backoff": ask, "give_up_on": (PermissionError, LookupError)}
    assert verdict(KeyError(), **but) is None
    assert verdict(OSError(), **but) is ask
    both = {**only, "give_up_on": PermissionError}
    assert verdict(PermissionError(), **both) is None
    assert verdict(ConnectionError(), **both) is ask


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_errors_that_are_no_exceptions_are_failures_as_others_are(error: BaseException) -> None:
    assert verdict(error, max_attempts=2, backoff=ask) is ask
    assert verdict(error, max_attempts=2, retry_on=Exception) is None


def test_what_a_task_raises_to_say_what_follows() -> None:
    assert verdict(Retry(after=timedelta(seconds=3)), max_attempts=2, retry_on=OSError) == Delay(3.0)
    assert verdict(Retry(after=0), max_attempts=2) == Delay(0.0)
    assert verdict(Retry(), max_attempts=2, retry_on=OSError, backoff=ask) is ask
    assert verdict(Retry(after=1), 2, max_attempts=2) is None
    assert verdict(Retry(after=1)) is None
    assert verdict(GiveUp("why"), max_attempts=9) is None
    assert verdict(Snooze(for_=9)) == Delay(9.0, snoozes=True)
    assert verdict(Snooze(for_=9), 5, max_attempts=2) == Delay(9.0, snoozes=True)


def test_what_no_attempt_can_change_is_final() -> None:
    assert verdict(InvalidRow("1", "…"), max_attempts=9) is None
    assert judge(None, Options(max_attempts=9), 1, ValueError()) is None


def test_a_backoffs_answers() -> None:
    assert [seconds_of(each) for each in (None, 0, 1.5, timedelta(minutes=1))] == [None, 0.0, 1.5, 60.0]
    for nonsense in (-1, float("nan"), float("inf"), True, "5", ValueError, [1], 4e9):
        with pytest.raises(ValueError, match="A backoff must return seconds or a timedelta"):
            seconds_of(nonsense)
