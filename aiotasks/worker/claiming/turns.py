"""Turns: from which queues the next claim of a lane takes tasks, and in which order."""

from collections.abc import Collection, Iterable, Sequence

from ...store.notifier import INTERVAL
from ...store.queues import START, ReadyIn

__all__ = ["NAMES_LIMIT", "PIECE", "Turns"]

# Names that a claim asks for in a lane, and steps of the walk before it, at most; more if it may take more
# tasks than that. Measured: a step takes the database 3.3 µs and a name 2.2 µs, so a claim that finds nothing
# in two lanes takes 1.5 ms with its piece, and 50 pieces pass over 10,000 names.
PIECE = 200

# Names of each kind that are remembered for a lane, so that memory stays bounded. Chosen: twice as many as
# the largest claim can empty. The walk finds those that are forgotten.
NAMES_LIMIT = 2000


class Turns:
    """The order in which the queues of one lane have their turns.

    A worker that serves named queues asks for all of them in each claim. One that serves any name can't:
    there may be thousands. It asks for the names

    - that wake-ups have named,
    - that the walk has found, which goes over all names with READY tasks, piece by piece, and
    - that have given tasks, until they give none.

    Every queue with tasks that the worker is to find is one of these, or ahead of the walk. A queue that has
    filled a claim comes last in the next one, and after a claim that was filled by names of wake-ups alone it
    is the others' turn.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        """``queues``: the names to serve; empty for any."""
        self._serves_any = not queues
        self._named: dict[str, float] = {}  # each with the time of the last wake-up
        self._found: dict[str, None] = {}
        self._given: dict[str, None] = dict.fromkeys(queues)
        self._named_first = True
        self._filled: str | None = None  # the queue that has filled the last claim alone
        self._first = self._second = 0  # how many names of either kind the claim under way may reach
        self._asked_at = 0.0
        self._is_listing = False
        self._rounds = int(self._serves_any)  # how often the walk has to reach the end
        self.position = START
        """Where the next piece of the walk begins."""

    def note_wakeup(self, name: str, now: float) -> None:
        """Note a wake-up for this queue at ``now`` (seconds)."""
        if not self._serves_any:
            return
        if name in self._named or len(self._named) < NAMES_LIMIT:
            self._named[name] = now
        else:
            self.walk()

    def walk(self) -> None:
        """Go over all names once, beginning with those that the walk comes to next."""
        if self._serves_any:
            self._rounds = 2 if self._is_listing or self.position != START else 1

    def wants_piece(self, limit: int) -> bool:
        """Return whether a claim of ``limit`` tasks needs more names than are known."""
        return self._rounds > 0 and len(self._found) < limit

    def takes_piece(self, steps: int) -> bool:
        """Return whether a piece of so many steps may be noted although no claim needs it."""
        return self._rounds > 0 and len(self._found) + steps <= NAMES_LIMIT

    def has_names(self) -> bool:
        """Return whether there are queues to ask."""
        return bool(self._named or self._found or self._given)

    def begin_piece(self) -> None:
        """A piece of the walk is about to be listed."""
        self._is_listing = True

    def end_piece(self, names: Iterable[str], last: ReadyIn | None) -> None:
        """Note the names of a piece, and its last entry; None: it has reached the end."""
        self._is_listing = False
        self._found.update(dict.fromkeys(name for name in names if name not in self._given))
        self.position = last or START
        if last is None:
            self._rounds -= 1

    def next(self, limit: int, now: float) -> list[str]:
        """Return the names that a claim of ``limit`` tasks asks for, in their order."""
        self._asked_at = now
        named = [name for name in self._named if name not in self._given]
        others = [*self._found, *self._given]
        first, second = (named, others) if self._named_first else (others, named)
        names = dict.fromkeys([*first, *second])
        if self._filled in names:
            del names[self._filled]
            names[self._filled] = None
        self._first, self._second = len(first), len(names) - len(first)
        return list(names)[: max(PIECE, limit)] if self._serves_any else list(names)

    def has_more(self, asked: Collection[str]) -> bool:
        """Return whether there are names beside those ``asked`` for, or the walk goes on."""
        return self._rounds > 0 or not (
            self._named.keys() <= (names := set(asked))
            and self._found.keys() <= names
            and self._given.keys() <= names
        )

    def learn(
        self, asked: Sequence[str], given: Collection[str], *, full: bool, unsure: Collection[str] = ()
    ) -> None:
        """Learn from the reply to a claim.

        asked: the names that ``next()`` has returned. given: those that gave tasks. full: whether these were
        as many as allowed, so that no names behind them were asked. unsure: those that may have tasks even if
        they gave none.
        """
        passed = asked
        named_first, self._named_first = self._named_first, True
        if full:
            last = max(index for index, name in enumerate(asked) if name in given)
            # The last queue that gave a task has more, and begins. If it gave all, it has had its turn.
            is_alone = len(given) == 1
            passed = asked[: last + 1 if is_alone else last]
            self._filled = asked[last] if is_alone else None
            if last < self._first and self._second:
                self._named_first = not named_first
        for name in passed:
            self._found.pop(name, None)
            self._given.pop(name, None)
            # For INTERVAL a wake-up may stand for tasks that are still on their way.
            named_at = self._named.get(name)
            if named_at is not None and named_at <= self._asked_at - INTERVAL:
                del self._named[name]
            if name in given or not self._serves_any or name in unsure:
                self._given[name] = None
        while self._serves_any and len(self._given) > NAMES_LIMIT:
            del self._given[next(iter(self._given))]
            self.walk()
