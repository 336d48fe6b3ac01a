"""The policies of a task, from the decorator to the table.

A policy is a field of PolicyFields, with its parser, and has the same name in PolicyKeywords. Most belong to
the code, and the worker that runs a task reads them from there. Those that a row stores as they are have a
column, and the same name in Policy. Those that a call may change are in CallKeywords too. The decorator,
``using()``, PostgresTask, Job and the statements take their lists of policies from here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, TypedDict

from django.tasks.exceptions import InvalidTask

from .crashes import parse_max_crashes
from .expiry import parse_expires
from .keep import parse_keep_result
from .limit_keys import parse_limit_key
from .limits import Limit, LimitKey, parse_limit
from .retry import Backoff, ExceptionClasses, parse_backoff, parse_classes, parse_max_attempts
from .timeout import parse_timeout
from .unique import (
    OnConflict,
    UniqueFor,
    UniqueKey,
    check_unique,
    parse_keep_run_after,
    parse_on_conflict,
    parse_unique_for,
    parse_unique_key,
)

__all__ = [
    "COLUMNS",
    "NO_POLICY",
    "POLICIES",
    "CallKeywords",
    "Policy",
    "PolicyFields",
    "PolicyKeywords",
    "check_keywords",
    "parse_policies",
    "policy_of",
    "stored_policy",
]


class CallKeywords(TypedDict, total=False):
    """The keywords of ``using()``: see PolicyFields."""

    max_crashes: int | None
    keep_result: float | timedelta | None
    expires: float | timedelta | None
    unique_key: UniqueKey | None
    limit_key: LimitKey


class PolicyKeywords(CallKeywords, total=False):
    """The keywords of the decorator: see PolicyFields."""

    max_attempts: int | None
    backoff: Backoff | None
    retry_on: ExceptionClasses | None
    give_up_on: ExceptionClasses | None
    timeout: float | timedelta | None
    unique_for: UniqueFor | None
    on_conflict: OnConflict | None
    keep_run_after: bool | None
    limit: Limit | None


class Policy(NamedTuple):
    """The policies that a row stores: the values of the columns, in the order of every list of them."""

    max_crashes: int | None = None
    keep_result: float | None = None


def _policy(parse: Callable[[Any], Any], column: str | None = None) -> Any:
    """A field that is None unless a task says otherwise. ``parse`` returns the value to keep, or raises a
    ValueError that says what the value must be; ``column`` is the SQL type where the row stores it."""
    return field(default=None, metadata={"column": column, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class PolicyFields:
    """The fields of a PostgresTask that are policies. Times may be given as seconds or as a timedelta, and
    are kept as seconds.

    ``max_crashes``: after how many crashes of its worker the task is FAILED with ``WorkerLost``
    (None: the backend's MAX_CRASHES; 0, as 1, never runs it again).
    ``keep_result``: for how many seconds the finished task is kept
    (None: the backend's KEEP_SUCCESSFUL or KEEP_FAILED; ``math.inf``: forever).
    ``expires``: for how many seconds after it is due the task may be started (None: forever).
    ``unique_key``: a key, or a function of the task's arguments that returns one, of which there is one task
    at a time (None: the task isn't unique).
    ``max_attempts``: after how many failed executions the task is FAILED (None: the backend's MAX_ATTEMPTS).
    ``backoff``: a function of the exception and the task's result that returns the seconds until the next
    attempt, or None for no more (None: the backend's BACKOFF).
    ``retry_on``: the only exception classes after which the task is tried again (None: all).
    ``give_up_on``: exception classes after which it isn't (None: none).
    ``timeout``: for how many seconds one attempt may run (None: forever).
    ``unique_for``: while the task holds its key: "unfinished", "waiting", or so many seconds from its enqueue
    (None: "unfinished").
    ``on_conflict``: what an enqueue does whose key another task holds: "return" that task's result, "raise"
    DuplicateTask, or "replace" the waiting task's arguments (None: "return").
    ``keep_run_after``: whether a task that is replaced keeps its time (None: it doesn't).
    ``limit``: how many tasks of its key run at a time, how fast they start, and in which order (None: the
    task isn't limited).
    ``limit_key``: the key of all calls (None: as the limit's ``by`` makes it).
    """

    __slots__ = ()

    max_crashes: int | None = _policy(parse_max_crashes, "smallint")
    keep_result: float | None = _policy(parse_keep_result, "double precision")
    expires: float | None = _policy(parse_expires)
    unique_key: UniqueKey | None = _policy(parse_unique_key)  # noqa: RUF009  # a field, as the others
    max_attempts: int | None = _policy(parse_max_attempts)
    backoff: Backoff | None = _policy(parse_backoff)  # noqa: RUF009  # a field, as the others
    retry_on: tuple[type[BaseException], ...] | None = _policy(parse_classes)
    give_up_on: tuple[type[BaseException], ...] | None = _policy(parse_classes)
    timeout: float | None = _policy(parse_timeout)
    unique_for: str | float | None = _policy(parse_unique_for)
    on_conflict: str | None = _policy(parse_on_conflict)
    keep_run_after: bool | None = _policy(parse_keep_run_after)
    limit: Limit | None = _policy(parse_limit)  # noqa: RUF009  # as above
    limit_key: str | None = _policy(parse_limit_key)


_FIELDS = {each.name: each.metadata for each in fields(PolicyFields)}

# The names of all.
POLICIES = tuple(_FIELDS)

# The columns of the table: name and SQL type.
COLUMNS: dict[str, str] = {name: _FIELDS[name]["column"] for name in Policy._fields}

NO_POLICY = Policy()

_values_of: Callable[[PolicyFields], tuple[Any, ...]] = attrgetter(*Policy._fields)


@lru_cache(maxsize=1024)  # most rows have the same few
def stored_policy(values: tuple[Any, ...]) -> Policy:
    """The Policy of a row's columns."""
    return Policy(*values)


def policy_of(task: object) -> Policy:
    """The Policy of a PostgresTask; of any other Task, one that says nothing."""
    return stored_policy(_values_of(task)) if isinstance(task, PolicyFields) else NO_POLICY


def parse_policies(task: PolicyFields) -> None:
    """Replace the values in a new task's fields by the values to keep. Raises InvalidTask."""
    is_plain = True
    for name, metadata in _FIELDS.items():
        value = getattr(task, name)
        if value is not None:
            is_plain = False
            try:
                object.__setattr__(task, name, metadata["parse"](value))
            except ValueError as error:
                raise InvalidTask(f"{name} must be {error}, not {value!r}.") from None
    if is_plain:
        return
    try:
        check_unique(task.unique_for, task.on_conflict, task.keep_run_after)
    except ValueError as error:
        raise InvalidTask(str(error)) from None


def check_keywords(function: str, given: dict[str, Any], allowed: Any) -> None:
    """Raise TypeError for a keyword that ``function`` doesn't take."""
    for name in sorted(given.keys() - allowed.__optional_keys__):
        if name in _FIELDS:
            raise TypeError(
                f"{function} takes no {name}: how a task is run belongs to its code, so that a "
                f"change of the code reaches the tasks that wait already. Write @task({name}=…)."
            )
        raise TypeError(f"{function} got an unexpected keyword argument {name!r}")
