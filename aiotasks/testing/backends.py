"""ImmediateBackend and DummyBackend: Django's backends for tests, for tasks that have policies.

No database and no worker. What they imitate of the policies, and what not, is in docs/howto/tests.md.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from inspect import isawaitable, iscoroutinefunction
from traceback import format_exception
from typing import Any, NamedTuple

from asgiref.sync import async_to_sync, sync_to_async
from django.tasks import TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.backends.dummy import DummyBackend as DjangosDummyBackend
from django.tasks.backends.immediate import ImmediateBackend as DjangosImmediateBackend
from django.tasks.base import TaskError
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

from ..codec import normalize
from ..compat import RETURN_VALUE, set_frozen
from ..conf import Options
from ..context import PostgresTaskContext
from ..exceptions import DuplicateTask, Snooze, TaskCancelled, TaskTimeout
from ..policies.policy import PolicyFields
from ..policies.timeout import TimeLimit
from ..results import Counts, new_result
from ..rows import AnyResult, AnyTask
from ..signatures import check_call
from ..tasks import PostgresTask
from ..worker.running.verdict import Delay, judge, seconds_of

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

__all__ = ["DummyBackend", "ImmediateBackend"]

type Calls = Iterable[tuple[Sequence[Any], Mapping[str, Any]]]


class _TestBackend(BaseTaskBackend):
    """What both share: the policies, the checks of arguments, results with ids as PostgresBackend's."""

    task_class = PostgresTask

    def enqueue_many(self, task: AnyTask, calls: Calls) -> list[AnyResult]:
        """See ``PostgresBackend.aenqueue_many``."""
        return [self.enqueue(task, args, kwargs) for args, kwargs in list(calls)]  # type: ignore[arg-type]  # generic in the stubs

    async def aenqueue_many(self, task: AnyTask, calls: Calls) -> list[AnyResult]:
        """See ``PostgresBackend.aenqueue_many``."""
        return await sync_to_async(self.enqueue_many, thread_sensitive=True)(task, calls)

    async def acancel(self, result: AnyResult) -> bool:
        """See ``PostgresTaskResult.acancel``."""
        return await sync_to_async(self.cancel, thread_sensitive=True)(result)

    def cancel(self, result: AnyResult) -> bool:
        """See ``PostgresTaskResult.acancel``."""
        raise NotImplementedError

    def _new_result(self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AnyResult:
        """Raise as ``PostgresBackend.aenqueue`` does for a task or arguments that can't be stored."""
        self.validate_task(task)
        check_call(task.func, task.module_path, args, kwargs, takes_context=task.takes_context)
        return new_result(
            task,
            str(uuid7()),
            timezone.now(),
            normalize(list(args), "args"),
            normalize(dict(kwargs), "kwargs"),
            self.alias,
        )


class ImmediateBackend(_TestBackend, DjangosImmediateBackend):
    """Runs a task within ``enqueue()``, with all its attempts one after another, without their delays."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._params = params
        self._running: list[AnyResult] = []

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Run the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        holder = _holder(result, self._running)  # a task that enqueues itself
        if holder is not None and _unique_for(task) != "waiting":
            return _on_conflict(result, holder)
        task_enqueued.send(type(self), task_result=result)
        self._running.append(result)
        try:
            while not self._attempt(result):
                pass
        finally:
            self._running.remove(result)
        return result

    def cancel(self, result: AnyResult) -> bool:
        """Return False: it is too late."""
        return False

    def _options(self) -> Options:
        """MAX_ATTEMPTS and BACKOFF, as of a PostgresBackend."""
        return Options.from_params(self.alias, self._params)

    def _attempt(self, result: AnyResult) -> bool:
        """Run the body once; return whether no other attempt follows."""
        now = timezone.now()
        _set(result, status=TaskResultStatus.RUNNING, last_attempted_at=now)
        if result.started_at is None:
            _set(result, started_at=now)
        result.worker_ids.append(self.worker_id)
        task_started.send(sender=type(self), task_result=result)
        try:
            value = normalize(_run_body(result), "return value")
        except KeyboardInterrupt:
            raise  # as Django's: who runs the tests wants to stop them
        except Snooze:
            result.worker_ids.pop()
            _set(result, status=TaskResultStatus.READY)
            return True
        except BaseException as error:  # as workers do  # noqa: BLE001
            result.errors.append(_error_of(error))
            try:
                again = _is_tried_again(self._options(), result, error)
            except BaseException as raised:  # a backoff's  # noqa: BLE001
                result.errors[-1] = _error_of(raised)
                again = False
            if again:
                _set(result, status=TaskResultStatus.READY, counts=Counts(failures=len(result.errors)))
                return False
            _set(result, status=TaskResultStatus.FAILED, finished_at=timezone.now())
            task_finished.send(type(self), task_result=result)  # with the error in sys.exc_info()
            return True
        _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now(), **{RETURN_VALUE: value})
        task_finished.send(type(self), task_result=result)
        return True


class DummyBackend(_TestBackend, DjangosDummyBackend):
    """Keeps what is enqueued in ``results``, and runs nothing. ``clear()`` forgets it."""

    results: list[Any]  # the stubs' elements are generic

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Keep the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        holder = _holder(result, [kept for kept in self.results if _holds_key(kept)])
        if holder is not None:
            return deepcopy(_on_conflict(result, holder))
        self.results.append(result)
        task_enqueued.send(type(self), task_result=result)
        return deepcopy(result)

    def cancel(self, result: AnyResult) -> bool:
        """Make the task that is kept FAILED, with TaskCancelled, if it waits."""
        for kept in self.results:
            if kept.id == result.id and kept.status == TaskResultStatus.READY:
                error = TaskCancelled("The task was cancelled before it ran.")
                kept.errors.append(_error_of(error))
                _set(kept, status=TaskResultStatus.FAILED, finished_at=timezone.now())
                _send_finished(type(self), kept, error)
                return True
        return False


def _set(result: AnyResult, **values: Any) -> None:
    for name, value in values.items():
        set_frozen(result, name, value)


def _error_of(error: BaseException) -> TaskError:
    kind = type(error)
    return TaskError(
        exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
        traceback="".join(format_exception(error)),
    )


def _send_finished(sender: type, result: AnyResult, error: BaseException) -> None:
    try:
        raise error
    except BaseException:  # for sys.exc_info()  # noqa: BLE001
        task_finished.send(sender, task_result=result)


class _Attempt(NamedTuple):
    """The attempt as its context sees it."""

    limit: TimeLimit | None

    def is_cancelled(self) -> bool:
        return False  # nobody else could have run meanwhile


def _run_body(result: AnyResult) -> Any:
    task = result.task
    timeout = task.timeout if isinstance(task, PolicyFields) else None
    attempt = _Attempt(None if timeout is None else TimeLimit(timeout))
    if attempt.limit is not None:
        attempt.limit.begin()
    args = [PostgresTaskContext(task_result=result, running=attempt)] if task.takes_context else []
    if timeout is None or not iscoroutinefunction(task.func):
        return task.call(*args, *result.args, **result.kwargs)
    return async_to_sync(_within)(timeout, task.func, *args, *result.args, **result.kwargs)


async def _within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a coroutine function; TaskTimeout if that takes longer. Its own TimeoutError stays its own."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await function(*args, **kwargs)
    except TimeoutError:
        if not limit.expired():
            raise
        raise TaskTimeout(f"The attempt has run for longer than its timeout of {seconds:g} s.") from None


def _is_tried_again(options: Options, result: AnyResult, error: BaseException) -> bool:
    """Return what a worker decides. Raises what a backoff raises."""
    verdict = judge(result.task, options, len(result.errors), error)
    if verdict is None or isinstance(verdict, Delay):
        return verdict is not None
    answer = verdict(error, result)
    return seconds_of(async_to_sync(_awaited)(answer) if isawaitable(answer) else answer) is not None


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


# --- Unique keys


def _unique_for(task: AnyTask) -> str | float | None:
    return task.unique_for if isinstance(task, PolicyFields) else None


def _key(result: AnyResult) -> str | None:
    key = result.task.unique_key if isinstance(result.task, PolicyFields) else None
    return key(*result.args, **result.kwargs) if callable(key) else key


def _holder(result: AnyResult, others: Iterable[AnyResult]) -> AnyResult | None:
    """Return which of the other results has the same key."""
    if (key := _key(result)) is None:
        return None
    return next((other for other in others if _key(other) == key), None)


def _holds_key(result: AnyResult) -> bool:
    """Whether a kept task waits, or its seconds aren't over."""
    if result.status == TaskResultStatus.READY:
        return True
    seconds = _unique_for(result.task)
    enqueued_at: datetime | None = result.enqueued_at
    return (
        isinstance(seconds, float)
        and enqueued_at is not None
        and enqueued_at + timedelta(seconds=seconds) > timezone.now()
    )


def _on_conflict(result: AnyResult, holder: AnyResult) -> AnyResult:
    """Return the result of the task that holds the key of the new one, as ``on_conflict`` says."""
    task: Any = result.task
    if task.on_conflict == "raise":
        raise DuplicateTask(_key(result) or "", holder)
    if task.on_conflict == "replace":
        if task.keep_run_after:
            task = replace(task, run_after=holder.task.run_after)
        _set(holder, task=task, args=result.args, kwargs=result.kwargs)
    return holder
