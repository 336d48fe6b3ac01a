"""SyncThreads: the threads that sync tasks run in. Daemons, so none holds up the exit of a process."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ...compat import call_coroutines_on
from ..thread_pool import ThreadPool

__all__ = ["SyncThreads"]

logger = logging.getLogger("aiotasks.worker")


class SyncThreads:
    """Runs sync tasks, at most ``limit`` at a time, beside those that outlast their time limits.

    ``async_to_sync`` inside a task runs its coroutine on the worker's loop. ``spare``: how many threads may
    be opened in the place of stuck ones.
    """

    def __init__(self, limit: int, *, spare: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPool("aiotasks-sync", "sync tasks", limit, spare=spare, prepare=self._prepare)
        self.stuck_changed = asyncio.Event()
        # How many tasks can run at a time at the moment. The pool's method, as it is called for each task.
        self.capacity = self._pool.capacity
        self._done: deque[asyncio.Future[None]] = deque()
        self._wake_scheduled = False

    def run(self, call: Callable[[], None]) -> "asyncio.Future[None]":
        """Run ``call``, which must not raise and brings its own context, in a thread; the future is done
        when the call has ended.

        Raises NotStarted if the machine refuses a thread for it.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        # partial(), because a nested function would evaluate its annotations (a generic alias) for each task.
        self._pool.put(partial(self._run, call, future), may_wait=False)
        return future

    def _run(
        self, call: Callable[[], None], future: "asyncio.Future[None]", after: Callable[[], None]
    ) -> None:
        try:
            call()
        except BaseException:  # the runner fails the task; the thread and its slot must not be lost
            logger.exception("A call in a thread has raised")
        after()
        self._notify(future)

    @property
    def stuck(self) -> int:
        """How many threads don't come back from tasks whose time is over. May be asked in any thread."""
        return self._pool.stuck

    @property
    def usable(self) -> int:
        """How many tasks can run at a time beside those."""
        return max(0, self._pool.usable)

    def widen(self) -> None:
        """Have another thread in the place of one that its task doesn't give back, if there may be more."""
        self._pool.widen()
        self.stuck_changed.set()

    def narrow(self) -> None:
        """Note that such a thread has come back."""
        self._pool.narrow()
        self.stuck_changed.set()

    def close(self) -> None:
        """Let idle threads end."""
        self._pool.close()

    def _prepare(self) -> None:
        call_coroutines_on(self._loop)

    def _notify(self, future: "asyncio.Future[None]") -> None:
        self._done.append(future)
        if not self._wake_scheduled:  # one wake-up of the loop for all calls that end meanwhile
            self._wake_scheduled = True
            with suppress(
                RuntimeError
            ):  # an embedded worker's loop has closed; its heartbeat settles the task
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # The flag is cleared first: a thread that finishes now schedules another delivery.
        self._wake_scheduled = False
        while self._done:
            future = self._done.popleft()
            if not future.done():
                future.set_result(None)
