"""``timeout``: for how long one attempt of a task may run."""

from typing import Any

from .seconds import parse_seconds

__all__ = ["parse_timeout"]

# A timer of an event loop is not more exact than some milliseconds, and an attempt of a month is none.
SHORTEST, LONGEST = 0.001, 30 * 86_400.0


def parse_timeout(value: Any) -> float:
    """The time in seconds, of seconds or a timedelta. Raises ValueError, which says what it must be."""
    return parse_seconds(value, low=SHORTEST, high=LONGEST, longest="30 days")
