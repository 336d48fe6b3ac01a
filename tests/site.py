"""Django's names with the types of this site, which Django's stubs can't know."""

from typing import TYPE_CHECKING, Any, cast

from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.tasks import TaskContext
from django.tasks import default_task_backend as _default

from aiotasks import PostgresTaskResult
from aiotasks.backend import PostgresBackend
from aiotasks.rows import AnyResult
from aiotasks.store.loop import resources
from aiotasks.store.store import Store

__all__ = [
    "Context",
    "default_task_backend",
    "postgres_connection",
    "postgres_result",
    "running_store",
    "task",
]

default_task_backend = cast(PostgresBackend, _default)

type Context = TaskContext[..., Any]  # generic in the stubs alone

if TYPE_CHECKING:
    from aiotasks import task
else:
    from django.tasks import task


def postgres_connection(alias: str = "default") -> DatabaseWrapper:
    """Return this thread's connection, as PostgreSQL's: it has a pool."""
    return cast(DatabaseWrapper, connections[alias])


def running_store() -> Store:
    """Return the Store over the running loop's pool, which its workers use too."""
    return resources(default_task_backend.config).store


def postgres_result(result: AnyResult) -> PostgresTaskResult:
    """Return ``result`` itself, as what the backend makes: it can be cancelled."""
    assert isinstance(result, PostgresTaskResult)
    return result
