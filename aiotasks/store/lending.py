"""Lending: a few connections of the pool kept at hand between statements.

asyncpg's ``Pool.acquire()`` and ``release()`` start a timer and an asyncio task each time, which is
half of what a single statement costs its caller. A batch that follows on another takes its
connection from here.
"""

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import Any

import asyncpg
from django.db import utils

__all__ = ["Lending", "is_dead"]

type Pool = asyncpg.Pool[asyncpg.Record]  # asyncpg ships no types yet
type Pooled = Any  # its PoolConnectionProxy

# An enqueue, a look-up and a wake-up in a process that enqueues; a claim, a finish and something
# else in a worker: each is one at a time.
KEPT = 3

# Seconds that the server has for cancelling a statement whose caller has gone, over a line of its
# own (a millisecond where all is well), before the connection is cut; and for how many of them the
# caller waits, so that its next statement finds the connection back.
CANCEL_TIMEOUT = 1.0
RETURN_TIMEOUT = 0.05

# Seconds after which one that isn't used goes back to the pool, which closes what is idle for long.
IDLE_TIMEOUT = 10.0


class Lending:
    """Lends the pool's connections. Used from the pool's loop alone.

    What is kept is never held back: whoever waits for the pool gets the next one that comes back.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._kept: deque[tuple[Pooled, float]] = deque()  # with when it came back; the latest is last
        self._waiting = 0
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def lent(self) -> int:
        """How many connections are out in somebody's hands."""
        kept = sum(not is_dead(connection) for connection, _ in self._kept)
        lent: int = self._pool.get_size() - self._pool.get_idle_size() - kept
        return lent

    async def acquire(self, *, timeout: float) -> Pooled:
        """A connection; waits at most ``timeout`` seconds for one. Raises TimeoutError after that."""
        while self._kept:
            connection, _ = self._kept.pop()
            if not is_dead(connection):
                return connection
            self._give_back(connection)
        self._waiting += 1
        try:
            return await self._pool.acquire(timeout=timeout)
        finally:
            self._waiting -= 1

    async def release(self, connection: Pooled, *, keep: bool) -> None:
        """Take a connection back: to be kept at hand, if it has done its work and there is room, or
        by the pool. One that was cut off in the middle of a statement has to have it cancelled
        first, which a dead line holds up, but not the caller.
        """
        if not keep or self._closing or self._waiting or len(self._kept) >= KEPT or is_dead(connection):
            await asyncio.wait([self._give_back(connection)], timeout=RETURN_TIMEOUT)
            return
        self._kept.append((connection, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_TIMEOUT, self._look)

    async def drop_all(self) -> None:
        """Have every connection made anew before its next use: they lead to nobody who can help."""
        await self._pool.expire_connections()
        self._give_all_back()

    async def close(self) -> None:
        """Keep nothing any longer; returns when the pool has it all."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._give_all_back()
        if self._returning:
            await asyncio.wait(self._returning)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._kept and self._kept[0][1] <= now - IDLE_TIMEOUT:
            self._give_back(self._kept.popleft()[0])
        if self._kept:
            self._timer = self._loop.call_at(self._kept[0][1] + IDLE_TIMEOUT, self._look)

    def _give_all_back(self) -> None:
        while self._kept:
            self._give_back(self._kept.popleft()[0])

    def _give_back(self, connection: Pooled) -> "asyncio.Task[None]":
        returning = self._loop.create_task(self._return(connection), context=Context())
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)
        return returning

    async def _return(self, connection: Pooled) -> None:
        # InternalClientError: the server has closed it just now, and the pool has its place back.
        with suppress(
            asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, utils.Error
        ):
            try:
                await self._pool.release(connection, timeout=CANCEL_TIMEOUT)
            except TimeoutError:  # silence on this line, so most likely on all of them
                await self.drop_all()


def is_dead(connection: Pooled) -> bool:
    """Whether the server has closed it: the pool has its place back then, and its proxy nothing behind it."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True
