"""Threads of our own: for sync tasks, and for the ORM calls of coroutine tasks.

All are daemons, so none holds up the exit of a process whose shutdown has done what it can.
"""

import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import Context, ContextVar
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import close_old_connections, connections

from ..store.connection_thread import ConnectionThread, check_connections, fulfil, tidy
from ..sync import run_now

__all__ = ["OrmJob", "OrmThreads", "SyncThreads"]


class SyncThreads:
    """Runs sync tasks, at most ``limit`` at a time, each in a fresh context.

    As around a request, Django's connections of the thread are closed before and after where
    CONN_MAX_AGE says so. ``async_to_sync`` inside a task lands on the worker's loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = 0
        self._busy = 0
        self._done: deque[asyncio.Future[None]] = deque()
        self._wake_scheduled = False

    def run(self, call: Callable[[], None]) -> "asyncio.Future[None]":
        """Run ``call``, which must not raise, in a thread; the future is done when it is."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._busy += 1
        self._calls.put((call, future))
        if self._threads < min(self._busy, self._limit):
            self._threads += 1
            threading.Thread(target=self._work, name=f"aiotasks-sync-{self._threads}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _work(self) -> None:
        # What SyncToAsync sets in a thread that it runs code in: it is how AsyncToSync finds its
        # way back to the loop (there is no public name for it).
        SyncToAsync.threadlocal.main_event_loop = self._loop
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()
        while (item := self._calls.get()) is not None:
            call, future = item
            tidy(close_old_connections)
            Context().run(call)
            tidy(close_old_connections)
            self._done.append(future)
            if not self._wake_scheduled:  # one wake-up of the loop for all that finish meanwhile
                self._wake_scheduled = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    break  # an embedded worker's loop has closed; its heartbeat looks after the rest
        tidy(connections.close_all)

    def _deliver(self) -> None:
        # The flag goes down first: a thread that finishes now schedules another delivery.
        self._wake_scheduled = False
        while self._done:
            future = self._done.popleft()
            self._busy -= 1
            if not future.done():
                future.set_result(None)


class OrmThreads:
    """The threads that ``sync_to_async(thread_sensitive=True)`` uses inside coroutine tasks.

    asgiref's default is one thread for the whole process, so that a hundred tasks would wait
    for each other's queries. Here each job is bound to one of ``size`` threads at its first
    call and stays there, so jobs run in parallel on few connections (measured: 100 tasks of
    five 10 ms queries, 18/s on the one thread, 135/s on eight). A thread that is stuck in a call
    gets no new job; another is started, up to ``limit``.

    Used from the loop's thread alone.
    """

    def __init__(self, size: int, *, limit: int) -> None:
        self._size = size
        self._limit = max(size, limit)
        self._threads: list[ConnectionThread] = []
        # One for all jobs, entered in a context that each job gets a copy of: an ``async with`` in
        # every job took 8 % of a no-op's time.
        self._context = Context()
        self._context.run(run_now, ThreadSensitiveContext(executor=_ByContext()).__aenter__())  # type: ignore[no-untyped-call]

    def job(self) -> "OrmJob":
        """What one job needs to make its calls here. Costs nothing until used."""
        return OrmJob(self, self._context.copy())

    def lease(self) -> ConnectionThread:
        """The thread for a job's calls: the one with the fewest jobs that isn't stuck."""
        now = time.monotonic()
        free = [thread for thread in self._threads if not thread.is_stuck(now)]
        best = min(free, key=lambda thread: thread.jobs, default=None)
        full = len(self._threads) >= (self._size if best is not None else self._limit)
        if (best is None or best.jobs) and not full:
            best = ConnectionThread(f"aiotasks-orm-{len(self._threads) + 1}")
            self._threads.append(best)
        if best is None:
            best = min(self._threads, key=lambda thread: thread.jobs)
        best.jobs += 1
        return best

    def close(self) -> None:
        """Let the threads end once their calls have."""
        for thread in self._threads:
            thread.stop()
        self._threads.clear()


class OrmJob:
    """One job's place among the threads: its thread-sensitive calls run one at a time, on one thread.

    ``context`` is a fresh one for the job to run in.
    """

    __slots__ = ("_ended", "_thread", "_threads", "context")

    def __init__(self, threads: OrmThreads, context: Context) -> None:
        self.context = context
        self._threads = threads
        self._thread: ConnectionThread | None = None
        self._ended = False
        context.run(_job.set, self)

    def submit(self, call: Callable[[], None]) -> None:
        """Run ``call``, which must not raise. Raises RuntimeError once the job has ended."""
        if self._ended:
            raise RuntimeError(
                "This asyncio task has outlived the task that started it, which had the thread for its "
                "ORM calls. Await it in there."
            )
        if self._thread is None:
            self._thread = self._threads.lease()
            self._thread.put(lambda: tidy(check_connections))
        self._thread.put(call)

    def release(self) -> None:
        """The job has ended: its thread may take another in its place."""
        self._ended = True
        if self._thread is not None:
            self._thread.jobs -= 1
            self._thread = None


_job: ContextVar[OrmJob] = ContextVar("aiotasks_orm_job")


class _ByContext(Executor):
    """The executor that asgiref is given: leads to the job in whose context it is used."""

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        future: Future[Result] = Future()
        _job.get().submit(lambda: fulfil(future, call, args, kwargs))
        return future
