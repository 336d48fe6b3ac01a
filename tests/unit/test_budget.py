"""Budget: what its strategies make of the limit for the next claim."""

from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming import budget as budget_module
from aiotasks.worker.claiming.backpressure import Backpressure
from aiotasks.worker.claiming.budget import (
    CLAIMS_BEYOND_IN_A_ROW,
    AtMost,
    Budget,
    FreeSlots,
    Strategy,
)
from aiotasks.worker.claiming.overclaim import (
    AT_ONCE_FACTOR,
    AT_ONCE_GROWTH,
    AT_ONCE_LIMIT,
    AT_ONCE_TIME,
    LEAST_SHARE,
    OverclaimPolicy,
)
from aiotasks.worker.claiming.prefetch import Prefetch
from aiotasks.worker.slots import Slots


class Paused(Strategy):
    """A strategy to come, which is nothing but a class and an entry of the list."""

    def is_open(self) -> bool:
        return False


def free_slots(slots: Slots, waiting: int = 0) -> FreeSlots:
    threads: Any = SimpleNamespace(free=lambda: slots.free("thread") - waiting)
    return FreeSlots(slots, threads)


def job(lane: str = "loop", max_crashes: int | None = None) -> Any:
    policy = SimpleNamespace(max_crashes=max_crashes)
    return SimpleNamespace(lane=lane, policy=policy, worker_ids=["one"])


def test_free_slots_less_what_is_about_to_be_started() -> None:
    slots = Slots(loop=10, threads=4)
    budget = Budget(free_slots(slots, waiting=1))
    slots.take("loop")
    assert (budget.limit("loop"), budget.limit("thread")) == (9, 3)
    assert (budget.limit("loop", 4), budget.limit("thread", 5)) == (5, 0)
    slots.release("loop")
    assert budget.limit("loop") == 10


def test_each_strategy_gets_the_limit_of_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "CLAIM_LIMIT", 3)
    slots = Slots(loop=10, threads=4)
    assert Budget(free_slots(slots), AtMost()).limit("loop") == 3
    assert Budget(AtMost(), free_slots(slots)).limit("loop") == 10


def test_one_that_is_closed_closes_all() -> None:
    slots = Slots(loop=10, threads=4)
    assert Budget(free_slots(slots)).is_open()
    assert not Budget(free_slots(slots), Paused()).is_open()


def test_nothing_is_claimed_while_too_much_waits_to_be_written() -> None:
    finisher: Any = SimpleNamespace(pending=set(), crowded=False, announcer=SimpleNamespace(pending=set()))
    backpressure = Backpressure(finisher, slots=200)
    assert backpressure.is_open()
    finisher.pending = set(range(999))
    assert backpressure.is_open()
    finisher.announcer.pending = {"a receiver"}
    assert not backpressure.is_open()
    finisher.pending = set()
    assert backpressure.is_open()
    finisher.crowded = True
    assert not backpressure.is_open()


def test_outcomes_of_two_large_claims_may_wait_whatever_the_slots() -> None:
    pending: set[Any] = set(range(2 * AT_ONCE_LIMIT - 1))
    finisher: Any = SimpleNamespace(
        pending=pending, crowded=False, announcer=SimpleNamespace(pending=set[Any]())
    )
    backpressure = Backpressure(finisher, slots=1)
    assert backpressure.is_open()
    pending.add("one more")
    assert not backpressure.is_open()


def test_after_some_claims_beyond_the_slots_one_goes_by_the_slots() -> None:
    slots = Slots(loop=10, threads=0)
    overclaim = OverclaimPolicy(slots, allowed=True)
    budget = Budget(free_slots(slots), overclaim)
    overclaim.learn([job()] * 10, 0.0001, 0.0001)
    assert overclaim.expected
    for _ in range(CLAIMS_BEYOND_IN_A_ROW):
        assert budget.limit("loop") == 10 * AT_ONCE_GROWTH
        budget.used({"loop", "thread"}, {"loop"})
    assert budget.limit("loop") == 10
    budget.used({"thread"}, set())  # it took no task of the loop, so the turn isn't over
    assert budget.limit("loop") == 10
    budget.used({"loop", "thread"}, set())
    assert budget.limit("loop") == 10 * AT_ONCE_GROWTH
    overclaim.forget()
    assert budget.limit("loop") == 10


def test_claims_grow_with_what_was_seen_to_end_at_once() -> None:
    overclaim = OverclaimPolicy(Slots(loop=2, threads=0), allowed=True)
    for number, limit in ((2, 2 * AT_ONCE_GROWTH), (2 * AT_ONCE_GROWTH, 2 * AT_ONCE_FACTOR)):
        overclaim.learn([job()] * number, 0.0001, 0.0001)
        assert overclaim.limit("loop", 2, 0) == limit
    overclaim.learn([job()] * 2, 0.0001, 0.0001)  # it went by the slots, for the tasks that others leave out
    assert overclaim.limit("loop", 2, 0) == 2 * AT_ONCE_FACTOR
    overclaim.learn([job(max_crashes=1)] * 2, 0.0001, 0.0001)
    assert overclaim.limit("loop", 2, 0) == 2


def test_a_busy_machine_makes_no_smaller_claims_but_tasks_that_block_do() -> None:
    overclaim = OverclaimPolicy(Slots(loop=100, threads=0), allowed=True)
    share = 1 / LEAST_SHARE  # of a worker that gets so little of the CPU
    for elapsed, limit in ((1, 200), (share / 2, 200), (share, 100), (2 * share, 50)):
        overclaim.forget()
        overclaim.learn([job()] * 100, elapsed * AT_ONCE_TIME, AT_ONCE_TIME / 2)
        assert overclaim.limit("loop", 0, 0) == pytest.approx(limit, abs=1)


@pytest.mark.parametrize(
    ("allowed", "jobs"), [(False, [job()]), (True, [job(), job(max_crashes=1)])], ids=["setting", "task"]
)
def test_nothing_beyond_the_slots_of_what_a_crash_would_harm(allowed: bool, jobs: list[Any]) -> None:
    slots = Slots(loop=10, threads=0)
    overclaim = OverclaimPolicy(slots, allowed=allowed)
    overclaim.learn(jobs, 0.0001, 0.0001)
    assert Budget(free_slots(slots), overclaim).limit("loop") == 10


def test_sync_tasks_are_claimed_ahead_while_the_machine_gives_all_threads() -> None:
    pool: Any = SimpleNamespace(threads=4)
    pool.capacity = lambda: pool.threads
    slots = Slots(loop=0, threads=4, pool=pool)
    buffer: Any = SimpleNamespace(ahead=lambda: 20)
    budget = Budget(free_slots(slots), Prefetch(buffer, slots, allowed=True))
    assert (budget.limit("thread"), budget.limit("thread", 5), budget.limit("loop")) == (20, 15, 0)
    pool.threads = 3
    assert budget.limit("thread") == 3
    pool.threads = 4
    for _ in range(CLAIMS_BEYOND_IN_A_ROW):
        budget.used({"thread"}, {"thread"})
    assert budget.limit("thread") == 4
