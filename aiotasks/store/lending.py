"""Lending: a few connections of the pool kept at hand between statements.

asyncpg's ``Pool.acquire()`` and ``release()`` start a timer and an asyncio task each time, which is
half of what a single statement costs its caller. A batch that follows on another takes its
connection from here.
"""

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import Context
from math import inf
from typing import Any

import asyncpg
from django.db import utils

__all__ = ["Lending"]

type Pool = asyncpg.Pool[asyncpg.Record]  # asyncpg ships no types yet
type Pooled = Any  # its PoolConnectionProxy

# An enqueue, a look-up and a wake-up in a process that enqueues; a claim, a finish and something
# else in a worker: each is one at a time.
KEPT = 3

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
        kept = sum(not _is_dead(connection) for connection, _ in self._kept)
        lent: int = self._pool.get_size() - self._pool.get_idle_size() - kept
        return lent

    async def acquire(self, *, timeout: float) -> Pooled:
        """A connection; waits at most ``timeout`` seconds for one. Raises TimeoutError after that."""
        while self._kept:
            connection, _ = self._kept.pop()
            if not _is_dead(connection):
                return connection
            await self._pool.release(connection)
        self._waiting += 1
        try:
            return await self._pool.acquire(timeout=timeout)
        finally:
            self._waiting -= 1

    async def release(self, connection: Pooled, *, keep: bool) -> None:
        """Take a connection back: to be kept at hand, if it has done its work and there is room, or
        by the pool, which cuts one that is in the middle of something.
        """
        if not keep or self._closing or self._waiting or len(self._kept) >= KEPT or _is_dead(connection):
            await self._pool.release(connection)
            return
        self._kept.append((connection, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_TIMEOUT, self._look)

    def release_soon(self, connection: Pooled) -> None:
        """Take back a connection whose statement was cancelled, for a caller who mustn't wait: asyncpg
        does, until the server says that it has stopped the statement, which takes a stopped server long.
        """
        returning = self._loop.create_task(self._return(connection), context=Context())
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)

    async def _return(self, connection: Pooled) -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, utils.Error):
            await self._pool.release(connection)

    async def close(self) -> None:
        """Keep nothing any longer."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        await self._give_back(until=inf)

    def _look(self) -> None:
        self._timer = None
        returning = self._loop.create_task(self._give_back(until=self._loop.time() - IDLE_TIMEOUT))
        self._returning.add(returning)
        returning.add_done_callback(self._returned)

    def _returned(self, returning: "asyncio.Task[None]") -> None:
        self._returning.discard(returning)
        if self._kept and self._timer is None and not self._closing:
            idle = self._loop.time() - self._kept[0][1]
            self._timer = self._loop.call_later(max(0.0, IDLE_TIMEOUT - idle), self._look)

    async def _give_back(self, *, until: float) -> None:
        while self._kept and self._kept[0][1] <= until:
            connection, _ = self._kept.popleft()
            await self._return(connection)


def _is_dead(connection: Pooled) -> bool:
    """Whether the server has closed it: the pool has its place back then, and its proxy nothing behind it."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True
