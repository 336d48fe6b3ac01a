"""The event loop on which sync code waits: the one that waits for it, or one in a thread of aiotasks.

So all sync code of a process shares one pool and one LISTEN session.
"""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from ..compat import loop_of_sync_code

__all__ = ["run_on_loop"]

# Seconds without use after which the thread ends, and its connections with it.
IDLE_TIMEOUT = 10.0

NAME = "aiotasks-joins"


class LoopThread:
    """A daemon thread with an event loop, from its first use to IDLE_TIMEOUT after its last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users = 0
        self._stop: asyncio.Event | None = None
        self._idle: asyncio.TimerHandle | None = None

    def enter(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs until ``leave()`` at least.

        Raises RuntimeError where the machine refuses a thread or a loop.
        """
        with self._lock:
            if self._loop is None:
                started = threading.Event()
                thread = threading.Thread(target=self._work, args=[started], name=NAME, daemon=True)
                thread.start()
                started.wait()
            if self._loop is None:
                raise RuntimeError("The event loop on which sync code waits could not be started.")
            self._users += 1
            return self._loop

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._loop is not None:
                self._loop.call_soon_threadsafe(self._rest)

    def _work(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._main(started))
        finally:
            started.set()  # also where the machine refuses a loop

    async def _main(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        started.set()
        await self._stop.wait()

    def _rest(self) -> None:
        """Nobody uses the loop: end it if that stays so."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._end_if_idle)

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._users == 0 and self._stop is not None:
                self._loop = None
                self._stop.set()


_thread = LoopThread()


def run_on_loop[Result](
    make: Callable[[], Coroutine[Any, Any, Result]],
    begun: Callable[[Callable[[], object]], None] | None = None,
) -> Result:
    """Return what a coroutine returns, and wait for it in this thread. An exception in the wait (Ctrl-C)
    cancels the coroutine. ``begun`` is called with what cancels it from any thread, which raises
    ``concurrent.futures.CancelledError``.

    It runs in an empty context, so in no transaction of the caller's. This thread must have no running loop.
    """
    if (loop := loop_of_sync_code()) is not None:
        return _run(loop, make, begun)
    thread = _thread
    loop = thread.enter()
    try:
        return _run(loop, make, begun)
    finally:
        thread.leave()


def _run[Result](
    loop: asyncio.AbstractEventLoop,
    make: Callable[[], Coroutine[Any, Any, Result]],
    begun: Callable[[Callable[[], object]], None] | None,
) -> Result:
    future = contextvars.Context().run(asyncio.run_coroutine_threadsafe, make(), loop)
    try:
        if begun is not None:
            begun(future.cancel)
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forget_in_child() -> None:
    """A forked child has no thread but the one that forked."""
    global _thread
    _thread = LoopThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
