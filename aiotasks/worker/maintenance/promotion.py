"""Promotion: makes due tasks READY, and leaves out those for which the database refuses it."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

from django.db import utils

from ...db.errors import constraint, is_transient, sqlstate, waited_too_long
from ...store.queues import Promoted
from ...store.store import Store

__all__ = ["TIMEOUT", "Batch", "Promotion"]

logger = logging.getLogger("aiotasks.worker")

# Seconds that an UPDATE may take. Chosen: one of a thousand rows takes 20 to 50 ms; a trigger of the site may
# hang, and ticks wait for as long.
TIMEOUT = 5.0

# Statements that find out in one look which of its tasks are refused: ten for one among a thousand.
STATEMENTS = 100

# Seconds for which a refused task is left out, and how many are remembered. Chosen: looking for one of them
# costs the statements above; with more refused than that the fault isn't theirs.
REFUSED_FOR, REFUSED_LIMIT = 300.0, 10_000


class Batch(NamedTuple):
    """The tasks that were made READY; and whether there may be more that are due."""

    promoted: list[Promoted]
    has_more: bool


class Promotion:
    """A trigger, a constraint or a policy of the site may refuse one task, or hang. The UPDATE of all that
    are due fails then, so it is split until the others are READY; each worker leaves out the refused ones
    for REFUSED_FOR seconds, and logs the first of each cause.

    timeout: in seconds, of each statement. between: is awaited between the statements of a split, for what
    mustn't wait for it.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        between: Callable[[], Awaitable[object]],
        timeout: float = TIMEOUT,
    ) -> None:
        self._store = store
        self._backend = backend
        self._between = between
        self._timeout = timeout
        self._until: dict[UUID, float] = {}  # of refused tasks, by time.monotonic()
        self._logged: set[tuple[str | None, str | None]] = set()

    def refused(self) -> list[UUID]:
        """Return the ids of the tasks that are left out for now."""
        if self._until:
            now = time.monotonic()
            self._until = {id: until for id, until in self._until.items() if until > now}
        return list(self._until)

    async def next_batch(self, limit: int) -> Batch:
        """Make up to ``limit`` due tasks READY, the earliest first. Raises ``django.db`` errors that aren't
        about some of the tasks."""
        refused = self.refused()
        try:
            promoted = await self._promote(limit, refused=refused)
        except utils.Error as error:
            if not _may_be_a_tasks(error) or len(refused) >= REFUSED_LIMIT:
                raise
            return await self._split(limit, refused, error)
        if not refused:
            self._logged.clear()
        return Batch(promoted, len(promoted) >= limit)

    async def _split(self, limit: int, refused: list[UUID], error: utils.Error) -> Batch:
        ids = await self._store.list_due_jobs(self._backend, limit, refused=refused, timeout=self._timeout)
        pieces = _halves(ids)
        promoted: list[Promoted] = []
        for _ in range(STATEMENTS):
            if not pieces:
                break
            await self._between()
            piece = pieces.pop()
            try:
                promoted += await self._promote(len(piece), only=piece)
            except utils.Error as reason:
                error = reason
                if not _may_be_a_tasks(reason):
                    break
                if len(piece) == 1:
                    self._refuse(piece[0], reason)
                else:
                    pieces += _halves(piece)
        if pieces and not promoted:
            raise error
        return Batch(promoted, bool(pieces) or len(ids) >= limit)

    async def _promote(
        self, limit: int, *, only: list[UUID] | None = None, refused: list[UUID] | None = None
    ) -> list[Promoted]:
        return await self._store.promote_due_jobs(
            self._backend, limit, only=only, refused=refused or (), timeout=self._timeout
        )

    def _refuse(self, id: UUID, error: utils.Error) -> None:
        self._until[id] = time.monotonic() + REFUSED_FOR
        cause = sqlstate(error), constraint(error)
        if cause not in self._logged:
            self._logged.add(cause)
            logger.error("A due task can't be made READY; others can id=%s error=%r", id, str(error))


def _halves(ids: list[UUID]) -> list[list[UUID]]:
    """The halves, the second one first."""
    middle = (len(ids) + 1) // 2
    return [piece for piece in (ids[middle:], ids[:middle]) if piece]


def _may_be_a_tasks(error: utils.Error) -> bool:
    """Whether the statement may go through without some of the tasks."""
    return not is_transient(error) or waited_too_long(error)
