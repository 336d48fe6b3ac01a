"""Finisher: writes outcomes, many in one statement, each fenced by its claim."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from math import inf
from uuid import UUID

from django.db import utils

from ...codec import dump_error
from ...conf import Options
from ...db.errors import is_row_fault, timed_out
from ...db.outage import Outage
from ...exceptions import TaskCancelled
from ...redact import redacted
from ...rows import Job
from ...store.batcher import Batcher
from ...store.outcomes import Finish, Release
from ...store.store import Store
from ...store.wakeups import Wakeup, wakeup_again
from ..events import NULL, Observer
from ..execution import Execution
from ..outcomes import Failed, Released, Retried, Snoozed, Succeeded
from ..waits import wait_of
from .announcer import Announcer
from .key_closer import KeyCloser
from .metadata import MetadataSaver
from .pending import PendingWrite, Written, size_of
from .writers import NOTHING_FREED, Freed, Statements

__all__ = ["Finisher"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one UPDATE; with more than some hundreds the commit isn't the main cost.
FINISH_LIMIT = 500

# Seconds until a row that another session has locked is tried again: the first time, because a join locks the
# row for a moment that it marks, and later.
FIRST_LOCKED_DELAY = 0.005
LOCKED_DELAY = 0.2

type _Row = Finish | Release


class Finisher:
    """Writes the outcomes of executions into the table, many in one statement.

    - An outcome is written only while its row is RUNNING under the execution's claim id. Otherwise
      (other workers took this one for dead, or a user cancelled the task) the row stays as it is, and the
      outcome is counted in ``fenced`` and reported.
    - Repeating a write whose reply was lost changes nothing and counts as success.
    - During an outage of the database outcomes wait; none is lost.
    - The last state of a task's metadata is written first, and the key of its limit closed.
    - A value that the database refuses fails its own task; the rest of the batch is stored.
    - ``task_finished`` is sent after the result is stored, and only for accepted outcomes.
    """

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        metadata: MetadataSaver,
        key_closer: KeyCloser,
        *,
        backend: str,
        options: Options,
        wake: Callable[[Sequence[Wakeup]], None],
        tell: Callable[[Collection[UUID]], None],
        settled: Callable[[Job], None],
        observer: Observer = NULL,
    ) -> None:
        self.fenced = 0
        self.succeeded = 0
        self.failed = 0
        self.given_back = 0
        self.retried = 0
        self.ended = 0  # attempts that have ended here
        self._store = store
        self.announcer = announcer
        self.metadata = metadata
        self._key_closer = key_closer
        self._backend = backend
        self._options = options
        self._wake = wake
        self._tell = tell
        self._on_settled = settled
        self._observer = observer
        self._batcher: Batcher[Execution, Written] = Batcher(
            self.write_batch, limit=FINISH_LIMIT, size=size_of
        )
        self.pending: set[Execution] = set()
        self._locked: set[Execution] = set()  # whose rows other sessions had locked
        self._outage = Outage(
            logger, "outcomes", "outcomes wait for the database", longest=1.0, observer=observer
        )
        self._all_written = asyncio.Event()
        self._all_written.set()

    @property
    def crowded(self) -> bool:
        """Whether so many outcomes wait that no more tasks should be run for now."""
        return self._batcher.crowded

    def finish(self, execution: Execution) -> None:
        """Write the execution's outcome soon; returns at once."""
        if not self.pending:
            self._all_written.clear()
        self.pending.add(execution)
        self._submit(execution)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until every outcome is written; returns whether that took at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._all_written.wait()
        except TimeoutError:
            return False
        return True

    def _submit(self, execution: Execution) -> None:
        if execution.metadata is None or self.metadata.is_saved(
            execution.metadata, partial(self._submit, execution)
        ):
            outcome, write = execution.outcome, PendingWrite(self, execution)
            if isinstance(outcome, Snoozed) and outcome.closes is not None:
                add = partial(self._batcher.add, execution, write)
                self._key_closer.close(outcome.closes, outcome.delay, add)
            else:
                self._batcher.add(execution, write)

    def refused(self, execution: Execution, error: BaseException) -> None:
        """The Batcher's answer: the outcome can't be written."""
        if isinstance(execution.outcome, Succeeded) and is_row_fault(error):
            # The database rejects this value; its error is stored in place of it.
            reason = redacted(str(error), by=self._options.redact)  # it may quote the value
            logger.error(
                "The database rejected a return value; the task fails id=%s error=%r",
                execution.job.id,
                reason,
            )
            text = dump_error(error, limit=self._options.max_error_size, redact=self._options.redact)
            execution.outcome = Failed(error, text)
            self._submit(execution)
            return
        # The worker's own sweep releases the row once the execution isn't pending any more.
        reason = redacted(str(error), by=self._options.redact)
        logger.error("An outcome could not be written id=%s error=%r", execution.job.id, reason)
        self._settle(execution)

    def answered(self, execution: Execution, written: Written) -> None:
        """The Batcher's answer: the outcome is written, fenced, released, or to be tried again."""
        outcome = execution.outcome
        if written.__class__ is str:
            if written == "locked":
                # Not within the batch: one lock (a cancel() inside a long atomic()) would delay all outcomes.
                delay = LOCKED_DELAY if execution in self._locked else FIRST_LOCKED_DELAY
                self._locked.add(execution)
                asyncio.get_running_loop().call_later(delay, self._submit, execution)
                return
            self._released(execution)
        elif isinstance(written, datetime):
            self.ended += 1
            if isinstance(outcome, Failed):
                self.failed += 1
            else:
                self.succeeded += 1
            if self._observer.watches_tasks and outcome is not None:
                self._observer.finished(execution.job, outcome, execution.seconds, wait_of(execution.job))
            try:
                self.announcer.announce(execution, written)
            except Exception:  # the rest of the batch must be settled
                logger.exception("Could not send task_finished id=%s", execution.job.id)
        self._settle(execution)

    def _released(self, execution: Execution) -> None:
        """The task will run again."""
        if isinstance(execution.outcome, Retried):
            self.retried += 1
            self.ended += 1
            self._observer.retried(execution.job, execution.outcome, execution.seconds)
        else:
            self.given_back += 1

    def _settle(self, execution: Execution) -> None:
        if execution.run_context is not None:
            execution.release_context()
        self.pending.discard(execution)
        if self._locked:
            self._locked.discard(execution)
        self._on_settled(execution.job)
        if not self.pending:
            self._all_written.set()

    async def write_batch(self, executions: list[Execution]) -> Sequence[Written]:
        """Write the outcomes of these executions; returns the answer for each, in their order."""
        latest = {execution.job.id: execution for execution in executions}
        if len(latest) == len(executions):
            return await self._write(latest)
        # This worker has claimed a task again before the outcome of its earlier claim was written.
        # Statements return rows by id, so each claim of the same id needs a statement of its own.
        earlier = [execution for execution in executions if latest[execution.job.id] is not execution]
        written = dict(zip(earlier, await self.write_batch(earlier), strict=True))
        written |= zip(latest.values(), await self._write(latest), strict=True)
        return [written[execution] for execution in executions]

    async def _write(self, batch: Mapping[UUID, Execution]) -> Sequence[Written]:
        """``batch``: by the ids of their tasks; returns the answers in the same order."""
        executions = batch.values()
        statements = Statements()
        for execution in executions:
            statements.add(execution.job, execution.outcome, execution.seconds)
        freed = NOTHING_FREED
        finished: dict[UUID, datetime | None] = {}
        began = time.monotonic()
        try:
            if statements.releases:
                freed = await self._release(statements.releases, batch)
                self._report_freed(statements, executions, freed)
            if statements.finishes:
                finished = await self._finish(statements.finishes, batch)
        except Exception:
            # A row is at fault. The Batcher tries the others again, of which a part is written: all releases,
            # or the first half of rows that were split.
            for execution in executions:
                execution.perhaps_written = True
            raise
        if self._observer.watches_batches and (
            stored := [batch[id] for id, at in finished.items() if at is not None]
        ):
            self._observer.wrote(stored, time.monotonic() - began)
        answers: dict[UUID, Written] = {
            **{id: "locked" if at is None else at for id, at in finished.items()},
            **dict.fromkeys(freed.locked, "locked"),
            **dict.fromkeys(freed.gone, "released"),
        }
        for execution in executions:
            # A task that another worker took while this one was giving it back isn't fenced.
            if execution.job.id not in answers and not isinstance(execution.outcome, Released | Snoozed):
                self.fenced += 1
                if execution.outcome is not None:
                    self._observer.fenced(execution.job, execution.outcome)
        return [answers.get(execution.job.id) for execution in executions]

    def _report_freed(self, statements: Statements, executions: Collection[Execution], freed: Freed) -> None:
        given_back = sum(row.error is None and row.id in freed.gone for row in statements.releases)
        if given_back:
            self._observer.released(given_back, "given back")
        self._wake_for([execution.job for execution in executions], freed.gone)
        if freed.refused:
            self._fail(executions, freed.refused, statements)

    def _fail(
        self, executions: Collection[Execution], refused: Mapping[UUID, bool], statements: Statements
    ) -> None:
        """Make the outcome Failed where the database has refused to release the task."""
        for execution in executions:
            if (cancelled := refused.get(execution.job.id)) is not None:
                failure = statements.failures[execution.job.id]
                if failure is None or (cancelled and isinstance(execution.outcome, Snoozed)):
                    failure = self._cancelled()
                execution.outcome = failure
                statements.add(execution.job, failure, execution.seconds)

    def _cancelled(self) -> Failed:
        """The outcome of a task that a user cancelled, and that hasn't run to its end here."""
        error = TaskCancelled("The task was cancelled.")
        return Failed(
            error, dump_error(error, limit=self._options.max_error_size, redact=self._options.redact)
        )

    async def _finish(
        self, finishes: list[Finish], batch: Mapping[UUID, Execution]
    ) -> dict[UUID, datetime | None]:
        """Return when each row was finished, by this try or by one whose reply was lost; None if another
        session holds a lock on the row, so that it must be tried again.

        A batch that times out is split, because it might never fit into one statement.
        """
        try:
            accepted = await self._persist(
                lambda: self._store.finish_jobs(finishes), finishes, batch, patient=len(finishes) == 1
            )
        except _TookTooLong:
            middle = len(finishes) // 2
            first = await self._finish(finishes[:middle], batch)
            return first | await self._finish(finishes[middle:], batch)
        self._tell(accepted.awaited)
        finished: dict[UUID, datetime | None] = {**accepted.at}
        found = await self._look_up([row for row in finishes if row.id not in finished], batch)
        mine = {id: at for id, at in found.items() if at is None or batch[id].perhaps_written}
        # Whether somebody awaits these was said in a reply that was lost.
        self._tell([id for id, at in mine.items() if at is not None])
        return finished | mine

    async def _look_up(
        self, missing: Sequence[_Row], batch: Mapping[UUID, Execution]
    ) -> dict[UUID, datetime | None]:
        """When rows that still have their claim's id were finished; None: RUNNING, so it was locked."""
        if not missing:
            return {}
        ids, claim_ids = [row.id for row in missing], [row.claim_id for row in missing]
        return await self._persist(lambda: self._store.select_finished_jobs(ids, claim_ids), (), batch)

    async def _release(self, releases: list[Release], batch: Mapping[UUID, Execution]) -> Freed:
        """Release rows. A batch that times out is split, as in ``_finish``."""
        try:
            answers = await self._persist(
                lambda: self._store.release_jobs(releases), releases, batch, patient=len(releases) == 1
            )
        except _TookTooLong:
            middle = len(releases) // 2
            first = await self._release(releases[:middle], batch)
            return first.with_(await self._release(releases[middle:], batch))
        self._tell([id for id, row in answers.items() if row.watched])
        missing = [release for release in releases if release.id not in answers]
        found = await self._look_up(missing, batch)
        locked = {id for id, finished_at in found.items() if finished_at is None}
        refused = {id: row.cancelled for id, row in answers.items() if row.queue_name is None}
        # Of the missing rows that aren't locked, a try whose reply was lost has released its own.
        fenced = {row.id for row in missing if not batch[row.id].perhaps_written}
        kept = {*refused, *locked, *fenced}
        return Freed({row.id: row.delay for row in releases if row.id not in kept}, refused, locked)

    def _wake_for(self, jobs: Sequence[Job], gone: Mapping[UUID, float]) -> None:
        """Have workers look for the jobs that are ``gone``: once a queue for those that are READY, and once
        for the earliest of those that are due later. ``gone``: ids, and seconds until they are due.
        """
        now = time.time()
        due: dict[str, float] = {}
        ready: dict[Wakeup, None] = {}
        for job in jobs:
            if (delay := gone.get(job.id)) is None:
                continue
            if delay > 0:
                due[job.queue_name] = min(now + delay, due.get(job.queue_name, inf))
            else:
                ready[wakeup_again(job)] = None
        self._wake([*ready, *(Wakeup(self._backend, name, at) for name, at in due.items())])

    async def _persist[Result](
        self,
        write: Callable[[], Awaitable[Result]],
        rows: Sequence[_Row],
        batch: Mapping[UUID, Execution],
        *,
        patient: bool = True,
    ) -> Result:
        """Repeat ``write`` until it succeeds, and return its result. After a try that has failed, the
        executions of its ``rows`` are perhaps written: also where the row is found locked, because the server
        may not have committed that try yet.

        Raises _TookTooLong after a time-out unless ``patient``.
        """
        while True:
            try:
                result = await write()
            except utils.Error as error:
                if is_row_fault(error):
                    raise
                for row in rows:
                    batch[row.id].perhaps_written = True
                await asyncio.sleep(self._outage.failed(error))
                if not patient and timed_out(error):
                    raise _TookTooLong from error
            else:
                self._outage.ended()
                return result


class _TookTooLong(Exception):
    """The statement timed out: the batch may be too large for one."""
