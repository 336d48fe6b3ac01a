"""BlockThreads: the threads of ``aiotasks.atomic()`` blocks; an open block has one for itself."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Protocol

from django.db import close_old_connections, utils

from ..conf import Options
from ..db.connection_thread import ConnectionThread, tidy

__all__ = ["BlockSlots", "BlockThread", "Lender", "block_threads", "lender_of_worker"]


class BlockThread(Protocol):
    """A thread that a block has for itself."""

    def put(self, call: Callable[[], None]) -> None:
        """Have ``call``, which must not raise, run after those before it."""

    def release(self) -> None:
        """Return the thread. The block has ended, and all of its calls have run."""


class Lender(Protocol):
    """Lends threads to blocks."""

    async def lend(self, within: float) -> BlockThread:
        """Return a thread; wait for one at most so many seconds."""


class BlockSlots:
    """Limits how many blocks are open at a time.

    For errors, ``name`` is the block's, and ``setting`` names the setting that sets the limit.
    """

    def __init__(self, limit: int, *, name: str = "aiotasks.atomic()", setting: str | None = None) -> None:
        self._name = name
        self._setting = setting or f"ASYNC_DB_THREADS ({limit})"
        self._slots = asyncio.Semaphore(limit)

    async def take(self, within: float) -> None:
        """Take a slot. Raises OperationalError if none comes free within so many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._slots.acquire()
        except TimeoutError:
            raise utils.OperationalError(
                f"No {self._name} block has ended within COMMAND_TIMEOUT ({within:g} s), and as many are "
                f"open as {self._setting} allows. Raise it, or end the blocks sooner."
            ) from None

    async def take_free(self) -> bool:
        """Take a slot if one is free and no block waits for it, without suspending; return whether it was."""
        if self._slots.locked():
            return False
        return await self._slots.acquire()

    def release(self) -> None:
        self._slots.release()


class BlockThreads:
    """The threads of one event loop's blocks, at most ``limit``.

    A returned thread is lent again. Its connections are closed as after a request, by CONN_MAX_AGE, and after
    a minute without use.
    """

    def __init__(self, limit: int) -> None:
        self._slots = BlockSlots(limit)
        self._threads: list[ConnectionThread] = []
        self._free: list[ConnectionThread] = []
        self.is_closed = False
        self._closer = self._close_with_loop()
        with suppress(StopIteration):  # run up to its yield, which registers it in the loop
            self._closer.asend(None).send(None)

    async def lend(self, within: float) -> "_Lent":
        """Return a thread.

        Raises OperationalError if none comes back within so many seconds, and RuntimeError if the machine
        refuses another one.
        """
        await self._slots.take(within)
        try:
            if not self._free:
                self._threads.append(ConnectionThread(f"aiotasks-atomic-{len(self._threads) + 1}"))
                self._free.append(self._threads[-1])
        except BaseException:
            self._slots.release()
            raise
        return _Lent(self._free.pop(), self._take_back)

    def _take_back(self, thread: ConnectionThread) -> None:
        if self.is_closed:
            thread.stop()
        else:
            self._free.append(thread)
        self._slots.release()

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        """Its ``finally`` is run by ``loop.shutdown_asyncgens()``, which every runner calls."""
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Let each thread end with its block, because a closing loop still has open blocks."""
        self.is_closed = True
        for thread in self._free:
            thread.stop()

    def abandon(self) -> None:
        """Let all threads end, because their loop is closed; open transactions are rolled back."""
        self.is_closed = True
        for thread in self._threads:
            thread.stop()


class _Lent:
    """One of the threads while a block has it."""

    def __init__(self, thread: ConnectionThread, take_back: Callable[[ConnectionThread], None]) -> None:
        self._thread = thread
        self._take_back = take_back
        self.put = thread.put
        self.put(lambda: thread.connections.check())

    def release(self) -> None:
        self.put(partial(_leave_clean, self._thread))
        self._take_back(self._thread)


def _leave_clean(thread: ConnectionThread) -> None:
    thread.connections.clean()
    tidy(close_old_connections)


# The lender of a worker's threads, in the contexts of its tasks.
lender_of_worker: ContextVar[Lender | None] = ContextVar("aiotasks_block_lender", default=None)

_lock = threading.Lock()
_by_loop: dict[asyncio.AbstractEventLoop, BlockThreads] = {}


def block_threads(options: Options) -> Lender:
    """The lender for the caller: a worker's for its tasks, else the running loop's."""
    if (lender := lender_of_worker.get()) is not None:
        return lender
    loop = asyncio.get_running_loop()
    found = _by_loop.get(loop)
    if found is None or found.is_closed:
        with _lock:
            for other in [other for other in _by_loop if other.is_closed()]:
                _by_loop.pop(other).abandon()
            found = _by_loop[loop] = BlockThreads(options.async_db_threads)
    return found


def _forget_in_child() -> None:
    """A forked child has none of these threads."""
    global _lock
    _lock = threading.Lock()
    _by_loop.clear()
    lender_of_worker.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
