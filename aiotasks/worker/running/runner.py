"""Runner: one job in, one outcome out, whatever the task does."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from inspect import isawaitable
from typing import Any

from django.tasks.signals import task_finished, task_started

from ... import forks, signals
from ...codec import dump_json
from ...compat import thread_sensitive_context
from ...conf import Options
from ...context import PostgresTaskContext
from ...exceptions import InvalidRow, UnknownTask
from ...policies.timeout import TimeLimit
from ...registry import known
from ...results import arguments_of, result_of
from ...rows import AnyTask, Job, Lane, lane_of
from ...store.blocks import close_blocks
from ..belonging import OwnTask, current
from ..events import NULL, Observer
from ..execution import Execution, NotStarted, Reason, RunContext, carry, carry_here
from ..outcomes import Failed, Outcome, Released, Snoozed, Succeeded
from ..protocols import HasSlots
from .deadlines import Deadlines, Threads, timed_out
from .failures import Failures
from .imports import MOST_UNKNOWNS, Imports

__all__ = ["Runner"]

logger = logging.getLogger("aiotasks.worker")

# A rolling deploy may be about to bring a task that no worker can import: it is snoozed for 10 s again and
# again for an hour, which is longer than the deploys that we know of, and fails then.
UNKNOWN_DELAY = 10.0
UNKNOWN_WINDOW = 3600.0


class Runner:
    """Runs jobs, each in an asyncio task of its own and in a new RunContext.

    - ``start`` takes a task's first step: a task that doesn't wait for anything has ended when ``start``
      returns, and costs the loop nothing.
    - ``done`` is called on the loop with every execution exactly once, its outcome set, whether
      the task returned, raised any BaseException, was cancelled, or can't even be imported.
    - ``returned`` is called on the loop when a thread is back whose task has outlasted its time.
    - Between ``start`` and ``done`` the execution is in ``running`` and takes a slot of its lane.
    - Tasks are strongly referenced (a loop itself refers to them weakly, cpython#88831).
    - Modules of tasks are imported in threads of ``importer`` (None: the loop's default executor).
    """

    def __init__(
        self,
        *,
        sender: type,
        options: Options,
        slots: HasSlots,
        threads: Threads,
        make_context: Callable[[], RunContext],
        done: Callable[[Execution], None],
        closing: Callable[[], bool],
        importer: Executor | None = None,
        observer: Observer = NULL,
        returned: Callable[[], None] = lambda: None,
    ) -> None:
        self.running: set[Execution] = set()
        self._sender = sender
        self._options = options
        self._threads = threads
        self._make_context = make_context
        self._own = tuple(make_context().context)
        self._done = done
        self._closing = closing
        self._observer = observer
        self._failures = Failures(options)
        self._unknowns: dict[
            str, tuple[Snoozed, float]
        ] = {}  # by path, with the loop's time until which that holds
        self._loop = asyncio.get_running_loop()
        self._settling: set[OwnTask] = set()
        self._imports = Imports(options.moved_tasks, importer)
        self._slots = slots
        self.deadlines = Deadlines(self, threads, observer, returned=returned)

    def start(self, job: Job) -> bool:
        """Begin to run ``job``; returns at its first wait (False) or at its end (True)."""
        if self._observer.watches_tasks:
            self._observer.started(job)
        execution = Execution(job)
        execution.began = time.monotonic()
        since = forks.generation
        self.running.add(execution)
        self._slots.take(execution.lane)
        execution.run_context = self._make_context()
        execution.context = execution.run_context.context
        execution.context.run(current.set, execution)
        # Not by loop.create_task(), whose guard isn't needed: _run() raises nothing.
        execution.task = OwnTask(
            self._run(execution),
            loop=self._loop,
            context=execution.context,
            name=job.task_path,
            eager_start=True,
        )
        if forks.generation != since:  # a forked child that waits must not start other tasks
            forks.end(SystemExit(1))
        if execution.task.done():
            self._finished(execution)
            return True
        if execution.limit is not None:
            self.deadlines.watch(execution)
        execution.task.add_done_callback(lambda _: self._finished(execution))
        return False

    def cancel(self, execution: Execution, reason: Reason) -> bool:
        """Cancel the body; returns False if that isn't possible, because it runs in a thread."""
        if execution.in_thread or execution.task is None:
            execution.asked_to_end = reason
            return False
        execution.cancelled_for = reason
        return self._cancel_task(execution)

    def abandon(self, execution: Execution) -> None:
        """Give up waiting for the execution: its slot is free, and ``done`` won't be called."""
        execution.abandoned = True
        self.deadlines.forget(execution)
        self._leave(execution)
        self._cancel_task(execution)

    def give_up(self, execution: Execution, where: str) -> None:
        """Ignore whatever an execution still does whose time is over, and call ``done`` with its outcome.

        ``where``: the stack of its body. Its slot is taken until a backoff has decided.
        """
        execution.cancelled_for = execution.cancelled_for or execution.asked_to_end or "timed out"
        execution.abandoned = True
        if not execution.in_thread:
            self._cancel_task(execution)
        settling = OwnTask(
            self._settle(execution, timed_out(execution, where=where)),
            loop=self._loop,
            context=execution.context,
            name=execution.job.task_path,
            eager_start=True,
        )
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    def has_outlasting_coroutines(self) -> bool:
        """Return whether coroutines go on after their limits: they can keep a loop from being closed."""
        return self.deadlines.has_coroutines() or bool(self._failures.async_backoffs.outlasting)

    def _cancel_task(self, execution: Execution) -> bool:
        """Cancel its asyncio task in its own name: asyncio tasks of the worker that it awaits are spared."""
        task = execution.task
        if task is None:
            return False

        def cancel() -> bool:
            current.set(None if execution.in_thread else execution)
            return task.cancel()

        # In a new context: the caller's would belong to the execution meanwhile.
        return Context().run(cancel)

    def _leave(self, execution: Execution) -> None:
        if execution in self.running:
            self.running.discard(execution)
            self._slots.release(execution.lane)

    def _finished(self, execution: Execution) -> None:
        if execution.limit is not None:
            self.deadlines.ended(execution)
        # Receivers of task_finished run in the RunContext; without any it is released before the write.
        if execution.abandoned or not signals.has_receivers(task_finished, self._sender):
            execution.release_context()
            if not execution.abandoned and execution.context is not None:
                # Context and execution refer to each other, and would live until the next garbage collection.
                execution.context.run(current.set, None)
        if execution.abandoned:
            return
        self._leave(execution)
        if execution.outcome is None:  # cancelled before its first step, or by itself at its last
            error = asyncio.CancelledError("the task cancelled itself")
            execution.end(self._ended_by_worker(execution, error) or self._failures.failed(error))
        self._done(execution)

    async def _settle(self, execution: Execution, error: BaseException) -> None:
        outcome = await self._failed_outcome(execution, error)
        if execution not in self.running:  # a shutdown has parted from it meanwhile
            return
        self._leave(execution)
        if not execution.in_thread:
            if execution.context is not None:
                close_blocks(execution.context)  # they have a connection of their own
            execution.release_context()
        self._done(execution.settled(outcome))

    async def _run(self, execution: Execution) -> None:
        since = forks.generation
        try:
            execution.end(await self._outcome(execution))
            if forks.generation != since:
                forks.end()
        except BaseException as error:  # any error is the task's: SystemExit must not stop the loop  # noqa: BLE001
            if forks.generation != since:
                forks.end(error)
            if execution.abandoned:
                return  # it has an outcome, or its thread sets it
            if execution.limit is not None:
                execution.limit.end()  # a backoff has a limit of its own
            outcome = await self._failed_outcome(execution, error)
            if not execution.abandoned:
                execution.end(outcome)

    async def _outcome(self, execution: Execution) -> Outcome:
        job = execution.job
        try:
            task = known(job.task_path, self._options.moved_tasks)
            if task is None:
                if (snoozed := self._snoozed_lately(job.task_path)) is not None:
                    return snoozed
                task = await self._imports.resolve(job.task_path)
        except UnknownTask as error:
            return self._unknown(job, error)
        if (lane := lane_of(task.func)) != execution.lane:
            self._move(execution, lane)
        args, kwargs = arguments_of(job)
        announces = signals.audience(task_started, self._sender) is not signals.Audience.NOBODY
        if announces:
            execution.result = result_of(job, self._options.moved_tasks)
            await signals.asend_started(self._sender, execution.result)
        if task.takes_context:
            execution.result = execution.result or result_of(job, self._options.moved_tasks)
            args.insert(0, PostgresTaskContext(task_result=execution.result, running=execution))
        if (timeout := getattr(task, "timeout", None)) is not None:
            execution.limit = TimeLimit(timeout)
        if execution.lane == "thread":
            return await self._in_thread(execution, task, args, kwargs, announced=announces)
        if execution.limit is not None:
            execution.limit.begin()
            self.deadlines.watch(execution)
        return self._returned(await task.func(*args, **kwargs))

    def _move(self, execution: Execution, lane: Lane) -> None:
        """Move the execution to a slot of its function's lane."""
        if execution in self.running:
            self._slots.release(execution.lane)
            self._slots.take(lane)
        execution.lane = lane

    async def _in_thread(
        self, execution: Execution, task: AnyTask, args: Any, kwargs: dict[str, Any], *, announced: bool
    ) -> Outcome:
        """``announced``: receivers of task_started may have set context variables."""
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
            self.deadlines.watch(execution)
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
                execution.end(self._returned(value))
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
        self._move(execution, "loop")
        if (reason := execution.asked_to_end) is not None:
            execution.cancelled_for = reason
            _close(awaitable)
            raise asyncio.CancelledError
        return self._returned(await awaitable)

    def _release(self, execution: Execution, awaitable: Awaitable[Any]) -> None:
        """Close the awaitable of an execution that was abandoned in its thread, and release the task."""
        _close(awaitable)
        execution.end(Released(self._failures.cancelled()))

    def _returned(self, value: Any) -> Succeeded | Failed:
        try:
            return Succeeded(*dump_json(value, where="the return value", limit=self._options.max_result_size))
        except Exception as error:  # another attempt would do again what the body has done to its end  # noqa: BLE001
            return self._failures.failed(error)

    async def _failed_outcome(self, execution: Execution, error: BaseException) -> Outcome:
        """Return the outcome of an execution that has ended with ``error`` on the loop."""
        outcome = self._ended_by_worker(execution, error)
        if outcome is not None:
            return outcome
        if execution.cancelled_for == "timed out" and isinstance(error, asyncio.CancelledError):
            error = timed_out(execution, error)
        try:
            return await self._failures.outcome(execution, error, in_thread=execution.in_thread)
        except asyncio.CancelledError as cancelled:  # during its backoff
            ended = self._ended_by_worker(execution, cancelled)
            if execution.cancelled_for == "shutdown":
                return self._failures.interrupted(execution, error)
            return self._failures.undecided(error, cancelled) if ended is None else ended

    def _ended_by_worker(self, execution: Execution, error: BaseException) -> Outcome | None:
        """Return the outcome of an execution that the worker has cancelled; None if it hasn't, or because the
        time was over.
        """
        if isinstance(error, asyncio.CancelledError) and execution.cancelled_for is None and self._closing():
            execution.cancelled_for = "shutdown"  # the loop's runner cancels all asyncio tasks
        if isinstance(error, InvalidRow):
            logger.error(
                "The row of a task holds what aiotasks never writes id=%s error=%r",
                execution.job.id,
                str(error),
            )
        match execution.cancelled_for:
            case None | "timed out":
                return None
            case "cancelled":
                return self._failures.cancelled()
        return Released(self._failures.cancelled())

    def _unknown(self, job: Job, error: UnknownTask) -> Snoozed:
        """Snooze the job. For a flood of such jobs the task is imported and logged once, not for each."""
        if (snoozed := self._snoozed_lately(job.task_path)) is not None:
            return snoozed
        if job.task_path not in self._unknowns:
            logger.warning(
                "Task cannot be imported here; snoozing it for %g s id=%s error=%r",
                UNKNOWN_DELAY,
                job.id,
                str(error),
            )
            if len(self._unknowns) >= MOST_UNKNOWNS:
                self._unknowns.clear()
        snoozed = Snoozed(UNKNOWN_DELAY, self._failures.failed(error), UNKNOWN_WINDOW)
        self._unknowns[job.task_path] = snoozed, self._loop.time() + UNKNOWN_DELAY / 2
        return snoozed

    def _snoozed_lately(self, task_path: str) -> Snoozed | None:
        snoozed, until = self._unknowns.get(task_path, (None, 0.0))
        return snoozed if self._loop.time() < until else None


def _close(awaitable: Awaitable[Any]) -> None:
    """Close a coroutine: Python warns of one that was never awaited nor closed."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()
