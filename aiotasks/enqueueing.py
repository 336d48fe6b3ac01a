"""From calls to rows: checks a task and its calls, makes the rows and results, and has them stored."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.tasks.exceptions import InvalidTask
from django.utils import timezone

from .codec import dump_json
from .conf import Options
from .exceptions import DuplicateTask, UnknownTask
from .metadata.values import with_own
from .policies.limit_keys import limit_key_of_call
from .policies.policy import Policy, PolicyFields, policy_of
from .policies.unique import UniqueRule, keep_for_period, key_of_call, rule_of
from .registry import resolve
from .results import new_result
from .row_results import duplicate_of
from .rows import AnyResult, AnyTask, JobTemplate, NewJob, UniqueJob, lane_of, makes_generators
from .signatures import check_call
from .store.route import Route
from .store.settling import Duplicates
from .tasks import metadata_of

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

__all__ = ["Calls", "check_path", "make_rows", "store_rows"]

# The args and kwargs of each.
type Calls = Iterable[tuple[Sequence[Any], Mapping[str, Any]]]

# Bytes of arguments in one aenqueue_many(): it is one statement, and PostgreSQL takes up to 1 GB.
MAX_MANY_SIZE = 256 * 1024 * 1024

# By path, what the rows of a task of the code share. Making it takes a tenth of an enqueue's CPU time, and
# rows of one template are stored faster. What using() returns is new each time, and isn't kept.
_templates: dict[str, tuple[AnyTask, JobTemplate]] = {}


def check_path(task: AnyTask) -> None:
    """Refuse a task that its path doesn't lead back to: a worker has nothing but the path."""
    try:
        found = resolve(task.module_path)
    except UnknownTask as error:
        raise InvalidTask(f"No worker could run this task: {error}") from error
    if found.func is not task.func:
        raise InvalidTask(f"No worker could run this task: {task.module_path!r} leads to another function.")
    if makes_generators(task.func):
        raise InvalidTask(
            f"No worker could run this task: {task.module_path}() is a generator function: a call of it "
            "runs nothing of its body. Write a function that returns, or a coroutine function."
        )


def make_rows(
    task: AnyTask,
    calls: Calls,
    backend: str,
    options: Options,
    *,
    many: bool,
    own: Mapping[str, Any] | None = None,
) -> tuple[list[NewJob], list[AnyResult]]:
    """Return a row and a TaskResult for each call. ``own``: keys of aiotasks' own for their metadata, which
    are left out where they don't fit.

    Raises TypeError or ValueError for a call that can't be stored; with ``many`` the error names it by its
    number.
    """
    most = options.max_argument_size
    now = timezone.now()
    enqueued_at = now if timezone.is_aware(now) else timezone.make_aware(now)
    unique_key = task.unique_key if isinstance(task, PolicyFields) else None
    rule = rule_of(task) if isinstance(task, PolicyFields) and unique_key is not None else None
    limited = task if isinstance(task, PolicyFields) and task.limit is not None else None
    template = _template_of(task, backend)
    if own:
        template = replace(template, metadata=with_own(template.metadata, own))
    if rule is not None:
        template = replace(template, policy=_policy_of_unique(template.policy, rule, options))
    jobs: list[NewJob] = []
    results: list[AnyResult] = []
    size = 0
    key: str | None = None
    limit_key: str | None = None
    for call in calls:
        try:
            args, kwargs = _pair(call)
            check_call(task.func, template.task_path, args, kwargs, takes_context=task.takes_context)
            plain_args, args_text = dump_json(args, where="args", limit=most)
            plain_kwargs, kwargs_text = dump_json(kwargs, where="kwargs", limit=most)
            if unique_key is not None:
                key = key_of_call(unique_key, template.task_path, plain_args, plain_kwargs)
            if limited is not None:
                limit_key = limit_key_of_call(limited, template.task_path, plain_args, plain_kwargs)
        except (TypeError, ValueError) as error:
            if not many:
                raise
            kind_of_error = TypeError if isinstance(error, TypeError) else ValueError
            raise kind_of_error(f"calls[{len(jobs)}]: {error}") from error
        size += len(args_text) + len(kwargs_text)
        if size > MAX_MANY_SIZE and jobs:
            raise ValueError(
                f"The arguments of {len(jobs) + 1} calls take more than {MAX_MANY_SIZE} bytes. Enqueue "
                "them in several parts, inside a transaction where it must be all or none."
            )
        id = str(uuid7())
        row = id, template, args_text, kwargs_text, enqueued_at
        if key is None or rule is None:
            jobs.append(NewJob(*row, limit_key=limit_key))
        else:
            jobs.append(UniqueJob(*row, key, rule, limit_key=limit_key))
        results.append(new_result(task, id, now, plain_args, plain_kwargs, backend, template.metadata))
    return jobs, results


async def store_rows(
    route: Route,
    task: AnyTask,
    jobs: list[NewJob],
    results: list[AnyResult],
    options: Options,
    *,
    many: bool,
) -> list[AnyResult]:
    """Store the rows whose unique keys no other task holds, and return their results.

    In ``results`` those of the tasks that hold the keys take the place of the others. Raises DuplicateTask.
    """
    is_unique = isinstance(task, PolicyFields) and task.unique_key is not None
    if not is_unique or not any(isinstance(job, UniqueJob) for job in jobs):
        if jobs:
            await route.insert(jobs)
        return results
    try:
        settled = await route.insert_unique(jobs)
    except Duplicates as duplicates:
        settled = duplicates.settled
    stored: list[AnyResult] = []
    for number, (job, each) in enumerate(zip(jobs, settled, strict=True)):
        if each.holder is None:
            stored.append(results[number])
            continue
        results[number] = duplicate_of(each.holder, options.moved_tasks, task)
        if isinstance(job, UniqueJob) and each.is_refused(job.rule.on_conflict):
            raise DuplicateTask(job.key, results[number], number=number if many else None)
    return stored


def _template_of(task: AnyTask, backend: str) -> JobTemplate:
    """Return what all rows of a task share."""
    path = task.module_path
    known = _templates.get(path)
    if known is not None and known[0] is task and known[1].backend == backend:
        return known[1]
    run_after = task.run_after
    if run_after is not None and timezone.is_naive(run_after):
        run_after = timezone.make_aware(run_after)
    limit = task.limit if isinstance(task, PolicyFields) else None
    template = JobTemplate(
        backend=backend,
        queue_name=task.queue_name,
        task_path=path,
        lane=lane_of(task.func),
        priority=int(task.priority),
        run_after=run_after,
        expires=task.expires if isinstance(task, PolicyFields) else None,
        metadata=metadata_of(task),
        policy=policy_of(task),
        ordered=None if limit is None else limit.stored_order,
    )
    if resolve(path) is task and run_after is None and template.metadata is None:
        _templates[path] = task, template
    return template


def _policy_of_unique(policy: Policy, rule: UniqueRule, options: Options) -> Policy:
    """The policies to store: a row that holds its key for a period must be kept for that long."""
    defaults = (options.keep_successful, options.keep_failed)
    return policy._replace(keep_result=keep_for_period(policy.keep_result, rule.period, defaults))


def _pair(call: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return a call's args and kwargs. Raises TypeError for values that ``list()`` and ``dict()`` would
    change.
    """
    match call:
        case (tuple() | list() as args, dict() as kwargs):  # nearly all
            return list(args), dict(kwargs)
        case (Sequence() as args, Mapping() as kwargs) if not isinstance(args, str | bytes):
            return list(args), dict(kwargs)
    raise TypeError(f"a pair (args, kwargs) is wanted, such as ((1, 2), {{'key': 3}}), not {call!r:.100}.")
