"""PrefetchBuffer: how much is claimed ahead of the threads, and what becomes of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming import prefetch as prefetch_module
from aiotasks.worker.claiming.prefetch import PrefetchBuffer

from ..worker.harness import until


class Threads:
    """Ten threads, what was started in them, and what was dropped."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.dropped: list[Any] = []
        slots: Any = SimpleNamespace(free=lambda lane: 10 - len(self.running))
        lease: Any = SimpleNamespace(owns=lambda job: True)
        runner: Any = SimpleNamespace(start=self.running.append)
        ownership: Any = SimpleNamespace(give_back=self.dropped.append)
        self.prefetch = PrefetchBuffer(10, slots=slots, lease=lease, runner=runner, ownership=ownership)

    def add(self, *names: str) -> None:
        for name in names:
            self.prefetch.add(SimpleNamespace(name=name, claim_id=f"claim of {name}"))  # type: ignore[arg-type]

    def end(self, number: int) -> None:
        del self.running[:number]
        self.prefetch.feed()

    def names(self, jobs: list[Any]) -> str:
        return " ".join(job.name for job in jobs)


@pytest.fixture
def threads() -> Threads:
    return Threads()


def test_nothing_is_claimed_ahead_of_tasks_that_nobody_knows(threads: Threads) -> None:
    assert threads.prefetch.free() == 10
    assert threads.prefetch.ahead() == 0


@pytest.mark.parametrize(
    ("seconds", "ahead"), [(0.0, 50), (0.0005, 50), (0.0025, 40), (0.005, 20), (0.01, 0), (5.0, 0)]
)
def test_as_much_is_claimed_ahead_as_takes_a_moment(threads: Threads, seconds: float, ahead: int) -> None:
    threads.prefetch.took(seconds)
    assert threads.prefetch.ahead() == ahead


def test_a_long_task_among_short_ones_counts_for_a_while(threads: Threads) -> None:
    threads.prefetch.took(0.001)
    threads.prefetch.took(1.0)
    passed = 0
    while not threads.prefetch.ahead():
        threads.prefetch.took(0.001)
        passed += 1
    assert 30 < passed < 60


async def test_what_waits_is_started_in_its_turn_as_threads_come_free(threads: Threads) -> None:
    threads.prefetch.took(0.001)
    threads.add(*"abcdefghijklmn")
    assert threads.names(threads.running) == "a b c d e f g h i j"
    assert threads.prefetch.claim_ids == {f"claim of {name}" for name in "klmn"}
    assert threads.prefetch.free() == -4
    assert threads.prefetch.ahead() == 46
    threads.end(3)
    assert threads.names(threads.running) == "d e f g h i j k l m"
    threads.end(5)
    assert threads.names(threads.running) == "i j k l m n"
    assert threads.prefetch.claim_ids == set()
    assert threads.prefetch.free() == 4
    assert not threads.dropped


async def test_claims_ahead_are_not_of_a_few_at_a_time(threads: Threads) -> None:
    threads.prefetch.took(0.001)
    threads.add(*"abcdefghij", *map(str, range(26)))
    assert threads.prefetch.ahead() == 0
    threads.end(1)
    assert threads.prefetch.ahead() == 25


async def test_what_waits_too_long_is_given_back(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is behind it, which must not start first, as its priority may be lower. And nothing is
    claimed ahead until tasks are seen to be short again.
    """
    threads.prefetch.took(0.001)
    monkeypatch.setattr(prefetch_module, "PATIENCE", 0.01)
    threads.add(*"abcdefghijkl")
    monkeypatch.setattr(prefetch_module, "PATIENCE", 60.0)
    threads.add("m")  # may wait for longer
    await until(lambda: threads.dropped)
    assert threads.names(threads.dropped) == "k l m"
    assert threads.prefetch.claim_ids == set()
    assert threads.prefetch.ahead() == 0


async def test_a_loop_that_was_blocked_starts_before_it_gives_back(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "PATIENCE", 0.0)
    threads.add(*"abcdefghijkl")
    del threads.running[:1]  # nobody has said so yet
    await until(lambda: not threads.prefetch.claim_ids)
    assert threads.names(threads.running) == "b c d e f g h i j k"
    assert threads.names(threads.dropped) == "l"


async def test_at_the_end_nothing_waits(threads: Threads) -> None:
    threads.add(*"abcdefghijkl")
    threads.prefetch.close()
    assert threads.names(threads.dropped) == "k l"
    threads.add("m")  # a claim was under way
    assert threads.names(threads.dropped) == "k l m"
    threads.end(1)
    threads.add("n")
    assert threads.names(threads.running) == "b c d e f g h i j n"
