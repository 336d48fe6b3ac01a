"""When a schedule ticks: cron expressions and intervals, each in a time zone."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from cronsim import CronSim

from ..policies.seconds import parse_seconds
from .rules import FixedTimes, Interval, PassingTimes, Rule

__all__ = ["EVERY", "Times", "parse_times", "tick_id"]

# How an interval is written in place of a cron expression: with its seconds.
EVERY = "@every "

# Seconds. A shorter one is the work of a task that runs all the time; a longer one that isn't a date of the
# calendar helps nobody.
SHORTEST_INTERVAL = 1.0
LONGEST_INTERVAL = 366 * 86_400.0

# Characters, of an expression and of the name of a zone. The longest that mean something are shorter.
LONGEST_EXPRESSION = 1_000
LONGEST_ZONE = 100

NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class _Field(NamedTuple):
    """One of an expression: what it is, how many values it has, and which."""

    name: str
    size: int
    values: str


# From the right.
_FIELDS = (
    _Field("day of the week", 7, "0 to 7 or sun to sat"),
    _Field("month", 12, "1 to 12 or jan to dec"),
    _Field("day of the month", 31, "1 to 31 or L"),
    _Field("hour", 24, "0 to 23"),
    _Field("minute", 60, "0 to 59"),
    _Field("second", 60, "0 to 59"),
)

_STEP = re.compile(r"/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Times:
    """When a schedule ticks. Every moment is an aware datetime, in UTC where it is returned.

    expression: a cron expression of five fields, or of six with the seconds in front; ``@daily`` and the
    like; or ``@every SECONDS``. timezone: the name of a time zone, by whose clock a cron expression goes.
    Raises ValueError that says what is wrong with either.
    """

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str) or len(self.expression) > LONGEST_EXPRESSION:
            raise ValueError(
                f"a cron expression is a text such as '*/5 * * * *', not {self.expression!r:.200}"
            )
        if not isinstance(self.timezone, str):
            raise _not_a_zone(self.timezone)
        _rule_of(self.expression, self.timezone)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first tick later than ``moment``; None: there is none within 50 years."""
        return _rule_of(self.expression, self.timezone).next_after(moment.astimezone(UTC))

    def last_until(self, moment: datetime) -> datetime | None:
        """Return the last tick that isn't later than ``moment``; None: there is none within 50 years."""
        return _rule_of(self.expression, self.timezone).last_until(moment.astimezone(UTC))

    @property
    def zone(self) -> tzinfo:
        """The time zone itself."""
        return _zone_of(self.timezone)


def parse_times(
    cron: str | None = None, *, every: timedelta | float | None = None, timezone: str | None = None
) -> Times:
    """Return the times of a cron expression, or of an interval in seconds or as a timedelta.

    timezone: of a cron expression; None: UTC. Raises ValueError, which says what is wrong.
    """
    if (cron is None) == (every is None):
        raise ValueError("give either a cron expression or every=…, and not both")
    if every is None:
        return Times(cron or "", "UTC" if timezone is None else timezone)
    if timezone is not None:
        raise ValueError("an interval (every=…) has no timezone: it goes by elapsed time")
    return Times(f"{EVERY}{_seconds_of(every)}")


def tick_id(backend: str, name: str, tick: datetime) -> UUID:
    """Return the id of the task for one tick of a schedule: the same in every worker.

    Its first 48 bits are the time of the tick in milliseconds, as those of a version 7, so that it stands
    beside the ids of its time in indexes; the rest is of a hash. Version 8.
    """
    tick = tick.astimezone(UTC)
    digest = sha256(f"{backend}\0{name}\0{tick.isoformat()}".encode()).digest()
    milliseconds = (tick - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    number = milliseconds << 80 | int.from_bytes(digest[:10])
    number = number & ~(0xF << 76) | 8 << 76  # the version
    number = number & ~(0x3 << 62) | 2 << 62  # the variant
    return UUID(int=number)


@lru_cache(maxsize=4096)  # parsing takes 20 µs, and each tick asks
def _rule_of(expression: str, timezone: str) -> Rule:
    zone = _zone_of(timezone)
    text = expression.strip()
    if text.startswith(EVERY):
        return _interval_of(text)
    if text.startswith("@"):
        if text.lower() not in NAMED:
            raise ValueError(
                f"{expression!r:.200} isn't known: write one of {', '.join(NAMED)}, or '@every SECONDS'"
            )
        text = NAMED[text.lower()]
    _check(text, expression)
    minute, hour = text.split()[-5:-3]
    is_fixed = not minute.startswith("*") and not hour.startswith("*")
    return FixedTimes(text, zone) if is_fixed else PassingTimes(text, zone)


def _check(text: str, expression: str) -> None:
    """Raise ValueError for what isn't a cron expression, or never comes, or comes at other times than its
    steps say."""
    parts = text.split()
    if len(parts) not in (5, 6):
        number = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
        raise ValueError(
            f"{expression!r:.200} has {number}: a cron expression has five (minute, hour, day of "
            "the month, month, day of the week), or six with the second in front"
        )
    for part, field in zip(reversed(parts), _FIELDS, strict=False):
        for step in _STEP.findall(part):
            if len(step) > 3 or int(step) > field.size:
                raise ValueError(
                    f"{part!r:.50} in {expression!r:.200} has a step of {step:.10}, and a {field.name} has "
                    f"{field.size} values, so that it would come at the first of them alone: give an "
                    "interval in place of the expression"
                )
    if not _is_read(text):
        raise ValueError(f"{expression!r:.200} is no cron expression: {_fault(parts)}")


def _is_read(text: str) -> bool:
    try:
        CronSim(text, datetime(2000, 1, 1))
    except Exception:  # cronsim's own checks aren't complete  # noqa: BLE001
        return False
    return True


def _fault(parts: list[str]) -> str:
    """Which of the values of an expression isn't right."""
    for index, (part, field) in enumerate(zip(reversed(parts), _FIELDS, strict=False), 1):
        for value in (*part.split(","), part):
            alone = ["*"] * len(parts)
            alone[-index] = value
            if not _is_read(" ".join(alone)):
                return f"{value!r:.50} is no {field.name} ({field.values})"
    return f"no month of {parts[-2]!r:.50} has a day {parts[-3]!r:.50}"


def _zone_of(timezone: str) -> tzinfo:
    if timezone == "UTC":
        return UTC
    if len(timezone) > LONGEST_ZONE:
        raise _not_a_zone(timezone)
    try:
        return ZoneInfo(timezone)
    except Exception:  # its errors are of six classes  # noqa: BLE001
        raise _not_a_zone(timezone) from None


def _not_a_zone(timezone: Any) -> ValueError:
    return ValueError(
        f"timezone must be the name of a time zone, such as 'Europe/Berlin', not {timezone!r:.100} (a "
        "machine without time zones needs the package tzdata)"
    )


def _interval_of(text: str) -> Interval:
    try:
        seconds = _seconds_of(float(text.removeprefix(EVERY)))
    except ValueError:
        raise ValueError(
            f"{text!r:.200} isn't known: after '@every' come seconds, from {SHORTEST_INTERVAL:g} to "
            f"{LONGEST_INTERVAL:.0f}"
        ) from None
    return Interval(timedelta(seconds=float(seconds)))


def _seconds_of(every: Any) -> str:
    """The interval as it is stored, in whole microseconds. Raises ValueError."""
    try:
        seconds = parse_seconds(every, low=SHORTEST_INTERVAL, high=LONGEST_INTERVAL, longest="366 days")
    except ValueError as error:
        raise ValueError(f"every must be {error}, not {every!r:.200}") from None
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
