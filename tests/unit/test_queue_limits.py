"""QueueLimits: what is asked for, and when a claim has to be followed by another."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from aiotasks.rows import LANES, Lane, LaneRequest
from aiotasks.worker.claiming.queue_limits import QueueLimits

LIMIT = 10


class Worker:
    """A worker that claims from queues whose tasks are numbers by queue and lane."""

    def __init__(self, limits: dict[str, int], ready: dict[tuple[str, Lane], int]) -> None:
        self.ready = ready
        self.running: list[Any] = []
        self.told: list[str] = []
        self.queues = sorted({name for name, _ in ready})
        self.limits = QueueLimits(limits, held=lambda: self.running)

    def claim(
        self, slots: int = LIMIT, lanes: Iterable[Lane] = LANES, *, unsure: Collection[Lane] = ()
    ) -> set[Lane]:
        """Claim once; returns the lanes that have to be asked again."""
        wanted = {lane: LaneRequest(list(self.queues), [], slots if lane in lanes else 0) for lane in LANES}
        for lane in LANES:
            wanted[lane] = replace(wanted[lane], since=[None] * len(self.queues))  # type: ignore[list-item]
        requests = self.limits.restrict(wanted, [])
        jobs: list[Any] = []
        for lane, request in requests.items():
            left = request.limit
            for name, most in zip(request.queues, request.most or [LIMIT] * len(request.queues), strict=True):
                number = min(self.ready.get((name, lane), 0), most, left)
                left -= number
                if number:
                    self.ready[name, lane] -= number
                jobs += [SimpleNamespace(id=uuid4(), queue_name=name, lane=lane) for _ in range(number)]
        self.running += jobs
        learned = self.limits.learn(requests, jobs, unsure=unsure)
        self.told += learned.filled
        return set(learned.left)

    def claim_until_quiet(self) -> int:
        """Claim as often as it takes; returns how often that was."""
        for number in range(1, 10):
            if not self.claim():
                return number
        raise AssertionError("The worker spins.")

    def runs(self, name: str, lane: Lane | None = None) -> int:
        return sum(job.queue_name == name and lane in (None, job.lane) for job in self.running)


def test_without_limits_nothing_is_narrowed() -> None:
    limits = QueueLimits({}, held=lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    requests: dict[Lane, LaneRequest] = {lane: LaneRequest(["a"], [], 5) for lane in LANES}
    assert limits.restrict(requests, []) is requests
    assert not limits.learn(requests, []).left
    assert not limits.has_room_again()
    assert limits.served(["a"]) == ["a"]


def test_a_limit_is_for_both_lanes_together() -> None:
    worker = Worker({"a": 3}, {("a", "loop"): 50, ("a", "thread"): 50, ("b", "loop"): 2})
    worker.claim_until_quiet()
    assert (worker.runs("a"), worker.runs("b")) == (3, 2)
    assert worker.limits.at_limit == {"a"}
    assert worker.limits.served(["a", "b"]) == ["b"]
    assert worker.claim() == set()  # what is full isn't asked
    assert worker.runs("a") == 3


def test_lanes_have_the_room_by_turns() -> None:
    worker = Worker({"a": 1}, {("a", "loop"): 50, ("a", "thread"): 50})
    lanes = []
    for _ in range(10):
        worker.claim_until_quiet()
        (job,) = worker.running
        lanes.append(job.lane)
        worker.running.clear()
        assert worker.limits.has_room_again()
        assert not worker.limits.has_room_again()
    assert lanes.count("loop") == lanes.count("thread") == 5


def test_a_queue_of_one_lane_fills_its_room_whichever_lane_is_asked_first() -> None:
    for lane in LANES:
        worker = Worker({"a": 4}, {("a", lane): 50})
        for _ in range(5):
            assert worker.claim_until_quiet() <= 2
            assert worker.runs("a", lane) == 4
            worker.running.clear()
            assert worker.limits.has_room_again()
            worker.limits.forget()


def test_an_empty_queue_ends_the_claims() -> None:
    worker = Worker({"a": 4}, {("a", "loop"): 0})
    assert worker.claim_until_quiet() == 2
    assert worker.claim_until_quiet() == 1  # without news neither lane is asked for the other's sake
    worker.limits.forget()
    worker.ready["a", "thread"] = 1
    worker.claim_until_quiet()
    assert worker.runs("a", "thread") == 1


def test_a_lane_without_slots_leaves_the_room_to_the_other() -> None:
    worker = Worker({"a": 4}, {("a", "loop"): 50, ("a", "thread"): 50})
    assert worker.claim(lanes=["thread"]) == set()
    assert worker.runs("a", "thread") == 4


def test_others_are_told_once_of_what_has_no_room() -> None:
    worker = Worker({"a": 1}, {("a", "loop"): 5})
    for _ in range(8):
        worker.claim_until_quiet()
        worker.running.clear()
        worker.limits.has_room_again()
        worker.limits.forget()
    assert worker.told == ["a"]
    worker.ready["a", "loop"] = 2
    worker.claim_until_quiet()
    assert worker.told == ["a", "a"]


def test_a_lane_of_which_a_claim_has_shown_nothing_is_not_taken_for_empty() -> None:
    worker = Worker({"a": 9}, {("a", "loop"): 0})
    worker.claim_until_quiet()
    worker.limits.forget()
    asked = [worker.claim(unsure=LANES) for _ in range(4)]
    assert all(asked)
    worker.ready["a", "loop"] = 3
    worker.claim_until_quiet()
    assert worker.runs("a", "loop") == 3
