"""The times of schedules in words, for people."""

import re
from datetime import datetime

from cronsim import CronSim

from .cron import EVERY, NAMED, Times

__all__ = ["in_words"]

# Seconds, and what so many are called.
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))

# The expressions of a step in one field, after which all fields are stars.
_STEPS = {
    re.compile(r"(?:0 )?\*/(\d+) \* \* \* \*", re.ASCII): "minute",
    re.compile(r"\*/(\d+) \* \* \* \* \*", re.ASCII): "second",
}


def in_words(times: Times) -> str:
    """Return when it ticks, such as ``every 5 minutes`` or ``at 03:00 every day``; the expression itself
    where it isn't known how to say it."""
    expression = times.expression.strip()
    if expression.startswith(EVERY):
        return _every(float(expression.removeprefix(EVERY)))
    expression = " ".join(NAMED.get(expression.lower(), expression).split())
    for pattern, unit in _STEPS.items():
        if (match := pattern.fullmatch(expression)) and 60 % int(match[1]) == 0:
            return _counted(int(match[1]), unit)
    try:
        words = CronSim(expression, datetime(2000, 1, 1)).explain()
    except Exception:  # it isn't known to explain everything that it takes  # noqa: BLE001
        return expression
    return words[:1].lower() + words[1:]


def _every(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds % size == 0:
            return _counted(int(seconds // size), unit)
    return f"every {seconds:g} seconds"


def _counted(number: int, unit: str) -> str:
    return f"every {unit}" if number == 1 else f"every {number} {unit}s"
