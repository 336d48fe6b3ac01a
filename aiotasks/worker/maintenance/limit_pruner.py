"""LimitPruner: deletes the rows of limits' keys that nobody needs any more."""

import asyncio
import time

from ...store.store import Store

__all__ = ["LIMITS_INTERVAL", "LimitPruner"]

# Seconds between two sweeps of the fleet. A row stays for an hour after its last use, so chosen: it may stay
# for ten minutes more.
LIMITS_INTERVAL = 600.0

# Rows that a statement looks at: some milliseconds. And the pause after it, as a multiple of its time: a
# sweep of a million keys takes a part of a connection for a minute or two, and no claim waits for it.
PRUNE_LIMIT = 500
PAUSE = 4.0


class LimitPruner:
    """Every worker has one, and they take turns.

    A key has a row from its first claim on, which says what its rate has been charged. Once that is paid, no
    task holds a place, and no operator has said anything of the key, a new row would be the same.
    """

    def __init__(self, store: Store, *, backend: str) -> None:
        self._store = store
        self._backend = backend

    async def sweep(self) -> None:
        """Look at all rows of the backend, and delete those that nobody needs."""
        after: str | None = ""
        while after is not None:
            began = time.monotonic()
            number, after = await self._store.prune_limits(self._backend, after, PRUNE_LIMIT)
            if number < PRUNE_LIMIT:
                return
            await asyncio.sleep(PAUSE * (time.monotonic() - began))
