"""How the times of a schedule follow from its rule, and from the clock of its time zone.

cronsim finds the digits of a clock that match an expression. What they mean where the clock is set forward or
back is said here, as vixie cron has it:

* An expression whose minute and hour both don't begin with ``*`` names times of day (FixedTimes). One that
  the clock leaves out comes at once after, one that the clock shows twice comes the first time.
* Any other one goes by real time (PassingTimes), so it comes as often as the clock shows it: not at all, once
  or twice.

Moments are datetimes in UTC, on whole seconds as all ticks are. Datetimes without a zone ("digits") are what
the clock shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from cronsim import CronSim

__all__ = ["FixedTimes", "Interval", "PassingTimes", "Rule"]

SECOND = timedelta(seconds=1)

# Two looks at a zone's offset are so far apart at most. In no zone was the clock ever set twice within it,
# and back to what it was: the shortest such time is Morocco's Ramadan, a month.
LOOK_EVERY = timedelta(days=7)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rule(Protocol):
    """When a schedule has its ticks."""

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first tick later than ``moment``; None: there is none within 50 years."""

    def last_until(self, moment: datetime) -> datetime | None:
        """Return the last tick that isn't later than ``moment``; None: there is none within 50 years."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The multiples of a time since 1970-01-01 00:00 UTC, so that every worker has the same ones."""

    period: timedelta

    def next_after(self, moment: datetime) -> datetime:
        return EPOCH + ((moment - EPOCH) // self.period + 1) * self.period

    def last_until(self, moment: datetime) -> datetime:
        return EPOCH + (moment - EPOCH) // self.period * self.period


@dataclass(frozen=True, slots=True)
class FixedTimes:
    """Times of day: each once a day at most, and each day that has it on its calendar."""

    expression: str
    zone: tzinfo

    def next_after(self, moment: datetime) -> datetime | None:
        digits = _digits(moment, self.zone)
        for each in _matches(self.expression, digits):
            tick = self._moment(each)
            if tick > moment:  # else the clock shows them for the second time
                return tick
        return None

    def last_until(self, moment: datetime) -> datetime | None:
        local = moment.astimezone(self.zone)
        # When the clock shows digits for the second time, it has shown later ones before.
        ahead = _offset(local.replace(fold=0)) - _offset(local)
        for each in _matches_back(self.expression, local.replace(tzinfo=None, fold=0) + ahead):
            tick = self._moment(each)
            if tick <= moment:
                return tick
        return None

    def _moment(self, digits: datetime) -> datetime:
        """When the clock shows the digits for the first time, or has left them out."""
        before = _offset(digits.replace(tzinfo=self.zone))
        after = _offset(digits.replace(tzinfo=self.zone, fold=1))
        moment = (digits - before).replace(tzinfo=UTC)
        # If they are left out, this is just before the clock is set forward; else it isn't before the moment.
        start = (digits - after).replace(tzinfo=UTC)
        return _first_change(start, moment, before, self.zone) or moment


@dataclass(frozen=True, slots=True)
class PassingTimes:
    """Whenever the clock shows the time."""

    expression: str
    zone: tzinfo

    def next_after(self, moment: datetime) -> datetime | None:
        # From one setting of the clock to the next, its digits go with the time.
        start = moment.replace(microsecond=0) + SECOND
        while True:
            offset = _offset(start.astimezone(self.zone))
            digits = next(_matches(self.expression, start.replace(tzinfo=None) + offset - SECOND), None)
            if digits is None:
                return None
            tick = (digits - offset).replace(tzinfo=UTC)
            change = _first_change(start, tick, offset, self.zone)
            if change is None:
                return tick
            start = change

    def last_until(self, moment: datetime) -> datetime | None:
        start = moment.replace(microsecond=0)
        while True:
            offset = _offset(start.astimezone(self.zone))
            digits = next(_matches_back(self.expression, start.replace(tzinfo=None) + offset), None)
            if digits is None:
                return None
            tick = (digits - offset).replace(tzinfo=UTC)
            change = _last_change(tick, start, offset, self.zone)
            if change is None:
                return tick
            start = change - SECOND


def _matches(expression: str, digits: datetime) -> Iterator[datetime]:
    """Yield the matching digits after these."""
    return CronSim(expression, digits)


def _matches_back(expression: str, digits: datetime) -> Iterator[datetime]:
    """Yield the matching digits backwards, from these on."""
    return CronSim(expression, digits.replace(microsecond=0) + SECOND, reverse=True)


def _digits(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()


def _first_change(start: datetime, end: datetime, offset: timedelta, zone: tzinfo) -> datetime | None:
    """When the clock has another offset for the first time, after ``start``, where it has this one, and until
    ``end``; None: not then."""
    same = start
    while same < end:
        look = min(same + LOOK_EVERY, end)
        if _offset(look.astimezone(zone)) != offset:
            return _boundary(same, look, offset, zone)[1]
        same = look
    return None


def _last_change(start: datetime, end: datetime, offset: timedelta, zone: tzinfo) -> datetime | None:
    """When the clock has got the offset that it has at ``end``, if that was after ``start``; None: before."""
    same = end
    while same > start:
        look = max(same - LOOK_EVERY, start)
        if _offset(look.astimezone(zone)) != offset:
            return _boundary(same, look, offset, zone)[0]
        same = look
    return None


def _boundary(same: datetime, other: datetime, offset: timedelta, zone: tzinfo) -> tuple[datetime, datetime]:
    """The two seconds next to each other, between which the offset changes: one that has it, and one that
    hasn't."""
    while abs(other - same) > SECOND:
        middle = same + (other - same) // 2
        middle = middle.replace(microsecond=0) if other > same else middle.replace(microsecond=0) + SECOND
        if middle in (same, other):
            break
        if _offset(middle.astimezone(zone)) == offset:
            same = middle
        else:
            other = middle
    return same, other
