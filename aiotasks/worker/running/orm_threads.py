"""OrmThreads: the threads of coroutine tasks' ORM calls. Daemons, so none holds up the exit of a process."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from typing import Any

from ...compat import enter_thread_sensitive
from ...db.connection_thread import ConnectionThread, fulfil
from ...store.block_threads import BlockSlots, lender_of_worker
from ..thread_pool import RETRY_DELAY, ThreadStarts

__all__ = ["OrmSession", "OrmThreads"]

# Seconds since a job's last call after which its connections are checked again before the next.
CHECK_AFTER = 1.0


class OrmThreads:
    """The threads that ``sync_to_async(thread_sensitive=True)`` uses inside coroutine tasks.

    asgiref's default is one thread for the whole process, so that a hundred tasks would wait
    for each other's queries. Here each job is bound to one of ``size`` threads at its first
    call and stays there, so jobs run in parallel on few connections (measured: 100 tasks of
    five 10 ms queries, 18/s on the one thread, 135/s on eight). A thread that is stuck in a call
    gets no new job; another is started, up to ``limit``.

    - A job whose call has left something in its session (a setting, a role, a lock, a temporary table, an
      open transaction) owns its thread until that is over or the job has ended. Calls of other jobs that
      wait there meanwhile move to another thread; that session holds nothing of theirs.
    - A session that an owner has changed is discarded before the thread runs another job's call.
    - Owned threads don't count towards ``size``. If all ``limit`` are owned, one more is started.
    - If the machine refuses the first thread, calls wait for one.

    threads: the running ones. waiting: calls that wait for a first thread.
    """

    def __init__(self, size: int, *, limit: int) -> None:
        self.size = size
        self._limit = max(size, limit)
        self.threads: list[ConnectionThread] = []
        self._started = 0
        self._closed = False
        self._lock = threading.Lock()  # for all shared state: jobs' threads, owners, whether a job has ended
        self.waiting: deque[tuple[OrmSession, _OrmCall]] = deque()
        self._retries = False  # the waiting calls are about to be tried again
        self._loop = asyncio.get_running_loop()
        self._blocks = BlockSlots(size)
        self._starts = ThreadStarts("the ORM calls of coroutine tasks", connects=True)
        # One for all jobs, entered in a context that each job gets a copy of: an ``async with`` in
        # every job took 8 % of a no-op's time.
        self._context = Context()
        self._context.run(enter_thread_sensitive, _ByContext())
        self._context.run(lender_of_worker.set, self)

    @property
    def busy(self) -> int:
        """How many threads have tasks bound to them. May be asked in any thread."""
        return sum(thread.users > 0 for thread in list(self.threads))

    def session(self) -> "OrmSession":
        """Return a session by which one job makes its calls. It costs nothing until it is used."""
        return OrmSession(self, self._context.copy())

    def put(self, job: "OrmSession", call: "_OrmCall") -> None:
        """Have the job's thread run ``call``."""
        with self._lock:
            if job.ended:
                fulfil(call.future, _raise_outlived, (), {})
                return
            if job.thread is None:
                job.thread = self._lease()
            if job.thread is not None:
                job.thread.put(partial(self._run, job.thread, job, call))
                return
            self.waiting.append((job, call))
            if self._retries:
                return
            self._retries = True
        with suppress(RuntimeError):  # the loop has closed, and with it the task that waits for the call
            self._loop.call_soon_threadsafe(self._loop.call_later, RETRY_DELAY, self._retry)

    def leave(self, job: "OrmSession") -> None:
        """Note that the job has ended: its thread may take another."""
        with self._lock:
            job.ended = True
            thread, job.thread = job.thread, None
            if thread is None:
                return
            thread.users -= 1
            if thread.owner is job:
                thread.put(partial(self._take_from_ended, thread))
            if self._closed and not thread.users:
                self._stop(thread)
        if self.waiting:
            self._put_waiting()

    async def lend(self, within: float) -> "_LentJob":
        """Return a thread for an ``aiotasks.atomic()`` block. At most ``size`` are open at a time.

        Raises OperationalError if none of them ends within so many seconds.
        """
        await self._blocks.take(within)
        return _LentJob(OrmSession(self, self._context.copy()), self._blocks.release)

    def close(self) -> None:
        """Let each thread end once its jobs have."""
        with self._lock:
            self._closed = True
            for thread in [thread for thread in self.threads if not thread.users]:
                self._stop(thread)

    def _stop(self, thread: ConnectionThread) -> None:
        if thread in self.threads:
            self.threads.remove(thread)
            thread.stop()

    def _lease(self) -> ConnectionThread | None:
        """The thread for a job's calls: neither stuck nor owned, and with the fewest jobs."""
        now = time.monotonic()
        shared = [thread for thread in self.threads if thread.owner is None or thread.owner.ended]
        free = [thread for thread in shared if not thread.is_stuck(now)]
        best = min(free, key=_jobs, default=None)
        if best is not None:
            wanted = best.users > 0 and len(shared) < self.size and len(self.threads) < self._limit
        else:
            wanted = not shared or len(self.threads) < self._limit
        if wanted and (another := self._starts.start(self._start, len(self.threads))) is not None:
            best = another
        if best is None:
            best = min(shared, key=_jobs, default=None)
        if best is not None:
            best.users += 1
        return best

    def _start(self) -> ConnectionThread:
        thread = ConnectionThread(f"aiotasks-orm-{self._started + 1}")
        self._started += 1
        self.threads.append(thread)
        return thread

    def _retry(self) -> None:
        self._retries = False
        self._put_waiting()

    def _put_waiting(self) -> None:
        for _ in range(len(self.waiting)):
            self.put(*self.waiting.popleft())

    # --- In a thread

    def _run(self, thread: ConnectionThread, job: "OrmSession", call: "_OrmCall") -> None:
        with self._lock:
            owner = thread.owner
            is_anothers = owner is not None and owner is not job and not owner.ended
            if is_anothers and job.thread is thread:
                thread.users -= 1
                job.thread = None
        if is_anothers:
            self.put(job, call)
            return
        if owner is not None and owner.ended:
            self._take_from_ended(thread)
        if job.checked is not thread or time.monotonic() - job.called_at > CHECK_AFTER:
            job.checked = thread
            thread.connections.check()
        fulfil(call.future, *call.call, then=partial(self._settle, thread, job))

    def _settle(self, thread: ConnectionThread, job: "OrmSession") -> None:
        """Decide, after a call and before its caller is notified, whose the thread is from now on."""
        job.called_at = time.monotonic()
        is_private = thread.connections.rest()
        with self._lock:
            ended = job.ended
            if not ended:
                thread.owner = job if is_private else None
        if ended and is_private:  # cancelled while the call ran
            thread.connections.clean()
            with self._lock:
                if thread.owner is job:
                    thread.owner = None

    def _take_from_ended(self, thread: ConnectionThread) -> None:
        with self._lock:
            if thread.owner is None or not thread.owner.ended:
                return
        thread.connections.clean()
        with self._lock:
            thread.owner = None


class OrmSession:
    """One job's access to the threads: its thread-sensitive calls run one at a time, on one thread.

    ``context`` is a new one for the job to run in. The other attributes are for ``OrmThreads``.
    """

    __slots__ = ("_threads", "called_at", "checked", "context", "ended", "has_called", "thread")

    def __init__(self, threads: OrmThreads, context: Context) -> None:
        self.context = context
        self.thread: ConnectionThread | None = None
        self.checked: ConnectionThread | None = None  # whose connections have been checked for it
        self.called_at = 0.0
        self.has_called = False
        self.ended = False
        self._threads = threads
        context.run(_job.set, self)

    def submit(self, call: "_OrmCall") -> None:
        """Run ``call``; it raises RuntimeError once the job has ended."""
        self.has_called = True
        self._threads.put(self, call)

    def release(self) -> None:
        """Note that the job has ended: its thread may take another."""
        if self.has_called:
            self._threads.leave(self)
        self.ended = True


class _LentJob:
    """A block as a job of its own, which owns its thread while the transaction is open."""

    def __init__(self, job: OrmSession, then: Callable[[], None]) -> None:
        self._job = job
        self._then = then

    def put(self, call: Callable[[], None]) -> None:
        self._job.submit(_OrmCall(call, (), {}))

    def release(self) -> None:
        self._job.release()
        self._then()


_job: ContextVar[OrmSession] = ContextVar("aiotasks_orm_job")


class _OrmCall:
    """A call that asgiref submits, and its future."""

    __slots__ = ("call", "future")

    def __init__(self, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.call = (call, args, kwargs)
        self.future: Future[Any] = Future()


class _ByContext(Executor):
    """The executor for asgiref: it submits to the job in whose context it is used."""

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        orm_call = _OrmCall(call, args, kwargs)
        _job.get().submit(orm_call)
        return orm_call.future


def _raise_outlived() -> None:
    raise RuntimeError(
        "This asyncio task has outlived the task that started it, which had the thread for its ORM calls. "
        "Await it in there."
    )


def _jobs(thread: ConnectionThread) -> int:
    return thread.users
