"""When schedules tick: against vixie cron's rules, applied minute by minute to what the clock shows."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

from aiotasks.schedules.cron import Times, parse_times, tick_id

MINUTE = timedelta(minutes=1)

# Where the clock is set by an hour (at night, at noon of UTC, at midnight, so that a day has no 00:00), by
# half an hour, by two hours, for Ramadan, and not at all.
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Africa/Cairo",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Casablanca",
    "Asia/Kathmandu",
]

# minutes, hours, days of the month, months, days of the week; None: all of them.
FIELDS = {
    "*/10 2 * * *": (range(0, 60, 10), [2], None, None, None),
    "*/5 * * * *": (range(0, 60, 5), None, None, None, None),
    "*/40 */2 * * *": ([0, 40], range(0, 24, 2), None, None, None),
    "15 * * * *": ([15], None, None, None, None),
    "0 */2 * * *": ([0], range(0, 24, 2), None, None, None),
    "*/10 0-3 * * *": (range(0, 60, 10), range(4), None, None, None),
    "30 2 * * *": ([30], [2], None, None, None),
    "0,30 1,2 * * *": ([0, 30], [1, 2], None, None, None),
    "45 1-2 * * *": ([45], [1, 2], None, None, None),
    "0 0 * * *": ([0], [0], None, None, None),
    "59 23 * * *": ([59], [23], None, None, None),
    "30 0-23/2 * * SUN": ([30], range(0, 24, 2), None, None, [6]),
    "0 3 1 * *": ([0], [3], [1], None, None),
    "20 2 29,30 mar,oct *": ([20], [2], [29, 30], [3, 10], None),
}


class Minute(NamedTuple):
    """One minute, and what the clock shows then."""

    at: datetime
    shown: datetime
    left_out: list[datetime]  # what the clock hasn't shown, because it was set forward to this minute
    again: bool  # whether it shows what it has shown before


def minutes_of(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[Minute]:
    seen: set[datetime] = set()
    at, last = start, (start - MINUTE).astimezone(zone).replace(tzinfo=None)
    while at < end:
        shown = at.astimezone(zone).replace(tzinfo=None)
        steps = max(0, (shown - last) // MINUTE - 1)
        left_out = [last + MINUTE * step for step in range(1, steps + 1)]
        yield Minute(at, shown, left_out, shown in seen)
        seen.add(shown)
        at, last = at + MINUTE, shown


def days_around_changes(zone: ZoneInfo, year: int) -> list[tuple[datetime, datetime]]:
    """Two days and a half around each change of the clock; a time in May where there is none."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(366)]
    changes = [
        (day - timedelta(days=1), day + timedelta(days=2))
        for day, following in pairwise(days)
        if day.astimezone(zone).utcoffset() != following.astimezone(zone).utcoffset()
    ]
    return changes or [(datetime(year, 5, 1, tzinfo=UTC), datetime(year, 5, 4, tzinfo=UTC))]


def matches(expression: str, shown: datetime) -> bool:
    values = (shown.minute, shown.hour, shown.day, shown.month, shown.weekday())
    return all(
        allowed is None or value in allowed for value, allowed in zip(values, FIELDS[expression], strict=True)
    )


def wanted(expression: str, minutes: list[Minute]) -> list[datetime]:
    """The ticks by vixie's rules."""
    minute, hour, *_ = expression.split()
    if minute.startswith("*") or hour.startswith("*"):
        return [each.at for each in minutes if matches(expression, each.shown)]
    return [
        each.at
        for each in minutes
        if (matches(expression, each.shown) and not each.again)
        or any(matches(expression, shown) for shown in each.left_out)
    ]


@pytest.mark.parametrize("zone_name", ZONES)
def test_ticks_around_changes_of_the_clock_are_vixie_crons(zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    for start, end in days_around_changes(zone, 2026):
        minutes = list(minutes_of(zone, start, end))
        for expression in FIELDS:
            times = Times(expression, zone_name)
            ticks = wanted(expression, minutes)
            assert walk(times, start, end) == ticks, expression
            assert walk_back(times, start, end) == ticks[::-1], expression
            check_moments(times, ticks, start, end)


def walk(times: Times, start: datetime, end: datetime) -> list[datetime]:
    found: list[datetime] = []
    tick = times.next_after(start - timedelta.resolution)
    while tick is not None and tick < end:
        found.append(tick)
        tick = times.next_after(tick)
    return found


def walk_back(times: Times, start: datetime, end: datetime) -> list[datetime]:
    found: list[datetime] = []
    tick = times.last_until(end - timedelta.resolution)
    while tick is not None and tick >= start:
        found.append(tick)
        tick = times.last_until(tick - timedelta.resolution)
    return found


def check_moments(times: Times, ticks: list[datetime], start: datetime, end: datetime) -> None:
    """Asked at any moment, also within a gap or a fold, it names the ticks next to it."""
    chance = random.Random(times.expression + times.timezone)
    for _ in range(20):
        moment = start + (end - start) * chance.random()
        later = [tick for tick in ticks if tick > moment]
        earlier = [tick for tick in ticks if tick <= moment]
        if later:
            assert times.next_after(moment) == later[0], (times, moment)
        if earlier:
            assert times.last_until(moment) == earlier[-1], (times, moment)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]  # no time zone is among them


def test_a_time_that_the_clock_leaves_out_comes_when_it_is_set() -> None:
    times = Times("30 2 * * *", "Europe/Berlin")
    assert times.next_after(utc(2026, 3, 29, 0, 59, 59)) == utc(2026, 3, 29, 1)  # at 03:00
    assert times.next_after(utc(2026, 3, 29, 1)) == utc(2026, 3, 30, 0, 30)
    assert times.last_until(utc(2026, 3, 29, 0, 59, 59)) == utc(2026, 3, 28, 1, 30)
    assert times.last_until(utc(2026, 3, 29, 1)) == utc(2026, 3, 29, 1)


def test_a_time_that_the_clock_shows_twice_comes_once() -> None:
    times = Times("30 2 * * *", "Europe/Berlin")
    assert times.next_after(utc(2026, 10, 24, 12)) == utc(2026, 10, 25, 0, 30)
    assert times.next_after(utc(2026, 10, 25, 0, 30)) == utc(2026, 10, 26, 1, 30)
    assert times.next_after(utc(2026, 10, 25, 1, 15)) == utc(2026, 10, 26, 1, 30)  # 02:15 for the second time
    assert times.last_until(utc(2026, 10, 25, 1, 15)) == utc(2026, 10, 25, 0, 30)


def test_what_is_said_of_seconds_goes_by_the_same_rules() -> None:
    times = Times("*/20 30 2 * * *", "Europe/Berlin")
    ticks = walk(times, utc(2026, 10, 24, 12), utc(2026, 10, 25, 12))
    assert ticks == [utc(2026, 10, 25, 0, 30, second) for second in (0, 20, 40)]
    assert walk_back(times, utc(2026, 10, 24, 12), utc(2026, 10, 25, 12)) == ticks[::-1]
    gap = walk(times, utc(2026, 3, 28, 12), utc(2026, 3, 29, 12))
    assert gap == [utc(2026, 3, 29, 1)]  # three times of one moment are one tick
    real_time = Times("59 * * * * *", "Europe/Berlin")
    for start in (utc(2026, 3, 29), utc(2026, 10, 25)):
        every_minute = [start + timedelta(minutes=minute, seconds=59) for minute in range(120)]
        assert walk(real_time, start, start + timedelta(hours=2)) == every_minute
        assert walk_back(real_time, start, start + timedelta(hours=2)) == every_minute[::-1]


def test_rare_and_impossible_times() -> None:
    leap = Times("0 12 29 2 *", "America/New_York")
    assert leap.next_after(utc(2026, 1, 1)) == utc(2028, 2, 29, 17)
    assert leap.last_until(utc(2026, 1, 1)) == utc(2024, 2, 29, 17)
    assert Times("0 0 L * *").next_after(utc(2027, 2, 1)) == utc(2027, 2, 28)
    assert Times("0 0 * * fri#2").next_after(utc(2026, 1, 1)) == utc(2026, 1, 9)
    assert Times("0 0 */28 2 mon#4").next_after(utc(2026, 1, 1)) is None
    assert Times("0 0 */28 2 mon#4").last_until(utc(2026, 1, 1)) is None


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * sun"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 jan *"),
        ("@Annually", "0 0 1 1 *"),
    ],
)
def test_names_of_times(name: str, expression: str) -> None:
    now = utc(2026, 11, 30, 9)
    named, plain = Times(name, "Asia/Tokyo"), Times(expression, "Asia/Tokyo")
    assert named.next_after(now) == plain.next_after(now)
    assert named.last_until(now) == plain.last_until(now)


def test_intervals_are_multiples_since_1970() -> None:
    times = parse_times(every=timedelta(minutes=5))
    assert times == Times("@every 300", "UTC") == parse_times(every=300) == parse_times("@every 300")
    assert times.next_after(utc(2026, 1, 1, 0, 4, 59)) == utc(2026, 1, 1, 0, 5)
    assert times.next_after(utc(2026, 1, 1, 0, 5)) == utc(2026, 1, 1, 0, 10)
    assert times.last_until(utc(2026, 1, 1, 0, 5)) == utc(2026, 1, 1, 0, 5)
    assert times.last_until(utc(2026, 1, 1, 0, 4, 59)) == utc(2026, 1, 1)
    parts = parse_times(every=1.1)
    assert parts.expression == "@every 1.1"
    assert len(walk(parts, utc(2026, 1, 1), utc(2026, 1, 1, 0, 0, 11))) == 10
    assert parse_times(every=timedelta(days=366)).expression == "@every 31622400"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("* * * *", "has 4 fields: a cron expression has five"),
        ("1,61 * * * *", "'61' is no minute (0 to 59)"),
        ("* 1-25 * * *", "'1-25' is no hour (0 to 23)"),
        ("0 0 31 feb *", "no month of 'feb' has a day '31'"),
        ("0 0 32 * *", "'32' is no day of the month"),
        ("0 * * * * 8", "'8' is no day of the week"),
        ("* * * foo *", "'foo' is no month"),
        ("*/90 * * * *", "give an interval in place"),
        ("0 */36 * * *", "give an interval in place"),
        ("@reboot", "isn't known: write one of @yearly"),
        ("@every soon", "after '@every' come seconds"),
        ("@every 0.5", "from 1 to 31622400"),
        ("@every nan", "from 1 to 31622400"),
        ("", "has 0 fields"),
        ("*/" + "9" * 5000 + " * * * *", "cron expression"),
        (5, "a text such as"),
        (["* * * * *"], "a text such as"),
    ],
)
def test_wrong_expressions_are_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Times(expression)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("zone", ["Europe/Bern", "Europe", "/etc/passwd", "../x", "", "CET+", "x" * 300, 5])
def test_unknown_zones_are_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="such as 'Europe/Berlin'"):
        Times("@daily", zone)


def test_times_are_a_cron_expression_or_an_interval() -> None:
    assert parse_times("@daily", timezone="Asia/Tokyo") == Times("@daily", "Asia/Tokyo")
    with pytest.raises(ValueError, match="either a cron expression or every"):
        parse_times()
    with pytest.raises(ValueError, match="either a cron expression or every"):
        parse_times("@daily", every=5)
    with pytest.raises(ValueError, match="has no timezone"):
        parse_times(every=5, timezone="Asia/Tokyo")
    with pytest.raises(ValueError, match="every must be seconds or a timedelta"):
        parse_times(every=timedelta(0))


def test_the_id_of_a_tick() -> None:
    tick = utc(2026, 11, 30, 9)
    id = tick_id("default", "nightly", tick)
    assert id == tick_id("default", "nightly", tick.astimezone(ZoneInfo("Asia/Tokyo")))
    assert (id.version, id.variant) == (8, "specified in RFC 4122")
    assert id.int >> 80 == int(tick.timestamp() * 1000)
    others = {
        tick_id("other", "nightly", tick),
        tick_id("default", "daily", tick),
        tick_id("default", "nightly", tick + MINUTE),
    }
    assert len(others | {id}) == 4
