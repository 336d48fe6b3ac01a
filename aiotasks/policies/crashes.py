"""``max_crashes``: after how many crashes of its worker a task is given up."""

from typing import Any

__all__ = ["MOST_CRASHES", "parse_max_crashes"]

# The column is a smallint, and the count may go on above the limit.
MOST_CRASHES = 32_000


def parse_max_crashes(value: Any) -> int:
    """The number itself. Raises ValueError, which says what it must be."""
    if type(value) is not int or not 0 <= value <= MOST_CRASHES:
        raise ValueError(f"a whole number from 0 to {MOST_CRASHES}")
    return value
