"""A TaskFilter in statements: the columns that it compares, its conditions, and its values.

A statement names ``{filter_columns:11}``, for a row called ``task``, and ``{filter_applies:11}``, for a row
called ``seen`` that has these columns. Its parameters from $11 on are then those of ``filter_values()``.
"""

import json
from typing import Any

from ..filters import TaskFilter

__all__ = ["LAST_ERROR", "filter_applies", "filter_columns", "filter_values"]

# The class of a task's last error, as it stands at the beginning of the text. Not by an operator of json:
# those fail for texts with \u0000 or a lone surrogate, which tracebacks may have. (LEFT: a class has 1,000
# characters at the most.)
LAST_ERROR = "split_part(left(task.errors[cardinality(task.errors)]::text, 1020), '\"', 4)"


def filter_columns(first: int) -> str:
    """Return the columns, for parameters from ``first`` on. Errors may have to be decompressed, so they are
    read only where they are asked for."""
    return f"""task.queue_name, task.task_path, task.unique_key, task.enqueued_at, task.finished_at,
            CASE
                WHEN ${first + 7}::text IS NOT NULL AND task.status || '' = 'FAILED' THEN '.' || {LAST_ERROR}
            END AS error,
            CASE
                WHEN ${first + 8}::uuid IS NOT NULL THEN task.worker_ids[cardinality(task.worker_ids)]
            END AS worker_id"""


def filter_applies(first: int) -> str:
    """Return the conditions."""
    compared = (
        ("seen.queue_name = {}", "text"),
        ("seen.task_path = {}", "text"),
        ("seen.unique_key = {}", "text"),
        ("seen.enqueued_at >= {}", "timestamptz"),
        ("seen.enqueued_at < {}", "timestamptz"),
        ("seen.finished_at >= {}", "timestamptz"),
        ("seen.finished_at < {}", "timestamptz"),
        # By whole names from its end on: "Error" isn't "ValueError".
        ("right(seen.error, length({0}) + 1) = '.' || {0}", "text"),
        ("seen.worker_id = {}", "uuid"),
    )
    parameters = [f"${number}::{kind}" for number, (_, kind) in enumerate(compared, first)]
    return "\n          AND ".join(
        f"({parameter} IS NULL OR {condition.format(parameter)})"
        for parameter, (condition, _) in zip(parameters, compared, strict=True)
    )


def filter_values(chosen: TaskFilter) -> tuple[Any, ...]:
    """Return the values of the parameters."""
    return (
        chosen.queue_name,
        chosen.task_path,
        chosen.unique_key,
        chosen.enqueued_after,
        chosen.enqueued_before,
        chosen.finished_after,
        chosen.finished_before,
        None if chosen.error is None else json.dumps(chosen.error)[1:-1],  # as it is stored
        chosen.worker,
    )
