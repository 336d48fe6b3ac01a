"""aiotasks: the asyncio-native backend and worker for Django's Tasks, on PostgreSQL.

Importing it needs no app registry and no settings.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bulk import BulkCounts
    from .context import PostgresTaskContext
    from .exceptions import (
        AiotasksError,
        DatabaseNotReady,
        DuplicateTask,
        GiveUp,
        InvalidRow,
        RateLimited,
        Retry,
        Snooze,
        TaskCancelled,
        TaskExpired,
        TaskTimeout,
        TransactionClosed,
        UnknownTask,
        WorkerLost,
    )
    from .filters import TaskFilter
    from .joining import as_completed, gather_results
    from .policies.limits import Limit
    from .results import PostgresTaskResult
    from .schedules.declarations import periodic
    from .store.atomic import atomic
    from .store.transaction import transaction
    from .tasks import PostgresTask, task
    from .worker import Worker

__all__ = [
    "AiotasksError",
    "BulkCounts",
    "DatabaseNotReady",
    "DuplicateTask",
    "GiveUp",
    "InvalidRow",
    "Limit",
    "PostgresTask",
    "PostgresTaskContext",
    "PostgresTaskResult",
    "RateLimited",
    "Retry",
    "Snooze",
    "TaskCancelled",
    "TaskExpired",
    "TaskFilter",
    "TaskTimeout",
    "TransactionClosed",
    "UnknownTask",
    "Worker",
    "WorkerLost",
    "as_completed",
    "atomic",
    "gather_results",
    "periodic",
    "task",
    "transaction",
]

__version__ = "0.1.0"

# django.tasks wants settings when it is imported, which `import aiotasks` must not: every name
# is imported at its first use (PEP 562).
_HOMES = {
    "AiotasksError": "exceptions",
    "BulkCounts": "bulk",
    "DatabaseNotReady": "exceptions",
    "DuplicateTask": "exceptions",
    "GiveUp": "exceptions",
    "InvalidRow": "exceptions",
    "Limit": "policies.limits",
    "PostgresTask": "tasks",
    "PostgresTaskContext": "context",
    "PostgresTaskResult": "results",
    "RateLimited": "exceptions",
    "Retry": "exceptions",
    "Snooze": "exceptions",
    "TaskCancelled": "exceptions",
    "TaskExpired": "exceptions",
    "TaskFilter": "filters",
    "TaskTimeout": "exceptions",
    "TransactionClosed": "exceptions",
    "UnknownTask": "exceptions",
    "Worker": "worker",
    "WorkerLost": "exceptions",
    "as_completed": "joining",
    "atomic": "store.atomic",
    "gather_results": "joining",
    "periodic": "schedules.declarations",
    "task": "tasks",
    "transaction": "store.transaction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
