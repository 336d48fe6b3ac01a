"""What the rows of a task share."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.tasks import task_backends

from aiotasks import enqueueing
from aiotasks.enqueueing import make_rows
from tests.tasks import noop


def template(task: Any, backend: str = "default") -> Any:
    options: Any = task_backends["default"]
    ((row,), _) = make_rows(task, [((), {})], backend, options.config, many=False)
    return row.template


def test_enqueues_of_a_task_share_what_is_said_of_it() -> None:
    assert template(noop) is template(noop)
    assert template(noop, "other").backend == "other"
    assert template(noop).backend == "default"


def test_a_copy_has_its_own() -> None:
    urgent = noop.using(priority=7)
    assert (template(noop).priority, template(urgent).priority) == (0, 7)
    at = datetime(2100, 1, 1, tzinfo=UTC)
    assert [template(noop.using(run_after=at)).run_after, template(noop).run_after] == [at, None]


def test_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was forgotten may have the id of another: each is compared with the one that was kept."""
    monkeypatch.setattr(enqueueing, "TEMPLATES_LIMIT", 10)
    for number in range(100):
        assert template(noop.using(priority=number % 50)).priority == number % 50
    assert len(enqueueing._templates) <= 10
