"""Finisher: writes outcomes, many in one statement, each fenced by its claim."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Literal
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
from ...store.wakeups import Wakeup
from ..events import NULL, Observer
from ..execution import Execution
from ..outcomes import Failed, Released, Snoozed, Succeeded
from .announcer import Announcer
from .failure_log import log_failure
from .writers import Statements

__all__ = ["Finisher"]

logger = logging.getLogger("aiotasks.worker")

# Rows in one UPDATE; past some hundreds a commit is no longer what costs.
FINISH_LIMIT = 500

# Seconds until a row that somebody else had locked is tried again.
LOCKED_DELAY = 0.2

# When a row was finished; "locked" where it couldn't be yet; None where it wasn't ours to finish.
type Written = datetime | Literal["locked"] | None


class Finisher:
    """Takes executions that are done and brings their outcomes into the table.

    - An outcome is written only while its row is RUNNING under the execution's claim id. A row
      that isn't (the worker was thought dead, the task was cancelled) is left as it is; the late
      outcome is counted in ``fenced`` and logged.
    - Repeating a write whose reply was lost changes nothing and counts as success.
    - A database that is away is waited for: nothing is lost but time.
    - A value that the database refuses fails its own task; its neighbours in the batch finish.
    - ``task_finished`` is sent after the result is stored, and only for those accepted.
    """

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        *,
        backend: str,
        options: Options,
        wake: Callable[[Sequence[Wakeup]], None],
        settled: Callable[[Job], None],
        observer: Observer = NULL,
    ) -> None:
        self.fenced = 0
        self.succeeded = 0
        self.failed = 0
        self.given_back = 0
        self._store = store
        self.announcer = announcer
        self._backend = backend
        self._options = options
        self._wake = wake
        self._on_settled = settled
        self._observer = observer
        self._batcher: Batcher[Execution, Written] = Batcher(self.write_batch, limit=FINISH_LIMIT, size=_size)
        self.pending: set[Execution] = set()
        self._outage = Outage(logger, "outcomes", "outcomes wait for the database", longest=1.0)
        self._all_written = asyncio.Event()
        self._all_written.set()

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be written that nothing more should be run for now."""
        return self._batcher.crowded

    def finish(self, execution: Execution) -> None:
        """Write the execution's outcome soon; returns at once."""
        self.pending.add(execution)
        self._all_written.clear()
        self._submit(execution)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until everything is written; whether that was within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._all_written.wait()
        except TimeoutError:
            return False
        return True

    def _submit(self, execution: Execution) -> None:
        self._batcher.add(execution, PendingWrite(self, execution))

    def refused(self, execution: Execution, error: BaseException) -> None:
        """It can't be written."""
        if isinstance(execution.outcome, Succeeded) and is_row_fault(error):
            # The database refused this very value; what it refused can at least be said.
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
        # Its own sweep gives the row back once the execution isn't held any more.
        reason = redacted(str(error), by=self._options.redact)
        logger.error("An outcome could not be written id=%s error=%r", execution.job.id, reason)
        self._settle(execution)

    def answered(self, execution: Execution, written: Written) -> None:
        """The database has answered: now, or to be tried again."""
        if written == "locked":
            # Not in the flush: one lock (a cancel() inside a long atomic()) would stall all.
            asyncio.get_running_loop().call_later(LOCKED_DELAY, self._submit, execution)
            return
        outcome = execution.outcome
        if written is not None:
            if isinstance(outcome, Failed):
                self.failed += 1
                log_failure(execution.job, outcome.text, execution.seconds)
            else:
                self.succeeded += 1
            if self._observer.watches_tasks and outcome is not None:
                self._observer.finished(execution.job, outcome, execution.seconds, _wait(execution.job))
            try:
                self.announcer.announce(execution, written)
            except Exception:  # the others of its batch have nothing to do with it
                logger.exception("Could not send task_finished id=%s", execution.job.id)
        elif isinstance(outcome, Released | Snoozed):
            self.given_back += 1
        self._settle(execution)

    def _settle(self, execution: Execution) -> None:
        execution.release_context()
        self.pending.discard(execution)
        self._on_settled(execution.job)
        if not self.pending:
            self._all_written.set()

    async def write_batch(self, executions: list[Execution]) -> Sequence[Written]:
        latest = {execution.job.id: execution for execution in executions}
        if len(latest) == len(executions):
            return await self._write(executions)
        # A task was claimed again here before the outcome of its earlier claim could be written. Rows
        # are told by their ids, so each of its claims goes by itself.
        earlier = [execution for execution in executions if latest[execution.job.id] is not execution]
        written = dict(zip(earlier, await self.write_batch(earlier), strict=True))
        written |= zip(latest.values(), await self._write(list(latest.values())), strict=True)
        return [written[execution] for execution in executions]

    async def _write(self, executions: Sequence[Execution]) -> Sequence[Written]:
        statements = Statements()
        for execution in executions:
            statements.add(execution.job, execution.outcome)
        finishes = statements.finishes
        refused, locked = await self._release(statements.releases) if statements.releases else (set(), set())
        if refused:  # they were unknown for longer than their window, or are to be cancelled
            for execution in executions:
                if execution.job.id in refused:
                    execution.outcome = statements.failures[execution.job.id] or self._cancelled()
                    statements.add(execution.job, execution.outcome)
        finished: dict[UUID, datetime | None] = {}
        if finishes:
            repeated = any(execution.perhaps_written for execution in executions)
            try:
                finished = await self._finish(finishes, repeated=repeated)
            except utils.Error:
                # All are tried again: of a batch that was halved, the first half is written by now.
                for execution in executions:
                    execution.perhaps_written = True
                raise
        # What was taken from us while we were about to give it back isn't late.
        in_time = {*finished, *statements.failures}
        for execution in executions:
            if execution.job.id not in in_time:
                self.fenced += 1
                if execution.outcome is not None:
                    self._observer.fenced(execution.job, execution.outcome)
        locked |= {id for id, finished_at in finished.items() if finished_at is None}
        return [
            "locked" if execution.job.id in locked else finished.get(execution.job.id)
            for execution in executions
        ]

    def _cancelled(self) -> Failed:
        """The outcome of a task that was to be cancelled, and hasn't run to an end here."""
        error = TaskCancelled("The task was cancelled.")
        return Failed(
            error, dump_error(error, limit=self._options.max_error_size, redact=self._options.redact)
        )

    async def _finish(self, finishes: list[Finish], *, repeated: bool = False) -> dict[UUID, datetime | None]:
        """Returns when each was finished, by this try or by one whose reply was lost; None where
        somebody holds a lock on the row, so that it is to be tried again.

        What takes longer than a statement may is halved: as a whole it might never go through.
        """
        try:
            accepted, again = await self._persist(
                lambda: self._store.finish_jobs(finishes), patient=len(finishes) == 1
            )
        except _TookTooLong:
            middle = len(finishes) // 2
            first = await self._finish(finishes[:middle], repeated=True)
            return first | await self._finish(finishes[middle:], repeated=True)
        repeated = repeated or again
        finished: dict[UUID, datetime | None] = {**accepted}
        found = await self._look_up([(row.id, row.claim_id) for row in finishes if row.id not in finished])
        return finished | {id: at for id, at in found.items() if at is None or repeated}

    async def _look_up(self, missing: Sequence[tuple[UUID, UUID]]) -> dict[UUID, datetime | None]:
        """When those were finished that still carry their claim's id; None: RUNNING, so it was locked."""
        if not missing:
            return {}
        ids, claim_ids = zip(*missing, strict=True)
        found, _ = await self._persist(lambda: self._store.select_finished_jobs(ids, claim_ids))
        return found

    async def _release(self, releases: list[Release]) -> tuple[set[UUID], set[UUID]]:
        """Returns what is to be failed instead, and what somebody holds a lock on: to be tried again."""
        released, _ = await self._persist(lambda: self._store.release_jobs(releases))
        delays = {row.id: row.delay for row in releases}
        wakeups = [
            Wakeup(self._backend, queue_name, time.time() + delays[id] if delays[id] else None)
            for id, queue_name in released.items()
            if queue_name is not None
        ]
        self._wake(wakeups)
        if wakeups:
            self._observer.released(len(wakeups), "given back")
        found = await self._look_up([(row.id, row.claim_id) for row in releases if row.id not in released])
        locked = {id for id, finished_at in found.items() if finished_at is None}
        return {id for id, queue_name in released.items() if queue_name is None}, locked

    async def _persist[Result](
        self, write: Callable[[], Awaitable[Result]], *, patient: bool = True
    ) -> tuple[Result, bool]:
        """Run ``write`` until it goes through; its result, and whether it took more than one try.

        Raises _TookTooLong after a time-out unless ``patient``.
        """
        again = False
        while True:
            try:
                result = await write()
            except utils.Error as error:
                if is_row_fault(error):
                    raise
                again = True
                await asyncio.sleep(self._outage.failed(error))
                if not patient and timed_out(error):
                    raise _TookTooLong from error
            else:
                self._outage.ended()
                return result, again


class _TookTooLong(Exception):
    """The server didn't answer in time: what it was asked to do may be too much at once."""


class PendingWrite:
    """Where the Batcher brings the answer for one execution."""

    __slots__ = ("_execution", "_finisher")

    def __init__(self, finisher: Finisher, execution: Execution) -> None:
        self._finisher = finisher
        self._execution = execution

    def done(self) -> bool:
        return False

    def set_result(self, written: Written) -> None:
        self._finisher.answered(self._execution, written)

    def set_exception(self, error: BaseException) -> None:
        self._finisher.refused(self._execution, error)


def _wait(job: Job) -> float | None:
    """Seconds from READY to the claim, by the database's clock."""
    if job.ready_at is None or job.last_attempted_at is None:
        return None
    return (job.last_attempted_at - job.ready_at).total_seconds()


def _size(execution: Execution) -> int:
    """The bytes that an outcome takes in a statement."""
    outcome = execution.outcome
    return len(outcome.text) if isinstance(outcome, Succeeded | Failed) else 0
