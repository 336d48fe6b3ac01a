"""Doubts: which claims that have found nothing are repeated."""

from math import inf
from types import SimpleNamespace
from typing import Any

from aiotasks.worker.claiming.doubts import DELAYS, Doubts

FIRST, SECOND = DELAYS


def jobs(number: int, lane: str = "loop") -> Any:
    return [SimpleNamespace(lane=lane)] * number


def looks(doubts: Doubts, now: float = 100.0) -> list[float]:
    """After how many seconds there are looks, none of which finds anything."""
    found = []
    doubts.found_nothing(["loop"], now)
    while doubts.at < inf:
        found.append(round(doubts.at - now, 3))
        now = doubts.at
        assert doubts.take(now - 0.001) == set()
        assert doubts.take(now) == {"loop"}
        assert doubts.at == inf
        doubts.brought([], ())
        doubts.found_nothing(["loop"], now)
    return found


def test_most_claims_that_find_nothing_are_believed() -> None:
    doubts = Doubts()
    assert looks(doubts) == []
    doubts.brought(jobs(1), ["loop"])  # which was for more
    assert looks(doubts) == []


def test_a_wake_up_without_a_task_is_doubted_twice() -> None:
    doubts = Doubts()
    doubts.woken("loop")
    assert looks(doubts) == [FIRST, SECOND]
    assert looks(doubts) == []
    doubts.woken("thread")
    assert looks(doubts) == []


def test_a_wake_up_with_a_task_is_not_doubted() -> None:
    doubts = Doubts()
    doubts.woken("loop")
    doubts.brought(jobs(1), ["loop"])
    assert looks(doubts) == []
    doubts.woken("loop")
    doubts.brought(jobs(1, "thread"), ["thread"])
    assert looks(doubts) == [FIRST, SECOND]
    doubts.woken("loop")
    doubts.found_nothing(["loop"], 1.0)
    doubts.brought(jobs(1), ["loop"])  # before the look was due
    assert doubts.at == inf


def test_another_wake_up_begins_anew() -> None:
    doubts = Doubts()
    doubts.woken("loop")
    doubts.found_nothing(["loop"], 1.0)
    doubts.woken("loop")
    assert doubts.at == inf
    assert looks(doubts) == [FIRST, SECOND]


def test_the_end_of_a_backlog_is_doubted() -> None:
    doubts = Doubts()
    doubts.brought(jobs(2), ())
    doubts.brought(jobs(1), ["loop"])  # fewer, because the others are locked already
    assert looks(doubts) == [FIRST, SECOND]
    assert looks(doubts) == []
    doubts.brought(jobs(2), ())
    doubts.found_nothing(["loop"], 1.0)
    doubts.brought(jobs(1), ["loop"])  # they were locked
    assert looks(doubts) == [FIRST, SECOND]


def test_one_task_for_one_slot_is_no_backlog_and_another_one_after_it_is() -> None:
    doubts = Doubts()
    for _ in range(3):
        doubts.brought(jobs(1), ())
        doubts.brought([], ())
        assert looks(doubts) == []
    doubts.brought(jobs(1), ())
    doubts.brought(jobs(1), ())
    assert looks(doubts) == [FIRST, SECOND]
