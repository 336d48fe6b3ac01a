"""Which ticks are made up for, and the rows of their tasks."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as some

from aiotasks.policies.policy import Policy
from aiotasks.rows import Missed, UniqueJob
from aiotasks.schedules.cron import Times, tick_id
from aiotasks.schedules.ticks import job_of_tick, ticks_due
from tests.store.rows import new_schedule

HOURLY = Times("0 * * * *")
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def due(now: datetime, **values: Any) -> tuple[list[datetime], datetime | None]:
    times = values.pop("times", HOURLY)
    given: dict[str, Any] = {"missed": "last", "within": None, "next_at": START, "most": 100} | values
    return ticks_due(times, now=now, **given)


@pytest.mark.parametrize("missed", ["last", "skip", "all"])
def test_a_tick_in_time(missed: Missed) -> None:
    for late in (timedelta(0), timedelta(seconds=59)):
        assert due(START + late, missed=missed) == ([START], START + HOUR)


def test_what_becomes_of_ticks_that_were_missed() -> None:
    now = START + 5 * HOUR + timedelta(minutes=10)
    assert due(now) == ([START + 5 * HOUR], START + 6 * HOUR)
    assert due(now, missed="skip") == ([], START + 6 * HOUR)
    assert due(now, missed="all") == ([START + n * HOUR for n in range(6)], START + 6 * HOUR)


def test_only_so_late_ticks_are_made_up_for() -> None:
    now = START + 5 * HOUR + timedelta(minutes=10)
    assert due(now, within=601.0) == ([START + 5 * HOUR], START + 6 * HOUR)
    assert due(now, within=599.0) == ([], START + 6 * HOUR)
    assert due(now, missed="skip", within=601.0) == ([START + 5 * HOUR], START + 6 * HOUR)
    two_hours = due(now, missed="all", within=7200.0)
    assert two_hours == ([START + 4 * HOUR, START + 5 * HOUR], START + 6 * HOUR)
    exactly = due(START + 5 * HOUR, missed="all", within=7200.0)
    assert exactly == ([START + n * HOUR for n in (3, 4, 5)], START + 6 * HOUR)
    days = due(START + timedelta(days=3), missed="all")
    assert len(days[0]) == 25  # of a day, both ends included


def test_of_many_ticks_the_rest_comes_next() -> None:
    now = START + 5 * HOUR
    ticks, next_at = due(now, missed="all", most=2)
    assert (ticks, next_at) == ([START, START + HOUR], START + 2 * HOUR)


def test_two_weeks_of_seconds_are_not_walked_over() -> None:
    seconds = Times("* * * * * *")
    now = START + timedelta(days=14)
    assert due(now, times=seconds) == ([now], now + timedelta(seconds=1))


def test_a_next_at_that_was_set_by_hand_is_a_tick() -> None:
    by_hand = START + timedelta(minutes=30)
    assert due(by_hand + timedelta(minutes=1), next_at=by_hand) == ([by_hand], START + HOUR)
    assert due(by_hand, next_at=by_hand, missed="all") == ([by_hand], START + HOUR)


def test_times_that_end() -> None:
    leap = Times("0 0 29 2 *")
    assert due(START, times=leap)[1] == datetime(2028, 2, 29, tzinfo=UTC)


@given(
    some.sampled_from(["last", "skip", "all"]),
    some.integers(0, 10_000),
    some.integers(1, 5),
    some.one_of(some.none(), some.integers(0, 10_000)),
)
def test_ticks_come_once_in_their_order(missed: Missed, minutes: int, most: int, within: int | None) -> None:
    """However far the clock goes between two looks."""
    now = START + timedelta(minutes=minutes)
    next_at: datetime | None = START
    seen: list[datetime] = []
    while next_at is not None and next_at <= now:
        ticks, following = due(now, missed=missed, next_at=next_at, most=most, within=within)
        assert following is None or following > next_at
        seen += ticks
        next_at = following
    assert seen == sorted(set(seen))
    assert all(START <= tick <= now for tick in seen)


def row(**values: Any) -> Any:
    tick = START + HOUR
    return job_of_tick(new_schedule(**values), "b", tick_id("b", "nightly", tick), tick, now=START)


def test_a_row_has_what_the_schedule_says() -> None:
    policy = Policy(max_crashes=3, keep_result=4.0)
    job = row(
        overlap="allow", queue_name="q", lane="thread", priority=5, args="[1]", expires=6.0, policy=policy
    )
    template = job.template
    assert (template.backend, template.queue_name, template.lane, template.priority) == (
        "b",
        "q",
        "thread",
        5,
    )
    assert (template.expires, template.policy, template.run_after) == (6.0, policy, None)
    assert (job.args, job.kwargs, job.enqueued_at) == ("[1]", "{}", START)
    assert UUID(job.id) == tick_id("b", "nightly", START + HOUR)
    own = {"_schedule": "nightly", "_scheduled_for": "2026-01-01T01:00:00+00:00"}
    assert json.loads(template.metadata) == own
    assert json.loads(row(metadata='{"a": [1]}').template.metadata) == {"a": [1]} | own


def test_the_key_of_a_row() -> None:
    assert not isinstance(row(overlap="allow"), UniqueJob)
    assert not isinstance(row(overlap=None), UniqueJob)
    skip, queue = row(overlap="skip"), row(overlap="queue")
    assert (skip.key, queue.key) == ("aiotasks:schedule:nightly",) * 2
    assert (skip.rule.period, skip.rule.waiting, queue.rule.waiting) == (None, False, True)
    own = row(overlap=None, unique_key="k", unique_period=7.0, unique_waiting=None)
    assert (own.key, own.rule.period, own.rule.waiting, own.rule.on_conflict) == ("k", 7.0, False, "return")
    assert len(row(name="n" * 3000).key) < 100


def test_a_row_has_the_limit_of_the_schedule() -> None:
    for overlap in ("allow", "skip"):
        job = row(overlap=overlap, limit_key="tenant:1", ordered="stop")
        assert (job.limit_key, job.template.ordered) == ("tenant:1", "stop")


def test_jitter_is_the_same_for_the_same_tick() -> None:
    delays = set()
    for hour in range(100):
        tick = START + hour * HOUR
        jobs = [
            job_of_tick(new_schedule(jitter=60.0), "b", tick_id("b", "nightly", tick), tick, now=START)
            for _ in range(2)
        ]
        (after,) = {job.template.run_after for job in jobs}
        assert after is not None
        assert timedelta(0) <= after - tick <= timedelta(seconds=60)
        delays.add(after - tick)
    assert len(delays) > 90
    assert max(delays) - min(delays) > timedelta(seconds=45)
