"""operations.actions: filters as people write them, and actions by name."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from aiotasks import BulkCounts, TaskFilter
from aiotasks.operations.actions import FILTERS, perform, read_age, read_filter
from tests import tasks


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
    ],
)
def test_bad_texts(texts: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_filter(**texts)


def test_a_wrong_name() -> None:
    with pytest.raises(TypeError, match=f"'que' is no filter; these are: {', '.join(FILTERS)}"):
        read_filter(que="x")


def test_actions_by_name(database: str) -> None:
    seen: list[BulkCounts] = []
    results = [tasks.noop.enqueue() for _ in range(3)]
    assert perform("cancel", read_filter(queue="default"), progress=seen.append) == BulkCounts(cancelled=3)
    assert seen == [BulkCounts(cancelled=3)]
    assert perform("retry", [results[0].id]) == BulkCounts(retried=1)
    assert perform("delete", read_filter(finished_after="1h")) == BulkCounts(deleted=2)
    assert perform("cancel", read_filter(), everything=True) == BulkCounts(cancelled=1)


def test_what_there_is_not(database: str, settings: Any) -> None:
    with pytest.raises(ValueError, match="An action is one of cancel, retry, delete, not 'stop'"):
        perform("stop", TaskFilter())  # type: ignore[arg-type]
    for action in ("cancel", "delete"):
        with pytest.raises(ValueError, match="pass everything=True"):
            perform(action, read_filter())
    with pytest.raises(ImproperlyConfigured, match="TASKS has no backend 'other'"):
        perform("cancel", TaskFilter(), backend="other")
