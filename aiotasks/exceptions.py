"""The errors that aiotasks raises or stores.

::

    Exception
    └── AiotasksError
        ├── DatabaseNotReady    no tables, no such database or no access (an ImproperlyConfigured too)
        ├── DuplicateTask       another task holds the unique key of the one to enqueue
        ├── GiveUp              raised by a task: FAILED, whatever attempts are left
        ├── InvalidRow          a row of the table holds what aiotasks never writes (a ValueError too)
        ├── RateLimited         raised by a task: its limit's key is closed until it runs again (a Snooze too)
        ├── Retry               raised by a task: this attempt failed, and the next one is at that time
        ├── Snooze              raised by a task: run it again later, no attempt spent
        ├── TaskCancelled       stored: the task was cancelled by acancel() or cancel()
        ├── TaskExpired         stored: the task wasn't started in time
        ├── TaskTimeout         stored: the attempt has run for longer than its timeout (a TimeoutError too)
        ├── TransactionClosed   code that outlived its atomic() or transaction() block
        ├── UnknownTask         a stored task path that leads to no Task here (an ImportError too)
        └── WorkerLost          stored: the worker died while it ran the task

Wrong arguments raise TypeError or ValueError, and wrong settings Django's ImproperlyConfigured.

Errors of PostgreSQL reach callers as Django's own ``django.db`` errors, whichever driver ran the statement,
with the driver's error as ``__cause__``.
"""

from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .policies.retry import parse_delay

__all__ = [
    "AiotasksError",
    "DatabaseNotReady",
    "DuplicateTask",
    "GiveUp",
    "InvalidRow",
    "RateLimited",
    "Retry",
    "Snooze",
    "TaskCancelled",
    "TaskExpired",
    "TaskTimeout",
    "TransactionClosed",
    "UnknownTask",
    "WorkerLost",
]


def _restore(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    return kind.__new__(kind, *args)


class AiotasksError(Exception):
    """Base of the errors that this package defines. All can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Without __init__, whose arguments aren't those that Exception keeps.
        return _restore, (type(self), self.args), self.__dict__ or None


class DatabaseNotReady(AiotasksError, ImproperlyConfigured):
    """The database can't be used, and waiting won't help: no tables, no such database, no access."""


class DuplicateTask(AiotasksError):
    """Another task holds the unique key of a task that was to be enqueued with ``on_conflict="raise"``, or
    with ``"replace"`` if it can't be replaced.

    ``result`` is that task's TaskResult; where two calls of one ``aenqueue_many()`` have the same key, that
    of the first one, which isn't stored. The message names the call of ``aenqueue_many()`` (``calls[3]``).
    """

    def __init__(self, key: str, result: Any, *, number: int | None = None) -> None:
        where = "" if number is None else f"calls[{number}]: "
        super().__init__(f"{where}Task {result.id} holds the unique key {key!r:.200}.")
        self.key = key
        self.result = result


class GiveUp(AiotasksError):
    """Raise it in a task that shouldn't be tried again: it is FAILED with this error at once."""


class InvalidRow(AiotasksError, ValueError):
    """A row of the table holds what aiotasks never writes: other code has changed it."""

    def __init__(self, id: object, reason: str) -> None:
        super().__init__(f"The row of task {str(id)!r} can't be read: {reason}.")


class Retry(AiotasksError):
    """Raise it in a task to have it tried again, while it has attempts left.

    after: seconds or a timedelta until the next attempt; None: as the task's backoff says. Raises ValueError
    for anything else.
    """

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        self.after = None if after is None else _delay("after", after)
        super().__init__(message or "The task asked for another attempt.")


class Snooze(AiotasksError):
    """Raise it in a task to have it run again later: no error is stored and no attempt spent.

    for_: seconds or a timedelta. Raises ValueError for anything else.
    """

    def __init__(self, *, for_: float | timedelta) -> None:
        self.seconds = _delay("for_", for_)
        super().__init__(f"The task is to run again in {self.seconds:g} s.")


class RateLimited(Snooze):
    """Raise it in a task with a ``limit`` whose other side wants to be asked later (HTTP's status 429): it
    runs again then, with no error stored and no attempt spent, and no other task of its key starts before.

    after: seconds or a timedelta; a key is closed for a year at most. A task without a limit is only put
    off. Raises ValueError for anything else.
    """

    def __init__(self, *, after: float | timedelta) -> None:
        super().__init__(for_=_delay("after", after))


class TaskCancelled(AiotasksError):
    """The task was cancelled by ``acancel()`` or ``cancel()``."""


class TaskExpired(AiotasksError):
    """The task wasn't started within its ``expires`` seconds from when it was due."""


class TaskTimeout(AiotasksError, TimeoutError):
    """An attempt has run for longer than the task's ``timeout``."""


class TransactionClosed(AiotasksError):
    """The ``atomic()`` or ``transaction()`` block that this code was started in has ended."""


class UnknownTask(AiotasksError, ImportError):
    """A stored task path leads to no ``Task`` in this process.

    ``task_path`` is the path as it is stored, or where MOVED_TASKS has sent it.
    """

    def __init__(self, task_path: str, reason: str) -> None:
        super().__init__(f"{task_path!r} is not a task that can be run here: {reason}")
        self.task_path = task_path


class WorkerLost(AiotasksError):
    """The worker that ran the task stopped renewing its lease: it was killed, or hung."""


def _delay(name: str, value: Any) -> float:
    try:
        return parse_delay(value)
    except ValueError as error:
        raise ValueError(f"{name} must be {error}, not {value!r}.") from None
