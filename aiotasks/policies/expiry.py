"""``expires``: how long after it is due a task may still be started."""

from typing import Any

from .seconds import parse_seconds

__all__ = ["parse_expires"]

# The same bounds as for results: PostgreSQL's timestamps must hold the time. A task that expires sooner than
# in a millisecond would never be started.
SHORTEST, LONGEST = 0.001, 100 * 365 * 86_400.0


def parse_expires(value: Any) -> float:
    """The time in seconds, of seconds or a timedelta. Raises ValueError, which says what it must be."""
    return parse_seconds(value, low=SHORTEST, high=LONGEST, longest="100 years")
