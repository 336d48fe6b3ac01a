"""The columns of a row that statements return, written down once.

A statement names the list in braces, and gets it when it is loaded: ``RETURNING {job_columns}``. The row must
be called ``task`` there.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from ..rows import Job, Status

__all__ = ["LISTS", "claimed_job", "job"]


def _within_bounds(column: str) -> str:
    """The time, or NULL for one that Python can't hold in every time zone.

    aiotasks writes no such time, but others may have written it, and it must not make a statement fail of
    which other rows are a part.
    """
    return (
        f"CASE WHEN task.{column} BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' "
        f"THEN task.{column} END"
    )


# Of the columns that aren't returned as they are.
_EXPRESSIONS = {
    "args": "task.args::text",
    "kwargs": "task.kwargs::text",
    "return_value": "task.return_value::text",
    "errors": "task.errors::text[]",
    "worker_ids": "task.worker_ids::text[]",
} | {
    name: _within_bounds(name)
    for name in ("enqueued_at", "run_after", "ready_at", "started_at", "last_attempted_at", "finished_at")
}

# Of a claim: the order of claiming follows ready_at, which may lie ahead where the clock was set back.
_EXPRESSIONS_OF_A_CLAIM = {
    "ready_at": "least(task.ready_at, statement_timestamp())",
    "last_attempted_at": "task.last_attempted_at",
}

# The last ones: the worker that claims knows them, and every column costs a claim time.
_KNOWN_TO_THE_CLAIMER = ("claim_id", "backend", "status", "return_value", "finished_at")

_NAMES = tuple(field.name for field in fields(Job))
_CLAIMED_NAMES = tuple(name for name in _NAMES if name not in _KNOWN_TO_THE_CLAIMER)

# What a statement may name in braces.
LISTS = {
    "job_columns": ",\n    ".join(_EXPRESSIONS.get(name, f"task.{name}") for name in _NAMES),
    "claimed_columns": ",\n    ".join(
        _EXPRESSIONS_OF_A_CLAIM.get(name) or _EXPRESSIONS.get(name, f"task.{name}") for name in _CLAIMED_NAMES
    ),
}


def job(row: Sequence[Any]) -> Job:
    """The Job of a row of ``{job_columns}``."""
    return Job(*row)


def claimed_job(row: Sequence[Any], claim_id: UUID, backend: str) -> Job:
    """The Job of a row of ``{claimed_columns}``."""
    return Job(*row, claim_id, backend, Status.RUNNING, None, None)  # type: ignore[call-arg]  # counts `*row` wrongly
