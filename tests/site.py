"""Django's names with the types of this site, which Django's stubs can't know."""

from typing import Any, cast

from django.tasks import TaskContext
from django.tasks import default_task_backend as _default

from aiotasks import PostgresTaskResult
from aiotasks.backend import PostgresBackend
from aiotasks.rows import AnyResult

__all__ = ["Context", "default_task_backend", "postgres_result"]

default_task_backend = cast(PostgresBackend, _default)

type Context = TaskContext[..., Any]  # generic in the stubs alone


def postgres_result(result: AnyResult) -> PostgresTaskResult:
    """Return ``result`` itself, as what the backend makes: it can be cancelled."""
    assert isinstance(result, PostgresTaskResult)
    return result
