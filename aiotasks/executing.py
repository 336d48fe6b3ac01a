"""Whose code runs: a task's, or that of nobody in particular."""

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from typing import Any, Protocol

from .rows import AnyTask

__all__ = ["Joining", "current"]

# The execution (``worker.execution.Execution``) whose code runs; None in the worker's own code, and outside
# of workers. It is a context variable, so that asyncio tasks, callbacks and threads that a task starts belong
# to the same execution.
current: ContextVar[Any] = ContextVar("aiotasks_execution", default=None)


class Joining(Protocol):
    """The part of a worker that knows which of its tasks wait for others (``JoiningTasks``)."""

    def waiting(self, execution: Any, joined: Collection[AnyTask]) -> AbstractAsyncContextManager[None]:
        """The execution's code awaits the ends of ``joined`` while the block lasts."""

    def waiting_in_thread(
        self, execution: Any, joined: Collection[AnyTask]
    ) -> AbstractContextManager[Callable[[Callable[[], object]], None]]:
        """The same for sync code, which blocks a thread. The block gets a function to be called with what
        cancels its wait.
        """
