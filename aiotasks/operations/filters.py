"""Filters as people write them: from texts to a TaskFilter, and back to words."""

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ..filters import TaskFilter
from ..rows import FINAL

__all__ = ["FILTERS", "describe", "read_age", "read_filter", "read_time"]

# What a person writes: the field of TaskFilter.
FILTERS = {
    "queue": "queue_name",
    "task": "task_path",
    "status": "status",
    "key": "unique_key",
    "error": "error",
    "worker": "worker",
    "enqueued_after": "enqueued_after",
    "enqueued_before": "enqueued_before",
    "finished_after": "finished_after",
    "finished_before": "finished_before",
}

# The same for times of which the rest of the filter says what they are of.
TIMES = {"since": "after", "until": "before"}

# Seconds by the letter of a unit.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

# Beyond, Python has no time of another zone, or of some days before or after.
FIRST_YEAR, LAST_YEAR = 2, 9998


def read_filter(*, ends: bool = False, **texts: str | None) -> TaskFilter:
    """Return the filter of these texts; None and "" say nothing.

    queue, task, key, error: as they are. status: one, or several with commas, in any case. worker: an id. The
    times ``enqueued_after``, ``enqueued_before``, ``finished_after`` and ``finished_before``: in ISO 8601, in
    the current time zone where there is none, or an age such as 90m, 36h or 7d. ``since`` and ``until``: the
    same, of when tasks have finished, if the statuses are final, an error is asked for, or ``ends`` is true;
    of when they were enqueued otherwise.
    Raises ValueError that says what is wrong, TypeError for another keyword.
    """
    if unknown := texts.keys() - FILTERS.keys() - TIMES.keys():
        raise TypeError(f"{sorted(unknown)[0]!r} is no filter; these are: {', '.join([*FILTERS, *TIMES])}.")
    given = {name: text for name, text in texts.items() if text}
    values: dict[str, Any] = {}
    for name, text in given.items():
        match name:
            case "status":
                values["status"] = [each.strip().upper() for each in text.split(",")]
            case "worker":
                values["worker"] = _read_id(text)
            case "since" | "until":
                continue
            case _ if name.endswith(("_after", "_before")):
                values[name] = read_time(name, text)
            case _:
                values[FILTERS[name]] = text
    of = (
        "finished" if ends or "error" in given or FINAL.issuperset(values.get("status", [""])) else "enqueued"
    )
    for name, side in TIMES.items():
        if name in given:
            field = f"{of}_{side}"
            if field in values:
                raise ValueError(f"{name} and {field} can't both be given: they are about the same time.")
            values[field] = read_time(name, given[name])
    return TaskFilter(**values)


def describe(chosen: TaskFilter) -> str:
    """Return a filter in words, for questions and titles: ``FAILED, task shop.tasks.charge``; ``all tasks``
    without any condition."""
    words = [] if chosen.statuses is None else [" or ".join(chosen.statuses)]
    words += [
        f"{name} {value}"
        for name, field in FILTERS.items()
        if name != "status"
        and (value := getattr(chosen, field)) is not None
        and not isinstance(value, datetime)
    ]
    words += [
        f"{verb} {since} {timezone.localtime(value).isoformat(sep=' ', timespec='seconds')}"
        for verb in ("enqueued", "finished")
        for since, side in (("since", "after"), ("before", "before"))
        if (value := getattr(chosen, f"{verb}_{side}")) is not None
    ]
    return ", ".join(words) or "all tasks"


def read_age(text: str) -> timedelta | None:
    """Return the age that a text such as 90m, 36h, 7d or 2w says; None for another text."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    return None if match is None else timedelta(seconds=int(match[1]) * UNITS[match[2]])


def read_time(name: str, text: str) -> datetime:
    """Return the time that a text says: ISO 8601, or an age before now. Raises ValueError with ``name``."""
    try:
        time = parse_datetime(text) if (age := read_age(text)) is None else timezone.now() - age
    except (ValueError, OverflowError):  # the 30th of February; an age beyond year 1
        time = None
    if time is None:
        raise ValueError(
            f"{name} must be a time such as 2026-11-29T14:00 or an age such as 7d, not {text!r:.100}."
        )
    if not FIRST_YEAR <= time.year <= LAST_YEAR:
        raise ValueError(f"{name} must be in the years {FIRST_YEAR} to {LAST_YEAR}, not {text!r:.100}.")
    return timezone.make_aware(time) if timezone.is_naive(time) else time


def _read_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ValueError(f"worker must be the id of a worker, a UUID, not {text!r:.100}.") from None
