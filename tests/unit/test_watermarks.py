"""Watermarks: where the next claim begins in each queue."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming import watermarks as module
from aiotasks.worker.claiming.watermarks import (
    ANY_PRIORITY,
    EMPTIED_MARGIN,
    EVER,
    PASSED_MARGIN,
    Watermarks,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def _moment(time: datetime) -> bytes:
    return int((time - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6).to_bytes(8)


def job(ready_at: datetime, priority: int = 0, name: str = "q") -> Any:
    return SimpleNamespace(
        ready_at=_moment(ready_at), queue_name=name, priority=priority, last_attempted_at=_moment(NOW)
    )


def since(marks: Watermarks, *names: str, robust_only: bool = False) -> list[datetime]:
    return marks.request(names or ["q"], "loop", robust_only=robust_only)[0]


def passed(marks: Watermarks, *jobs: Any, robust_only: bool = False) -> None:
    """Two claims in a row that have come to the same priority."""
    for _ in range(2):
        marks.passed("loop", jobs, robust_only=robust_only)


@pytest.fixture(autouse=True)
def no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASSED_INTERVAL", 0.0)


def test_a_full_claim_has_the_next_begin_at_its_last_task() -> None:
    marks = Watermarks()
    passed(marks, job(NOW - HOUR), job(NOW - 2 * HOUR), job(NOW - 3 * HOUR, name="r"))
    assert since(marks, "q", "r", "s") == [NOW - HOUR, NOW - 3 * HOUR, EVER]
    assert marks.request(["q"], "thread", robust_only=False) == ([EVER], [])


def test_of_two_priorities_the_lower_one_tells_how_far_the_claim_has_come() -> None:
    marks = Watermarks()
    passed(marks, job(NOW - HOUR, priority=5), job(NOW - 2 * HOUR, priority=1))
    assert since(marks) == [NOW - 2 * HOUR]


def test_what_has_come_just_now_is_looked_at_again() -> None:
    """Of the tasks of the last second some aren't committed yet."""
    marks = Watermarks()
    passed(marks, job(NOW))
    assert since(marks) == [NOW - PASSED_MARGIN]


def test_a_short_claim_that_began_behind_shows_nothing() -> None:
    marks = Watermarks()
    assert not marks.fell_short("loop")
    passed(marks, job(NOW - HOUR))
    since(marks)
    assert marks.fell_short("loop")
    assert since(marks) == [EVER]
    assert not marks.fell_short("loop")


def test_a_short_claim_falls_short_though_the_marks_were_dropped_meanwhile() -> None:
    marks = Watermarks()
    passed(marks, job(NOW - HOUR))
    since(marks)
    marks.clear()
    assert marks.fell_short("loop")


def test_a_claim_that_leaves_tasks_out_hides_them_from_its_like_alone() -> None:
    marks = Watermarks()
    passed(marks, job(NOW - HOUR), robust_only=True)
    assert since(marks, robust_only=True) == [NOW - HOUR]
    assert since(marks) == [EVER]


def test_the_later_mark_counts() -> None:
    marks = Watermarks()
    marks.emptied("loop", ["q"], [job(NOW - HOUR)])
    passed(marks, job(NOW - 2 * HOUR))
    assert since(marks) == [NOW - HOUR - EMPTIED_MARGIN]
    passed(marks, job(NOW - HOUR))
    assert since(marks) == [NOW - HOUR]


@pytest.mark.parametrize("how", ["look back", "wait"])
def test_marks_go_back(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = Watermarks()
    passed(marks, job(NOW - HOUR))
    if how == "look back":
        marks.look_back(NOW - 2 * HOUR)
        assert since(marks) == [NOW - 2 * HOUR]
    else:
        monkeypatch.setattr(module, "PASSED_FOR", 0.0)
        passed(marks, job(NOW - HOUR))
        assert since(marks) == [EVER]


def test_marks_move_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASSED_INTERVAL", 3600.0)
    marks = Watermarks()
    marks.passed("loop", [job(NOW - 3 * HOUR)], robust_only=False)
    monkeypatch.setattr(module, "PASSED_INTERVAL", 0.0)
    marks.passed("loop", [job(NOW - 2 * HOUR)], robust_only=False)
    monkeypatch.setattr(module, "PASSED_INTERVAL", 3600.0)
    marks.passed("loop", [job(NOW - HOUR)], robust_only=False)
    assert since(marks) == [NOW - 2 * HOUR]


def test_a_claim_behind_a_mark_takes_no_lower_priority() -> None:
    """There may be older ones of it, which the mark hides."""
    marks = Watermarks()
    passed(marks, job(NOW - HOUR, priority=9))
    found = marks.request(["q", "r"], "loop", robust_only=False)
    assert found == ([NOW - HOUR, EVER], [9, ANY_PRIORITY])


def test_a_queue_that_gave_nothing_behind_its_mark_is_looked_at_from_its_head() -> None:
    """The claim was full by another one."""
    marks = Watermarks()
    passed(marks, job(NOW - HOUR))
    assert since(marks, "q", "r") == [NOW - HOUR, EVER]
    marks.passed("loop", [job(NOW - HOUR, name="r")], robust_only=False)
    assert since(marks, "q", "r") == [EVER, EVER]


def test_among_tasks_of_several_priorities_there_are_no_marks() -> None:
    marks = Watermarks()
    for number in range(6):
        marks.passed("loop", [job(NOW - HOUR, priority=number % 2)], robust_only=False)
        assert since(marks) == [EVER]


def test_a_time_ahead_of_the_claim_hides_nothing() -> None:
    """A site's own SQL has set it, or a server whose clock was ahead."""
    marks = Watermarks()
    marks.emptied("loop", ["q"], [job(NOW + HOUR)])
    assert since(marks) == [NOW - EMPTIED_MARGIN]
