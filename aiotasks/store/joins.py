"""Changes: tells those that await tasks, however many, when to look their tasks up again.

They share one LISTEN connection, and statements for many tasks at a time. Nothing falls between looking and
listening: once LISTEN works, the tasks' rows are marked as awaited, and whoever changes a marked row notifies
after the commit. A row's lock decides which of the two comes first (await_jobs.sql).
"""

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import islice
from uuid import UUID

from django.db import utils

from ..db.errors import Code, is_transient, sqlstate
from ..db.listener import Channel
from ..db.outage import Outage
from .batcher import own_error
from .changes import AWAITED, WATCHED
from .outcomes import Awaited
from .store import Store

__all__ = ["LINGER", "Changes", "Watch"]

logger = logging.getLogger("aiotasks.store")

# Seconds between two looks at all tasks, for what wasn't notified (by a worker of the release before, say).
# Random, so that processes don't look at the same time.
POLL_SHORTEST, POLL_LONGEST = 2.5, 5.0

# Seconds from a task's first look to the second without LISTEN; the next ones come after twice as long each,
# up to the poll. So short tasks are joined soon, and none is looked at often.
POLL_FIRST = 0.1

# Tasks of one statement, which takes 5 to 15 ms for as many.
LOOK_LIMIT = 500

# Seconds until a row is looked at again that another session has locked: at first, because a claim or a
# finish takes no longer, and at most, because a cancel() inside of a long transaction does.
LOCKED_SHORTEST, LOCKED_LONGEST = 0.003, 0.5

# Seconds for which LISTEN goes on when nobody waits any more, so that one join after another has one session.
LINGER = 10.0

# Seconds for which rows aren't marked, after the database has refused it.
REFUSED_FOR = 60.0
REFUSED = (Code.NO_PRIVILEGE, Code.READ_ONLY)


class Watch:
    """What one waiter awaits: ``changed()`` says which of its tasks to look up."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._news: set[UUID] = set()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def changed(self, timeout: float | None = None) -> set[UUID]:
        """Wait until some of the tasks may have changed; returns their ids, of which some may be gone. None
        after ``timeout`` seconds.

        Where each change is awaited, all tasks are among them at first, and within some seconds again. Raises
        a ``django.db`` error that waiting doesn't help against.
        """
        if not self._news and self._error is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            # Less than half of the price of asyncio.wait() or asyncio.timeout().
            timer = None if timeout is None else loop.call_later(timeout, self._wake)
            try:
                await self._waiter
            finally:
                if timer is not None:
                    timer.cancel()
                self._waiter.cancel()
                self._waiter = None
        if self._error is not None:
            raise own_error(self._error)
        news, self._news = self._news, set()
        return news

    def report(self, backend: str, id: UUID) -> None:
        """Note that the task of a backend (its alias) may have changed."""
        self._news.add(id)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Have ``changed()`` raise."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Entry:
    """A task that somebody awaits."""

    __slots__ = ("backend", "id", "later", "level", "tries", "watches")

    def __init__(self, backend: str, id: UUID) -> None:
        self.backend = backend
        self.id = id
        self.level = 0  # the highest of the watches'
        self.watches: set[Watch] = set()
        self.tries = 0  # looks in a row that have found the row locked, or couldn't mark it
        self.later: asyncio.TimerHandle | None = None  # its next look, before the poll

    def rest(self) -> None:
        """Don't look at it before the poll."""
        self.tries = 0
        if self.later is not None:
            self.later.cancel()
            self.later = None

    def report(self, lowest: int = 0) -> None:
        """Report a change to those that await it at this level."""
        for watch in list(self.watches):
            if watch.level >= lowest:
                watch.report(self.backend, self.id)


class Changes:
    """The awaited tasks of one loop. Made on that loop.

    A waiter is told to look a task up when a notification names it; when a look finds that it has ended or is
    gone; and where each change is awaited, after every look. All tasks are looked at when their watch begins,
    whenever LISTEN works again, and within POLL_LONGEST seconds.

    channel: where changes are notified; None where NOTIFY isn't used, so that looks alone find them.
    """

    def __init__(self, store: Store, channel: Channel[list[UUID]] | None) -> None:
        self._store = store
        self._channel = channel
        self._entries: dict[str, dict[UUID, _Entry]] = {}  # by backend and id
        self._due: dict[_Entry, None] = {}  # to be looked at, in this order
        self._subscription: AbstractContextManager[None] | None = None
        self._looker: asyncio.Task[None] | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._refused_until = 0.0  # by time.monotonic()
        self._outage = Outage(logger, "joins", "joins wait for the database", longest=1.0)

    @property
    def number(self) -> int:
        """How many tasks are awaited."""
        return sum(map(len, self._entries.values()))

    @property
    def is_listening(self) -> bool:
        """Whether notifications are known to arrive."""
        return self._channel is not None and self._channel.listening.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether looks are due, or a poll."""
        return bool(self._due) or self._poll is not None

    @asynccontextmanager
    async def watching(
        self, backend: str, ids: Collection[UUID], level: int = AWAITED, *, watch: Watch | None = None
    ) -> AsyncIterator[Watch]:
        """Watch these tasks of a backend (its alias) while the block lasts.

        level: AWAITED for their ends, WATCHED for each change. watch: one that is to report these tasks, too.
        """
        watch = watch or Watch(level)
        self.watch(watch, backend, ids)
        try:
            yield watch
        finally:
            self.forget(watch, backend, ids)

    def forget(self, watch: Watch, backend: str, ids: Iterable[UUID]) -> None:
        """Report these tasks to ``watch`` no more."""
        entries = self._entries.get(backend, {})
        for id in ids:
            if (entry := entries.get(id)) is not None:
                entry.watches.discard(watch)
                if not entry.watches:
                    del entries[id]
                    self._due.pop(entry, None)
                    entry.rest()
        if not entries:
            self._entries.pop(backend, None)
        if not self._entries:
            self._rest()

    def watch(self, watch: Watch, backend: str, ids: Collection[UUID]) -> None:
        """Report these tasks to ``watch``."""
        if not ids:
            return
        if not self._entries:
            self._begin()
        entries = self._entries.setdefault(backend, {})
        for id in ids:
            if (entry := entries.get(id)) is None:
                entry = entries[id] = _Entry(backend, id)
            entry.watches.add(watch)
            entry.level = max(entry.level, watch.level)
            self._due[entry] = None
        self._look()

    def _begin(self) -> None:
        """The first watch begins."""
        self._schedule()
        if self._channel is not None:
            self._subscription = self._channel.subscribed(self._heard)
            self._subscription.__enter__()

    def _rest(self) -> None:
        """The last watch has ended."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if self._subscription is not None:
            self._subscription.__exit__(None, None, None)
            self._subscription = None

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._poll = loop.call_later(random.uniform(POLL_SHORTEST, POLL_LONGEST), self._look_at_all)

    def _look_at_all(self) -> None:
        self._schedule()
        every = (entry for entries in self._entries.values() for entry in entries.values())
        self._look_again(entry for entry in every if entry.later is None)

    def _look_again(self, entries: Iterable[_Entry]) -> None:
        self._due.update((entry, None) for entry in entries if entry.watches)
        self._look()

    def _heard(self, ids: list[UUID] | None) -> None:
        """A notification has come; None: LISTEN works, so some may have been missed."""
        if ids is None:
            self._refused_until = 0.0  # it may be another server
            every = [entry for entries in self._entries.values() for entry in entries.values()]
            for each in every:
                each.rest()
            self._look_again(every)
            return
        for entries in self._entries.values():
            for id in ids:
                if (entry := entries.get(id)) is not None:
                    entry.report()

    # --- Looks

    def _look(self) -> None:
        if self._due and self._looker is None:
            # An empty context, because the looks belong to no waiter, not even to the first.
            self._looker = asyncio.get_running_loop().create_task(
                self._run(), context=contextvars.Context(), name="aiotasks joins"
            )
            self._looker.add_done_callback(self._ended)

    def _ended(self, looker: "asyncio.Task[None]") -> None:
        """Do what a looker couldn't that was cancelled before its first step. The next poll starts one."""
        if self._looker is looker:
            self._looker = None

    async def _run(self) -> None:
        try:
            while batch := self._take():
                try:
                    self._settle(batch, await self._look_at(batch))
                except utils.Error as error:
                    await asyncio.sleep(self._failed(batch, error))
                except asyncio.CancelledError:
                    self._look_again(batch)
                    raise
        finally:
            # Nothing is awaited between finding nothing due and this.
            self._looker = None

    def _take(self) -> list[_Entry]:
        """The next tasks to look at in one statement."""
        first = next(iter(self._due), None)
        if first is None:
            return []
        alike = (entry for entry in self._due if (entry.backend, entry.level) == (first.backend, first.level))
        batch = list(islice(alike, LOOK_LIMIT))
        for entry in batch:
            del self._due[entry]
        return batch

    async def _look_at(self, batch: list[_Entry]) -> Awaited:
        """Look at the rows, and mark them where that has a use."""
        ids = [entry.id for entry in batch]
        if self._marks():
            return await self._store.await_jobs(ids, batch[0].backend, batch[0].level)
        return await self._store.select_ended_jobs(ids, batch[0].backend)

    def _marks(self) -> bool:
        return self.is_listening and time.monotonic() >= self._refused_until

    def _settle(self, batch: list[_Entry], found: Awaited) -> None:
        self._outage.ended()
        marks = self._marks()
        for entry in batch:
            if entry.id in found.marked:
                entry.rest()
                entry.report(WATCHED)
            elif entry.id not in found.unmarked:  # it has ended, or is gone
                entry.report()
            else:
                if not marks or entry.tries == 0:
                    entry.report(WATCHED)
                self._look_later(entry, marks=marks)

    def _look_later(self, entry: _Entry, *, marks: bool) -> None:
        """Look again soon: another session has locked the row, or (not ``marks``) nobody notifies of it."""
        if entry.later is not None:
            return
        doubled = 2.0 ** min(entry.tries, 20)
        pause = min(LOCKED_LONGEST, LOCKED_SHORTEST * doubled) if marks else POLL_FIRST * doubled
        if marks or pause < POLL_SHORTEST:
            entry.tries += 1
            entry.later = asyncio.get_running_loop().call_later(pause, self._look_now, entry)

    def _look_now(self, entry: _Entry) -> None:
        entry.later = None
        self._look_again([entry])

    def _failed(self, batch: list[_Entry], error: utils.Error) -> float:
        """Look again later, or pass an error on that waiting doesn't help against; returns the seconds to
        pause."""
        pause = 0.0
        if sqlstate(error) in REFUSED and self._marks():
            logger.info("Joins poll, because tasks can't be marked as awaited error=%r", str(error))
            self._refused_until = time.monotonic() + REFUSED_FOR
        elif is_transient(error):
            pause = self._outage.failed(error)
        else:
            for watch in {watch for entry in batch for watch in entry.watches}:
                watch.fail(error)
            return pause
        self._look_again(batch)
        return pause

    def close(self) -> None:
        """Look no more; for a loop that ends."""
        self._rest()
        self._due.clear()
        if self._looker is not None:
            self._looker.cancel()
