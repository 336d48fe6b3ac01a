"""KeyCloser: closes keys of limits for which tasks have raised RateLimited."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from django.db import utils

from ...db.errors import Code, is_row_fault, is_transient, sqlstate
from ...db.outage import Outage
from ...store.batcher import Batcher
from ...store.store import Store
from ..events import NULL, Observer

__all__ = ["KeyCloser"]

logger = logging.getLogger("aiotasks.worker")

# Seconds that a statement waits for whoever has locked one of its keys, and until such a key is tried again.
# Chosen: a claim has a key for a millisecond; a transaction of an operator may stay open for hours.
LOCK_TIMEOUT, LOCKED_DELAY = 0.05, 0.2

# Keys in one statement. Chosen: as many as there are outcomes in one.
KEYS_LIMIT = 500


class _Closing(NamedTuple):
    key: str
    seconds: float


class KeyCloser:
    """Closes keys before the tasks are released that have asked for it, so that no other task of such a key
    starts between: many in one statement, and apart from the writing of outcomes, which waits for no key.

    A key that is locked is tried again, without the others. One that can't be closed, because the worker has
    no right to it, for one, stays open.
    """

    def __init__(self, store: Store, *, backend: str, observer: Observer = NULL) -> None:
        self._store = store
        self._backend = backend
        self._batcher: Batcher[_Closing, bool] = Batcher(self._close, limit=KEYS_LIMIT)
        self._outage = Outage(
            logger, "closed keys", "keys of limits aren't closed", longest=1.0, observer=observer
        )

    def close(self, key: str, seconds: float, closed: Callable[[], None]) -> None:
        """Have no task of ``key`` start for so many seconds; then call ``closed``."""
        closing = _Closing(key, seconds)
        self._batcher.add(closing, _Caller(self._batcher, closing, closed))

    async def _close(self, batch: list[_Closing]) -> Sequence[bool]:
        """Return for each whether nothing more is to be done."""
        keys: dict[str, float] = {}
        for key, seconds in batch:
            keys[key] = max(seconds, keys.get(key, 0.0))
        locked = await self._close_keys(list(keys.items()))
        return [closing.key not in locked for closing in batch]

    async def _close_keys(self, keys: Sequence[tuple[str, float]]) -> set[str]:
        """Close keys, and return those that are locked."""
        while True:
            try:
                await self._store.close_keys(self._backend, keys, lock_timeout=LOCK_TIMEOUT)
            except utils.Error as error:
                is_locked = sqlstate(error) == Code.LOCK_TIMEOUT
                if len(keys) > 1 and (is_locked or is_row_fault(error)):
                    middle = len(keys) // 2
                    return await self._close_keys(keys[:middle]) | await self._close_keys(keys[middle:])
                if is_locked:
                    return {keys[0][0]}
                pause = self._outage.failed(error)
                if not is_transient(error):
                    return set()
                await asyncio.sleep(pause)
            else:
                self._outage.ended()
                return set()


class _Caller:
    """Gets the Batcher's answer for one closing."""

    __slots__ = ("_batcher", "_closed", "_closing")

    def __init__(
        self, batcher: Batcher[_Closing, bool], closing: _Closing, closed: Callable[[], None]
    ) -> None:
        self._batcher = batcher
        self._closing = closing
        self._closed = closed

    def done(self) -> bool:
        return False

    def set_result(self, is_done: bool) -> None:
        if is_done:
            self._closed()
        else:
            asyncio.get_running_loop().call_later(LOCKED_DELAY, self._batcher.add, self._closing, self)

    def set_exception(self, error: BaseException) -> None:
        self._closed()
