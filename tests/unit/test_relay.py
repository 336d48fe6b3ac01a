"""Relay: which wake-ups a worker passes on, and how often."""

import gc
from dataclasses import replace
from typing import Any

import pytest

from aiotasks.rows import Lane
from aiotasks.store.wakeups import Wakeup
from aiotasks.worker.claiming import relay as relay_module
from aiotasks.worker.claiming.relay import Relay
from tests.worker.harness import until


class Others:
    def __init__(self) -> None:
        self.got: list[Wakeup] = []

    def pass_on(self, wakeup: Wakeup) -> None:
        self.got.append(wakeup)

    def pass_turn_on(self) -> None:
        """No test of these passes a turn on."""


class Job:
    def __init__(self, queue_name: str) -> None:
        self.queue_name = queue_name


def jobs(number: int, queue_name: str = "q") -> list[Any]:
    return [Job(queue_name) for _ in range(number)]


def news(place: int = 1, queue_name: str = "q", lane: Lane | None = "loop", passed: int = 0) -> Wakeup:
    return Wakeup("default", queue_name, lane=lane, passed=passed, place=place)


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def relay(others: Others) -> Relay:
    return Relay(others, backend="default")


async def test_what_a_claim_has_left_to_others_is_passed_on_once(relay: Relay, others: Others) -> None:
    """Where they know its limit. What a walk comes by isn't, or workers would wake each other forever."""
    keyed = [replace(news(queue_name=name), keyed=True) for name in ("q", "other")]
    for wakeup in keyed:
        relay.woken(wakeup)
    relay.claims(["loop"], keyed=True)
    relay.left("thread", {"q"})
    relay.left("loop", set())
    assert others.got == []
    relay.left("loop", {"q"})
    relay.claims(["loop"], keyed=True)
    relay.left("loop", {"q"})
    assert others.got == keyed[:1]


async def test_the_first_passes_on_what_it_cannot_claim(relay: Relay, others: Others) -> None:
    relay.woken(news(place=2))  # the first passes it on, if need be
    relay.woken(news())
    relay.claims(["loop"])
    relay.pass_on()
    assert others.got == []
    relay.woken(news(passed=2))
    relay.woken(news(lane="thread"))
    relay.claims(["loop"])
    assert others.got == [news(lane="thread")]
    relay.pass_on()
    assert others.got == [news(lane="thread")]


async def test_a_full_claim_calls_others_once_until_one_is_short(relay: Relay, others: Others) -> None:
    relay.woken(news(passed=1))
    relay.claims(["loop"])
    relay.claimed("loop", jobs(10), 10)
    relay.claimed("thread", [], 0)  # no room, so nothing was asked for
    relay.claimed("loop", jobs(10), 10)
    assert others.got == [news(place=0, passed=1)]
    relay.claimed("loop", jobs(9), 10)
    relay.claimed("loop", jobs(10), 10)
    await until(lambda: len(others.got) == 2)


async def test_a_claim_from_many_queues_calls_for_some(relay: Relay, others: Others) -> None:
    relay.claimed("loop", [job for n in range(100) for job in jobs(1, f"q{n}")], 100)
    assert len(others.got) == relay_module.PASS_QUEUES


async def test_it_passes_on_once_in_a_while_and_forgets_none(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 0.3)
    for _ in range(50):
        relay.woken(news())
        relay.pass_on()
    relay.woken(news(queue_name="other"))
    relay.woken(news(lane="thread"))
    relay.pass_on()
    assert len(others.got) == 1
    await until(lambda: len(others.got) == 4)
    assert set(others.got[1:]) == {news(), news(queue_name="other"), news(lane="thread")}


async def test_what_all_have_heard_needs_no_passing_on_for_a_while(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 0.3)
    relay.woken(news(lane=None, place=0))
    relay.claimed("loop", jobs(10), 10)
    assert others.got == []
    await until(lambda: others.got == [news(place=0)])


async def test_at_the_end_nothing_waits(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 3600)
    relay.woken(news())
    relay.pass_on()
    relay.woken(news(queue_name="other"))
    relay.pass_on()
    relay.woken(news(queue_name="unanswered"))
    relay.close()
    assert [wakeup.queue_name for wakeup in others.got] == ["q", "other", "unanswered"]


async def test_keyed_and_plain_wakeups_wait_for_their_turns(relay: Relay, others: Others) -> None:
    """A claim of the one kind says nothing of the other's, until the worker has nothing to claim."""
    keyed = replace(news(), keyed=True)
    relay.woken(news())
    relay.woken(keyed)
    relay.claims(["loop"])
    relay.claimed("loop", [], 1)
    assert others.got == []
    relay.claims(["loop"], keyed=True)
    relay.claimed("loop", [], 1, keyed=True)
    relay.pass_on()
    assert others.got == []
    relay.woken(keyed)
    relay.claims(["loop"])
    relay.pass_on()
    assert others.got == [keyed]


async def test_a_full_keyed_claim_calls_others(relay: Relay, others: Others) -> None:
    relay.woken(replace(news(passed=1), keyed=True))
    relay.claims(["loop"], keyed=True)
    relay.claimed("loop", jobs(2), 2, keyed=True)
    assert others.got == [Wakeup("default", "q", lane="loop", passed=1, keyed=True)]
    relay.claims(["loop"])
    relay.claimed("loop", jobs(2), 2)
    await until(lambda: len(others.got) == 2)
    assert others.got[-1] == Wakeup("default", "q", lane="loop")


async def test_what_comes_after_the_end_is_passed_on(relay: Relay, others: Others) -> None:
    relay.close()
    relay.woken(news())
    assert others.got == [news()]


async def test_a_worker_without_others_keeps_no_wake_ups() -> None:
    """There is nobody to pass them on to, and new queues may come for as long as the worker runs."""
    relay = Relay(None, backend="default")
    before = wakeups_in_memory()
    for number in range(10):
        relay.woken(news(lane=None, place=0))
        relay.woken(news(queue_name=f"not claimed {number}"))
        relay.pass_on()
        relay.woken(news(queue_name=f"left {number}"))
        relay.claims(["loop"])
        relay.claimed("loop", jobs(5), 5)
        relay.woken(news(queue_name=f"failed {number}"))
        relay.claims(["loop"])
        relay.failed()
    relay.pass_turn_on()
    assert wakeups_in_memory() == before
    relay.close()


def wakeups_in_memory() -> int:
    gc.collect()
    return sum(type(one) is Wakeup for one in gc.get_objects())  # isinstance() would evaluate lazy objects


async def test_a_claim_that_is_given_up_after_the_end_passes_on(relay: Relay, others: Others) -> None:
    relay.woken(news())
    relay.claims(["loop"])
    relay.close()
    assert others.got == []  # the claim under way may answer it
    relay.failed()
    assert others.got == [news()]


async def test_a_full_claim_leaves_wake_ups_of_other_queues(relay: Relay, others: Others) -> None:
    """Though the claim before was full, too: their tasks would wait for this worker's slots."""
    relay.claimed("loop", jobs(5), 5)
    others.got.clear()
    for name in ("q", "left", "also"):
        relay.woken(news(queue_name=name, passed=1))
    relay.claims(["loop"])
    relay.claimed("loop", jobs(5), 5)
    await until(lambda: len(others.got) == 2)
    assert set(others.got) == {news(queue_name="left", passed=1), news(queue_name="also", passed=1)}


async def test_a_short_claim_has_answered_all(relay: Relay, others: Others) -> None:
    relay.woken(news(queue_name="empty"))
    relay.claims(["loop"])
    relay.claimed("loop", jobs(4), 5)
    relay.pass_on()
    relay.close()
    assert others.got == []


async def test_a_claim_that_fails_passes_on_until_the_next(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 0.0)
    relay.woken(news())
    relay.claims(["loop"])
    relay.failed()
    relay.woken(news(queue_name="during the pause"))
    assert [wakeup.queue_name for wakeup in others.got] == ["q", "during the pause"]
    relay.claims(["loop"])
    relay.woken(news())
    assert len(others.got) == 2


async def test_what_waits_is_dropped_once_all_have_heard_it(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 3600)
    for name in ("first", "q", "other"):
        relay.woken(news(queue_name=name))
        relay.pass_on()
    relay.woken(news(lane=None, place=0))
    relay.close()
    assert [wakeup.queue_name for wakeup in others.got] == ["first", "other"]


async def test_at_the_end_it_passes_on_at_once(
    relay: Relay, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop may be closed before a timer."""
    monkeypatch.setattr(relay_module, "PASS_INTERVAL", 3600)
    relay.woken(news())
    relay.close()
    relay.woken(news(queue_name="late"))
    assert [wakeup.queue_name for wakeup in others.got] == ["q", "late"]
