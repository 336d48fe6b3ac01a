"""MetadataSaver: saves the metadata of running tasks, all that have changed in one statement."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import Context
from uuid import UUID

from django.db import utils

from ...db.errors import is_row_fault, is_transient, refuses_login, timed_out
from ...db.outage import Outage
from ...exceptions import InvalidRow
from ...metadata.running import INTERVAL, RunningMetadata
from ...redact import redacted
from ...store.batcher import Batcher
from ...store.changes import WATCHED
from ...store.metadata import MetadataAnswer, MetadataWrite
from ...store.store import Store
from ..events import NULL, Observer

__all__ = ["MetadataSaver"]

logger = logging.getLogger("aiotasks.worker")

# Rows of one statement, each of up to 128 KiB.
SAVE_LIMIT = 100

# Seconds until a row that another session has locked is tried again, if its task has ended: the first time,
# because a join locks the row for a moment, and later.
FIRST_LOCKED_DELAY = 0.005
LOCKED_DELAY = 0.2

# None: the task is fenced. An error: the database refuses the statement, whichever row it is for.
type _Written = MetadataAnswer | utils.Error | None


class MetadataSaver:
    """Writes the metadata of tasks: while one runs at most ten times a second; and the last state once it has
    ended, before its outcome.

    - A row is written only while it is RUNNING under the attempt's claim, and only if it is as it was seen
      last: otherwise what others have written is merged by key first. So nothing of theirs is lost, and a
      fenced attempt overwrites nothing.
    - At most one statement is under way, and an outcome comes after it, so it never meets the lock of a save.
    - While the database is away the last states wait, as outcomes do. If it refuses the statement (a missing
      privilege or column), they are given up, because the outcomes must not wait for that.

    redact: rewrites the texts of errors. tell: gets the ids of written rows whose every change somebody
    awaits.
    """

    def __init__(
        self,
        store: Store,
        *,
        redact: str | None = None,
        observer: Observer = NULL,
        tell: Callable[[Collection[UUID]], None] = lambda ids: None,
    ) -> None:
        self._store = store
        self._redact = redact
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._batcher: Batcher[RunningMetadata, _Written] = Batcher(self._write, limit=SAVE_LIMIT, size=_size)
        self._outage = Outage(
            logger, "metadata", "metadata waits for the database", longest=1.0, observer=observer
        )
        self._due: set[RunningMetadata] = set()  # for the next pass
        self._under_way: set[RunningMetadata] = set()
        self._ending: dict[RunningMetadata, Callable[[], None]] = {}  # whom to call
        self._locked: set[RunningMetadata] = set()  # of those: by others, at the last try
        self._timer: asyncio.TimerHandle | None = None
        self._next_pass = 0.0  # not before, by the loop's clock

    def save_soon(self, metadata: RunningMetadata) -> None:
        """Save what is new of a running task. May be called in any thread."""
        if threading.get_ident() == self._thread:
            self._look_at(metadata)
        else:
            with suppress(RuntimeError):  # the loop is closed, so the worker has ended
                self._loop.call_soon_threadsafe(self._look_at, metadata, context=Context())

    def is_saved(self, metadata: RunningMetadata, saved: Callable[[], None]) -> bool:
        """Return whether the last state of a task that has ended is written, or never will be.

        If not, ``saved`` is called once it is.
        """
        if metadata.settled or metadata.is_untouched:
            return True
        if (error := metadata.close()) is not None:
            self._log(metadata, error)
        self._due.discard(metadata)
        if metadata not in self._under_way and not self._write_soon(metadata):
            metadata.settled = True
            return True
        self._ending[metadata] = saved
        return False

    def _look_at(self, metadata: RunningMetadata) -> None:
        if metadata.settled or metadata in self._ending:
            return  # a thread has asked just before its attempt was over
        self._due.add(metadata)
        if self._timer is None:
            at = max(self._next_pass, self._loop.time())
            # In a context of its own, because the caller's may belong to a task.
            self._timer = self._loop.call_at(at, self._pass, context=Context())

    def _pass(self) -> None:
        """Write what is new of the tasks that run."""
        self._timer = None
        self._next_pass = self._loop.time() + INTERVAL
        due, self._due = self._due, set()
        for metadata in due:
            if metadata not in self._under_way:
                self._write_soon(metadata)

    def _write_soon(self, metadata: RunningMetadata) -> bool:
        """Write what is new; returns False if nothing is, or if it can't be written."""
        try:
            if not metadata.begin():
                return False
        except (ValueError, RecursionError) as error:
            self._log(metadata, error)
            return False
        self._under_way.add(metadata)
        self._batcher.add(metadata, _Answer(self, metadata))
        return True

    async def _write(self, batch: list[RunningMetadata]) -> list[_Written]:
        """Write the metadata of these; returns the answer for each.

        A batch that times out is split, because it might never fit into one statement.
        """
        writes = [MetadataWrite(each.id, each.claim_id, each.text, each.seen) for each in batch]
        while True:
            try:
                answers = await self._store.save_metadata(writes)
            except utils.Error as error:
                if is_row_fault(error):
                    raise
                delay = self._outage.failed(error)
                if not is_transient(error) and not refuses_login(error):
                    return [error] * len(batch)
                for metadata in batch:
                    metadata.perhaps_written()
                await asyncio.sleep(delay)
                if timed_out(error) and len(batch) > 1:
                    middle = len(batch) // 2
                    return [*await self._write(batch[:middle]), *await self._write(batch[middle:])]
            else:
                self._outage.ended()
                break
        self._tell([id for id, answer in answers.items() if answer.awaited == WATCHED])
        return [answers.get(each.id) for each in batch]

    def answered(self, metadata: RunningMetadata, answer: _Written) -> None:
        """The Batcher's answer: the metadata are written or fenced, or have to be written again."""
        self._under_way.discard(metadata)
        if isinstance(answer, utils.Error):
            if metadata in self._ending:
                self.failed(metadata, answer)
            else:  # the database may be mended before the task ends
                self._look_at(metadata)
            return
        if answer is None:
            self._settle(metadata)
            return
        if answer.written:
            metadata.written()
        elif answer.changed:
            try:
                metadata.refused(answer.there)
            except InvalidRow as error:
                self.failed(metadata, error)
                return
        if metadata not in self._ending:
            # In the next pass: there may be a progress that nobody has asked to save.
            self._look_at(metadata)
        elif answer.written or answer.changed:
            self._write_again(metadata)
        else:
            delay = LOCKED_DELAY if metadata in self._locked else FIRST_LOCKED_DELAY
            self._locked.add(metadata)
            self._loop.call_later(delay, self._write_again, metadata)

    def failed(self, metadata: RunningMetadata, error: BaseException) -> None:
        """The Batcher's answer: the metadata can't be written."""
        self._under_way.discard(metadata)
        self._log(metadata, error)
        self._settle(metadata)

    def _log(self, metadata: RunningMetadata, error: BaseException) -> None:
        logger.error(
            "Metadata could not be saved; the task has those of its last save id=%s error=%r",
            metadata.id,
            redacted(f"{type(error).__name__}: {error}", by=self._redact),  # it may quote a value
        )

    def _write_again(self, metadata: RunningMetadata) -> None:
        if not self._write_soon(metadata):
            self._settle(metadata)

    def _settle(self, metadata: RunningMetadata) -> None:
        if (saved := self._ending.pop(metadata, None)) is not None:
            metadata.settled = True
            self._locked.discard(metadata)
            saved()


class _Answer:
    """Passes the Batcher's answer for one task on to the saver."""

    __slots__ = ("_metadata", "_saver")

    def __init__(self, saver: MetadataSaver, metadata: RunningMetadata) -> None:
        self._saver = saver
        self._metadata = metadata

    def done(self) -> bool:
        return False

    def set_result(self, answer: _Written) -> None:
        self._saver.answered(self._metadata, answer)

    def set_exception(self, error: BaseException) -> None:
        self._saver.failed(self._metadata, error)


def _size(metadata: RunningMetadata) -> int:
    """The bytes that a save takes in a statement."""
    return len(metadata.text or "") + len(metadata.seen or "")
