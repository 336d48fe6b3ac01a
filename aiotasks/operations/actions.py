"""What operators change: cancel, retry or delete tasks, by filters as people write them.

For commands and pages, which have asked for permission already.
"""

import re
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ..bulk import BulkCounts, Progress, Which
from ..filters import TaskFilter
from ..worker.startup import backend_of

__all__ = ["ACTIONS", "FILTERS", "Action", "perform", "read_age", "read_filter"]

Action = Literal["cancel", "retry", "delete"]
ACTIONS: tuple[Action, ...] = get_args(Action)

# What a person writes: the field of TaskFilter.
FILTERS = {
    "queue": "queue_name",
    "task": "task_path",
    "status": "status",
    "key": "unique_key",
    "enqueued_after": "enqueued_after",
    "enqueued_before": "enqueued_before",
    "finished_after": "finished_after",
    "finished_before": "finished_before",
}

# Seconds by the letter of a unit.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def read_filter(**texts: str | None) -> TaskFilter:
    """Return the filter of these texts; None and "" say nothing.

    queue, task, key: as they are. status: one, or several with commas, in any case. The times
    ``enqueued_after``, ``enqueued_before``, ``finished_after`` and ``finished_before``: in ISO 8601, in the
    current time zone where there is none, or an age such as 90m, 36h or 7d.
    Raises ValueError that says what is wrong, TypeError for another keyword.
    """
    if unknown := texts.keys() - FILTERS.keys():
        raise TypeError(f"{sorted(unknown)[0]!r} is no filter; these are: {', '.join(FILTERS)}.")
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if not text:
            continue
        if name == "status":
            values["status"] = [each.strip().upper() for each in text.split(",")]
        else:
            values[FILTERS[name]] = _read_time(name, text) if name.endswith(("_after", "_before")) else text
    return TaskFilter(**values)


def perform(
    action: Action,
    which: Which,
    *,
    backend: str = "default",
    everything: bool = False,
    progress: Progress | None = None,
) -> BulkCounts:
    """Do the action with the tasks of a backend, by its alias, over Django's connection.

    Parameters and errors: see ``PostgresBackend.acancel_many``; a retry ignores ``everything``. Raises
    ValueError for another action, and ImproperlyConfigured for an alias that isn't one of aiotasks'.
    """
    if action not in ACTIONS:
        raise ValueError(f"An action is one of {', '.join(ACTIONS)}, not {action!r:.100}.")
    found = backend_of(backend)
    counts: BulkCounts
    if action == "retry":
        counts = found.retry_many(which, progress=progress)
    else:
        method = found.cancel_many if action == "cancel" else found.delete_many
        counts = method(which, everything=everything, progress=progress)
    return counts


def read_age(text: str) -> timedelta | None:
    """Return the age that a text such as 90m, 36h, 7d or 2w says; None for another text."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    return None if match is None else timedelta(seconds=int(match[1]) * UNITS[match[2]])


def _read_time(name: str, text: str) -> datetime:
    try:
        if (age := read_age(text)) is not None:
            return timezone.now() - age
        time = parse_datetime(text)
    except (ValueError, OverflowError):  # the 30th of February; an age beyond year 1
        time = None
    if time is None:
        raise ValueError(
            f"{name} must be a time such as 2026-11-29T14:00 or an age such as 7d, not {text!r:.100}."
        )
    return timezone.make_aware(time) if timezone.is_naive(time) else time
