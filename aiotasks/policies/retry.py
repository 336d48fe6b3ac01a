"""``max_attempts``, ``backoff``, ``retry_on``, ``give_up_on``: if and when a failed task is tried again."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import cache
from inspect import signature
from typing import Any

from django.utils.module_loading import import_string

from .seconds import parse_seconds

__all__ = [
    "MOST_ATTEMPTS",
    "Backoff",
    "ExceptionClasses",
    "load_backoff",
    "parse_backoff",
    "parse_classes",
    "parse_delay",
    "parse_max_attempts",
]

# The column that counts failed executions is a smallint.
MOST_ATTEMPTS = 32_000

# Seconds. The next attempt's time must fit into PostgreSQL's timestamps and Python's datetime.
LONGEST_DELAY = 100 * 365 * 86_400.0

# From a failed attempt's exception and the task's result to the time until the next attempt: seconds or a
# timedelta; None: no more attempts. May be a coroutine function.
type Backoff = Callable[[BaseException, Any], float | timedelta | Awaitable[float | timedelta | None] | None]

type ExceptionClasses = type[BaseException] | tuple[type[BaseException], ...]


def parse_max_attempts(value: Any) -> int:
    """The number itself. Raises ValueError, which says what it must be."""
    if type(value) is not int or not 1 <= value <= MOST_ATTEMPTS:
        raise ValueError(f"a whole number from 1 to {MOST_ATTEMPTS}")
    return value


def parse_backoff(value: Any) -> Backoff:
    """The function itself. Raises ValueError, which says what it must be."""
    if not callable(value) or isinstance(value, type) or not _takes_two(value):
        raise ValueError("a function (exception, task_result) that returns seconds, a timedelta or None")
    function: Backoff = value
    return function


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether it can be called with an exception and a result. ``backoff.exponential`` can't: the call that
    makes a backoff of it was forgotten."""
    try:
        signature(function).bind(None, None)
    except ValueError:
        return True  # it has no signature
    except TypeError:
        return False
    return True


@cache
def load_backoff(path: str) -> Backoff:
    """Return the function at a dotted path. Raises ImportError, ValueError, or any error of its module."""
    found = import_string(path)
    try:
        return parse_backoff(found)
    except ValueError as error:
        raise ValueError(f"{path!r} must be {error}, not {found!r:.200}.") from None


def parse_delay(value: Any) -> float:
    """The time until the next attempt in seconds, of seconds or a timedelta. Raises ValueError, which says
    what it must be."""
    return parse_seconds(value, high=LONGEST_DELAY, longest="100 years")


def parse_classes(value: Any) -> tuple[type[BaseException], ...]:
    """The classes as a tuple. Raises ValueError, which says what they must be."""
    classes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise ValueError("an exception class, or a tuple of them")
    return classes
