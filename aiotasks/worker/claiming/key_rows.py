"""KeyRows: makes the rows of keys that claims have found to be new, beside the claims."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import chain

from django.db import utils

from ...db.errors import Code, is_transient, sqlstate
from ...db.outage import Outage
from ...store.store import Store
from ..events import NULL, Observer

__all__ = ["KeyRows"]

logger = logging.getLogger("aiotasks.worker")

# Seconds that a statement waits for whoever has written one of its keys. Chosen: an INSERT of another worker
# takes a few milliseconds with its commit; a transaction of an operator may stay open for hours.
LOCK_TIMEOUT = 0.02

# Keys in one statement. Chosen: as many as a claim can name.
ROWS_LIMIT = 250


class KeyRows:
    """Makes rows in an asyncio task of its own: an INSERT waits for an open transaction that has written the
    same key, and neither a claim nor the start of what it has taken may wait for that.

    Where a key is locked or refused, the others are made without it.
    """

    def __init__(self, store: Store, *, backend: str, observer: Observer = NULL) -> None:
        self._store = store
        self._backend = backend
        self._callers: dict[str, list[Callable[[], None]]] = {}
        self._new: deque[str] = deque()
        self._pieces: deque[list[str]] = deque()  # of statements that have failed as a whole
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(
            logger,
            "rows of limits",
            "tasks of new keys of limits aren't claimed",
            longest=1.0,
            observer=observer,
        )

    def make(self, key: str, done: Callable[[], None]) -> None:
        """Make the row of ``key`` soon; ``done`` is called once that is so, or it can't be made for now."""
        if key in self._callers:
            self._callers[key].append(done)
            return
        self._callers[key] = [done]
        self._new.append(key)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="aiotasks rows of limits")
            self._task.add_done_callback(self._ended)

    def close(self) -> None:
        """Make no more rows."""
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Do what a task couldn't that somebody has cancelled: its keys are to be asked for again."""
        if self._task is task:  # before its first step
            self._task = None
        if self._task is None:
            callers, self._callers = self._callers, {}
            self._new.clear()
            self._pieces.clear()
            for done in chain.from_iterable(callers.values()):
                done()

    async def _run(self) -> None:
        try:
            while self._new or self._pieces:
                await self._make(self._next())
        finally:
            self._task = None

    def _next(self) -> list[str]:
        """Return the keys of the next statement: new ones first, because the others may be locked."""
        if not self._new:
            return self._pieces.popleft()
        return [self._new.popleft() for _ in range(min(len(self._new), ROWS_LIMIT))]

    async def _make(self, keys: list[str]) -> None:
        try:
            await self._store.insert_limits(self._backend, keys, lock_timeout=LOCK_TIMEOUT)
        except utils.Error as error:
            is_locked = sqlstate(error) == Code.LOCK_TIMEOUT
            if not is_locked:
                await asyncio.sleep(self._outage.failed(error))
            if is_transient(error) and not is_locked:
                self._pieces.append(keys)
                return
            if len(keys) > 1:  # one of them may be at fault
                middle = len(keys) // 2
                self._pieces += [keys[:middle], keys[middle:]]
                return
        else:
            self._outage.ended()
        for key in keys:
            for done in self._callers.pop(key):
                done()
