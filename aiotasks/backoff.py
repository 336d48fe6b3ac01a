"""Ready-made backoffs: how long a failed task waits for its next attempt.

::

    from aiotasks import backoff, task

    @task(max_attempts=5, backoff=backoff.exponential(2, longest=600))
    async def fetch(url: str) -> None: ...

They count failed executions: attempts that a shutdown, a snooze or a crash of the worker has ended don't make
a task wait longer. With ``jitter`` the time is a random part of what it would be without, so that tasks that
failed together don't come back together ("full jitter").
"""

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .policies.seconds import parse_seconds

__all__ = ["DEFAULT", "Constant", "Exponential", "Linear", "ReadyMade", "constant", "exponential", "linear"]

# Seconds. As long as Retry(after=…) may ask for.
LONGEST = 100 * 365 * 86_400.0

# With it even the second wait is the longest.
LARGEST_FACTOR = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyMade(ABC):
    """A backoff that runs no code but this package's. Two with equal values are equal; all can be pickled.

    longest: seconds, at most. jitter: whether the time is a random part of what it would be without.
    """

    longest: float
    jitter: bool

    def __call__(self, exception: BaseException, task_result: Any) -> float:
        """Return the seconds until the next attempt; the exception doesn't matter.

        For a TaskResult that isn't aiotasks', each of its errors counts as a failed execution.
        """
        failures = getattr(task_result, "failures", None)
        return self.after(len(task_result.errors) if failures is None else failures)

    def after(self, failures: int) -> float:
        """Return the seconds to wait after so many failed executions."""
        seconds = min(self._seconds(max(1, failures)), self.longest)
        return random.uniform(0.0, seconds) if self.jitter else seconds

    @abstractmethod
    def _seconds(self, failures: int) -> float:
        """The seconds without limit and jitter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential(ReadyMade):
    """``first * factor ** (failures - 1)`` seconds."""

    first: float
    factor: float

    def _seconds(self, failures: int) -> float:
        try:
            return self.first * self.factor ** (failures - 1)
        except OverflowError:  # more than a float holds
            return math.inf if self.first else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(ReadyMade):
    """``step * failures`` seconds."""

    step: float

    def _seconds(self, failures: int) -> float:
        return self.step * failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(ReadyMade):
    """The same ``seconds`` each time."""

    seconds: float

    def _seconds(self, failures: int) -> float:
        return self.seconds


def exponential(
    first: float | timedelta = 1.0,
    *,
    factor: float = 2.0,
    jitter: bool = True,
    longest: float | timedelta = 3600.0,
) -> Exponential:
    """Wait ``first`` seconds after the first failed execution, and ``factor`` times as long after each
    further one, but at most ``longest``.

    Times are seconds or a timedelta. Raises ValueError for one below 0 or above 100 years, and for a factor
    below 1 or above a million.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= LARGEST_FACTOR:
        raise ValueError(f"factor must be a number from 1 to {LARGEST_FACTOR:g}, not {factor!r}.")
    return Exponential(
        first=_seconds("first", first),
        factor=float(factor),
        longest=_seconds("longest", longest),
        jitter=_flag(jitter),
    )


def linear(
    step: float | timedelta = 10.0, *, jitter: bool = True, longest: float | timedelta = 3600.0
) -> Linear:
    """Wait ``step`` seconds after the first failed execution, and ``step`` longer after each further one, but
    at most ``longest``.

    Times are seconds or a timedelta. Raises ValueError for one below 0 or above 100 years.
    """
    return Linear(step=_seconds("step", step), longest=_seconds("longest", longest), jitter=_flag(jitter))


def constant(
    seconds: float | timedelta = 60.0, *, jitter: bool = True, longest: float | timedelta = LONGEST
) -> Constant:
    """Wait the same time after each failed execution, but at most ``longest``.

    Times are seconds or a timedelta. Raises ValueError for one below 0 or above 100 years.
    """
    return Constant(
        seconds=_seconds("seconds", seconds), longest=_seconds("longest", longest), jitter=_flag(jitter)
    )


def _seconds(name: str, value: Any) -> float:
    try:
        return parse_seconds(value, high=LONGEST, longest="100 years")
    except ValueError as error:
        raise ValueError(f"{name} must be {error}, not {value!r}.") from None


def _flag(jitter: Any) -> bool:
    if not isinstance(jitter, bool):
        raise ValueError(f"jitter must be True or False, not {jitter!r}.")
    return jitter


# For tasks and backends that name none: from 1 s to 1 h.
DEFAULT = exponential()
