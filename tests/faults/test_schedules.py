"""Schedules while connections break and processes die: a part of the year of `nox -s schedules`."""

from datetime import UTC, datetime, timedelta

from . import year


def test_ticks_of_some_days_are_stored_once() -> None:
    """Days in which Lord Howe's clock is set back by half an hour."""
    since = datetime(2026, 4, 3, tzinfo=UTC)
    result = year.run(since, since + timedelta(days=4), processes=2, seed=2, unrest=8.0)
    assert result.differing == [], result.lines()
    assert result.doubles == 0
    assert result.stored == result.wanted > 60
    assert result.cuts > 0
    assert result.sessions_ended > 0
