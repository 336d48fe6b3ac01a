"""Quarantine: who is claimed apart, when, and what waits for that."""

from types import SimpleNamespace
from typing import Any

from aiotasks.worker.claiming.quarantine import APART_TIME, LOOK_INTERVAL, Quarantine


def job(lane: str = "loop") -> Any:
    return SimpleNamespace(lane=lane, has_slot=True)


def runner(*jobs: Any) -> Any:
    return SimpleNamespace(running=list(jobs))


def test_nothing_is_claimed_beside_one_until_it_has_ended() -> None:
    quarantine = Quarantine(runner(job()))
    quarantine.suspect(100.0)
    assert quarantine.quiet_until(100.0) is None
    first = job()
    assert quarantine.admit(first, 100.0) is False  # what runs goes first
    assert quarantine.admit(first, 101.0)
    assert quarantine.quiet_until(101.0) == 101.0 + APART_TIME
    quarantine.ended(job())
    assert quarantine.quiet_until(101.0) == 101.0 + APART_TIME
    quarantine.ended(first)
    assert quarantine.quiet_until(101.0) is None


def test_a_long_one_keeps_the_others_for_a_while_only() -> None:
    quarantine = Quarantine(runner())
    assert quarantine.admit(job(), 100.0)
    assert quarantine.quiet_until(100.0 + APART_TIME - 0.1) is not None
    assert quarantine.quiet_until(100.0 + APART_TIME) is None


def test_what_runs_may_end_first_but_not_for_ever() -> None:
    busy = runner(job())
    quarantine = Quarantine(busy)
    given_back = job()
    assert not quarantine.admit(given_back, 100.0)
    assert quarantine.quiet_until(100.0) == 100.0 + APART_TIME
    assert quarantine.quiet_until(100.0 + APART_TIME) is None
    assert quarantine.admit(given_back, 100.0 + APART_TIME)  # what still runs is long, and no culprit
    busy.running.clear()
    assert quarantine.admit(job(), 200.0)


def test_the_one_that_was_given_back_is_awaited_in_its_lane() -> None:
    """A look at the other lane, or one that comes before it is back, doesn't make it wait anew."""
    quarantine = Quarantine(runner(job()))
    quarantine.suspect(100.0)
    assert not quarantine.admit(job("thread"), 100.0)
    quarantine.asks("loop")
    quarantine.none_in("loop")
    assert quarantine.lanes() == ["thread"]
    assert quarantine.admit(job("thread"), 101.0)
    quarantine.suspect(102.0)
    assert not quarantine.admit(job("loop"), 102.0)
    quarantine.asks("loop")
    quarantine.none_in("loop")
    assert quarantine.lanes() == ["loop", "thread"]  # it may be on its way
    quarantine.asks("loop")
    quarantine.none_in("loop")
    assert quarantine.lanes() == ["thread"]


def test_one_that_waits_for_other_tasks_keeps_none_of_them() -> None:
    running = runner()
    quarantine = Quarantine(running)
    first = job()
    assert quarantine.admit(first, 100.0)
    running.running.append(first)
    first.has_slot = False
    quarantine.ended(first)
    assert quarantine.quiet_until(100.0) is None
    assert quarantine.admit(job(), 101.0)  # beside the one that waits


def test_the_others_have_their_turn_after_each() -> None:
    quarantine = Quarantine(runner())
    assert quarantine.take_turn()
    assert quarantine.admit(job(), 100.0)
    assert not quarantine.take_turn()
    assert quarantine.take_turn()


def test_a_look_at_times_finds_what_nobody_told_of() -> None:
    quarantine = Quarantine(runner())
    quarantine.look(100.0)
    assert quarantine.lanes() == ["loop", "thread"]
    quarantine.asks("loop")
    quarantine.asks("thread")
    quarantine.look(100.0 + LOOK_INTERVAL - 0.1)
    assert quarantine.lanes() == []
    quarantine.look(100.0 + LOOK_INTERVAL)
    assert quarantine.lanes() == ["loop", "thread"]
