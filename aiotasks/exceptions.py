"""The errors that aiotasks raises or stores.

::

    Exception
    └── AiotasksError
        ├── DatabaseNotReady    no tables, no such database or no access (an ImproperlyConfigured too)
        ├── InvalidRow          a row of the table holds what aiotasks never writes (a ValueError too)
        ├── TaskCancelled       stored: the task was cancelled by acancel() or cancel()
        ├── TransactionClosed   code that outlived its atomic() or transaction() block
        ├── UnknownTask         a stored task path that leads to no Task here (an ImportError too)
        └── WorkerLost          stored: the worker died while it ran the task

Wrong arguments raise TypeError or ValueError, and wrong settings Django's ImproperlyConfigured.

Errors of PostgreSQL reach callers as Django's own ``django.db`` errors, whichever driver ran the statement,
with the driver's error as ``__cause__``.
"""

from django.core.exceptions import ImproperlyConfigured

__all__ = [
    "AiotasksError",
    "DatabaseNotReady",
    "InvalidRow",
    "TaskCancelled",
    "TransactionClosed",
    "UnknownTask",
    "WorkerLost",
]


class AiotasksError(Exception):
    """Base of the errors that this package defines."""


class DatabaseNotReady(AiotasksError, ImproperlyConfigured):
    """The database can't be used, and waiting won't help: no tables, no such database, no access."""


class InvalidRow(AiotasksError, ValueError):
    """A row of the table holds what aiotasks never writes: other code has changed it."""

    def __init__(self, id: object, reason: str) -> None:
        super().__init__(f"The row of task {str(id)!r} can't be read: {reason}.")


class TaskCancelled(AiotasksError):
    """The task was cancelled by ``acancel()`` or ``cancel()``."""


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
