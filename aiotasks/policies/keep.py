"""``keep_result``, KEEP_SUCCESSFUL and KEEP_FAILED: for how long a finished task is kept."""

import math
from typing import Any

from .seconds import parse_seconds

__all__ = ["parse_keep_result", "parse_keep_time"]

# The longest time in seconds, apart from forever: PostgreSQL's timestamps must hold its end.
LONGEST_KEPT = 100 * 365 * 86_400.0


def parse_keep_time(value: Any) -> float:
    """The time in seconds, of seconds or a timedelta. Raises ValueError, which says what it must be."""
    return parse_seconds(value, high=LONGEST_KEPT, longest="100 years")


def parse_keep_result(value: Any) -> float:
    """As parse_keep_time, or ``math.inf``: forever."""
    if value == math.inf:
        return math.inf
    try:
        return parse_keep_time(value)
    except ValueError as error:
        raise ValueError(f"{error}, or math.inf") from None
