"""PostgresTaskContext: what a running task with ``takes_context=True`` sees of its attempt."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from django.conf import settings
from django.tasks import TaskContext
from django.utils import timezone

from .metadata.running import RunningMetadata
from .policies.timeout import TimeLimit

__all__ = ["Attempt", "PostgresTaskContext"]


class Attempt(Protocol):
    """The attempt as its worker has it."""

    @property
    def limit(self) -> TimeLimit | None:
        """Its time; None if that isn't limited."""

    @property
    def metadata(self) -> RunningMetadata | None:
        """Its metadata; None only where the body has no context."""

    def is_cancelled(self) -> bool:
        """Whether the worker wants it to end before its time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields(TaskContext):  # type: ignore[type-arg,misc]  # the stubs differ
    """The fields of a PostgresTaskContext.

    A class of its own, because a dataclass with slots drops a property that has the name of an inherited
    field, as ``metadata`` may be in a later Django.
    """

    running: Attempt | None = field(default=None, repr=False, compare=False)


# A dataclass as well, because only then an assignment to a property raises FrozenInstanceError.
@dataclass(frozen=True, kw_only=True)
class PostgresTaskContext(_Fields):  # type: ignore[misc]  # as above
    """Django's TaskContext, with the time that the attempt has left, and the task's metadata.

    May be used in any thread; the metadata in one thread at a time.
    """

    __slots__ = ()

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

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that the task is of; None: it isn't of one. Raises InvalidRow."""
        name = self._own("_schedule")
        return name if isinstance(name, str) else None

    @property
    def scheduled_for(self) -> datetime | None:
        """The tick of the schedule that the task is of, whenever it runs; where somebody has run the schedule
        by hand, when that was. None: it isn't of a schedule. Aware or naive, as the ``deadline``. Raises
        InvalidRow.
        """
        text = self._own("_scheduled_for")
        if not isinstance(text, str):
            return None
        moment = datetime.fromisoformat(text)
        return moment if settings.USE_TZ else timezone.make_naive(moment)

    @property
    def metadata(self) -> dict[str, Any]:
        """The task's metadata, as it was when the attempt began: a dict to be changed in place.

        It is saved when the attempt ends, in whatever way. Keys that are aiotasks' own (they begin with an
        underscore) aren't in it. Raises InvalidRow where other code has written something else.
        """
        return self._metadata().values

    @metadata.setter
    def metadata(self, value: object) -> None:
        """Ignored: a later Django may have a field of this name, which is set as the others are."""

    def save_metadata(self) -> None:
        """Have ``metadata`` saved soon, within about 0.1 s, and not only at the end. Doesn't wait for it.

        What this attempt has changed or removed is merged by key with what others have written. Raises
        TypeError or ValueError for metadata that can't be stored: keys that aren't strings or begin with an
        underscore, values that JSON can't keep, more than 64 KiB.
        """
        self._metadata().save()

    async def asave_metadata(self) -> None:
        """See save_metadata()."""
        self._metadata().save()

    def progress(self, done: float, total: float | None, message: str = "") -> None:
        """Set ``metadata["progress"]``, and have it saved soon.

        ``progress`` has ``done``, ``total`` (None: not known), the first 1,000 characters of ``message``, the
        ``rate`` of done in a second, and ``eta``, the seconds that are left. Meant for every step of a long
        loop: most calls only note their arguments. The latest is saved within about 0.2 s, or with the end of
        the attempt. Other keys are saved by a call that isn't only noted, about one in 0.1 s: where a change
        of them has to be seen soon, call ``save_metadata()`` after it. Raises TypeError or ValueError as
        ``save_metadata()``, also for a bad number; where such a call was only noted, it is ignored.
        """
        self._metadata().progress(done, total, message)

    def _own(self, key: str) -> Any:
        """What the task's metadata have under one of aiotasks' own keys."""
        metadata = None if self.running is None else self.running.metadata
        return None if metadata is None else metadata.own(key)

    def _metadata(self) -> RunningMetadata:
        metadata = None if self.running is None else self.running.metadata
        if metadata is None:
            raise RuntimeError("This context belongs to no running attempt, so it has no metadata.")
        return metadata

    def _limit(self) -> TimeLimit | None:
        return None if self.running is None else self.running.limit
