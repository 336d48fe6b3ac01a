"""Ends: the rows of awaited tasks, looked up as soon as they may have ended, for all waiters together."""

from collections.abc import Collection, Mapping
from uuid import UUID

from ..db.errors import is_transient
from ..rows import FINAL, Job
from .changes import AWAITED
from .joins import Watch
from .loop import LoopResources

__all__ = ["Ends"]

# A task: its backend's alias, and its id, which another backend's task may have, too.
type Key = tuple[str, UUID]


class Ends(Watch):
    """A Watch that looks tasks up before it reports them, so that its waiter wakes once, with their rows."""

    def __init__(self) -> None:
        super().__init__(AWAITED)
        self._rounds: dict[Key, _Rounds] = {}  # of the tasks that are left
        self._rows: dict[Key, Job | None] = {}  # of rounds that are over

    @property
    def is_over(self) -> bool:
        """Whether nothing is awaited."""
        return not self._rounds

    def watch(self, source: LoopResources, backend: str, ids: Collection[UUID]) -> None:
        """Await the ends of these tasks of a backend (its alias), too."""
        self._rounds |= dict.fromkeys(((backend, id) for id in ids), _Rounds(self, source))
        source.changes.watch(self, backend, ids)

    def close(self) -> None:
        """Await nothing any more."""
        for key, rounds in self._rounds.items():
            rounds.forget(key)
        self._rounds = {}

    def report(self, backend: str, id: UUID) -> None:
        """Look the task up, because it may have ended."""
        key = (backend, id)
        if (rounds := self._rounds.get(key)) is not None and not self._has_ended(key):
            rounds.ask(key)

    def take(self) -> dict[Key, Job | None]:
        """Return the rows of the tasks that have ended, or None for those that are gone, each once."""
        ended: dict[Key, Job | None] = {}
        for key, job in self._rows.items():
            if self._has_ended(key) and (rounds := self._rounds.pop(key, None)) is not None:
                rounds.forget(key)
                ended[key] = job
        self._rows = {}
        return ended

    def found(self, rows: Mapping[Key, Job | None]) -> None:
        """A round is over."""
        self._rows |= rows
        self._news.update(id for _, id in rows)
        self._wake()

    def _has_ended(self, key: Key) -> bool:
        """Whether the task was found to have ended, or to be gone."""
        return key in self._rows and ((job := self._rows[key]) is None or job.status in FINAL)


class _Rounds:
    """The look-ups of one backend's tasks. Each backend has its own, because another's database may be away.

    Tasks that may have ended before the first answer of a round has come belong to that round, later ones to
    the next: those that have ended together are reported together, and new ends don't delay the others.
    """

    __slots__ = ("_asked", "_ends", "_found", "_is_answering", "_later", "_source")

    def __init__(self, ends: Ends, source: LoopResources) -> None:
        self._ends = ends
        self._source = source
        self._asked: set[Key] = set()  # look-ups of this round that aren't answered
        self._found: dict[Key, Job | None] = {}  # by those that are
        self._is_answering = False
        self._later: dict[Key, None] = {}  # of the next round

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more."""
        return self._ends.is_over

    def ask(self, key: Key) -> None:
        """Look the task up. One whose look-up is under way is looked up again if that finds no end."""
        if self._is_answering or key in self._asked:
            self._later[key] = None
        else:
            self._asked.add(key)
            self._source.lookups.add(key, _LookUp(key, self))

    def forget(self, key: Key) -> None:
        """Watch the task no more."""
        backend, id = key
        self._source.changes.forget(self._ends, backend, (id,))

    def found(self, key: Key, job: Job | None) -> None:
        """A look-up has been answered."""
        self._found[key] = job
        self._answered(key)

    def failed(self, key: Key, error: BaseException) -> None:
        """A look-up has failed. While the database is away nothing is to be done: a later look of Changes
        reports the task again.
        """
        if not is_transient(error):
            self._ends.fail(error)
        self._answered(key)

    def _answered(self, key: Key) -> None:
        self._asked.discard(key)
        self._is_answering = bool(self._asked)
        if not self._is_answering:
            if self._found:
                found, self._found = self._found, {}
                self._ends.found(found)
            later, self._later = self._later, {}
            for each in later:
                self._ends.report(*each)


class _LookUp:
    """The receiver of a task's row."""

    __slots__ = ("_key", "_rounds")

    def __init__(self, key: Key, rounds: _Rounds) -> None:
        self._key = key
        self._rounds = rounds

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._rounds.is_over

    def set_result(self, job: Job | None) -> None:
        self._rounds.found(self._key, job)

    def set_exception(self, error: BaseException) -> None:
        self._rounds.failed(self._key, error)
