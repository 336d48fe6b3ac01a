"""ImmediateBackend and DummyBackend: Django's backends for tests, for tasks that have policies.

No database and no worker. What they imitate of the policies, and what not, is in docs/howto/tests.md.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from datetime import timedelta
from inspect import isawaitable, iscoroutinefunction
from traceback import format_exception
from typing import Any, NamedTuple
from uuid import UUID

from asgiref.sync import async_to_sync, sync_to_async
from django.tasks import TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.backends.dummy import DummyBackend as DjangosDummyBackend
from django.tasks.backends.immediate import ImmediateBackend as DjangosImmediateBackend
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

from ..codec import dump_json, normalize
from ..compat import RETURN_VALUE, set_frozen
from ..conf import Options
from ..context import PostgresTaskContext
from ..exceptions import DuplicateTask, Snooze, TaskCancelled, TaskTimeout
from ..metadata.running import RunningMetadata
from ..metadata.values import dump_metadata, merge
from ..policies.policy import PolicyFields
from ..policies.timeout import TimeLimit
from ..policies.unique import UniqueRule, key_of_call, rule_of
from ..results import Counts, PostgresTaskResult, new_result
from ..rows import AnyResult, AnyTask
from ..signatures import check_call
from ..tasks import PostgresTask, metadata_of
from ..worker.running.verdict import Delay, judge, seconds_of

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

__all__ = ["DummyBackend", "ImmediateBackend"]

logger = logging.getLogger("aiotasks.testing")

type Calls = Iterable[tuple[Sequence[Any], Mapping[str, Any]]]


class _TestBackend(BaseTaskBackend):
    """What both share: the policies, the checks of arguments, results with ids as PostgresBackend's."""

    task_class = PostgresTask
    supports_metadata = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._params = params
        self._keys: dict[str, str] = {}  # unique keys, by the ids of the results

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

    async def ajoin(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """See ``PostgresTaskResult.ajoin``; nothing is waited for."""
        self.join(result, timeout)

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """The same. Raises RuntimeError for a task that hasn't ended: nothing here will end it."""
        raise NotImplementedError

    async def asave_metadata(self, result: AnyResult | str, metadata: Mapping[str, Any]) -> None:
        """See ``PostgresBackend.asave_metadata``."""
        await sync_to_async(self.save_metadata, thread_sensitive=True)(result, metadata)

    def save_metadata(self, result: AnyResult | str, metadata: Mapping[str, Any]) -> None:
        """See ``PostgresBackend.asave_metadata``."""
        values, _ = dump_metadata(metadata)
        kept = self._kept(result)
        _set(kept, stored_metadata=merge(kept.stored_metadata, values, kept.id))

    def _kept(self, result: AnyResult | str) -> PostgresTaskResult:
        """Return the result itself. Raises TaskResultDoesNotExist for an id of which the backend has none."""
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
            metadata_of(task),
        )

    def _duplicate(self, result: AnyResult, others: Iterable[AnyResult]) -> AnyResult | None:
        """Return the result of the one of ``others`` that holds the unique key of a new call; None if none
        does, and the call has it now. Raises DuplicateTask."""
        task = result.task
        if not isinstance(task, PolicyFields) or task.unique_key is None:
            return None
        key = key_of_call(task.unique_key, task.module_path, result.args, result.kwargs)
        if key is None:
            return None
        for holder in others:
            if self._keys.get(holder.id) == key and _holds_key(holder):
                return _refer(result, holder, rule_of(task), key)
        self._keys[result.id] = key
        return None


class ImmediateBackend(_TestBackend, DjangosImmediateBackend):
    """Runs a task within ``enqueue()``, with all its attempts one after another, without their delays."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._running: list[AnyResult] = []

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Run the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        duplicate = self._duplicate(result, self._running)  # of a task that enqueues itself
        if duplicate is not None:
            return duplicate
        self._running.append(result)
        try:
            task_enqueued.send(type(self), task_result=result)
            while not self._attempt(result):
                pass
        finally:
            self._running.remove(result)
            self._keys.pop(result.id, None)
        return result

    def cancel(self, result: AnyResult) -> bool:
        """Return False: it is too late."""
        return False

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """Return at once: the task has ended within ``enqueue()``. Raises RuntimeError if it has snoozed."""
        if not result.is_finished:
            raise RuntimeError(
                f"Task {result.id} has snoozed, or runs at the moment, and ImmediateBackend runs a task "
                "within its enqueue() alone: a join would wait forever."
            )

    def _kept(self, result: Any) -> Any:
        """A result itself, because none is kept here; the id of a task that runs."""
        if not isinstance(result, str):
            return result
        return _by_id(self._running, result)

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
            value = _run_body(result)
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
            self._end(result, TaskResultStatus.FAILED)  # with the error in sys.exc_info()
            return True
        try:
            value, _ = dump_json(value, where="the return value", limit=self._options().max_result_size)
        except Exception as error:  # another attempt would do again what the body has done to its end  # noqa: BLE001
            result.errors.append(_error_of(error))
            self._end(result, TaskResultStatus.FAILED)
            return True
        _set(result, **{RETURN_VALUE: value})
        self._end(result, TaskResultStatus.SUCCESSFUL)
        return True

    def _end(self, result: AnyResult, status: TaskResultStatus) -> None:
        _set(result, status=status, finished_at=timezone.now())
        task_finished.send(type(self), task_result=result)


class DummyBackend(_TestBackend, DjangosDummyBackend):
    """Keeps what is enqueued in ``results``, and runs nothing. ``clear()`` forgets it."""

    results: list[Any]  # the stubs' elements are generic

    def enqueue(  # type: ignore[override]  # the base's parameters are generic in the stubs
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyResult:
        """Keep the task, and return its result. Raises for arguments as ``PostgresBackend.enqueue`` does."""
        result = self._new_result(task, args, kwargs)
        duplicate = self._duplicate(result, self.results)
        if duplicate is not None:
            return duplicate
        self.results.append(result)
        task_enqueued.send(type(self), task_result=result)
        return deepcopy(result)

    def clear(self) -> None:
        """Forget all tasks, and their unique keys."""
        super().clear()
        self._keys.clear()

    def _kept(self, result: Any) -> Any:
        return _by_id(self.results, result if isinstance(result, str) else result.id)

    def join(self, result: PostgresTaskResult, timeout: float | None = None) -> None:
        """Refresh the result if its task was cancelled. Raises RuntimeError for any other task."""
        kept = self.get_result(result.id)
        if not kept.is_finished:
            raise RuntimeError(
                f"DummyBackend runs no tasks, so task {result.id} never ends, and a join would wait forever. "
                "Use ImmediateBackend, or PostgresBackend and aiotasks.testing.drain(), in tests that join."
            )
        result.update(kept)

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


def _by_id(results: Iterable[AnyResult], id: str) -> AnyResult:
    """Return the result with this id. Raises TaskResultDoesNotExist."""
    for result in results:
        if result.id == id:
            return result
    raise TaskResultDoesNotExist(id)


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


class _IntoResult:
    """Saves an attempt's metadata in its result."""

    def __init__(self, result: Any) -> None:
        self._result = result

    @property
    def text(self) -> str | None:
        text: str | None = self._result.stored_metadata
        return text

    def save_soon(self, metadata: RunningMetadata) -> None:
        metadata.refused(self.text)  # save_metadata() may have been called meanwhile
        try:
            if metadata.begin():
                _set(self._result, stored_metadata=metadata.text)
                metadata.written()
        except (ValueError, RecursionError) as error:  # with what others have written
            self._log(metadata, error)

    def save_last(self, metadata: RunningMetadata) -> None:
        if metadata.is_untouched:
            return
        if (error := metadata.close()) is not None:
            self._log(metadata, error)
        self.save_soon(metadata)

    def _log(self, metadata: RunningMetadata, error: Exception) -> None:
        logger.error(
            "Metadata could not be saved; the task has those of its last save id=%s error=%r",
            metadata.id,
            f"{type(error).__name__}: {error}",
        )


class _Attempt(NamedTuple):
    """The attempt as its context sees it."""

    limit: TimeLimit | None
    metadata: RunningMetadata

    def is_cancelled(self) -> bool:
        return False  # nobody else could have run meanwhile


def _run_body(result: AnyResult) -> Any:
    task = result.task
    timeout = task.timeout if isinstance(task, PolicyFields) else None
    saves: Any = _IntoResult(result)
    metadata = RunningMetadata(UUID(result.id), None, saves.text, saves)
    attempt = _Attempt(None if timeout is None else TimeLimit(timeout), metadata)
    if attempt.limit is not None:
        attempt.limit.begin()
    args = [PostgresTaskContext(task_result=result, running=attempt)] if task.takes_context else []
    try:
        if timeout is None or not iscoroutinefunction(task.func):
            return task.call(*args, *result.args, **result.kwargs)
        return async_to_sync(_within)(timeout, task.func, *args, *result.args, **result.kwargs)
    finally:
        saves.save_last(metadata)


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


def _holds_key(holder: AnyResult) -> bool:
    """Whether a task holds the key that it was enqueued with, by its own rule."""
    task: Any = holder.task  # a PostgresTask, because it has a key
    rule = rule_of(task)
    if rule.period is not None and holder.enqueued_at is not None:
        return holder.enqueued_at + timedelta(seconds=rule.period) > timezone.now()
    return holder.status == TaskResultStatus.READY or (
        holder.status == TaskResultStatus.RUNNING and not rule.waiting
    )


def _refer(result: AnyResult, holder: AnyResult, rule: UniqueRule, key: str) -> AnyResult:
    """Return the result of the task that holds the key of a new call, whose rule says what that does to it.
    Raises DuplicateTask."""
    task: Any = result.task
    is_replaced = (
        rule.on_conflict == "replace"
        and holder.status == TaskResultStatus.READY
        and holder.task.module_path == task.module_path
    )
    if is_replaced:
        run_after = holder.task.run_after if rule.keep_run_after else task.run_after
        replaced = replace(holder.task, priority=task.priority, run_after=run_after)
        _set(holder, task=replaced, args=result.args, kwargs=result.kwargs, stored_metadata=metadata_of(task))
    duplicate = copy(holder)
    _set(
        duplicate,
        is_duplicate=True,
        args=deepcopy(holder.args),
        kwargs=deepcopy(holder.kwargs),
        errors=[*holder.errors],
        worker_ids=[*holder.worker_ids],
    )
    if rule.on_conflict != "return" and not is_replaced:
        raise DuplicateTask(key, duplicate)
    return duplicate
