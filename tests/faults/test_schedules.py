"""Schedules while connections break and processes die: a part of the year of `nox -s schedules`."""

from datetime import UTC, datetime, timedelta

from . import year


def test_ticks_of_some_days_are_stored_once() -> None:
    """Days in which Berlin's clock is set forward, and Lord Howe's back by half an hour."""
    since = datetime(2026, 3, 28, tzinfo=UTC)
    result = year.run(since, since + timedelta(days=9), processes=2, seed=1)
    assert result.differing == [], result.lines()
    assert result.doubles == 0
    assert result.stored == result.wanted > 200
    assert result.cuts + result.sessions_ended > 0
