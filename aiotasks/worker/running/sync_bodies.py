"""SyncBodies: calls sync tasks in threads, and awaits on the loop what they return."""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Iterable
from contextvars import Context, ContextVar
from functools import partial
from inspect import isawaitable
from typing import Any, Protocol

from ... import forks
from ...compat import thread_sensitive_context
from ...executing import current
from ...rows import AnyTask, Lane
from ..execution import Execution, NotStarted, carry, carry_here
from ..outcomes import Outcome, Released
from .deadlines import Deadlines, Threads
from .failures import Failures

__all__ = ["SyncBodies"]


class HasLanes(Protocol):
    """The runner."""

    def move(self, execution: Execution, lane: Lane) -> None: ...


class SyncBodies:
    """Calls the bodies of sync tasks. All methods are called on the loop.

    lanes: gives an execution a slot of the other lane. own: the variables that a RunContext sets by itself.
    """

    def __init__(
        self,
        lanes: HasLanes,
        threads: Threads,
        *,
        deadlines: Deadlines,
        failures: Failures,
        own: Iterable[ContextVar[Any]],
    ) -> None:
        self._lanes = lanes
        self._threads = threads
        self._deadlines = deadlines
        self._failures = failures
        self._own = tuple(own)

    async def run(
        self, execution: Execution, task: AnyTask, args: Any, kwargs: dict[str, Any], *, announced: bool
    ) -> Outcome:
        """Call the task with these arguments, and return the outcome.

        announced: receivers of task_started may have set context variables.
        Raises what the awaitable of a sync function raises, and CancelledError.
        """
        awaitables: list[Awaitable[Any]] = []
        context = execution.thread_context = Context()
        if announced and execution.context is not None:
            # Async code in the body makes its ORM calls in the body's thread, not in one of coroutine tasks.
            context.run(thread_sensitive_context.set, None)
            carry(execution.context, context, self._own)
        try:
            running = self._threads.run(
                partial(context.run, self._call, execution, task, args, kwargs, awaitables)
            )
        except NotStarted:  # the threads have logged it
            return Released(self._failures.cancelled())
        execution.in_thread = True
        execution.began = time.monotonic()
        if execution.limit is not None:
            self._deadlines.watch(execution)
        try:
            await running
        except asyncio.CancelledError:
            # The thread may have seen no "abandoned", and abandon() no awaitable.
            if execution.abandoned and awaitables:
                self._release(execution, awaitables[0])
            raise
        if awaitables and execution.abandoned:
            self._release(execution, awaitables[0])
        elif awaitables:
            carry_here(context, self._own)
            return await self._on_loop(execution, awaitables[0])
        if execution.outcome is None:
            raise RuntimeError("The thread has ended the call without an outcome.")
        return execution.outcome

    def _call(
        self,
        execution: Execution,
        task: AnyTask,
        args: Any,
        kwargs: dict[str, Any],
        awaitables: list[Awaitable[Any]],
    ) -> None:
        """Call the task in a thread; an awaitable that it returns goes to ``awaitables``, for the loop.

        The outcome is made in the thread, so that it exists even if the loop has closed meanwhile.
        """
        since = forks.generation
        current.set(execution)
        if execution.limit is not None:
            execution.limit.begin()
        try:
            value = task.func(*args, **kwargs)
            if forks.generation != since:
                forks.end()
            if value is not None and isawaitable(value):
                awaitables.append(value)
                if execution.abandoned:
                    self._release(execution, value)
            else:
                execution.end(self._failures.returned(value))
        except BaseException as error:  # as on the loop  # noqa: BLE001
            if forks.generation != since:
                forks.end(error)
            if execution.limit is not None:
                execution.limit.end()
            if execution.cancelled_for is None:
                execution.end(self._failures.outcome_in_thread(execution, error))
            else:  # its time was over before, and its outcome is made
                execution.end(Released())

    async def _on_loop(self, execution: Execution, awaitable: Awaitable[Any]) -> Outcome:
        """Await what a sync function has returned, as a sync wrapper around an async function does: from here
        on it is a coroutine task."""
        execution.in_thread = False
        self._lanes.move(execution, "loop")
        if (reason := execution.asked_to_end) is not None:
            execution.cancelled_for = reason
            _close(awaitable)
            raise asyncio.CancelledError
        return self._failures.returned(await awaitable)

    def _release(self, execution: Execution, awaitable: Awaitable[Any]) -> None:
        """Close the awaitable of an execution that was abandoned in its thread, and release the task."""
        _close(awaitable)
        execution.end(Released(self._failures.cancelled()))


def _close(awaitable: Awaitable[Any]) -> None:
    """Close a coroutine: Python warns of one that was never awaited nor closed."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()
