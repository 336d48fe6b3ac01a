"""Enqueue a task by its path, for people and scripts that don't import it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..backend import PostgresBackend
from ..registry import resolve
from ..rows import AnyResult, AnyTask
from ..worker.startup import backend_of

__all__ = ["aenqueue_path", "enqueue_path"]


async def aenqueue_path(
    path: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
    run_after: datetime | None = None,
    backend: str = "default",
) -> AnyResult:
    """Enqueue the task at a path, such as ``shop.tasks.charge``; return its result.

    queue, priority, run_after: in place of the task's own; None: its own. backend: the alias of the backend
    that stores it, whatever the task says. Raises UnknownTask for a path without a task, ImproperlyConfigured
    for an alias that isn't one of aiotasks', and else what ``PostgresBackend.aenqueue`` does.
    """
    found = backend_of(backend)
    task = _task_at(path, found, queue, priority, run_after)
    return await found.aenqueue(task, args, kwargs or {})


def enqueue_path(
    path: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    queue: str | None = None,
    priority: int | None = None,
    run_after: datetime | None = None,
    backend: str = "default",
) -> AnyResult:
    """The same in sync code, over Django's connection: see ``aenqueue_path``."""
    found = backend_of(backend)
    task = _task_at(path, found, queue, priority, run_after)
    result: AnyResult = found.enqueue(task, args, kwargs or {})
    return result


def _task_at(
    path: str, backend: PostgresBackend, queue: str | None, priority: int | None, run_after: datetime | None
) -> AnyTask:
    task = resolve(path, backend.config.moved_tasks)
    return task.using(backend=backend.alias, queue_name=queue, priority=priority, run_after=run_after)
