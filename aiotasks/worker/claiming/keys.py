"""Keys: which keys of limits the next claims of a lane name. No I/O."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import ceil, inf
from typing import Literal, NamedTuple

from .doubts import DELAYS

__all__ = ["CROWDED", "Answer", "Key", "Keys"]

# Keys that are remembered for a lane, so that memory stays bounded (0.5 kB each); those of them that wait for
# a time; and forgotten ones that have had more than their share. Chosen: as many as a worker claims from in
# some seconds. The walk finds the others.
KEYS_LIMIT, LATER_LIMIT, AHEAD_LIMIT = 10_000, 8_000, 10_000

# Where so many keys wait for their turn, one that has had its turn leaves, and comes back by the walk: else
# the keys that the walk hasn't come to would wait until the others have no tasks. Chosen: the work of some
# claims.
CROWDED = 2_000

# Keys that a claim names at most. Measured: one that is full costs 20 to 60 µs, so a claim that finds nothing
# takes 5 ms.
MOST_NAMED = 250

# Tasks that a claim expects of a key, on average. The more, the fewer keys it names, because a key costs more
# than another task of it; with too few the keys take turns in long steps. The fewer, the faster it passes
# over keys that are full.
LEAST_YIELD, MOST_YIELD = 1 / 64, 8.0

# Seconds until a key is tried again that another claim has locked, which takes a millisecond. A transaction
# of an operator may take longer, so they double.
BUSY_DELAY, LONGEST_BUSY_DELAY = 0.001, 0.25

# Seconds after which a closed key is tried again at the latest: an operator may have opened it.
LONGEST_WAIT = 60.0

# Keys of a claim that are doubted (see Doubts), at most. Chosen: where a paused task has many keys, the
# doubts would cost more than the claim.
MOST_DOUBTED = 8

type _Name = tuple[str, str]

type State = Literal["more", "full", "paused", "none", "closed", "busy", "left"]


class Answer(NamedTuple):
    """What a claim says of a key that it has named.

    state: ``more`` tasks of it may be claimed; it is ``full`` or ``paused``, or has ``none``, also by what
    the claim has taken; it is ``closed`` for so many seconds (``wait``); it was ``busy``, because another
    claim had it; or was ``left``, because the claim had no slots for it.
    """

    state: State
    wait: float = 0.0
    weight: int = 1


LEFT = Answer("left")


@dataclass(slots=True, eq=False)
class Key:
    """A key of a limit in one queue.

    task_path: of a task that has it. priority: of its next task, as far as is known.
    """

    queue_name: str
    key: str
    task_path: str
    priority: int
    weight: int = 1
    had: float = 0.0  # tasks for its weight, as Level.time counts them
    place: Literal["waiting", "later", "closed", "asked"] = "waiting"
    entry: int = 0  # the number of its entry in a heap, if that is valid
    told: int | None = None  # while it was asked, with this priority
    listed: bool = False  # a look has shown a task of it
    doubts: int = 0
    busy: int = 0  # claims in a row that found it locked


@dataclass(slots=True)
class _Level:
    """The keys of one priority that wait for their turn. ``time``: what those had whose turn it was last."""

    heap: list[tuple[float, int, Key]] = field(default_factory=list)
    time: float = 0.0


class Keys:
    """Whose turn it is.

    A key waits for its turn from when it is told, because a task of it has ended here or a look has found
    one, until a claim shows that it is full or has no task: whoever ends a task of it then tells it again.
    Where its rate is spent, it is tried again by the time.

    Keys of a higher priority come first. Of those of the same, the one is next that has had the fewest tasks
    for its weight. That is remembered while it is full or closed: a key that is told again and again, because
    its tasks are short, holds up no other. One that comes new, or had no tasks, begins where the others are.
    """

    def __init__(self) -> None:
        self._keys: dict[_Name, Key] = {}
        self._levels: defaultdict[int, _Level] = defaultdict(_Level)
        self._timers: list[tuple[float, int, Key]] = []
        self._numbers = count(1)
        self._waiting = 0
        self._ahead: dict[_Name, tuple[int, float]] = {}  # priority and ``had`` of forgotten keys
        self._yield = 1.0
        self.has_dropped = False
        """Whether keys were left out that have tasks, so that a walk has to come by them again."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def waiting(self) -> int:
        """How many keys wait for their turn."""
        return self._waiting

    @property
    def has_open(self) -> bool:
        """Whether there is a key that waits for its turn, or will in a moment: others are closed."""
        return any(key.place != "closed" for key in self._keys.values())

    @property
    def at(self) -> float:
        """When the first of those that are tried by the time is due; ``inf`` if there is none."""
        timers = self._timers
        while timers and timers[0][2].entry != timers[0][1]:
            heapq.heappop(timers)
        return timers[0][0] if timers else inf

    def has_any(self, now: float) -> bool:
        """Return whether there is a key to name."""
        return self._waiting > 0 or self.at <= now

    def queues(self) -> set[str]:
        """Return the queues of the keys that wait for their turn."""
        return {key.queue_name for key in self._keys.values() if key.place == "waiting"}

    def wanted(self, slots: int) -> int:
        """Return how many keys a claim for so many slots should name."""
        return min(ceil(slots / self._yield) + 2, MOST_NAMED)

    def tell(self, queue_name: str, key: str, task_path: str, priority: int, *, listed: bool = False) -> None:
        """Have claims try a key: a task of it has ended, or a look has ``listed`` one.

        That is no news of a key that waits already, unless it is more urgent, nor of a closed one.
        """
        name = queue_name, key
        known = self._keys.get(name)
        if known is None:
            if listed and len(self._keys) >= KEYS_LIMIT:
                self.has_dropped = True
                return
            known = self._keys[name] = Key(queue_name, key, task_path, priority, listed=listed)
            self._enter(name, known)
            return
        known.listed |= listed
        if known.place == "asked":
            known.told = priority if known.told is None else max(known.told, priority)
            return
        is_later = known.place == "later"
        if is_later or priority > known.priority:
            self._waiting -= known.place == "waiting"
            if priority > known.priority:
                self._move(known, priority)
            if known.place != "closed":
                self._wait(known)

    def open_all(self) -> None:
        """Try the closed keys now: an operator may have opened them."""
        timers, self._timers = self._timers, []
        for _, number, key in timers:
            if key.entry == number:
                self._wait(key)

    def take(self, slots: int, now: float) -> list[Key]:
        """Return the keys that a claim for ``slots`` tasks names, in their order, each key of a limit once.

        They must be given to ``learn()`` or ``put_back()``.
        """
        while self.at <= now:
            self._wait(heapq.heappop(self._timers)[2])
        number = self.wanted(slots)
        named: dict[str, Key] = {}
        twice: list[Key] = []  # in another queue
        for priority in sorted(self._levels, reverse=True):
            heap = self._levels[priority].heap
            while heap and len(named) < number:
                _, entry, key = heapq.heappop(heap)
                if key.entry != entry:
                    continue
                self._waiting -= 1
                if key.key in named:
                    twice.append(key)
                else:
                    key.place, key.entry, key.told = "asked", 0, None
                    named[key.key] = key
        self.put_back(twice)
        return list(named.values())

    def put_back(self, keys: Iterable[Key]) -> None:
        """Have keys wait again for their turn, because no claim has asked them after all."""
        for key in keys:
            self._wait(key)

    def learn(
        self,
        asked: Collection[Key],
        answers: Mapping[str, Answer],
        given: Mapping[str, list[int]],
        now: float,
    ) -> None:
        """Learn from the reply to a claim that has named the keys ``asked``.

        answers: by key; keys without one wait again. given: the priorities of the tasks of each.
        """
        self._pass_time([key for key in asked if key.key in given])
        is_crowded = self._waiting + len(asked) >= CROWDED
        more = looked_at = doubted = 0
        for key in asked:
            answer = answers.get(key.key, LEFT)
            key.weight = answer.weight
            if priorities := given.get(key.key):
                key.busy = key.doubts = 0
                key.had += len(priorities) / key.weight
                if (lowest := min(priorities)) < key.priority:  # that of its next task is no higher
                    self._move(key, lowest)
            looked_at += answer.state != "left"
            more += answer.state == "more"
            match answer.state:
                case "more" if priorities and is_crowded:
                    self.has_dropped = True
                    self._forget(key)
                case "more" | "left":
                    self._wait(key)
                case "full" | "paused":
                    self._forget(key)
                case "closed":
                    self._later(key, now + min(max(answer.wait, BUSY_DELAY), LONGEST_WAIT), "closed")
                case "busy":
                    delay = min(BUSY_DELAY * 2**key.busy, LONGEST_BUSY_DELAY)
                    key.busy = min(key.busy + 1, 10)
                    self._later(key, now + delay, "later")
                case "none":
                    is_doubtful = key.listed and not priorities and key.told is None
                    if is_doubtful and key.doubts < len(DELAYS) and doubted < MOST_DOUBTED:
                        doubted += 1
                        self._later(key, now + DELAYS[key.doubts], "later")
                        key.doubts += 1
                    else:
                        self._forget(key)
        self._learn_yield(sum(map(len, given.values())), looked_at, more)

    def _learn_yield(self, given: int, looked_at: int, more: int) -> None:
        if looked_at:
            if 4 * more >= 3 * looked_at:
                self._yield = min(max(self._yield, 1.0) * 1.5, MOST_YIELD)
            else:
                self._yield = min(max((self._yield + given / looked_at) / 2, LEAST_YIELD), MOST_YIELD)

    def _pass_time(self, keys: Iterable[Key]) -> None:
        """It was the turn of these keys."""
        had: dict[int, float] = {}
        for key in keys:
            had[key.priority] = min(key.had, had.get(key.priority, inf))
        for priority, least in had.items():
            level = self._levels[priority]
            level.time = max(level.time, least)

    # --- Where a key is

    def _enter(self, name: _Name, key: Key) -> None:
        """Have a key wait that comes new, or comes back: it has had what it had beyond its share."""
        key.had = self._levels[key.priority].time
        if (before := self._ahead.pop(name, None)) is not None:
            priority, had = before
            key.had += max(0.0, had - self._levels[priority].time)
        self._wait(key)

    def _move(self, key: Key, priority: int) -> None:
        ahead = max(0.0, key.had - self._levels[key.priority].time)
        key.priority, key.had = priority, self._levels[priority].time + ahead

    def _wait(self, key: Key) -> None:
        if key.told is not None and key.told > key.priority:
            self._move(key, key.told)
        level = self._levels[key.priority]
        key.had = max(key.had, level.time)
        key.place, key.entry, key.told = "waiting", next(self._numbers), None
        self._waiting += 1
        heapq.heappush(level.heap, (key.had, key.entry, key))

    def _later(self, key: Key, at: float, place: Literal["later", "closed"]) -> None:
        if len(self._timers) >= LATER_LIMIT:
            key.told = None
            self._forget(key)
            return
        key.place, key.entry, key.told = place, next(self._numbers), None
        heapq.heappush(self._timers, (at, key.entry, key))

    def _forget(self, key: Key) -> None:
        if key.told is not None:
            self._wait(key)
            return
        key.entry = 0
        name = key.queue_name, key.key
        del self._keys[name]
        if key.had > self._levels[key.priority].time:
            self._ahead[name] = key.priority, key.had
            if len(self._ahead) > AHEAD_LIMIT:
                del self._ahead[next(iter(self._ahead))]
