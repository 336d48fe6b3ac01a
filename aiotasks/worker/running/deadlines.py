"""Deadlines: ends the attempts of tasks that run for longer than their ``timeout``."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from ...exceptions import TaskTimeout
from ..events import Observer
from ..execution import Execution, Reason
from ..stacks import stack_of_task, stack_of_thread

__all__ = ["Deadlines", "Threads", "timed_out"]

# Seconds for a cancelled coroutine's ``finally``, as the documentation says. Chosen: a rollback, or a request
# to another service, is over by then.
CANCEL_TIMEOUT = 5.0

# uvloop counts in whole milliseconds, so a timer may be early by less than one.
TOLERANCE = 0.001


class Interrupts(Protocol):
    """The runner."""

    def cancel(self, execution: Execution, reason: Reason) -> bool: ...

    def give_up(self, execution: Execution, where: str) -> None: ...


class Threads(Protocol):
    """The threads that sync tasks run in."""

    def run(self, call: Callable[[], None]) -> "asyncio.Future[None]":
        """Run ``call``, which must not raise, in a thread; the future is done when it has ended."""

    def widen(self) -> None:
        """Have another thread in the place of one that its task doesn't give back, if there may be more."""

    def narrow(self) -> None:
        """Such a thread has come back."""


class Deadlines:
    """Has a timer for each attempt that has a ``limit`` and waits. All methods are called on the loop.

    - A coroutine is cancelled at its limit. If it hasn't ended CANCEL_TIMEOUT later, it is given up.
    - A body in a thread is given up at its limit: a thread can't be stopped.
    - An attempt that is given up has its outcome, and its slot is free. Whatever it still does is ignored.
      Until it ends it is in ``outlasting``. ``returned`` is called when it has ended in a thread.
    - If the attempt has been cancelled for another reason before, that reason decides its outcome.

    A limit counts from when the body begins, and a body in a thread begins when that is scheduled: the timer
    looks again.
    """

    def __init__(
        self,
        runner: Interrupts,
        threads: Threads,
        observer: Observer,
        *,
        returned: Callable[[None], None],
    ) -> None:
        self.outlasting: set[Execution] = set()
        self._runner = runner
        self._threads = threads
        self._observer = observer
        self._returned = returned
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()

    def watch(self, execution: Execution) -> None:
        """End the attempt at its limit.

        In an execution's first step this does nothing: most end in it, and the runner calls again if not.
        """
        if execution.limit is not None and execution.task is not None:
            self._set_timer(execution, execution.limit.remaining(), self._look)

    def forget(self, execution: Execution) -> None:
        """Do nothing at the limit."""
        if (timer := self._timers.pop(execution, None)) is not None:
            timer.cancel()

    def ended(self, execution: Execution) -> None:
        """Note that the body has ended."""
        self.forget(execution)
        if execution in self.outlasting:
            self.outlasting.discard(execution)
            if execution.in_thread:
                self._threads.narrow()
                self._returned(None)
            self._observer.returned(execution.job)

    def has_coroutines(self) -> bool:
        """Return whether coroutines go on after their limits: they can keep a loop from being closed."""
        return any(not execution.in_thread for execution in self.outlasting)

    def stuck_for(self) -> list[float]:
        """Return for how many seconds each thread is stuck in a task whose time is over."""
        now = time.monotonic()
        return [
            now - execution.limit.ends_at
            for execution in self.outlasting
            if execution.in_thread and execution.limit is not None and execution.limit.ends_at is not None
        ]

    def _set_timer(self, execution: Execution, seconds: float, call: Callable[[Execution], None]) -> None:
        # In a new context: the caller's may be the execution's.
        self._timers[execution] = self._loop.call_later(seconds, call, execution, context=Context())

    def _look(self, execution: Execution) -> None:
        del self._timers[execution]
        if execution.limit is None or _has_ended(execution):
            return
        remaining = execution.limit.remaining()
        if remaining > TOLERANCE or execution.limit.ends_at is None:
            self._set_timer(execution, remaining, self._look)
        elif not execution.in_thread:
            if execution.cancelled_for is None:
                self._runner.cancel(execution, "timed out")
            self._set_timer(execution, CANCEL_TIMEOUT, self._give_up)
        elif execution.asked_to_end != "shutdown":  # the shutdown is about to part from it
            self._give_up(execution)

    def _give_up(self, execution: Execution) -> None:
        self._timers.pop(execution, None)
        if _has_ended(execution):
            return
        stack = _stack_of(execution)
        self.outlasting.add(execution)
        if execution.in_thread:
            self._threads.widen()
        self._observer.outlasted(execution.job, execution.lane, stack)
        self._runner.give_up(execution, stack)


def timed_out(
    execution: Execution, error: asyncio.CancelledError | None = None, *, where: str = ""
) -> TaskTimeout:
    """Return the error of an attempt whose time is over.

    ``error``: what has come out of the body; ``where``: the stack of one that goes on.
    """
    seconds = 0.0 if execution.limit is None else execution.limit.seconds
    timeout = TaskTimeout(f"The attempt has run for longer than its timeout of {seconds:g} s.")
    timeout.__cause__ = error
    if where:
        timeout.add_note(f"It was here, and goes on:\n{where}")
    return timeout


def _has_ended(execution: Execution) -> bool:
    """Whether the body has, though the loop may not know of it yet, or waits for a backoff."""
    return execution.outcome is not None or (execution.limit is not None and execution.limit.ended)


def _stack_of(execution: Execution) -> str:
    if execution.in_thread:
        return stack_of_thread(None if execution.limit is None else execution.limit.thread_id)
    return "" if execution.task is None else stack_of_task(execution.task)
