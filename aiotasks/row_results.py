"""From a row of the table to Django's TaskResult, new or refreshed."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from django.conf import settings
from django.tasks import TaskResultStatus
from django.tasks.base import TaskError
from django.utils import timezone

from .codec import decode
from .compat import RETURN_VALUE, set_frozen, slot_setters
from .exceptions import InvalidRow, UnknownTask
from .policies.policy import policy_of
from .registry import resolve
from .results import OTHER_FIELDS, Counts, PostgresTaskResult
from .rows import AnyResult, AnyTask, Job, Moment, Status, time_of
from .tasks import PostgresTask

__all__ = ["arguments_of", "duplicate_of", "error_of", "refresh_from", "result_of"]


def arguments_of(job: Job) -> tuple[list[Any], dict[str, Any]]:
    """Return the row's args and kwargs. Raises InvalidRow for other JSON, because ``f(*"ab")`` would run."""
    try:
        args, kwargs = decode(job.args), decode(job.kwargs)
    except (ValueError, RecursionError) as error:  # PostgreSQL accepts longer integers and deeper nesting
        raise InvalidRow(job.id, f"its arguments aren't JSON that Python reads ({error})") from error
    if type(args) is not list:
        raise InvalidRow(job.id, f"args is a JSON {_JSON_TYPES[type(args)]}, not an array")
    if type(kwargs) is not dict:
        raise InvalidRow(job.id, f"kwargs is a JSON {_JSON_TYPES[type(kwargs)]}, not an object")
    return args, kwargs


_JSON_TYPES = {
    list: "array",
    dict: "object",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def result_of(job: Job, moved_tasks: Mapping[str, str], *, otherwise: AnyTask | None = None) -> AnyResult:
    """Return the row as Django's TaskResult. ``moved_tasks`` are its backend's MOVED_TASKS.

    Raises UnknownTask if the task can't be imported and ``otherwise`` is None, InvalidRow for a row that
    aiotasks hasn't written.
    """
    args, kwargs = arguments_of(job)
    try:
        return _make(
            PostgresTaskResult,
            task=_task_of(job, moved_tasks, otherwise),
            id=str(job.id),
            args=args,
            kwargs=kwargs,
            backend=job.backend,
            is_duplicate=False,
            **dict(zip(_STATE, _state_of(job), strict=True)),
            **{name: make() for name, make in OTHER_FIELDS},
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InvalidRow(job.id, f"{type(error).__name__}: {error}") from error


def refresh_from(result: AnyResult, job: Job) -> None:
    """Have a result show the state of its task's row. It takes a third of the time of a new result.

    Raises InvalidRow for a row that aiotasks hasn't written.
    """
    try:
        state = _state_of(job)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InvalidRow(job.id, f"{type(error).__name__}: {error}") from error
    for set_field, value in zip(_STATE_SETTERS, state, strict=True):
        set_field(result, value)


# What a refresh renews, in the order of ``_state_of()``.
_STATE = (
    *("status", "enqueued_at", "started_at", "finished_at", "last_attempted_at", "errors", "worker_ids"),
    *(RETURN_VALUE, "counts", "stored_metadata"),
)
_STATE_SETTERS = slot_setters(PostgresTaskResult, _STATE)

# As Django shows a row's status. A look-up here takes a quarter of the time of the enum's own.
_STATUSES = {
    status: TaskResultStatus.READY if status == Status.SCHEDULED else TaskResultStatus(status)
    for status in Status
}


def _state_of(job: Job) -> tuple[Any, ...]:
    read = time_of if settings.USE_TZ else _naive
    return (
        _STATUSES.get(job.status) or TaskResultStatus(job.status),  # type: ignore[call-overload]  # a Status is a str
        read(job.enqueued_at),
        read(job.started_at),
        read(job.finished_at),
        read(job.last_attempted_at),
        [error_of(decode(text)) for text in job.errors],
        list(job.worker_ids),  # coalesced look-ups share the job
        decode(job.return_value),
        Counts(job.failures or 0, job.snoozes or 0, job.errors_omitted or 0),
        job.metadata,
    )


def duplicate_of(job: Job, moved_tasks: Mapping[str, str], task: AnyTask) -> AnyResult:
    """Return the result of a task that holds the unique key of an enqueue of ``task``, which is the result's
    where its own can't be imported: the enqueue is over, and must not fail. Raises InvalidRow."""
    result = result_of(job, moved_tasks, otherwise=task)
    set_frozen(result, "is_duplicate", True)
    return result


def _task_of(job: Job, moved_tasks: Mapping[str, str], otherwise: AnyTask | None) -> AnyTask:
    """Return the Task of the row's path, with the row's own queue, priority, time and policies."""
    try:
        registered = resolve(job.task_path, moved_tasks)
    except UnknownTask:
        if otherwise is None:
            raise
        registered = otherwise
    run_after = _local(job.run_after)
    stored = (job.priority, job.queue_name, job.backend, run_after)
    if (
        stored == (registered.priority, registered.queue_name, registered.backend, registered.run_after)
        and policy_of(registered) == job.policy
    ):
        return registered
    # Not validated again: that takes 10 µs, and would fail for every old task of a queue that is no
    # longer in QUEUES.
    values = {field.name: getattr(registered, field.name) for field in fields(registered)}
    values |= {
        "priority": job.priority,
        "queue_name": job.queue_name,
        "backend": job.backend,
        "run_after": run_after,
    }
    if isinstance(registered, PostgresTask):
        values |= job.policy._asdict()
    return _make(type(registered), **values)


def _make[Kind](kind: type[Kind], **values: Any) -> Kind:
    """Return an instance of a frozen dataclass with these fields, without running its ``__init__``."""
    instance = object.__new__(kind)
    for name, value in values.items():
        set_frozen(instance, name, value)
    return instance


def error_of(stored: dict[str, str]) -> TaskError:
    """The TaskError of a stored error. Raises TypeError or KeyError for one that aiotasks hasn't written."""
    path, traceback = stored["class"], stored["traceback"]
    if not isinstance(path, str) or not isinstance(traceback, str):
        raise TypeError("an error's class and traceback are strings")
    return TaskError(exception_class_path=path, traceback=traceback)


def _local(moment: Moment | None) -> datetime | None:
    """Return a time from the database as Django shows it: aware, or naive and local where USE_TZ is False."""
    return time_of(moment) if settings.USE_TZ else _naive(moment)


def _naive(moment: Moment | None) -> datetime | None:
    time = time_of(moment)
    return None if time is None else timezone.make_naive(time)
