"""Failures: from the error of an execution to its outcome, with the task's own backoff in between."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from typing import Any

from ... import forks
from ...backoff import DEFAULT, ReadyMade
from ...codec import decode, dump_error, dump_json
from ...compat import set_frozen
from ...conf import Options
from ...exceptions import InvalidRow, RateLimited, TaskCancelled, TaskExpired
from ...policies.retry import Backoff
from ...registry import known
from ...results import Counts
from ...row_results import error_of, result_of
from ...rows import AnyResult
from ...sync import drive
from ..execution import Execution
from ..outcomes import Failed, Outcome, Released, Retried, Snoozed, Succeeded
from ..task_factory import ExitRaised
from .async_backoff import BACKOFF_TIMEOUT, CANCEL_TIMEOUT, AsyncBackoffs
from .deadlines import timed_out
from .verdict import Delay, judge, most_attempts, seconds_of

__all__ = ["Failures"]

logger = logging.getLogger("aiotasks.worker")


class Failures:
    """Decides what follows when a body has ended: whether a task that has raised is FAILED, is tried again,
    or is snoozed.

    A backoff of the user's runs where the body has run. Whatever it does, there is an outcome: if it raises,
    takes too long or returns nonsense, the task is FAILED with that error, whose traceback ends with the
    task's own as its context.

    closing: returns whether the loop's runner cancels all asyncio tasks.
    """

    def __init__(self, options: Options, *, closing: Callable[[], bool]) -> None:
        self._options = options
        self._closing = closing
        self._loop = asyncio.get_running_loop()
        self.async_backoffs = AsyncBackoffs()

    def failed(self, error: BaseException) -> Failed:
        """Return the outcome of a task that is not tried again."""
        error = _original(error)
        options = self._options
        return Failed(error, dump_error(error, limit=options.max_error_size, redact=options.redact))

    def cancelled(self) -> Failed:
        """Return the outcome of a task that a user has cancelled."""
        return self.failed(TaskCancelled("The task was cancelled while it ran."))

    def returned(self, value: Any) -> Succeeded | Failed:
        """Return the outcome of a task that has returned ``value``: it has failed if that can't be stored."""
        try:
            return Succeeded(*dump_json(value, where="the return value", limit=self._options.max_result_size))
        except Exception as error:  # another attempt would do again what the body has done to its end  # noqa: BLE001
            return self.failed(error)

    def ended_by_worker(self, execution: Execution, error: BaseException) -> Outcome | None:
        """Return the outcome of an execution that the worker has cancelled; None if it hasn't, or because the
        time was over.
        """
        if isinstance(error, asyncio.CancelledError) and execution.cancelled_for is None and self._closing():
            execution.cancelled_for = "shutdown"
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
                return self.cancelled()
        return Released(self.cancelled())

    async def outcome(self, execution: Execution, error: BaseException) -> Outcome:
        """Return the outcome of an execution that has ended with ``error``. Call it on the loop.

        A sync backoff runs in a thread if the body is in one.
        """
        if (outcome := self.ended_by_worker(execution, error)) is not None:
            return outcome
        if execution.cancelled_for == "timed out" and isinstance(error, asyncio.CancelledError):
            error = timed_out(execution, error)
        error = _original(error)
        try:
            return await self._decided(
                execution, error, self.async_backoffs.ask, elsewhere=execution.in_thread
            )
        except asyncio.CancelledError as cancelled:  # during its backoff
            ended = self.ended_by_worker(execution, cancelled)
            if execution.cancelled_for == "shutdown":
                return self._interrupted(execution, error)
            return self._undecided(error, cancelled) if ended is None else ended

    def outcome_in_thread(self, execution: Execution, error: BaseException) -> Outcome:
        """The same in the thread that the body has run in: a cancel of the worker's doesn't reach it."""
        error = _original(error)
        try:
            return drive(self._decided(execution, error, self._wait_in_thread))
        except asyncio.CancelledError as raised:  # the backoff's own
            return self._undecided(error, raised)

    async def _decided(
        self,
        execution: Execution,
        error: BaseException,
        wait: Callable[[Awaitable[Any]], Awaitable[Any]],
        *,
        elsewhere: bool = False,
    ) -> Outcome:
        """The outcome after ``error``, by the policies and the user's backoff.

        wait: awaits the answer of an ``async def`` backoff. elsewhere: call the backoff in a thread.
        Raises only CancelledError.
        """
        decided = self._decide(execution, error)
        if not callable(decided):
            return decided
        since = forks.generation
        try:
            failure = self.failed(error)
            result = self._result(execution, failure)
            answer = await asyncio.to_thread(decided, error, result) if elsewhere else decided(error, result)
            if forks.generation != since:
                forks.end()
            if isawaitable(answer):
                answer = await wait(answer)
            return self._answered(execution, failure, answer)
        except BaseException as raised:  # a backoff may raise anything
            if forks.generation != since:
                forks.end(raised)
            if isinstance(raised, asyncio.CancelledError):
                raise
            return self._undecided(error, raised)

    async def _wait_in_thread(self, answer: Awaitable[Any]) -> Any:
        """Have the loop await ``answer``, and block this thread until then."""
        waiting = asyncio.run_coroutine_threadsafe(self.async_backoffs.ask(answer), self._loop)
        # The loop may be blocked.
        return waiting.result(BACKOFF_TIMEOUT + CANCEL_TIMEOUT + 1.0)

    def _decide(self, execution: Execution, error: BaseException) -> Outcome | Backoff:
        """The outcome, or the user's backoff to be asked."""
        try:
            task = known(execution.job.task_path, self._options.moved_tasks)
            failures = (execution.job.failures or 0) + 1
            verdict = judge(task, self._options, failures, error)
            if verdict is None:
                return self.failed(error)
            if isinstance(verdict, ReadyMade):
                verdict = Delay(verdict.after(failures))
            if not isinstance(verdict, Delay):
                return verdict
            if verdict.snoozes:
                return self._snoozed(execution, error, verdict.seconds)
            return self._retried(execution, self.failed(error), verdict.seconds)
        except BaseException as raised:  # code of the user's may raise anything  # noqa: BLE001
            return self._undecided(error, raised)

    def _answered(self, execution: Execution, failure: Failed, answer: Any) -> Outcome:
        seconds = seconds_of(answer)
        return failure if seconds is None else self._retried(execution, failure, seconds)

    def _retried(self, execution: Execution, failure: Failed, seconds: float) -> Retried:
        task = known(execution.job.task_path, self._options.moved_tasks)
        failures = (execution.job.failures or 0) + 1
        return Retried(seconds, failure, failures, most_attempts(task, self._options))

    def _snoozed(self, execution: Execution, error: BaseException, seconds: float) -> Snoozed:
        late = TaskExpired(f"The task snoozed for {seconds:g} s, which is longer than it may wait.")
        late.__cause__ = error
        closes = execution.job.limit_key if isinstance(error, RateLimited) else None
        return Snoozed(seconds, self.failed(late), closes=closes)

    def _undecided(self, error: BaseException, raised: BaseException) -> Failed:
        """The outcome of a task whose backoff has raised instead of a decision about ``error``."""
        raised = _original(raised)
        with suppress(Exception):  # a class of the user's may have anything in the place of these attributes
            _show_below(error, raised)
        return self.failed(raised)

    def _interrupted(self, execution: Execution, error: BaseException) -> Retried:
        """The outcome of a task that has raised ``error``, and whose backoff the worker's stop has cancelled:
        the attempt counts, and the task waits as if it had no backoff of its own."""
        failure = self.failed(error)
        return self._retried(execution, failure, DEFAULT.after((execution.job.failures or 0) + 1))

    def _result(self, execution: Execution, failure: Failed) -> AnyResult:
        """The task's result as it is stored if the task is tried again: with this failure."""
        result = result_of(execution.job, self._options.moved_tasks)
        stored = error_of(decode(failure.text))
        set_frozen(result, "errors", [*result.errors, stored])
        set_frozen(result, "counts", Counts(failures=(execution.job.failures or 0) + 1))
        if execution.metadata is not None:
            set_frozen(result, "stored_metadata", execution.metadata.current())
        return result


def _original(error: BaseException) -> BaseException:
    return error.original if isinstance(error, ExitRaised) else error


def _show_below(error: BaseException, raised: BaseException) -> None:
    """Have the traceback of ``raised`` show ``error``, too."""
    shown = _shown_with(raised)
    if all(error is not one for one in shown):  # __eq__ is user code
        set_frozen(shown[-1], "__context__", error)  # the exception may be a frozen dataclass
        set_frozen(shown[-1], "__suppress_context__", False)


def _shown_with(error: BaseException) -> list[BaseException]:
    """The errors that a traceback of ``error`` shows, itself first."""
    shown: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and all(current is not one for one in shown):
        shown.append(current)
        context = None if current.__suppress_context__ else current.__context__
        current = context if current.__cause__ is None else current.__cause__
    return shown
