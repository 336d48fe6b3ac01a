"""PostgresTaskContext: what a running task with ``takes_context=True`` sees of its attempt."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from django.conf import settings
from django.tasks import TaskContext
from django.utils import timezone

from .policies.timeout import TimeLimit

__all__ = ["Attempt", "PostgresTaskContext"]


class Attempt(Protocol):
    """The attempt as its worker has it."""

    @property
    def limit(self) -> TimeLimit | None:
        """Its time; None if that isn't limited."""

    def is_cancelled(self) -> bool:
        """Whether the worker wants it to end before its time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresTaskContext(TaskContext):  # type: ignore[type-arg,misc]  # the stubs differ
    """Django's TaskContext, with the time that the attempt has left. May be used in any thread."""

    running: Attempt | None = field(default=None, repr=False, compare=False)

    @property
    def deadline(self) -> datetime | None:
        """When the attempt's ``timeout`` is over; None without one. Aware, or naive and local where USE_TZ is
        False, as the times of a TaskResult.
        """
        limit = self._limit()
        moment = None if limit is None else limit.deadline()
        return moment if moment is None or settings.USE_TZ else timezone.make_naive(moment)

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, 0.0 once it has passed; None without a ``timeout``."""
        limit = self._limit()
        return None if limit is None else limit.remaining()

    def is_cancelled(self) -> bool:
        """Return whether the body should end, because nobody waits for its result any more.

        That is so once the deadline has passed; once a user has cancelled the task and the worker knows of
        it; once a stop of the worker has outlasted its grace; and once the worker has lost its lease.
        """
        if self.running is None:
            return False
        return self.running.is_cancelled() or self.remaining() == 0.0

    def _limit(self) -> TimeLimit | None:
        return None if self.running is None else self.running.limit
