"""CallsOfKey: the calls of one unique key on one loop, which share statements."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.db import utils

from ..conf import Options
from ..db.errors import Code, constraint, is_transient, sqlstate
from ..rows import NewJob, UniqueJob
from .admission import Admission
from .batcher import Batcher, own_error
from .enqueue import PRIMARY_KEY
from .settling import STORED, Limits, Settled, Settling, explained
from .store import Store

__all__ = ["CallsOfKey", "are_stored"]

# Calls that share a statement.
CALLS_LIMIT = 1000


class CallsOfKey:
    """Those that arrive while a statement is under way share the next one, so a key takes one connection.

    idle: called in a turn of the loop in which the last call may have ended.
    """

    def __init__(
        self, store: Store, admission: Admission, options: Options, idle: Callable[[], None]
    ) -> None:
        self._store = store
        self._admission = admission
        self._options = options
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._batcher: Batcher[UniqueJob, Settled] = Batcher(self._flush, limit=CALLS_LIMIT)
        self._called: dict[str, float] = {}  # the time of each call that waits, by the id of its task
        self._failing_since: float | None = None  # when the first try began since the last that went through

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self._batcher.flushing and not len(self._batcher)

    async def insert(self, job: UniqueJob) -> Settled:
        """Settle a call. It has its own error in ``Settled.error``."""
        self._called[job.id] = self._loop.time()
        try:
            return await self._batcher.call(job)
        finally:
            del self._called[job.id]
            # Soon, because a flush that finds all callers gone ends in the next turn of the loop.
            self._loop.call_soon(self._idle)

    async def _flush(self, jobs: Sequence[UniqueJob]) -> list[Settled]:
        """Settle calls. One that fails for its own values, or that has waited for long enough, has its error,
        and the others go on."""
        flush = _Flush(Settling(jobs, self._options.moved_tasks, in_transaction=False))
        try:
            await self._admission.repeat(partial(self._settle, flush), partial(self._note_failed, flush))
        except utils.Error as error:
            self._fail(flush, flush.settling.waiting, error)
        finally:
            self._loop.call_soon(self._idle)  # the callers may be gone already
        return flush.settling.settled

    async def _settle(self, flush: "_Flush", lock: float) -> None:
        settling = flush.settling
        settling.keep(self._called)  # a caller that has left must not be written
        waiting = settling.waiting
        if flush.is_unsure and waiting and await are_stored(self._store, waiting[:1], [STORED]):
            settling.note_stored()  # it may be finished, and its key another's
        while settling.waiting:
            try:
                await settling.run(self._store, Limits(lock))
            except utils.Error as error:
                if flush.is_unsure and constraint(error) == PRIMARY_KEY:  # the same, since the look
                    await self._store.wait_for_standbys()
                    settling.note_stored()
                elif is_transient(error):
                    flush.is_unsure = flush.is_unsure or sqlstate(error) != Code.LOCK_TIMEOUT
                    raise
                else:
                    settling.note_refused(error)
        self._failing_since = None

    def _note_failed(self, flush: "_Flush", error: utils.Error, began: float, next_try: float) -> float:
        """Have the calls fail that don't wait for another try: COMMAND_TIMEOUT after their call, or after the
        first try of the key that has failed."""
        if self._failing_since is None:
            self._failing_since = began
        since = self._failing_since
        ends = {
            job.id: max(since, self._called.get(job.id, since)) + self._options.command_timeout
            for job in flush.settling.waiting
        }
        self._fail(flush, [job for job in flush.settling.waiting if next_try > ends[job.id]], error)
        if not flush.settling.waiting:
            raise error
        return max(ends.values())

    def _fail(self, flush: "_Flush", jobs: Iterable[UniqueJob], error: utils.Error) -> None:
        """Have calls fail. If their callers raised one object, they would share its traceback."""
        for job in jobs:
            cause = explained(error, [job], self._options.command_timeout)
            own = own_error(error) if cause is error else cause
            own.__cause__ = error.__cause__
            flush.settling.fail(job, own)


@dataclass(slots=True)
class _Flush:
    """Calls that share statements. ``is_unsure``: a try's reply was lost, which may have stored a task."""

    settling: Settling
    is_unsure: bool = False


async def are_stored(store: Store, jobs: Sequence[NewJob], settled: Sequence[Settled]) -> bool:
    """Whether the rows are there, and on the standbys, that the calls have stored, if they have stored any.
    None of ``settled``: False."""
    for job, each in zip(jobs, settled, strict=False):
        if each.holder is None:
            if not await store.select_jobs([UUID(job.id)], job.template.backend):
                return False
            await store.wait_for_standbys()
            return True
    return False
