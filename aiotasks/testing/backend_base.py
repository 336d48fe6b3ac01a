"""What ImmediateBackend and DummyBackend share: the policies, the checks of calls, the unique keys."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from datetime import timedelta
from traceback import format_exception
from typing import Any

from asgiref.sync import sync_to_async
from django.tasks import TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from ..codec import normalize
from ..compat import set_frozen
from ..exceptions import DuplicateTask
from ..metadata.values import dump_metadata, merge
from ..policies.limit_keys import limit_key_of_call
from ..policies.policy import PolicyFields
from ..policies.unique import UniqueRule, key_of_call, rule_of
from ..results import PostgresTaskResult, new_result
from ..rows import AnyResult, AnyTask
from ..signatures import check_call
from ..tasks import PostgresTask, metadata_of

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

__all__ = ["BackendForTests", "by_id", "error_of", "set_fields"]

type Calls = Iterable[tuple[Sequence[Any], Mapping[str, Any]]]


class BackendForTests(BaseTaskBackend):
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
        set_fields(kept, stored_metadata=merge(kept.stored_metadata, values, kept.id))

    def _kept(self, result: AnyResult | str) -> PostgresTaskResult:
        """Return the result itself. Raises TaskResultDoesNotExist for an id of which the backend has none."""
        raise NotImplementedError

    def _new_result(self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AnyResult:
        """Raise as ``PostgresBackend.aenqueue`` does for a task or arguments that can't be stored."""
        self.validate_task(task)
        path = task.module_path
        check_call(task.func, path, args, kwargs, takes_context=task.takes_context)
        plain_args, plain_kwargs = normalize(list(args), "args"), normalize(dict(kwargs), "kwargs")
        if isinstance(task, PolicyFields):
            limit_key_of_call(task, path, plain_args, plain_kwargs)
        return new_result(
            task, str(uuid7()), timezone.now(), plain_args, plain_kwargs, self.alias, metadata_of(task)
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


def by_id(results: Iterable[AnyResult], id: str) -> AnyResult:
    """Return the result with this id. Raises TaskResultDoesNotExist."""
    for result in results:
        if result.id == id:
            return result
    raise TaskResultDoesNotExist(id)


def set_fields(result: AnyResult, **values: Any) -> None:
    for name, value in values.items():
        set_frozen(result, name, value)


def error_of(error: BaseException) -> TaskError:
    kind = type(error)
    return TaskError(
        exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
        traceback="".join(format_exception(error)),
    )


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
        set_fields(
            holder, task=replaced, args=result.args, kwargs=result.kwargs, stored_metadata=metadata_of(task)
        )
    duplicate = copy(holder)
    set_fields(
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
