"""Runner: one job in, one outcome out, whatever the task does."""

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from contextvars import Context

from django.tasks.signals import task_finished, task_started

from ... import forks, signals, tracing
from ...conf import Options
from ...context import PostgresTaskContext
from ...exceptions import UnknownTask
from ...executing import current
from ...metadata.running import RunningMetadata, Saves
from ...policies.timeout import TimeLimit
from ...registry import known
from ...row_results import arguments_of, result_of
from ...rows import AnyTask, Job, Lane, lane_of
from ...store.blocks import close_blocks, leave_blocks
from ..belonging import OwnTask
from ..events import NULL, Observer
from ..execution import Execution, Reason, RunContext, carry
from ..outcomes import Outcome
from ..protocols import HasSlots
from .deadlines import Deadlines, Threads, timed_out
from .failures import Failures
from .imports import Imports
from .joining import JoiningTasks
from .spans import begin_span, end_span
from .sync_bodies import SyncBodies
from .unknown_tasks import UnknownTasks

__all__ = ["Runner"]


class Runner:
    """Runs jobs, each in an asyncio task of its own and in a new RunContext.

    - ``start`` takes a task's first step: a task that doesn't wait for anything has ended when ``start``
      returns, and costs the loop nothing.
    - ``done`` is called on the loop with every execution exactly once, its outcome set, whether
      the task returned, raised any BaseException, was cancelled, or can't even be imported.
    - ``returned`` is called on the loop when a thread is back whose task has outlasted its time, and with the
      job of a task that gives up its slot because it waits for others.
    - ``queues`` are those that the worker serves; empty: any.
    - Between ``start`` and ``done`` the execution is in ``running`` and takes a slot of its lane.
    - Tasks are strongly referenced (a loop itself refers to them weakly, cpython#88831).
    - The metadata of tasks with a context go to ``saves`` while they run.
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
        saves: Saves,
        done: Callable[[Execution], None],
        closing: Callable[[], bool],
        importer: Executor | None = None,
        observer: Observer = NULL,
        returned: Callable[[Job | None], None] = lambda job: None,
        queues: Collection[str] = (),
    ) -> None:
        self.running: set[Execution] = set()
        self._sender = sender
        self._options = options
        self._slots = slots
        self._make_context = make_context
        self._own = tuple(make_context().context)
        self._saves = saves
        self._done = done
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._settling: set[OwnTask] = set()
        self._imports = Imports(options.moved_tasks, importer)
        self._failures = Failures(options, closing=closing)
        self._unknown_tasks = UnknownTasks(self._failures)
        self._joining = JoiningTasks(slots, self.running, freed=returned, queues=queues)
        self.deadlines = Deadlines(self, threads, observer, returned=returned)
        self._sync_bodies = SyncBodies(
            self, threads, deadlines=self.deadlines, failures=self._failures, own=self._own
        )

    async def resolve(self, task_path: str) -> AnyTask:
        """Import the task of a stored path, in a thread if possible. Raises UnknownTask."""
        return await self._imports.resolve(task_path)

    def start(self, job: Job) -> bool:
        """Begin to run ``job``; returns at its first wait (False) or at its end (True)."""
        if self._observer.watches_tasks:
            self._observer.started(job)
        execution = Execution(job)
        execution.began = time.monotonic()
        execution.joining = self._joining
        since = forks.generation
        self.running.add(execution)
        self._slots.take(execution.lane)
        execution.run_context = self._make_context()
        execution.context = execution.run_context.context
        execution.context.run(current.set, execution)
        if (tracer := tracing.tracer) is not None:
            begin_span(tracer, execution)
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
        """Cancel the body; returns False if that isn't possible, because it runs in a thread and joins no
        task there.
        """
        if execution.in_thread or execution.task is None:
            execution.asked_to_end = reason
            return self._joining.interrupt(execution, reason)
        execution.cancelled_for = reason
        self._joining.interrupt(execution, reason)
        return self._cancel_task(execution)

    def abandon(self, execution: Execution) -> None:
        """Give up waiting for the execution: its slot is free, and ``done`` won't be called."""
        execution.abandoned = True
        self.deadlines.forget(execution)
        self._leave(execution)
        self._cancel_task(execution)
        self._joining.interrupt(execution, "shutdown")
        self._cut_off(execution)
        end_span(execution, None)

    def give_up(self, execution: Execution, where: str) -> None:
        """Ignore whatever an execution still does whose time is over, and call ``done`` with its outcome.

        ``where``: the stack of its body. Its slot is taken until a backoff has decided.
        """
        execution.cancelled_for = execution.cancelled_for or execution.asked_to_end or "timed out"
        execution.abandoned = True
        run_context = None
        if not execution.in_thread:
            run_context = self._set_apart(execution)
            self._cancel_task(execution)
            self._cut_off(execution)
        self._joining.interrupt(execution, "timed out")
        settling = OwnTask(
            self._settle(execution, run_context, timed_out(execution, where=where)),
            loop=self._loop,
            context=execution.context if run_context is None else run_context.context,
            name=execution.job.task_path,
            eager_start=True,
        )
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    def has_outlasting_coroutines(self) -> bool:
        """Return whether coroutines go on after their limits: they can keep a loop from being closed."""
        return self.deadlines.has_coroutines() or bool(self._failures.async_backoffs.outlasting)

    def move(self, execution: Execution, lane: Lane) -> None:
        """Move the execution to a slot of its function's lane."""
        if execution in self.running:
            self._slots.release(execution.lane)
            self._slots.take(lane)
        execution.lane = lane

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
            if execution.has_slot:
                self._slots.release(execution.lane)

    def _set_apart(self, execution: Execution) -> RunContext:
        """Return a RunContext with the variables of a body that goes on, outside of its blocks."""
        run_context = self._make_context()
        if execution.context is not None:
            carry(execution.context, run_context.context, self._own)
            run_context.context.run(leave_blocks)
        return run_context

    def _cut_off(self, execution: Execution) -> None:
        """Have a coroutine that goes on write nothing more: another attempt may have begun."""
        if execution.in_thread:
            return
        if execution.context is not None:
            close_blocks(execution.context)  # they have connections of their own
        execution.release_context()

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
            execution.end(self._failures.ended_by_worker(execution, error) or self._failures.failed(error))
        if execution.span is not None:
            end_span(execution, execution.outcome)
        self._done(execution)

    async def _settle(
        self, execution: Execution, run_context: RunContext | None, error: BaseException
    ) -> None:
        """``run_context``: in which the backoff runs; None: the execution's own."""
        outcome = await self._failures.outcome(execution, error)
        end_span(execution, outcome)
        settled = execution.settled(outcome)
        if run_context is not None:
            run_context.release()
            settled.context = run_context.context
        if execution in self.running:  # or a shutdown has parted from it meanwhile
            self._leave(execution)
            self._done(settled)

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
            outcome = await self._failures.outcome(execution, error)
            if not execution.abandoned:
                execution.end(outcome)

    async def _outcome(self, execution: Execution) -> Outcome:
        job = execution.job
        try:
            task = known(job.task_path, self._options.moved_tasks)
            if task is None:
                if (snoozed := self._unknown_tasks.snoozed_lately(job.task_path)) is not None:
                    return snoozed
                task = await self._imports.resolve(job.task_path)
        except UnknownTask as error:
            return self._unknown_tasks.snooze(job, error)
        if (lane := lane_of(task.func)) != execution.lane:
            self.move(execution, lane)
        args, kwargs = arguments_of(job)
        announces = signals.audience(task_started, self._sender) is not signals.Audience.NOBODY
        if announces:
            execution.result = result_of(job, self._options.moved_tasks)
            await signals.asend_started(self._sender, execution.result)
        if task.takes_context:
            execution.result = execution.result or result_of(job, self._options.moved_tasks)
            execution.metadata = RunningMetadata(job.id, job.claim_id, job.metadata, self._saves)
            args.insert(0, PostgresTaskContext(task_result=execution.result, running=execution))
        if (timeout := getattr(task, "timeout", None)) is not None:
            execution.limit = TimeLimit(timeout)
        if execution.lane == "thread":
            return await self._sync_bodies.run(execution, task, args, kwargs, announced=announces)
        if execution.limit is not None:
            execution.limit.begin()
            self.deadlines.watch(execution)
        return self._failures.returned(await task.func(*args, **kwargs))
