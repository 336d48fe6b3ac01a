"""operations.actions: actions by name."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from aiotasks import BulkCounts, TaskFilter
from aiotasks.operations.actions import perform
from aiotasks.operations.filters import read_filter
from tests import tasks


def test_actions_by_name(database: str) -> None:
    seen: list[BulkCounts] = []
    results = [tasks.noop.enqueue() for _ in range(3)]
    assert perform("cancel", read_filter(queue="default"), progress=seen.append) == BulkCounts(cancelled=3)
    assert seen == [BulkCounts(cancelled=3)]
    assert perform("retry", [results[0].id]) == BulkCounts(retried=1)
    assert perform("delete", read_filter(finished_after="1h")) == BulkCounts(deleted=2)
    assert perform("cancel", read_filter(), everything=True) == BulkCounts(cancelled=1)


def test_what_there_is_not(database: str, settings: Any) -> None:
    with pytest.raises(ValueError, match="An action is one of cancel, retry, delete, run_now, not 'stop'"):
        perform("stop", TaskFilter())  # type: ignore[arg-type]
    for action in ("cancel", "delete"):
        with pytest.raises(ValueError, match="pass everything=True"):
            perform(action, read_filter())
    with pytest.raises(ImproperlyConfigured, match="TASKS has no backend 'other'"):
        perform("cancel", TaskFilter(), backend="other")
