"""The columns that statements take and return of a row, written down once.

A statement names a list in braces, and gets it when it is loaded. The row must be called ``task`` there.

- ``{job_columns}``: Job's fields
- ``{claimed_columns}``: the same without the fields that the worker that claims knows
- ``{keyed_columns}``: the same of a claim of tasks with limits
- ``{errors_for_one_more}``: the errors without those that one more takes the place of, and
  ``{errors_omitted_with_one_more}``: how many are left out then
- ``{policy_columns}``: the names of the policies' columns
- ``{policy_values:11}``: their values, as parameters from $11 on
- ``{policy_arrays:12}``: the same of arrays, whose elements ``new.template`` numbers
- ``{schedule_columns}``: Schedule's fields, of a row called ``schedule``, and ``{schedule_times}``: its
  times, NULL for one that Python can't hold
- ``{listed_times}``, ``{detail_times}``: a task's times, NULL for one that Python can't hold
- ``{schedule_names}``: the names of the columns of Schedule's fields; ``{schedule_arrays:3}``: arrays of
  their values, as parameters from $3 on; ``{schedule_changes}``: assignments from ``excluded``
- ``{values_of_a_retry}``: what a task that runs again gets, with ``held.run_after`` as its time
- ``{held_until_final}``: the limit's key that a row still holds that waits to run again, and
  ``{held_by_failure}``: that has FAILED
- ``{key_is_paused}``: whether an operator has paused the key of the row's limit, or the limit, where $1 is
  the backend
- ``{line_is_stopped}``: whether a task that has FAILED has stopped the row's line
- ``{limit_is_unknown}``: whether its limit is one of the names in $4 and no operator has set it, where $1 is
  the backend
- ``{key_is_free}``: whether the row holds its unique key no longer
- ``{last_error}``: the class of the last error
- ``{filter_columns:11}`` and ``{filter_applies:11}``: see ``filtering.py``
- ``{is_meant}``: whether a bulk action is for the row as it is now, in statements with the parameters
  $2 backend, $3 statuses, (NULL: any) $4 unique key, finished $5 at the earliest and $6 before; $7 after
  which it mustn't have finished, if it has
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from ..policies.policy import COLUMNS, stored_policy
from ..rows import Job, Schedule, Status
from .filtering import LAST_ERROR, filter_applies, filter_columns

__all__ = ["claimed_job", "expand", "job", "keyed_job", "schedule", "schedule_values"]


def _moment(time: str) -> str:
    """The time as a ``Moment``."""
    return f"timestamptz_send({time})"


def _within_bounds(time: str) -> str:
    """The time, or NULL for one that Python can't hold in every time zone.

    aiotasks writes no such time, but others may have written it, and it must not make a statement fail of
    which other rows are a part.
    """
    return _moment(
        f"CASE WHEN {time} BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN {time} END"
    )


# Of the columns that aren't returned as they are.
_EXPRESSIONS = (
    {
        "args": "task.args::text",
        "kwargs": "task.kwargs::text",
        "return_value": "task.return_value::text",
        "metadata": "task.metadata::text",
        "lane": "rtrim(task.lane, '+')",
        "errors": "task.errors::text[]",
        "worker_ids": "task.worker_ids::text[]",
    }
    | {
        name: _within_bounds(f"task.{name}")
        for name in (
            "enqueued_at",
            "ready_at",
            "started_at",
            "last_attempted_at",
            "finished_at",
            "expires_at",
        )
    }
    | {
        # What the caller asked for: a retry or a snooze overwrites run_after, which the promotions go by. Not
        # '-infinity' for "nothing": psycopg can't read it.
        "run_after": _within_bounds("nullif(coalesce(task.asked_run_after, task.run_after), 'epoch')")
    }
)

# Of a plain claim. The order of claiming follows ready_at, which may lie ahead where the clock was set back.
_EXPRESSIONS_OF_A_CLAIM = {
    "lane": "task.lane",
    "ready_at": _moment("least(task.ready_at, statement_timestamp())"),
    "last_attempted_at": _moment("task.last_attempted_at"),
}

# A claim returns Job's fields up to the policy: the worker knows the others or doesn't need them, and every
# column costs time.
_NAMES = tuple(field.name for field in fields(Job))
_POLICY = _NAMES.index("policy")
_CLAIMED_NAMES = _NAMES[: _POLICY + 1]

# Where the policies end in a row.
_AFTER_POLICY = _POLICY + len(COLUMNS)


def _expressions(names: Sequence[str], special: Mapping[str, str]) -> str:
    return ",\n    ".join(special.get(name, f"task.{name}") for name in names)


def _policy_values(first: int) -> str:
    return ", ".join(f"${number}::{kind}" for number, kind in enumerate(COLUMNS.values(), first))


def _policy_arrays(first: int) -> str:
    return ", ".join(
        f"(${number}::{kind}[])[new.template]" for number, kind in enumerate(COLUMNS.values(), first)
    )


# A task that is tried again and again keeps its first and its last 20 errors. Others may have written nested
# ones, to which nothing can be added.
_ERRORS_FOR_ONE_MORE = """CASE
            WHEN array_ndims(task.errors) > 1 THEN '{}'
            WHEN cardinality(task.errors) < 40 THEN task.errors
            ELSE task.errors[:20] || task.errors[cardinality(task.errors) - 18:]
        END"""
_ERRORS_OMITTED_WITH_ONE_MORE = """CASE
            WHEN cardinality(task.errors) < 40 OR array_ndims(task.errors) > 1 THEN task.errors_omitted
            ELSE coalesce(task.errors_omitted, 0) + cardinality(task.errors) - 39
        END"""

# Not its history: errors, worker_ids and started_at stay.
_OF_A_RETRY = f"""status = CASE WHEN held.run_after > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    errors = {_ERRORS_FOR_ONE_MORE},
    errors_omitted = {_ERRORS_OMITTED_WITH_ONE_MORE},
    run_after = held.run_after,
    asked_run_after = NULL,
    ready_at = CASE WHEN held.run_after > statement_timestamp() THEN NULL ELSE clock_timestamp() END,
    expires_at = NULL,
    failures = NULL,
    crashes = 0,
    unknown_since = NULL,
    cancel_requested_at = NULL,
    finished_at = NULL,
    return_value = NULL,
    limit_held = NULL,
    limit_place = CASE
        WHEN task.limit_place IS NOT NULL
            THEN least(task.limit_place, greatest(held.run_after, statement_timestamp()))
    END,
    claim_id = NULL,
    worker_id = NULL"""

# A period counts alone. Without one a task that may not be started any more is as good as finished: a caller
# who is referred to it would wait for nothing.
_KEY_IS_FREE = """(
    CASE
        WHEN task.unique_until IS NOT NULL THEN task.unique_until <= statement_timestamp()
        WHEN task.status IN ('SCHEDULED', 'READY')
            THEN coalesce(task.expires_at <= statement_timestamp(), false)
        WHEN task.status = 'RUNNING' THEN coalesce(task.unique_waiting, false)
        ELSE true
    END
)"""

_IS_MEANT = """task.backend = $2::text AND task.status || '' = ANY($3::text[])
          AND ($4::text IS NULL OR task.unique_key = $4::text)
          AND ($5::timestamptz IS NULL OR task.finished_at >= $5::timestamptz)
          AND ($6::timestamptz IS NULL OR task.finished_at < $6::timestamptz)
          AND (task.finished_at <= $7::timestamptz) IS NOT FALSE"""

# Of a schedule: name and SQL type.
_SCHEDULE = {
    "name": "text",
    "expression": "text",
    "timezone": "text",
    "missed": "text",
    "missed_within": "double precision",
    "overlap": "text",
    "jitter": "double precision",
    "task_path": "text",
    "queue_name": "text",
    "lane": "text",
    "priority": "smallint",
    "args": "json",
    "kwargs": "json",
    "expires": "double precision",
    "metadata": "json",
    "unique_key": "text",
    "unique_period": "double precision",
    "unique_waiting": "boolean",
    "limit_key": "text",
    "ordered": "text",
} | COLUMNS

_SCHEDULE_TIMES = ("paused_at", "stopped_at", "next_at", "retry_at", "last_tick", "skipped_tick")


def _schedule_arrays(first: int) -> str:
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_SCHEDULE.values(), first))


# In strict order a task that has been claimed holds its line until it is final, so that the next doesn't
# start between two attempts.
_HELD_UNTIL_FINAL = "CASE WHEN task.ordered IS NOT NULL THEN task.limit_held END"
_HELD_BY_FAILURE = (
    "CASE WHEN task.ordered = 'stop' AND task.cancel_requested_at IS NULL THEN task.limit_held END"
)

# What an operator says of a key counts for more than what is said of its limit.
_KEY_IS_PAUSED = """(
    SELECT coalesce(bool_or(said.paused_at IS NOT NULL), false)
        OR coalesce((array_agg(said.concurrency ORDER BY said.key <> task.limit_key, said.key)
            FILTER (WHERE said.concurrency IS NOT NULL))[1] = 0, false)
    FROM unnest(ARRAY[task.limit_key::text, split_part(task.limit_key, ':', 1)]) AS each (key)
    CROSS JOIN LATERAL (
        SELECT one.* FROM aiotasks_limit AS one WHERE one.backend = $1::text AND one.key = each.key LIMIT 1
    ) AS said
)"""

_LINE_IS_STOPPED = """EXISTS (
    SELECT FROM aiotasks_task AS held
    WHERE task.ordered IS NOT NULL AND held.backend = task.backend AND held.limit_held = task.limit_key
      AND held.status || '' = 'FAILED' AND held.ordered = 'stop' AND held.cancel_requested_at IS NULL
)"""

# As claims see it: an operator's concurrency or rate is a rule, too.
_LIMIT_IS_UNKNOWN = """(
    split_part(task.limit_key, ':', 1) = ANY($4::text[]) AND NOT EXISTS (
        SELECT FROM unnest(ARRAY[task.limit_key::text, split_part(task.limit_key, ':', 1)]) AS each (key)
        CROSS JOIN LATERAL (
            SELECT one.* FROM aiotasks_limit AS one
            WHERE one.backend = $1::text AND one.key = each.key LIMIT 1
        ) AS said
        WHERE num_nonnulls(said.concurrency, said.pace) > 0
    )
)"""


def _readable_times(*names: str) -> str:
    return ", ".join(
        f"CASE WHEN task.{name} BETWEEN '0002-01-01 00:00+00' AND '9998-01-01 00:00+00' THEN task.{name} END"
        for name in names
    )


_POLICIES = ", ".join(f"task.{name}" for name in COLUMNS)
_LISTS = {
    "job_columns": _expressions(_NAMES, _EXPRESSIONS | {"policy": _POLICIES}),
    "claimed_columns": _expressions(
        _CLAIMED_NAMES, _EXPRESSIONS | _EXPRESSIONS_OF_A_CLAIM | {"policy": _POLICIES}
    ),
    "keyed_columns": _expressions(
        [*_CLAIMED_NAMES, "limit_key"],
        _EXPRESSIONS | _EXPRESSIONS_OF_A_CLAIM | {"lane": _EXPRESSIONS["lane"], "policy": _POLICIES},
    ),
    "last_error": LAST_ERROR,
    "errors_for_one_more": _ERRORS_FOR_ONE_MORE,
    "errors_omitted_with_one_more": _ERRORS_OMITTED_WITH_ONE_MORE,
    "policy_columns": ", ".join(COLUMNS),
    "values_of_a_retry": _OF_A_RETRY,
    "schedule_columns": ", ".join(
        f"schedule.{name}{'::text' if kind == 'json' else ''}" for name, kind in _SCHEDULE.items()
    ),
    "schedule_times": ", ".join(
        f"CASE WHEN schedule.{name} BETWEEN '0002-01-01 00:00+00' AND '9998-01-01 00:00+00' "
        f"THEN schedule.{name} END"
        for name in _SCHEDULE_TIMES
    ),
    "listed_times": _readable_times(
        "enqueued_at", "run_after", "started_at", "last_attempted_at", "finished_at"
    ),
    "detail_times": _readable_times(
        *("enqueued_at", "run_after", "asked_run_after", "ready_at", "started_at", "last_attempted_at"),
        *("finished_at", "cancel_requested_at", "unknown_since", "expires_at", "unique_until", "limit_place"),
    ),
    "schedule_names": ", ".join(_SCHEDULE),
    "schedule_changes": ", ".join(f"{name} = excluded.{name}" for name in _SCHEDULE if name != "name"),
    "held_until_final": _HELD_UNTIL_FINAL,
    "held_by_failure": _HELD_BY_FAILURE,
    "key_is_paused": _KEY_IS_PAUSED,
    "line_is_stopped": _LINE_IS_STOPPED,
    "limit_is_unknown": _LIMIT_IS_UNKNOWN,
    "key_is_free": _KEY_IS_FREE,
    "is_meant": _IS_MEANT,
}
_PARAMETERS = {
    "filter_columns": filter_columns,
    "filter_applies": filter_applies,
    "policy_values": _policy_values,
    "policy_arrays": _policy_arrays,
    "schedule_arrays": _schedule_arrays,
}


def expand(sql: str) -> str:
    """Put the lists in that a statement names in braces."""
    return re.sub(
        r"\{(\w+)(?::(\d+))?\}",
        lambda found: _PARAMETERS[found[1]](int(found[2])) if found[2] else _LISTS[found[1]],
        sql,
    )


def job(row: Sequence[Any]) -> Job:
    """The Job of a row of ``{job_columns}``."""
    policy = stored_policy(row[_POLICY:_AFTER_POLICY])
    return Job(*row[:_POLICY], policy, *row[_AFTER_POLICY:])  # type: ignore[call-arg]  # mypy counts `*` wrongly


def claimed_job(row: Sequence[Any], claim_id: UUID, backend: str) -> Job:
    """The Job of a row of ``{claimed_columns}``."""
    policy = stored_policy(row[_POLICY:_AFTER_POLICY])
    # As above.
    return Job(*row[:_POLICY], policy, claim_id, backend, Status.RUNNING, None, None)  # type: ignore[call-arg]


def keyed_job(row: Sequence[Any], claim_id: UUID, backend: str) -> Job:
    """The Job of a row of ``{keyed_columns}``."""
    found = claimed_job(row, claim_id, backend)
    found.limit_key = row[_AFTER_POLICY]
    return found


def schedule(row: Sequence[Any]) -> Schedule:
    """The Schedule of a row of ``{schedule_columns}``."""
    names, policies = list(_SCHEDULE)[: -len(COLUMNS)], row[-len(COLUMNS) :]
    return Schedule(**dict(zip(names, row, strict=False)), policy=stored_policy(tuple(policies)))


def schedule_values(schedules: Sequence[Schedule]) -> list[list[Any]]:
    """The values of ``{schedule_arrays}``."""
    names = list(_SCHEDULE)[: -len(COLUMNS)]
    return [[getattr(each, name) for each in schedules] for name in names] + [
        [getattr(each.policy, name) for each in schedules] for name in COLUMNS
    ]
