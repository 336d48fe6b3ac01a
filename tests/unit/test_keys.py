"""Keys and KeyWalk, by a simulation of the table: fairness, no starvation, bounded claims."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming import keys as keys_module
from aiotasks.worker.claiming import lane_keys as lane_keys_module
from aiotasks.worker.claiming.key_walk import WINDOW, KeyWalk, Look
from aiotasks.worker.claiming.keys import MOST_NAMED, Answer, Keys
from aiotasks.worker.claiming.lane_keys import LaneKeys
from aiotasks.worker.claiming.queue_limits import QueueLimits


class Table:
    """Stands in for ``claim_keyed`` and the tasks: by key the priorities of those that wait, and who runs."""

    def __init__(
        self,
        *,
        places: int | None = None,
        weights: Callable[[str], int] = lambda key: 1,
        pace: float | None = None,
    ) -> None:
        self.ready: dict[str, list[int]] = {}
        self.running = Counter[str]()
        self.starts: dict[str, float] = {}  # when the next is allowed
        self.named = 0
        self.claims = 0
        self._places = places
        self._weights = weights
        self._pace = pace

    def add(self, key: str, number: int = 1, priority: int = 0) -> None:
        waiting = self.ready.setdefault(key, [])
        waiting += [priority] * number
        waiting.sort(reverse=True)

    def claim(self, keys: Keys, slots: int, now: float = 0.0) -> list[str]:
        """One claim; returns the key of each task that it took."""
        asked = keys.take(slots, now)
        assert len(asked) <= MOST_NAMED
        assert len({key.key for key in asked}) == len(asked)
        self.named += len(asked)
        self.claims += 1
        size = max(1, slots // max(1, sum(self._weights(key.key) for key in asked)))
        answers: dict[str, Answer] = {}
        given: dict[str, list[int]] = {}
        taken: list[str] = []
        for key in asked:
            name, weight = key.key, self._weights(key.key)
            if len(taken) >= slots:
                answers[name] = Answer("left", weight=weight)
                continue
            room = min(slots - len(taken), size * weight, len(self.ready.get(name, ())))
            if self._places is not None:
                room = min(room, self._places - self.running[name])
            if self._pace is not None:
                room = min(room, int(self.starts.get(name, 0.0) <= now))
            if room > 0:
                given[name] = [self.ready[name].pop(0) for _ in range(room)]
                self.running[name] += room
                taken += [name] * room
                if self._pace is not None:
                    self.starts[name] = now + self._pace
            answers[name] = self._answer(name, weight, now)
        keys.learn(asked, answers, given, now)
        return taken

    def _answer(self, name: str, weight: int, now: float) -> Answer:
        if not self.ready.get(name):
            return Answer("none", weight=weight)
        if self._places is not None and self.running[name] >= self._places:
            return Answer("full", weight=weight)
        if (wait := self.starts.get(name, 0.0) - now) > 0:
            return Answer("closed", wait, weight)
        return Answer("more", weight=weight)

    def end(self, keys: Keys, key: str) -> None:
        """A task of the key ends in this worker."""
        self.running[key] -= 1
        keys.tell("q", key, "path", 0)


def told(names: Iterable[str]) -> Keys:
    keys = Keys()
    for name in names:
        keys.tell("q", name, "path", 0)
    return keys


@pytest.mark.parametrize("slots", [1, 7])
def test_more_keys_than_are_remembered_take_turns(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    """By the walk: none waits until others have no tasks."""
    monkeypatch.setattr(keys_module, "CROWDED", 100)
    monkeypatch.setattr(lane_keys_module, "CROWDED", 100)
    table, names = Table(), [f"{number:04}" for number in range(1000)]
    for name in names:
        table.add(name, 50)
    lane = make_lane(slots)
    queue = Queue(*names)
    lane.walk.begin()
    shares = Counter[str]()
    while sum(shares.values()) < 10_000:
        lane.come_round()
        for key in queue.learn(lane.walk, lane.next_look(0.0)) or []:
            lane.keys_of("q").tell("q", key, "path", 0, listed=True)
        shares.update(table.claim(lane.keys_of("q"), slots))
    assert len(lane.keys_of("q")) < 400
    assert max(shares.values()) <= 3 * min(shares[name] for name in names)


def test_a_crowd_holds_up_no_look_for_urgent_tasks() -> None:
    """Only the walk waits, until fewer keys do: looks after wake-ups don't, nor those at the first tasks, at
    each poll.
    """
    lane = make_lane(1)
    queue = Queue(*[f"{number:05}" for number in range(5000)])
    lane.walk.begin()
    kinds = []
    while (look := lane.next_look(0.0)) is not None:
        kinds.append(look.kind)
        for key in queue.learn(lane.walk, look) or []:
            lane.keys_of("q").tell("q", key, "path", 0, listed=True)
    assert {*kinds} == {"walk"}
    for _ in range(3):
        lane.walk.wake("q", 0.0, delay=1.0, is_second=False)
        assert [look and look.kind for look in (lane.next_look(0.0), lane.next_look(0.0))] == ["recent", None]
        lane.walk.begin()  # a poll
        assert [look and look.kind for look in (lane.next_look(0.0), lane.next_look(0.0))] == ["top", None]


def make_lane(slots: int) -> LaneKeys:
    double: Any = SimpleNamespace(free=lambda lane: slots)
    return LaneKeys("loop", ["q"], slots=double, queue_limits=QueueLimits({}, held=list))


def test_a_key_that_is_told_is_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may know of it."""
    monkeypatch.setattr(keys_module, "KEYS_LIMIT", 10)
    keys = Keys()
    for number in range(30):
        keys.tell("q", f"listed:{number}", "path", 0, listed=True)
    assert len(keys) == 10
    assert keys.has_dropped
    keys.tell("q", "told", "path", 1)
    assert keys.take(1, 0.0)[0].key == "told"


@pytest.mark.parametrize("freed", [1, 3, 10, 40])
def test_keys_share_the_slots_by_their_weights(freed: int) -> None:
    table = Table(weights=lambda key: int(key[-1]))
    names = [f"k:{number}{weight}" for number in range(5) for weight in (1, 2, 3, 4)]
    for name in names:
        table.add(name, 5000)
    keys = told(random.sample(names, len(names)))
    shares = Counter[int]()
    while sum(shares.values()) < 5_000:
        for name in table.claim(keys, freed):
            shares[int(name[-1])] += 1
    total = sum(shares.values())
    assert all(abs(shares[weight] / total - weight / 10) < 0.02 for weight in (1, 2, 3, 4)), shares


def test_a_key_that_is_told_all_the_time_holds_up_no_other() -> None:
    """Ten keys with two places each and short tasks, and ten slots: each gets a tenth."""
    table = Table(places=2)
    names = [f"k:{number}" for number in range(10)]
    for name in names:
        table.add(name, 10_000)
    keys = told(names)
    shares = Counter[str]()
    running: list[str] = []
    for _ in range(5000):
        running += table.claim(keys, 10 - len(running))
        shares.update(running[:1])
        table.end(keys, running.pop(0))
    assert max(shares.values()) - min(shares.values()) <= 4, shares


def test_a_key_that_comes_new_waits_for_no_backlog() -> None:
    table = Table()
    for number in range(50):
        table.add(f"old:{number}", 1000)
    keys = told(table.ready)
    for _ in range(2000):
        table.claim(keys, 2)
    table.add("new", 1)
    keys.tell("q", "new", "path", 0)
    claims = next(number for number in count(1) if "new" in table.claim(keys, 2))
    assert claims <= 26  # one turn of the others at most
    assert "new" not in table.claim(keys, 2)


def test_an_urgent_task_comes_first() -> None:
    table = Table()
    for number in range(1000):
        table.add(f"k:{number}", 10)
    keys = told(table.ready)
    table.add("k:500", 1, priority=9)
    keys.tell("q", "k:500", "path", 9)
    assert table.claim(keys, 1) == ["k:500"]
    following = [name for _ in range(500) for name in table.claim(keys, 1)]
    assert following.count("k:500") <= 1  # its other tasks are as urgent as those of the others


def test_lower_priorities_are_not_behind_what_higher_ones_had() -> None:
    table = Table()
    keys = Keys()
    table.add("busy", 5000, priority=5)
    keys.tell("q", "busy", "path", 5)
    for _ in range(1000):
        table.claim(keys, 1)
    table.ready["busy"] = [0] * 10
    table.claim(keys, 1)  # shows that it has no others any more
    table.add("calm", 10)
    keys.tell("q", "calm", "path", 0)
    assert "calm" in [name for _ in range(3) for name in table.claim(keys, 1)]


def test_full_keys_are_passed_over_in_large_claims_and_forgotten() -> None:
    table = Table(places=1)
    for number in range(3000):
        table.add(f"k:{number}", 2)
        table.running[f"k:{number}"] = 1
    table.add("free", 1)
    keys = told([*table.ready])
    while "free" not in table.claim(keys, 2):
        pass
    assert table.claims < 50
    assert len(keys) == 0


def test_a_deep_backlog_takes_few_names() -> None:
    table = Table()
    for number in range(1000):
        table.add(f"k:{number}", 1000)
    keys = told(table.ready)
    for _ in range(100):
        table.claim(keys, 100)
    before = table.named
    taken = sum(len(table.claim(keys, 100)) for _ in range(100))
    assert taken / (table.named - before) > 5


def test_a_closed_key_is_tried_when_its_time_has_come() -> None:
    table = Table(pace=5.0)
    table.add("k", 3)
    keys = told(["k"])
    assert table.claim(keys, 10, now=0.0) == ["k"]
    keys.tell("q", "k", "path", 0)  # its task has ended, which opens nothing
    assert not keys.has_any(4.9)
    assert keys.at == 5.0
    assert table.claim(keys, 10, now=5.0) == ["k"]
    table.starts.clear()
    keys.open_all()  # an operator has raised the rate
    assert table.claim(keys, 10, now=5.1) == ["k"]


def test_a_closed_key_is_looked_at_once_a_minute() -> None:
    table = Table(pace=86_400.0)
    table.add("k", 3)
    keys = told(["k"])
    table.claim(keys, 1)
    assert keys.at == keys_module.LONGEST_WAIT


def test_a_locked_key_is_tried_again_soon_and_then_less_often() -> None:
    keys = told(["k"])
    now, waits = 0.0, []
    for _ in range(12):
        asked = keys.take(5, now)
        keys.learn(asked, {"k": Answer("busy")}, {}, now)
        waits.append(keys.at - now)
        now = keys.at
    shortest, longest = keys_module.BUSY_DELAY, keys_module.LONGEST_BUSY_DELAY
    expected = [min(shortest * 2**number, longest) for number in range(12)]
    assert waits == pytest.approx(expected)


def test_what_is_told_during_a_claim_is_not_forgotten() -> None:
    keys = told(["k"])
    asked = keys.take(1, 0.0)
    keys.tell("q", "k", "path", 3)
    keys.learn(asked, {"k": Answer("full")}, {}, 0.0)
    assert [(key.key, key.priority) for key in keys.take(1, 0.0)] == [("k", 3)]


def test_a_listed_key_without_a_task_is_doubted_twice() -> None:
    """Its tasks may have been locked, and nobody tells when that ends."""
    keys = Keys()
    keys.tell("q", "k", "path", 0, listed=True)
    now, times = 0.0, []
    while keys.has_any(now):
        asked = keys.take(1, now)
        keys.learn(asked, {"k": Answer("none")}, {}, now)
        times.append(now)
        now = min(keys.at, 10.0)
    assert times == [0.0, 0.05, 0.3]
    assert len(keys) == 0


def test_a_key_stands_once_in_a_claim() -> None:
    keys = Keys()
    for queue_name in ("a", "b"):
        keys.tell(queue_name, "k", "path", 0)
    assert len(keys.take(10, 0.0)) == 1
    assert len(keys.take(10, 0.0)) == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"KEYS_LIMIT": 100, "LATER_LIMIT": 80, "AHEAD_LIMIT": 50}.items():
        monkeypatch.setattr(keys_module, name, value)
    table = Table(pace=100.0)
    keys = Keys()
    for number in range(1000):
        table.add(f"k:{number}", 2)
        keys.tell("q", f"k:{number}", "path", 0)
        table.claim(keys, 1, now=0.0)
    assert len(keys) <= 81
    assert len(keys._ahead) <= 50
    keys.tell("q", "another", "path", 0)
    table.add("another")
    assert table.claim(keys, 1) == ["another"]


# --- The walk


class Queue:
    """The keys of one queue, as looks list them."""

    def __init__(self, *names: str) -> None:
        self.names = sorted(names)

    def look(self, walk: KeyWalk, now: float) -> list[str] | None:
        """The keys that the next look lists; None if none is due."""
        return self.learn(walk, walk.next(now))

    def learn(self, walk: KeyWalk, look: Look | None) -> list[str] | None:
        """What a look lists."""
        if look is None:
            return None
        found = []
        if look.kind == "walk":
            found = [name for name in self.names if name > look.after[0]][: look.at_most]
        elif look.kind == "recent":
            found = self.names[-3:]
        walk.learn(look, [("q", name) for name in found])
        return found

    def cycle(self, walk: KeyWalk, now: float) -> list[str]:
        found = []
        while walk.at <= now:
            found += self.look(walk, now) or []
        return found


def test_a_poll_without_keyed_tasks_is_one_look() -> None:
    walk, queue = KeyWalk(["q"]), Queue()
    for _ in range(3):
        walk.begin()
        assert queue.look(walk, 0.0) == []
        assert walk.is_over
        assert queue.look(walk, 0.0) is None


def test_the_walk_comes_by_every_key_once() -> None:
    walk, queue = KeyWalk(["q"]), Queue(*(f"{number:04}" for number in range(1000)))
    walk.begin()
    assert sorted(queue.cycle(walk, 0.0)) == queue.names
    walk.begin()
    assert walk.next(0.0).kind == "top"  # type: ignore[union-attr]  # it is known to be long now
    assert sorted(queue.cycle(walk, 0.0)) == queue.names


def test_polls_do_not_keep_a_walk_from_coming_round() -> None:
    walk, queue = KeyWalk(["q"]), Queue(*(f"{number:04}" for number in range(1000)))
    found: set[str] = set()
    for _ in range(20):
        walk.begin()
        found.update(queue.look(walk, 0.0) or [])
    assert len(found) == 1000


def test_news_during_a_walk_has_it_come_by_every_key_again() -> None:
    """An operator may have resumed a key that it has passed already."""
    walk, queue = KeyWalk(["q"]), Queue(*(f"{number:04}" for number in range(1000)))
    walk.begin()
    before = queue.look(walk, 0.0)
    for _ in range(3):
        walk.begin(news=True)
    found = queue.cycle(walk, 0.0)
    assert sorted([*(before or []), *found]) == sorted(queue.names * 2)
    assert walk.is_over


def test_a_wakeup_looks_at_all_of_a_short_queue_and_at_recent_tasks_of_a_long_one() -> None:
    walk, queue = KeyWalk(["q"]), Queue("a", "b", "c", "d")
    walk.wake("q", 0.0, delay=0.006, is_second=False)
    assert queue.look(walk, 0.0) == ["a", "b", "c", "d"]
    assert walk.at == 0.006
    assert queue.look(walk, 0.006) == ["a", "b", "c", "d"]
    assert walk.is_over

    queue = Queue(*(f"{number:04}" for number in range(WINDOW + 1)))
    walk.begin()
    queue.cycle(walk, 1.0)
    walk.wake("q", 1.0, delay=0.006, is_second=False)
    assert queue.look(walk, 1.0) == queue.names[-3:]


def test_the_second_worker_of_a_wakeup_looks_later() -> None:
    walk = KeyWalk(["q"])
    walk.wake("q", 1.0, delay=0.006, is_second=True)
    assert walk.at == 1.006
    walk.wake("q", 1.003, delay=0.006, is_second=True)
    assert walk.at == 1.006
    assert Queue().look(walk, 1.006) == []
    assert walk.at == pytest.approx(1.009)


def test_walks_that_lead_to_nothing_take_a_tenth_of_the_time_together() -> None:
    walk, queue = KeyWalk(["q"]), Queue(*(f"{number:05}" for number in range(10_000)))
    now, looks = 0.0, 0
    walk.begin()
    while looks < 500:
        now = max(now, walk.at)
        look = walk.next(now)
        assert look is not None
        found = [name for name in queue.names if name > (look.after or [""])[0]][: look.at_most]
        walk.learn(look, [("q", name) for name in found] if look.kind == "walk" else [])
        now += 0.01
        walk.took(0.01, look, now, workers=4)
        walk.begin()
        looks += 1
    eager = 157 * 0.02  # the first walk
    assert now == pytest.approx(eager + (500 - 157) * 0.4, rel=0.05)


def test_a_claim_that_gives_goes_on_at_once() -> None:
    walk = KeyWalk(["q"])
    walk.begin()
    walk.took(1.0, None, 0.0, workers=1)
    assert walk.at > 0.0
    walk.gave()
    assert walk.at < 0.0


def test_queues_of_any_name_are_met_and_left() -> None:
    walk = KeyWalk([])
    walk.begin()
    assert walk.is_over
    assert walk.meet("q")
    assert Queue("a").look(walk, 0.0) == ["a"]
    walk.begin()
    assert Queue().look(walk, 0.0) == []
    walk.begin()
    assert walk.is_over


def test_queues_that_are_not_served_are_not_looked_at() -> None:
    walk = KeyWalk(["q"])
    assert not walk.meet("other")
    walk.wake("other", 0.0, delay=0.006, is_second=False)
    assert walk.is_over
