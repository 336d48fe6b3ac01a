"""Expirer: fails waiting tasks that weren't started within their ``expires`` seconds."""

from collections.abc import Callable, Collection, Iterable
from uuid import UUID

from ...codec import dump_error
from ...conf import Options
from ...exceptions import TaskExpired
from ...rows import Job
from ...store.changes import told_of
from ...store.store import Store
from ..protocols import AnnouncesLost

__all__ = ["Expirer"]

# Rows in one UPDATE. Half as many as the outcomes and receivers at which every worker stops to claim
# (UNWRITTEN_LEAST), so that a sweep keeps no worker from claiming. After a full batch the next is twice as
# large, up to LARGEST_BATCH: what has expired makes the claims of the whole fleet slower, by 2 µs a row,
# until it is swept.
EXPIRE_LIMIT = 250
LARGEST_BATCH = 2_000

# Seconds for which a sweep waits after a full batch while more receivers than EXPIRE_LIMIT run, so that many
# tasks that expire at once don't become as many calls at once. Some receivers may hang, and none of the next
# batches waits for these. If they all hang, a sweep goes on by a batch a second.
LONGEST_PAUSE = 1.0


class Expirer:
    """Every worker has one, and they take turns. SKIP LOCKED lets them work side by side, without a leader.

    An expired task isn't started, because the claims leave it out. A sweep only ends it, so that it may come
    later: nothing is asked of the database but once in the turn's interval. ``tell`` gets the ids of those
    that somebody awaits, and ``try_keys`` all of them: one may have stood first in the line of a limit.
    """

    def __init__(
        self,
        store: Store,
        *,
        backend: str,
        options: Options,
        lost_tasks: AnnouncesLost,
        tell: Callable[[Collection[UUID]], None] = lambda ids: None,
        try_keys: Callable[[Iterable[Job]], None] = lambda jobs: None,
    ) -> None:
        self._store = store
        self._backend = backend
        self._options = options
        self._lost_tasks = lost_tasks
        self._tell = tell
        self._try_keys = try_keys

    async def sweep(self) -> None:
        """Fail the tasks that have expired."""
        error = TaskExpired("The task wasn't started in time: it expired while it waited.")
        text = dump_error(error, limit=self._options.max_error_size, redact=self._options.redact)
        limit = EXPIRE_LIMIT
        while True:
            jobs = await self._store.expire_jobs(self._backend, text, limit)
            self._tell(told_of(jobs))
            self._try_keys(jobs)
            for job in jobs:
                self._lost_tasks.announce(job, error)
            if len(jobs) < limit:
                return
            limit = min(2 * limit, LARGEST_BATCH)
            await self._lost_tasks.wait_for_receivers(EXPIRE_LIMIT, LONGEST_PAUSE)
