"""``timeout``: for how long one attempt of a task may run."""

import threading
import time
from datetime import UTC, datetime
from typing import Any

from .seconds import parse_seconds

__all__ = ["TimeLimit", "parse_timeout"]

# A timer of an event loop is not more exact than some milliseconds, and an attempt of a month is none.
SHORTEST, LONGEST = 0.001, 30 * 86_400.0


def parse_timeout(value: Any) -> float:
    """The time in seconds, of seconds or a timedelta. Raises ValueError, which says what it must be."""
    return parse_seconds(value, low=SHORTEST, high=LONGEST, longest="30 days")


class TimeLimit:
    """The time of one attempt: ``seconds`` from when its body begins. May be asked in any thread.

    thread_id: the thread in which the body has begun. ends_at: when the time is over, by the monotonic clock;
        None before the body begins. ended: whether the body has ended.
    """

    __slots__ = ("_began_at", "ended", "ends_at", "seconds", "thread_id")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.thread_id: int | None = None
        self.ended = False
        self._began_at: float | None = None  # epoch seconds
        self.ends_at: float | None = None

    def begin(self) -> None:
        """Note that the body begins, in this thread."""
        self.thread_id = threading.get_ident()
        self._began_at = time.time()
        self.ends_at = time.monotonic() + self.seconds

    def end(self) -> None:
        """Note that the body has ended, and nothing else of the attempt is limited."""
        self.ended = True

    def remaining(self) -> float:
        """Return the seconds that are left, 0.0 once the time is over; all of them before the body begins."""
        return self.seconds if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    def deadline(self) -> datetime | None:
        """Return when the time is over, in UTC, as long as nobody sets the clock; None before the body
        begins.
        """
        return None if self._began_at is None else datetime.fromtimestamp(self._began_at + self.seconds, UTC)
