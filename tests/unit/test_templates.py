"""What the rows of a task share."""

from datetime import UTC, datetime
from typing import Any

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


def test_what_using_returns_is_not_kept() -> None:
    """It may hold a request, in a function that makes a unique key."""
    kept = dict(enqueueing._templates)
    assert template(noop.using(priority=3)).priority == 3
    assert enqueueing._templates == kept
