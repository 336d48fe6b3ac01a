"""``max_attempts``, ``backoff``, ``retry_on``, ``give_up_on``: if and when a failed task is tried again."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

__all__ = [
    "MOST_ATTEMPTS",
    "Backoff",
    "ExceptionClasses",
    "parse_backoff",
    "parse_classes",
    "parse_max_attempts",
]

# The column that counts failed executions is a smallint.
MOST_ATTEMPTS = 32_000

# From a failed attempt's exception and the task's result to the time until the next attempt: seconds or a
# timedelta; None: no more attempts.
type Backoff = Callable[[BaseException, Any], float | timedelta | None]

type ExceptionClasses = type[BaseException] | tuple[type[BaseException], ...]


def parse_max_attempts(value: Any) -> int:
    """The number itself. Raises ValueError, which says what it must be."""
    if type(value) is not int or not 1 <= value <= MOST_ATTEMPTS:
        raise ValueError(f"a whole number from 1 to {MOST_ATTEMPTS}")
    return value


def parse_backoff(value: Any) -> Backoff:
    """The function itself. Raises ValueError, which says what it must be."""
    if not callable(value) or isinstance(value, type):
        raise ValueError("a function (exception, task_result) that returns seconds, a timedelta or None")
    function: Backoff = value
    return function


def parse_classes(value: Any) -> tuple[type[BaseException], ...]:
    """The classes as a tuple. Raises ValueError, which says what they must be."""
    classes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise ValueError("an exception class, or a tuple of them")
    return classes
