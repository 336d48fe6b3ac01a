"""Times in policies: seconds as an int or a float, or a timedelta."""

from datetime import timedelta
from typing import Any

__all__ = ["parse_seconds"]


def parse_seconds(value: Any, *, low: float = 0.0, high: float, longest: str) -> float:
    """The time in seconds, of seconds or a timedelta. Raises ValueError, which says what it must be.

    low, high: the limits in seconds. longest: ``high`` in words.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    # Compared as it is: float() refuses larger integers with an error of its own. NaN is in no range.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not low <= seconds <= high:
        raise ValueError(f"seconds or a timedelta, from {low:g} to {longest}")
    return float(seconds)
