"""operations.filters: filters as people write them, and in words."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from aiotasks import TaskFilter
from aiotasks.operations.filters import FILTERS, describe, read_age, read_filter


def test_texts_become_a_filter() -> None:
    assert read_filter() == TaskFilter()
    assert read_filter(queue="", task=None, status="") == TaskFilter()
    chosen = read_filter(
        queue="emails",
        task="shop.tasks.charge",
        status="ready, FAILED",
        key="a b",
        enqueued_after="2026-11-29T14:00:00+01:00",
        enqueued_before="2026-11-29 14:00",
    )
    assert chosen == TaskFilter(
        queue_name="emails",
        task_path="shop.tasks.charge",
        status=("READY", "FAILED"),
        unique_key="a b",
        enqueued_after=datetime(2026, 11, 29, 13, tzinfo=UTC),
        enqueued_before=datetime(2026, 11, 29, 14, tzinfo=timezone.get_current_timezone()),
    )


def test_ages() -> None:
    before = timezone.now()
    chosen = read_filter(finished_after="36h", finished_before="90m")
    assert chosen.finished_after is not None
    assert chosen.finished_before is not None
    assert timedelta(0) <= chosen.finished_after - before + timedelta(hours=36) < timedelta(minutes=1)
    assert timedelta(0) <= chosen.finished_before - before + timedelta(minutes=90) < timedelta(minutes=1)
    assert [read_age(text) for text in ("5s", "2w", "2", "w", "-1d", "1.5h")] == [
        timedelta(seconds=5),
        timedelta(weeks=2),
        *[None] * 4,
    ]


def test_a_time_without_a_zone_is_in_the_current_one() -> None:
    with timezone.override("America/New_York"):
        chosen = read_filter(enqueued_after="2026-07-01T12:00")
    assert chosen.enqueued_after == datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("America/New_York"))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"status": "done"}, "status must be one of SCHEDULED, "),
        ({"finished_after": "yesterday"}, "finished_after must be a time such as .*, not 'yesterday'"),
        ({"enqueued_before": "2026-02-30"}, "enqueued_before must be a time"),
        ({"enqueued_before": "999999w"}, "enqueued_before must be a time"),
        ({"since": "later"}, "since must be a time such as .*, not 'later'"),
        ({"since": "0001-01-01"}, "since must be in the years 2 to 9998, not '0001-01-01'"),
        ({"until": "9999-12-31T23:00"}, "until must be in the years 2 to 9998"),
        ({"worker": "me"}, "worker must be the id of a worker, a UUID, not 'me'"),
        ({"since": "1d", "enqueued_after": "1d"}, "since and enqueued_after can't both be given"),
    ],
)
def test_bad_texts(texts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_filter(**texts)


def test_the_first_and_the_last_times_are_shown_in_every_zone() -> None:
    chosen = read_filter(enqueued_after="0002-01-01T00:00Z", enqueued_before="9998-12-31T23:59Z")
    for zone in ("America/New_York", "Asia/Tokyo"):
        with timezone.override(zone):
            assert describe(chosen).startswith("enqueued since 000")


def test_a_wrong_name() -> None:
    with pytest.raises(TypeError, match=f"'que' is no filter; these are: {', '.join(FILTERS)}, since, until"):
        read_filter(que="x")


def test_since_and_until_are_of_the_end_where_it_is_about_the_end() -> None:
    at = datetime(2026, 11, 29, 14, tzinfo=UTC)
    texts: dict[str, Any] = {"since": at.isoformat(), "until": at.isoformat()}
    enqueued = TaskFilter(enqueued_after=at, enqueued_before=at)
    finished = TaskFilter(finished_after=at, finished_before=at)
    assert read_filter(**texts) == enqueued
    assert read_filter(ends=True, **texts) == finished
    for status, kind in [("ready", enqueued), ("failed,ready", enqueued), ("failed,successful", finished)]:
        chosen = read_filter(status=status, **texts)
        assert chosen == TaskFilter(
            status=chosen.status,
            enqueued_after=kind.enqueued_after,
            enqueued_before=kind.enqueued_before,
            finished_after=kind.finished_after,
            finished_before=kind.finished_before,
        )
    assert read_filter(error="ValueError", **texts).finished_after == at


def test_a_filter_in_words() -> None:
    worker = uuid4()
    chosen = read_filter(status="failed,ready", task="a.b", queue="q", error="E", worker=str(worker), key="k")
    assert chosen.worker == worker
    assert describe(chosen) == f"FAILED or READY, queue q, task a.b, key k, error E, worker {worker}"
    with timezone.override(ZoneInfo("Europe/Berlin")):
        assert describe(read_filter(until="2026-11-29T13:00:00Z", ends=True)) == (
            "finished before 2026-11-29 14:00:00+01:00"
        )
    assert describe(read_filter()) == "all tasks"
