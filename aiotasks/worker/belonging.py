"""Whose code runs: a task's or the worker's. The worker's own asyncio tasks can't be cancelled by tasks."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..executing import current
from .execution import Execution

__all__ = ["OwnTask", "log_interference", "own_tasks_hidden"]

logger = logging.getLogger("aiotasks.worker")


class OwnTask(asyncio.Task[Any]):
    """An asyncio task of the worker's own, or the one that an execution runs in.

    From another execution's context ``cancel()`` does nothing and returns False:
    ``for t in asyncio.all_tasks(): t.cancel()`` in a task would end the worker and its neighbours. The
    owner is what ``current`` is in the asyncio task's context.
    """

    __slots__ = ()

    def cancel(self, msg: Any | None = None) -> bool:
        caller: Execution | None = current.get()
        # A body in a thread doesn't end when the asyncio task that waits for it is cancelled.
        if caller is not None and (caller.in_thread or caller is not self.get_context().get(current)):
            log_interference(caller, f"cancel the asyncio task {self.get_name()!r}, which isn't its own")
            return False
        return super().cancel(msg)


@contextmanager
def own_tasks_hidden() -> Iterator[None]:
    """While the block lasts, ``asyncio.all_tasks()`` in a task returns only those that the task can cancel.

    A task that cancels all others and awaits them would wait for the worker's end.
    """
    all_tasks = asyncio.all_tasks

    def shown(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
        tasks = all_tasks(loop)
        caller: Execution | None = current.get()
        if caller is None:
            return tasks
        is_in_thread = caller.in_thread
        return {
            task
            for task in tasks
            if not isinstance(task, OwnTask)
            or (task.get_context().get(current) is caller and not is_in_thread)
        }

    asyncio.all_tasks = asyncio.tasks.all_tasks = shown
    try:
        yield
    finally:
        asyncio.all_tasks = asyncio.tasks.all_tasks = all_tasks


def log_interference(execution: Execution, what: str) -> None:
    """Log, once for each execution, an attempt of its task that the worker ignores; ``what`` follows "to"."""
    if not execution.interference_logged:
        execution.interference_logged = True
        logger.warning(
            "Ignored an attempt of a task to %s id=%s path=%r",
            what,
            execution.job.id,
            execution.job.task_path,
        )
