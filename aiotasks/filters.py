"""TaskFilter: which tasks a bulk action is for."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from .rows import Status

__all__ = ["TaskFilter"]

_TEXTS = ("queue_name", "task_path", "unique_key", "error")
_TIMES = ("enqueued_after", "enqueued_before", "finished_after", "finished_before")


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks an action is for: those to which all of these apply. None: any; so ``TaskFilter()`` is for
    all tasks of the backend, which cancelling and deleting do with ``everything=True`` only.

    ``queue_name``, ``task_path`` (``app.tasks.send``) and ``unique_key``: exactly this one.
    ``status``: a status of the table or several: SCHEDULED (waits for its time, also for a retry's), READY,
    RUNNING, SUCCESSFUL, FAILED. Kept as a tuple.
    ``enqueued_after``, ``enqueued_before``, ``finished_after``, ``finished_before``: from this time on, and
    before this time. A task that isn't finished matches no time of that.
    ``error``: the class of the last error of a FAILED task, with its module or without (``ValueError``,
    ``builtins.ValueError``). A task that isn't FAILED matches none.
    ``worker``: the id of the worker that has, or had, the task's last execution.

    Raises ValueError for another status, a text that PostgreSQL can't hold, and a naive time where USE_TZ is
    on; TypeError for a value of another type.
    """

    queue_name: str | None = None
    task_path: str | None = None
    status: str | Iterable[str] | None = None
    unique_key: str | None = None
    enqueued_after: datetime | None = None
    enqueued_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None
    error: str | None = None
    worker: UUID | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(value := getattr(self, name), str | None):
                raise TypeError(f"{name} must be a string, not {value!r:.300}.")
            if value is not None and not _can_be_stored(value):
                raise ValueError(f"{name} can't hold NUL or a lone surrogate, as in {value!r:.300}.")
        for name in _TIMES:
            object.__setattr__(self, name, _aware(name, getattr(self, name)))
        if not isinstance(self.worker, UUID | None):
            raise TypeError(f"worker must be a UUID, not {self.worker!r:.300}.")
        object.__setattr__(self, "status", _statuses(self.status))

    @property
    def statuses(self) -> tuple[Status, ...] | None:
        """``status`` as it is kept."""
        return self.status  # type: ignore[return-value]  # see __post_init__

    @property
    def is_empty(self) -> bool:
        """Whether every task is meant."""
        return all(getattr(self, field.name) is None for field in fields(self))


def _can_be_stored(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _statuses(value: str | Iterable[str] | None) -> tuple[Status, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else list(value)
    try:
        return tuple(dict.fromkeys(Status(name) for name in names))
    except ValueError:
        raise ValueError(
            f"status must be one of {', '.join(Status)}, or several of them, not {value!r:.300}."
        ) from None


def _aware(name: str, value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime, not {value!r:.300}.")
    if not timezone.is_naive(value):
        return value
    if settings.USE_TZ:
        raise ValueError(f"{name} must be an aware datetime, not {value.isoformat()}.")
    return timezone.make_aware(value)
