"""``limit``: how many tasks of a key run at a time, how fast and in which order they start.

A Limit belongs to the code, and the worker that claims takes its numbers from there.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from inspect import iscoroutinefunction
from typing import Any, Literal, NamedTuple, final

from .seconds import parse_seconds

__all__ = [
    "AfterFailure",
    "Limit",
    "LimitKey",
    "Rate",
    "known_limits",
    "parse_limit",
    "parse_limit_name",
    "parse_rate",
]

# What a key is made of; None: the call isn't limited.
type LimitKey = str | int | None

# A parameter of the task's function, or a function of the task's arguments.
type KeyMaker = str | Callable[..., LimitKey]

# A number of starts, and the time that they take: "100/m", or (100, timedelta(minutes=1)).
type RateValue = str | tuple[int, float | timedelta]

type AfterFailure = Literal["continue", "stop"]

# Characters. See also LONGEST_KEY.
LONGEST_NAME = 100

# A claim counts the tasks of a key that run, up to its limit: 3.4 ms for 5,000, so this many take 70 ms.
MOST_PLACES = 100_000

# The columns of aiotasks_limit, in which an operator's numbers have the same bounds.
MOST_STARTS, LARGEST_BURST, LARGEST_WEIGHT = 1_000_000, 100_000, 100
SHORTEST_PERIOD, LONGEST_PERIOD = 0.001, 365 * 86_400.0

_NAME = re.compile(rf"[a-z0-9_.-]{{1,{LONGEST_NAME}}}")
_RATE = re.compile(r"\s*(\d{1,7})\s*/\s*(\d{1,9}(?:\.\d{1,20})?)?\s*([smhd])\s*", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Rate(NamedTuple):
    """``starts`` in ``period`` seconds."""

    starts: int
    period: float

    @property
    def pace(self) -> float:
        """The seconds that a start takes."""
        return self.period / self.starts

    @property
    def default_burst(self) -> int:
        """The starts of a tenth of a second, at least one.

        A key that may start some at once needs fewer claims.
        """
        return min(max(1, int(self.starts / (10 * self.period))), LARGEST_BURST)

    def __str__(self) -> str:
        """As ``parse_rate()`` reads it: ``100/m``."""
        for unit, seconds in reversed(_UNITS.items()):
            if self.period % seconds == 0:
                number = int(self.period // seconds)
                return f"{self.starts}/{'' if number == 1 else number}{unit}"
        return f"{self.starts}/{self.period!r}s"


def parse_rate(value: Any) -> Rate:
    """The Rate of ``"100/m"``, ``"1/10s"`` or ``(100, timedelta(minutes=1))``. Raises ValueError, which says
    what it must be."""
    count, period = _parts(value)
    if type(count) is not int or not 1 <= count <= MOST_STARTS:
        raise ValueError(A_RATE)
    try:
        seconds = parse_seconds(period, low=SHORTEST_PERIOD, high=LONGEST_PERIOD, longest="a year")
    except ValueError:
        raise ValueError(A_RATE) from None
    return Rate(count, seconds)


A_RATE = (
    f"a number of starts from 1 to {MOST_STARTS} and a time from 1 ms to a year, such as '100/m', '1/10s' "
    "(s, m, h, d) or (100, timedelta(minutes=1))"
)


def _parts(value: Any) -> tuple[Any, Any]:
    if isinstance(value, str):
        if (found := _RATE.fullmatch(value)) is not None:
            count, number, unit = found.groups()
            return int(count), float(number or "1") * _UNITS[unit]
    elif isinstance(value, tuple) and len(value) == 2:
        return value
    return None, None


@final
@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """A limit by key, over all workers: how many tasks of a key run at a time, how fast they start, and in
    which order. Keys take turns, so that the backlog of one doesn't hold up another.

    name: of a-z, 0-9, ``_``, ``.`` and ``-``. Tasks of one name share its keys, whichever object they have.
    by: the parameter of the task's function whose value is the key, or a function of the task's arguments
        that returns it: a string or an integer, or None for a call that isn't limited. Without it there is
        one key for all calls.
    concurrency: how many tasks of a key run at a time, from 1 to 100,000 (None: any number).
    rate: how many start in a time: ``"100/m"``, ``"1/10s"`` (s, m, h, d) or ``(100, timedelta(minutes=1))``.
    burst: how many of them may start at once after a rest (None: the starts of a tenth of a second, at least
        one).
    weight: how many tasks a key starts by turn, from 1 to 100, beside others.
    ordered: whether each task of a key starts only when the one before is finished, a retry included.
    after_failure: whether an ordered key goes on after a task that is FAILED ("continue"), or waits for an
        operator ("stop").

    Raises ValueError for bad values, and if the name is taken by a Limit with other values than these; ``by``
    may differ.
    """

    name: str
    by: KeyMaker | None = field(compare=False)
    concurrency: int | None
    rate: Rate | None
    burst: int
    weight: int
    ordered: bool
    after_failure: AfterFailure
    place: str = field(compare=False, repr=False)  # file and line of the declaration

    def __init__(
        self,
        name: str,
        *,
        by: KeyMaker | None = None,
        concurrency: int | None = None,
        rate: RateValue | None = None,
        burst: int | None = None,
        weight: int = 1,
        ordered: bool = False,
        after_failure: AfterFailure = "continue",
    ) -> None:
        name = parse_limit_name(name)
        parsed_rate = None if rate is None else _parsed(name, "rate", parse_rate, rate)
        _check(name, "by", by is None or _is_key_maker(by), by, A_KEY_MAKER)
        if concurrency is not None:
            _check_number(name, "concurrency", concurrency, MOST_PLACES)
        if burst is not None:
            _check_number(name, "burst", burst, LARGEST_BURST)
        _check_number(name, "weight", weight, LARGEST_WEIGHT)
        _check(name, "ordered", isinstance(ordered, bool), ordered, "True or False")
        is_known = after_failure in ("continue", "stop")
        _check(name, "after_failure", is_known, after_failure, "'continue' or 'stop'")
        _check_together(name, by, concurrency, parsed_rate, burst, ordered, after_failure)
        frame = sys._getframe(1)
        default_burst = 1 if parsed_rate is None else parsed_rate.default_burst
        values: dict[str, Any] = {
            "name": name,
            "by": by,
            "concurrency": concurrency,
            "rate": parsed_rate,
            "burst": default_burst if burst is None else burst,
            "weight": weight,
            "ordered": ordered,
            "after_failure": after_failure,
            "place": f"{frame.f_code.co_filename}:{frame.f_lineno}",
        }
        for each, value in values.items():
            object.__setattr__(self, each, value)
        _register(self)

    @property
    def pace(self) -> float | None:
        """The seconds that a start takes; None without a rate."""
        return None if self.rate is None else self.rate.pace

    @property
    def stored_order(self) -> AfterFailure | None:
        """What a row stores of ``ordered``: "continue" or "stop", or None."""
        return self.after_failure if self.ordered else None


def parse_limit_name(value: Any) -> str:
    """The name of a Limit. Raises ValueError if it is none."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ValueError(
        f"The name of a Limit must have 1 to {LONGEST_NAME} characters of a-z, 0-9, '_', '.' and '-', not be "
        f"{value!r:.200}."
    )


A_KEY_MAKER = "the name of a parameter, or a function of the arguments (not a coroutine function)"


def _is_key_maker(by: Any) -> bool:
    if isinstance(by, str):
        return by.isidentifier()
    return callable(by) and not isinstance(by, type) and not iscoroutinefunction(by)


def _parsed[Value](name: str, what: str, parse: Callable[[Any], Value], value: Any) -> Value:
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"Limit {name!r}: {what} must be {error}, not {value!r:.200}.") from None


def _check(name: str, what: str, is_good: bool, value: object, wanted: str) -> None:
    if not is_good:
        raise ValueError(f"Limit {name!r}: {what} must be {wanted}, not {value!r:.200}.")


def _check_number(name: str, what: str, value: Any, most: int) -> None:
    is_good = type(value) is int and 1 <= value <= most
    _check(name, what, is_good, value, f"a whole number from 1 to {most}")


def _check_together(
    name: str,
    by: object,
    concurrency: object,
    rate: object,
    burst: object,
    ordered: bool,
    after_failure: str,
) -> None:
    """Raise ValueError for values that contradict each other, or say nothing."""
    if ordered and concurrency is not None:
        raise ValueError(
            f"Limit {name!r}: with ordered=True one task of a key runs at a time, so concurrency="
            f"{concurrency!r} can't be given."
        )
    if after_failure == "stop" and not ordered:
        raise ValueError(
            f"Limit {name!r}: after_failure='stop' stops what is ordered, so give ordered=True, too."
        )
    if burst is not None and rate is None:
        raise ValueError(f"Limit {name!r}: burst={burst!r} belongs to a rate, so give rate=, too.")
    if by is None and concurrency is None and rate is None and not ordered:
        raise ValueError(f"Limit {name!r} limits nothing. Give concurrency=, rate=, ordered=True or by=.")


# By name, those of the modules that this process has imported.
_known: dict[str, Limit] = {}


def known_limits() -> Mapping[str, Limit]:
    """The Limits that this process knows, by their names."""
    return _known


def _register(limit: Limit) -> None:
    """Have the Limit found by its name.

    The same values again are none of a second limit: a module whose first import has failed is executed
    again. Raises ValueError for other values.
    """
    other = _known.setdefault(limit.name, limit)
    if other != limit:
        raise ValueError(
            f"Limit {limit.name!r} is declared with other values at {limit.place} than at {other.place}. "
            "Tasks of one name share its keys: use one Limit for them, or another name."
        )


def parse_limit(value: Any) -> Limit:
    """The Limit itself. Raises ValueError, which says what it must be."""
    if not isinstance(value, Limit):
        raise ValueError('an aiotasks.Limit, such as Limit("tenant", by="tenant_id", concurrency=3)')
    return value
