"""Announcer: sends ``task_finished`` after an outcome has been stored."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from django.tasks import TaskResultStatus
from django.tasks.base import TaskError
from django.tasks.signals import task_finished
from django.utils import timezone

from ... import logs, signals
from ...codec import decode
from ...compat import RETURN_VALUE, set_frozen
from ...conf import Options
from ...registry import known
from ...row_results import result_of
from ...rows import AnyResult
from ..execution import Execution, RunContext, carry
from ..outcomes import Failed, Succeeded

__all__ = ["Announcer"]

logger = logging.getLogger("aiotasks.worker")


class Announcer:
    """Runs the receivers of ``task_finished``, each task's in the context that its body had.

    Where only loggers listen the signal is sent at once; else in an asyncio task of its own, which is in
    ``pending`` until it ends. ``announced`` is called after that.

    wrap: takes a coroutine that calls receivers, and returns the one to run in its place.
    """

    def __init__(
        self,
        *,
        sender: type,
        options: Options,
        make_context: Callable[[], RunContext],
        announced: Callable[[], None],
        wrap: Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.pending: set[asyncio.Task[None]] = set()
        self._sender = sender
        self._options = options
        self._make_context = make_context
        self._own = tuple(make_context().context)
        self._on_announced = announced
        self._wrap = wrap
        self._ended = asyncio.Event()  # is set by the next receivers to end

    def announce(self, execution: Execution, finished_at: datetime) -> None:
        """Send ``task_finished`` for an outcome that has been stored, at once where that costs nothing."""
        failed = isinstance(execution.outcome, Failed)
        audience = signals.audience(task_finished, self._sender)
        if not failed and audience is signals.Audience.NOBODY:
            return
        if execution.result is None and known(execution.job.task_path, self._options.moved_tasks) is None:
            return  # this process doesn't know the task, so it has no Task object for receivers
        result = execution.result or result_of(execution.job, self._options.moved_tasks)
        _complete(result, execution, finished_at)
        error = execution.outcome.exception if isinstance(execution.outcome, Failed) else None
        run_context, execution.run_context = execution.run_context or self._make_context(), None
        if execution.context is not None and execution.context is not run_context.context:
            carry(execution.context, run_context.context, self._own)
        if execution.thread_context is not None:
            carry(execution.thread_context, run_context.context, self._own)
        if audience is not signals.Audience.RECEIVERS and logs.are_threaded():
            run_context.context.run(signals.send_finished, self._sender, result, error)
            run_context.release()
        else:
            self.start(signals.asend_finished(self._sender, result, error), run_context)

    def start(self, sending: Coroutine[Any, Any, None], run_context: RunContext | None = None) -> None:
        """Run a coroutine that calls receivers, in ``run_context`` or a new one."""
        run_context = run_context or self._make_context()
        if self._wrap is not None:
            sending = self._wrap(sending)
        announcing = asyncio.get_running_loop().create_task(
            sending, context=run_context.context, name="aiotasks task_finished"
        )
        self.pending.add(announcing)
        announcing.add_done_callback(self._announced)
        announcing.add_done_callback(lambda _: run_context.release())

    async def all_announced(self) -> None:
        """Wait until no receiver runs any more. They may take as long as they like."""
        while self.pending:
            await asyncio.wait(self.pending)

    async def wait_until_few(self, most: int) -> None:
        """Wait until the receivers of so many tasks run at most."""
        while len(self.pending) > most:
            self._ended.clear()
            await self._ended.wait()

    def _announced(self, task: "asyncio.Task[None]") -> None:
        self.pending.discard(task)
        self._ended.set()
        self._on_announced()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A receiver of task_finished failed", exc_info=error)


def _complete(result: AnyResult, execution: Execution, finished_at: datetime) -> None:
    """Update the TaskResult for receivers with the stored outcome."""
    if not timezone.is_naive(finished_at) and result.enqueued_at and timezone.is_naive(result.enqueued_at):
        finished_at = timezone.make_naive(finished_at)
    changes: dict[str, Any] = {"finished_at": finished_at}
    if execution.metadata is not None:
        changes["stored_metadata"] = execution.metadata.seen
    match execution.outcome:
        case Succeeded(return_value):
            changes |= {"status": TaskResultStatus.SUCCESSFUL, RETURN_VALUE: return_value}
        case Failed(text=text):
            stored = decode(text)
            error = TaskError(exception_class_path=stored["class"], traceback=stored["traceback"])
            changes |= {"status": TaskResultStatus.FAILED, "errors": [*result.errors, error]}
    for name, value in changes.items():
        set_frozen(result, name, value)
