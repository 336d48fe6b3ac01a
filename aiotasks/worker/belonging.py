"""Whose code runs: a task's, or the worker's. What belongs to the worker refuses from a task's context."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .execution import Execution

__all__ = ["OwnTask", "complain", "current", "own_tasks_hidden"]

logger = logging.getLogger("aiotasks.worker")

# The execution whose code runs; None in the worker's own code. A context variable, so that what a task has
# started (asyncio tasks, callbacks, asyncio.to_thread) belongs to the same execution.
current: ContextVar[Execution | None] = ContextVar("aiotasks_execution", default=None)


class OwnTask(asyncio.Task[Any]):
    """An asyncio task of the worker's own, or the one that an execution runs in.

    From another execution's context ``cancel()`` does nothing and returns False:
    ``for t in asyncio.all_tasks(): t.cancel()`` in a task would end the worker and its neighbours. The
    owner is what ``current`` is in the asyncio task's context.
    """

    __slots__ = ()

    def cancel(self, msg: Any | None = None) -> bool:
        caller = current.get()
        # What runs in a thread isn't over because the asyncio task that waits for it is.
        if caller is not None and (caller.in_thread or caller is not self.get_context().get(current)):
            complain(caller, f"cancel the asyncio task {self.get_name()!r}, which isn't its own")
            return False
        return super().cancel(msg)


@contextmanager
def own_tasks_hidden() -> Iterator[None]:
    """While the block lasts, ``asyncio.all_tasks()`` shows tasks only what they can cancel.

    A task that cancels all others and awaits them would wait for the worker's end.
    """
    all_tasks = asyncio.all_tasks

    def shown(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
        tasks = all_tasks(loop)
        if (caller := current.get()) is None:
            return tasks
        return {
            task
            for task in tasks
            if not isinstance(task, OwnTask)
            or (task.get_context().get(current) is caller and not caller.in_thread)
        }

    asyncio.all_tasks = asyncio.tasks.all_tasks = shown
    try:
        yield
    finally:
        asyncio.all_tasks = asyncio.tasks.all_tasks = all_tasks


def complain(execution: Execution, what: str) -> None:
    """Log, once for an execution, that the worker ignores what its task wants to do."""
    if not execution.complained_of:
        execution.complained_of = True
        logger.warning(
            "The worker ignores what a task tries to do: %s id=%s path=%r",
            what,
            execution.job.id,
            execution.job.task_path,
        )
