"""What a schedule is told, by the code or by an operator: times, arguments, and what becomes of ticks."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict, get_args

from django.conf import settings

from ..codec import dump_json
from ..policies.seconds import parse_seconds
from ..policies.text import is_storable
from ..rows import Missed, Overlap
from .cron import EVERY, Times, parse_times

__all__ = ["MISSED", "OVERLAP", "Wanted", "WantedKeywords", "parse_name", "parse_wanted"]

# Characters. With the name of its backend, a name must fit into an entry of an index.
LONGEST_NAME = 500

# Seconds. Workers enqueue a tick some milliseconds after its time, so with less all might be missed; as long
# as an interval may be; a jitter of more than a day belongs into the times.
SHORTEST_WITHIN = 1.0
LONGEST_WITHIN = 366 * 86_400.0
LONGEST_JITTER = 86_400.0

MISSED: tuple[Missed, ...] = get_args(Missed.__value__)
OVERLAP: tuple[Overlap, ...] = get_args(Overlap.__value__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one schedule is to do, whatever its task: see ``periodic``. Times are in seconds; ``overlap`` is
    None where nothing is said."""

    times: Times
    missed: Missed
    within: float | None
    overlap: Overlap | None
    jitter: float | None
    args: list[Any]
    kwargs: dict[str, Any]


class WantedKeywords(TypedDict, total=False):
    """The keywords of ``parse_wanted``: see ``periodic``."""

    every: timedelta | float | None
    timezone: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    missed: Missed
    within: timedelta | float | None
    overlap: Overlap | None
    jitter: timedelta | float | None


def parse_wanted(
    cron: str | None,
    *,
    every: timedelta | float | None = None,
    timezone: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    missed: Missed = "last",
    within: timedelta | float | None = None,
    overlap: Overlap | None = None,
    jitter: timedelta | float | None = None,
) -> Wanted:
    """Return what ``periodic`` is told. Raises TypeError or ValueError, which says what is wrong."""
    if every is None and timezone is None:
        timezone = settings.TIME_ZONE
    if missed not in MISSED:
        raise ValueError(f"missed must be one of {', '.join(map(repr, MISSED))}, not {missed!r:.100}.")
    if overlap is not None and overlap not in OVERLAP:
        raise ValueError(f"overlap must be one of {', '.join(map(repr, OVERLAP))}, not {overlap!r:.100}.")
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise TypeError(f"args must be a list or a tuple, not {args!r:.100}.")
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"kwargs must be a dict, not {kwargs!r:.100}.")
    try:
        times = parse_times(cron, every=every, timezone=timezone)
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    spread = _seconds("jitter", jitter, LONGEST_JITTER, "a day") or None
    if spread is not None and times.expression.startswith(EVERY):
        interval = float(times.expression.removeprefix(EVERY))
        if spread > interval:
            raise ValueError(
                f"jitter must not be longer than the interval of {interval:g} s, not {jitter!r:.200}: tasks "
                "would be due after those of later ticks."
            )
    return Wanted(
        times=times,
        missed=missed,
        within=_seconds("within", within, LONGEST_WITHIN, "366 days", low=SHORTEST_WITHIN),
        overlap=overlap,
        jitter=spread,
        args=dump_json(list(args), where="args", limit=sys.maxsize)[0],
        kwargs=dump_json(dict(kwargs or {}), where="kwargs", limit=sys.maxsize)[0],
    )


def parse_name(name: Any) -> str:
    """Return the name of a schedule. Raises ValueError, which says what it must be."""
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME or not is_storable(name):
        raise ValueError(f"name must be a text of 1 to {LONGEST_NAME} characters, not {name!r:.200}.")
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"name must be printable, without spaces around it, not {name!r:.200}.")
    return str.__str__(name)  # str() of a member of `class Name(str, Enum)` is its name


def _seconds(name: str, value: Any, high: float, longest: str, *, low: float = 0.0) -> float | None:
    if value is None:
        return None
    try:
        return parse_seconds(value, low=low, high=high, longest=longest)
    except ValueError as error:
        raise ValueError(f"{name} must be {error}, not {value!r:.200}.") from None
