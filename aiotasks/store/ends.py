"""Ends: the rows of awaited tasks, looked up as soon as they may have ended, for all waiters together."""

from collections.abc import Collection
from uuid import UUID

from ..db.errors import is_transient
from ..rows import FINAL, Job
from .changes import AWAITED
from .joins import Watch
from .loop import LoopResources

__all__ = ["Ends"]


class Ends(Watch):
    """A Watch that looks the tasks up before it reports them, so that its waiter wakes once, with their rows.

    Tasks that may have ended before the first answer of a round has come belong to that round, later ones to
    the next: those that have ended together are reported together, and new ends don't delay the others.
    """

    def __init__(self) -> None:
        super().__init__(AWAITED)
        self._sources: dict[UUID, tuple[LoopResources, str]] = {}  # and backends, of the tasks that are left
        self._rows: dict[UUID, Job | None] = {}  # of rounds that are over
        self._round: dict[UUID, Job | None] = {}  # of the one that is under way
        self._under_way = 0  # look-ups of this round that aren't answered
        self._is_answering = False
        self._later: list[UUID] = []  # of the next round

    @property
    def is_over(self) -> bool:
        """Whether nothing is awaited."""
        return not self._sources

    def watch(self, source: LoopResources, backend: str, ids: Collection[UUID]) -> None:
        """Await the ends of these tasks of a backend (its alias), too."""
        self._sources |= dict.fromkeys(ids, (source, backend))
        source.changes.watch(self, backend, ids)

    def close(self) -> None:
        """Await nothing any more."""
        for id, (source, backend) in self._sources.items():
            source.changes.forget(self, backend, (id,))
        self._sources = {}

    def report(self, id: UUID) -> None:
        """Look the task up, because it may have ended."""
        if self._is_answering:
            self._later.append(id)
        elif (found := self._sources.get(id)) is not None:
            source, backend = found
            self._under_way += 1
            source.lookups.add((backend, id), _LookUp(id, self))

    def take(self) -> dict[UUID, Job | None]:
        """Return the rows of the tasks that have ended, or None for those that are gone, each once."""
        rows, self._rows = self._rows, {}
        ended: dict[UUID, Job | None] = {}
        for id, job in rows.items():
            if (job is None or job.status in FINAL) and (found := self._sources.pop(id, None)) is not None:
                source, backend = found
                source.changes.forget(self, backend, (id,))
                ended[id] = job
        return ended

    def found(self, id: UUID, job: Job | None) -> None:
        """A look-up has been answered."""
        self._round[id] = job
        self._answered()

    def failed(self, error: BaseException) -> None:
        """A look-up has failed. While the database is away nothing is to be done: a later look of Changes
        reports the task again.
        """
        if not is_transient(error):
            self.fail(error)
        self._answered()

    def _answered(self) -> None:
        self._under_way -= 1
        self._is_answering = self._under_way > 0
        if not self._is_answering:
            if self._round:
                self._rows |= self._round
                self._news.update(self._round)
                self._round = {}
                self._wake()
            later, self._later = self._later, []
            for id in later:
                self.report(id)


class _LookUp:
    """The receiver of a task's row."""

    __slots__ = ("_ends", "_id")

    def __init__(self, id: UUID, ends: Ends) -> None:
        self._id = id
        self._ends = ends

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._ends.is_over

    def set_result(self, job: Job | None) -> None:
        self._ends.found(self._id, job)

    def set_exception(self, error: BaseException) -> None:
        self._ends.failed(error)
