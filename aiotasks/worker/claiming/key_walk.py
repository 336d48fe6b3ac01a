"""KeyWalk: where the next look for keys of limits goes, and when. No I/O."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Literal, NamedTuple

from .turns import NAMES_LIMIT

__all__ = ["RECENT", "KeyWalk", "Look"]

# Keys that a look lists of one queue, or of some together, and queues in which it looks; in a walk over keys
# that are full, as many as a claim can name. Measured: a key takes the database 12 µs, and a queue without
# one 5 µs.
WINDOW = 64
QUEUES_AT_ONCE = 32

# Seconds from a task's enqueue in which a look for recent ones finds it, after its wake-up. Chosen: a commit
# may come later, and so may a claim, where the worker was busy.
RECENT = 0.3

# Seconds that looks and claims take that find nothing to claim, as a part of all: after a wake-up, in the
# first walk, and in all others. The workers of a fleet share the last.
WOKEN_PART, EAGER_PART, WALK_PART = 0.3, 0.5, 0.1


class Look(NamedTuple):
    """One statement that lists keys with READY tasks.

    ``walk``: the next ``at_most`` keys of each queue, after ``after``. ``recent``: of tasks that have become
    READY lately. ``top``: of the tasks that come first.
    """

    kind: Literal["walk", "recent", "top"]
    queues: list[str]
    after: list[str]
    at_most: int
    is_woken: bool


@dataclass(slots=True)
class _Again:
    """When a queue is looked at again after a wake-up, and when after the last one."""

    at: float
    latest: float


class KeyWalk:
    """Where one lane of a worker looks for keys.

    A worker without keyed tasks looks once at each poll, and finds none. Where there are some, it walks over
    the keys of each queue in their order, piece by piece, as far as it has slots for what it finds. A poll
    begins to walk once the last walk has come round. After a wake-up the worker looks at the whole queue; if
    that has more than WINDOW keys, at those of recent tasks.

    Looks that lead to nothing take a small part of the time, because there may be thousands of keys that are
    full, or closed. Times are the loop's, in seconds.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        """``queues``: the names that are served; empty for any: those that wake-ups and ``meet()`` name."""
        self._serves_any = not queues
        self._queues: dict[str, None] = dict.fromkeys(queues)
        self._left: dict[
            str, str
        ] = {}  # queues that the walk hasn't come to the end of, and how far it has come
        self._passed: dict[str, int] = {}  # keys that it has come by in each
        self._long: set[str] = set()  # queues in which it has come by more than one look lists
        self._untopped: set[str] = set()  # long queues of which the first tasks are to be looked at
        self._is_topped = True  # since the last poll, as far as needed
        self._woken: dict[str, None] = {}
        self._again: dict[str, _Again] = {}
        self._is_eager = True
        self._begins_again = False
        self._woken_from = self._walk_from = -inf  # when the next look may come

    def meet(self, queue_name: str) -> bool:
        """Note that a queue has keyed tasks; returns whether it is served."""
        if queue_name in self._queues:
            return True
        if not self._serves_any:
            return False
        if len(self._queues) < NAMES_LIMIT:
            self._queues[queue_name] = None
            self._left.setdefault(queue_name, "")
        return True

    def begin(self, *, news: bool = False) -> None:
        """Walk over all queues. While a walk is under way, do nothing; or with ``news`` about any key, walk
        once more after it, because it may have come by that key. (Where it may not go on, look at the first
        tasks of long queues again.)
        """
        if self._left:
            self._begins_again |= news
            self._is_topped = False
        else:
            self._begins_again = False
            names = list(self._queues)
            random.shuffle(names)  # workers should not walk in step
            self._left = dict.fromkeys(names, "")
            self._passed.clear()
            self._untopped = set(self._long)

    def wake(self, queue_name: str, now: float, *, delay: float, is_second: bool) -> None:
        """Look at a queue after ``delay`` seconds, and unless ``is_second`` now, too."""
        if not self.meet(queue_name):
            return
        if not is_second:
            self._woken[queue_name] = None
        if (again := self._again.get(queue_name)) is not None:
            again.latest = now + delay
        else:
            self._again[queue_name] = _Again(now + delay, now + delay)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to look at."""
        return not (self._left or self._woken or self._again)

    @property
    def at(self) -> float:
        """When the next look is due; ``inf`` if none is."""
        at = self._walk_from if self._left else inf
        if self._woken:
            at = min(at, self._woken_from)
        if self._again:
            at = min(at, max(self._woken_from, min(again.at for again in self._again.values())))
        return at

    def next(self, now: float, wanted: int = 0, *, may_walk: bool = True) -> Look | None:
        """Return the look that is due, if one is. ``wanted``: how many keys the next claim can name.
        ``may_walk``: whether the walk goes on; other looks don't wait for that.
        """
        if now >= self._woken_from:
            self._take_again(now)
            if self._woken:
                return self._woken_look()
        if self._left and now >= self._walk_from:
            if not (may_walk or self._is_topped):
                self._is_topped, self._untopped = True, set(self._long)
            if self._untopped:
                names = list(islice(self._untopped, QUEUES_AT_ONCE))
                self._untopped.difference_update(names)
                return Look("top", names, [], WINDOW, is_woken=False)
            if not may_walk:
                return None
            names = list(islice(self._left, QUEUES_AT_ONCE))
            return self._walk_look(names, wanted, is_woken=False)
        return None

    def learn(self, look: Look, found: Collection[tuple[str, str]]) -> None:
        """Learn from the queues and keys that a look has listed, in each queue in the order of the walk."""
        if look.kind != "walk":
            return
        last = dict(found)
        numbers = dict.fromkeys(look.queues, 0)
        for name, _ in found:
            numbers[name] += 1
        for name, number in numbers.items():
            passed = self._passed[name] = self._passed.get(name, 0) + number
            if passed > WINDOW:
                self._long.add(name)
            if number >= look.at_most:
                self._left[name] = last[name]  # it keeps its place, so that queues take turns by the pieces
                continue
            self._left.pop(name, None)
            if passed <= WINDOW:
                self._long.discard(name)
            if self._serves_any and not passed:
                self._queues.pop(name, None)
                self._passed.pop(name, None)
        if not self._left:
            self._is_eager = False
            if self._begins_again:
                self.begin()

    def took(self, seconds: float, look: Look | None, now: float, *, workers: int) -> None:
        """A look, or the claim after one, has taken so long and led to nothing. ``workers``: that walk."""
        part = EAGER_PART if self._is_eager else WALK_PART / workers
        self._walk_from = max(self._walk_from, now + seconds * (1 / part - 1))
        if look is None or look.is_woken:
            self._woken_from = max(self._woken_from, now + seconds * (1 / WOKEN_PART - 1))

    def gave(self) -> None:
        """A claim has brought tasks: go on at once."""
        self._walk_from = self._woken_from = -inf

    def _take_again(self, now: float) -> None:
        for name, again in list(self._again.items()):
            if again.at <= now:
                self._woken[name] = None
                again.at = again.latest
                if again.at <= now:
                    del self._again[name]

    def _woken_look(self) -> Look:
        is_long = next(iter(self._woken)) in self._long
        names = list(
            islice((name for name in self._woken if (name in self._long) == is_long), QUEUES_AT_ONCE)
        )
        for name in names:
            del self._woken[name]
        if is_long:
            return Look("recent", names, [], WINDOW, is_woken=True)
        for (
            name
        ) in names:  # from its first key on; not further than the look comes, if it is longer than known
            self._left[name], self._passed[name] = "", 0
        return self._walk_look(names, WINDOW, is_woken=True)

    def _walk_look(self, names: list[str], wanted: int, *, is_woken: bool) -> Look:
        at_most = max(WINDOW // 4, max(WINDOW, wanted) // len(names))
        return Look("walk", names, [self._left[name] for name in names], at_most, is_woken)
