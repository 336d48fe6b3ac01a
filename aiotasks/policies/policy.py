"""The policies of a task, from the decorator to the table.

A policy is a field of PolicyFields, with its parser and the type of its column, and has the same name in
PolicyKeywords and Policy. The decorator, ``using()``, PostgresTask, Job and the statements take their lists
of policies from here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, TypedDict

from django.tasks.exceptions import InvalidTask

from .crashes import parse_max_crashes
from .keep import parse_keep_result

__all__ = [
    "COLUMNS",
    "NO_POLICY",
    "Policy",
    "PolicyFields",
    "PolicyKeywords",
    "parse_policies",
    "policy_of",
    "stored_policy",
]


class PolicyKeywords(TypedDict, total=False):
    """The keywords of the decorator and of ``using()``: see PolicyFields."""

    max_crashes: int | None
    keep_result: float | timedelta | None


class Policy(NamedTuple):
    """The policies that a row stores: the values of the columns, in the order of every list of them."""

    max_crashes: int | None = None
    keep_result: float | None = None


def _policy(column: str, parse: Callable[[Any], Any]) -> Any:
    """A field that is None unless a task says otherwise. ``column`` is its SQL type; ``parse`` returns what
    is stored, or raises a ValueError that says what the value must be."""
    return field(default=None, metadata={"column": column, "parse": parse})


@dataclass(frozen=True, kw_only=True)
class PolicyFields:
    """The fields of a PostgresTask that are policies.

    ``max_crashes``: after how many crashes of its worker the task is FAILED with ``WorkerLost``
    (None: the backend's MAX_CRASHES; 0, as 1, never runs it again).
    ``keep_result``: for how many seconds the finished task is kept; a timedelta is turned into
    seconds (None: the backend's KEEP_SUCCESSFUL or KEEP_FAILED; ``math.inf``: forever).
    """

    __slots__ = ()

    max_crashes: int | None = _policy("smallint", parse_max_crashes)
    keep_result: float | None = _policy("double precision", parse_keep_result)


_FIELDS = {each.name: each.metadata for each in fields(PolicyFields)}

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
    """Replace the values in a new task's fields by the values to store. Raises InvalidTask."""
    for name, metadata in _FIELDS.items():
        value = getattr(task, name)
        if value is not None:
            try:
                object.__setattr__(task, name, metadata["parse"](value))
            except ValueError as error:
                raise InvalidTask(f"{name} must be {error}, not {value!r}.") from None
