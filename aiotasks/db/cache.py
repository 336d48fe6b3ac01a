"""ConnectionCache: a few connections of the pool kept at hand between statements.

asyncpg's ``Pool.acquire()`` and ``release()`` start a timer and an asyncio task each time, which is half of
the cost of a single statement. A batch that follows another takes its connection from here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

import asyncpg
from django.db import utils

from .errors import Code, sqlstate

__all__ = ["ConnectionCache", "is_dead"]

logger = logging.getLogger("aiotasks.store")

type Pool = asyncpg.Pool[asyncpg.Record]  # asyncpg ships no types yet
type Pooled = Any  # its PoolConnectionProxy

# Connections that are kept. A process that enqueues needs one each for an enqueue, a look-up and a wake-up; a
# worker for a claim, a finish and something else: each is one at a time.
KEPT = 3

# Seconds that the server has for cancelling a statement whose caller has gone, over another connection (it
# takes a millisecond where all is well), before the connection is cut. The caller waits for RETURN_TIMEOUT of
# them, so that its next statement finds the connection back.
CANCEL_TIMEOUT = 1.0
RETURN_TIMEOUT = 0.05

# Seconds after which an unused connection goes back to the pool, which closes those that are idle for long.
IDLE_TIMEOUT = 10.0

# Seconds after which a caller to whom the server refused a connection tries again, if none has come back.
CROWDED_PAUSE = 0.5

# Seconds after the last refusal for which connections are opened one by one.
CROWDED_TIME = 60.0

# Seconds for which no connection is opened after one was closed for another part of the process.
SHED_TIME = 2.0


class ConnectionCache:
    """Lends the pool's connections. Used from the pool's loop alone.

    A kept connection is never withheld: a caller that waits for the pool gets the next one that comes back.

    limit: how many connections the pool may have open (None: as many as its size). Where the server
        refuses another one, a caller waits for a lent one, as if the limit were reached.
    """

    def __init__(self, pool: Pool, *, limit: int | None = None) -> None:
        self._pool = pool
        self.limit = limit
        self._loop = asyncio.get_running_loop()
        self._kept: deque[tuple[Pooled, float]] = deque()  # with the time of its return; the latest is last
        self._waiting = 0
        self._waiters: deque[asyncio.Future[Pooled | None]] = deque()  # wait for a lent connection
        self._no_new_before = 0.0  # by the loop's clock
        self._to_close = 0  # connections, as they come back
        self._one_by_one_until = 0.0
        self._attempts = 0  # to get one from the pool
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    @property
    def kept(self) -> list[Pooled]:
        """The connections kept at hand; the latest is last."""
        return [connection for connection, _ in self._kept]

    @property
    def returning(self) -> int:
        """How many connections are on their way back to the pool."""
        return len(self._returning)

    @property
    def lent(self) -> int:
        """How many connections are lent out."""
        kept = sum(not is_dead(connection) for connection, _ in self._kept)
        lent: int = self._pool.get_size() - self._pool.get_idle_size() - kept
        return lent

    async def acquire(self, *, timeout: float) -> Pooled:
        """A connection; waits at most ``timeout`` seconds for one. Raises TimeoutError after that."""
        end = self._loop.time() + timeout
        while True:
            while self._kept:
                connection, _ = self._kept.pop()
                if not is_dead(connection):
                    return connection
                self._give_back(connection)
            left = end - self._loop.time()
            if left <= 0:
                raise TimeoutError
            if self._may_acquire():
                alone = not self._waiting
                self._waiting += 1
                self._attempts += 1
                mine = self._attempts
                try:
                    return await self._pool.acquire(timeout=left)
                except utils.OperationalError as error:
                    if sqlstate(error) != Code.TOO_MANY_CONNECTIONS:
                        raise
                    if alone and mine == self._attempts and not self._pool.get_size():
                        raise  # no lent connection could come back
                    self._note_crowded(error)
                finally:
                    self._waiting -= 1
            connection = await self._next_back(min(left, CROWDED_PAUSE))
            if connection is not None:
                return connection

    def _may_acquire(self) -> bool:
        """Whether the pool has an idle connection, or may open another one."""
        if self._pool.get_idle_size() > self._waiting:
            return True
        now = self._loop.time()
        if now < self._no_new_before or (now < self._one_by_one_until and self._waiting):
            return False
        return self.limit is None or self._pool.get_size() + self._waiting < self.limit

    async def _next_back(self, timeout: float) -> Pooled | None:
        """The next connection that comes back; None after ``timeout`` seconds, or if the pool has one."""
        future: asyncio.Future[Pooled | None] = self._loop.create_future()
        self._waiters.append(future)
        try:
            await asyncio.wait([future], timeout=timeout)
        except asyncio.CancelledError:
            if future.done() and (connection := future.result()) is not None:
                self._give_back(connection)
            raise
        finally:
            if not future.done():
                self._waiters.remove(future)
        return future.result() if future.done() else None

    def _note_crowded(self, error: Exception) -> None:
        """Open none for a pause, then one at a time, as overlapping connects have each other refused."""
        now = self._loop.time()
        self._no_new_before = max(self._no_new_before, now + CROWDED_PAUSE)
        if now >= self._one_by_one_until:
            logger.warning(
                "PostgreSQL refuses another connection; statements wait for each other open=%d error=%r",
                self._pool.get_size(),
                str(error),
            )
        self._one_by_one_until = now + CROWDED_TIME

    def limit_to(self, number: int) -> None:
        """Have at most so many connections open; surplus ones are closed as they come back."""
        self.limit = number
        self._close(self._pool.get_size() - number)

    def shed(self) -> None:
        """Close one connection, at once or when it comes back, and open none for SHED_TIME.

        For a server that has no more connections, when another part of the process needs one first.
        """
        self._no_new_before = self._loop.time() + SHED_TIME
        self._close(1)

    def _close(self, number: int) -> None:
        self._to_close = min(self._to_close + max(0, number), self._pool.get_size())
        for _ in range(self._to_close):
            if self._kept:
                self._give_back(self._kept.popleft()[0])
            elif self._pool.get_idle_size():
                self._spawn(self._close_idle())

    async def _close_idle(self) -> None:
        if not self._pool.get_idle_size():
            return  # it has been lent, and the pool would open another one
        with suppress(TimeoutError, asyncpg.InterfaceError, utils.Error):
            self._give_back(await self._pool.acquire(timeout=CANCEL_TIMEOUT))

    def _closes_next(self) -> bool:
        """Whether the connection that comes back is to be closed."""
        return self._to_close > 0 or (self.limit is not None and self._pool.get_size() > self.limit)

    async def release(self, connection: Pooled, *, keep: bool) -> None:
        """Take a connection back: keep it, if ``keep`` and there is room, or return it to the pool.

        The pool first cancels a statement that is still under way. A broken connection delays that, but not
        the caller.
        """
        if keep and self._waiters and not (self._closing or self._closes_next() or is_dead(connection)):
            self._waiters.popleft().set_result(connection)
            return
        if (
            not keep
            or self._closes_next()
            or self._closing
            or self._waiting
            or len(self._kept) >= KEPT
            or is_dead(connection)
        ):
            await asyncio.wait([self._give_back(connection)], timeout=RETURN_TIMEOUT)
            return
        self._kept.append((connection, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_TIMEOUT, self._return_idle)

    async def drop_all(self) -> None:
        """Have every connection replaced before its next use, because they lead to the wrong server."""
        await self._pool.expire_connections()
        self._give_all_back()

    async def close(self) -> None:
        """Keep no connection; returns when the pool has them all."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._give_all_back()
        if self._returning:
            await asyncio.wait(self._returning)

    def _return_idle(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._kept and self._kept[0][1] <= now - IDLE_TIMEOUT:
            self._give_back(self._kept.popleft()[0])
        if self._kept:
            self._timer = self._loop.call_at(self._kept[0][1] + IDLE_TIMEOUT, self._return_idle)

    def _give_all_back(self) -> None:
        while self._kept:
            self._give_back(self._kept.popleft()[0])

    def _give_back(self, connection: Pooled) -> "asyncio.Task[None]":
        return self._spawn(self._return(connection))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        returning = self._loop.create_task(work, context=Context())
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)
        return returning

    async def _return(self, connection: Pooled) -> None:
        # InternalClientError: the server has just closed it, and the pool has its place back.
        with suppress(
            asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, utils.Error
        ):
            try:
                if self._closes_next() and not is_dead(connection):
                    self._to_close = max(0, self._to_close - 1)
                    await connection.close(timeout=CANCEL_TIMEOUT)
                await self._pool.release(connection, timeout=CANCEL_TIMEOUT)
            except TimeoutError:  # no answer on this connection, so most likely on none
                await self.drop_all()
        if self._waiters:  # the pool may have one for it
            self._waiters.popleft().set_result(None)


def is_dead(connection: Pooled) -> bool:
    """Whether the connection is closed; the pool has its place back then, and its proxy is empty."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True
