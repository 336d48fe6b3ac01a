"""Threads of our own: for sync tasks, for the ORM calls of coroutine tasks, and the loop's default executor.

The former two are daemons, so none holds up the exit of a process whose shutdown has done what it can.
All look after Django's connections in the same way: see ``ThreadConnections``.
"""

import asyncio
import errno
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, ClassVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from ...db.connection_thread import IDLE_TIMEOUT, ConnectionThread, ThreadConnections, fulfil
from ...store.block_threads import BlockSlots, lender_of_worker
from ...sync import drive
from ..execution import NotStarted
from ..free_descriptors import CONNECTION_DESCRIPTORS, SPARE_DESCRIPTORS, count_free_descriptors

__all__ = ["DefaultExecutor", "OrmSession", "OrmThreads", "SyncThreads"]

logger = logging.getLogger("aiotasks.worker")

# Seconds after the machine has refused a thread until one more is tried.
RETRY_DELAY = 5.0

# Seconds since a job's last call after which its connections are checked again before the next.
CHECK_AFTER = 1.0

# Threads that were started within so many seconds may not have opened their connections yet.
CONNECT_TIME = 1.0


class _Starts:
    """Whether another thread may be started; keeps away from it for a while where the machine refuses.

    ``connects``: its calls need a connection, for the most part, so descriptors must be there for it.
    """

    _latest: ClassVar[deque[float]] = deque(maxlen=100)  # when threads with connections were started

    def __init__(self, what: str, *, connects: bool) -> None:
        self._what = what
        self._connects = connects
        self._retry_at = 0.0
        self._refused = False

    def may_start(self) -> bool:
        return not self._refused or time.monotonic() >= self._retry_at

    @property
    def refused(self) -> bool:
        """Whether the last start was refused."""
        return self._refused

    def start[Started](self, start: Callable[[], Started], running: int) -> Started | None:
        """Call ``start``; None where it raises what ``Thread.start()`` raises if there is no thread."""
        if not self.may_start():
            return None
        try:
            if self._connects:
                now = time.monotonic()
                starting = sum(now - at < CONNECT_TIME for at in self._latest)
                if count_free_descriptors() < SPARE_DESCRIPTORS + CONNECTION_DESCRIPTORS * (starting + 1):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self._latest.append(now)
            started = start()
        except (RuntimeError, MemoryError, OSError) as error:
            if not self._refused:
                logger.warning(
                    "The machine refuses another thread for %s: going on with %d, trying again every %g s "
                    "error=%r",
                    self._what,
                    running,
                    RETRY_DELAY,
                    str(error),
                )
            self._refused = True
            self._retry_at = time.monotonic() + RETRY_DELAY
            return None
        self._refused = False
        return started


# What a pool runs: it is given what has to be called once its work is done, before anybody hears of that.
type _Call = Callable[[Callable[[], None]], None]


class _Pool:
    """At most ``limit`` threads, started as needed, that run calls, each as a job by itself.

    ``prepare`` is called in each thread at its start.
    """

    def __init__(
        self,
        name: str,
        what: str,
        limit: int,
        *,
        daemon: bool = True,
        connects: bool = True,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.threads: list[threading.Thread] = []
        self._name = name
        self._limit = limit
        self._daemon = daemon
        self._prepare = prepare
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._put = 0  # how many calls have come
        self._ended: list[int] = []  # how many each thread has run: written by that thread alone
        self._lock = threading.Lock()  # among those who put: a thread's end of a call must not wait for it
        self._starts = _Starts(what, connects=connects)

    def capacity(self) -> int:
        """How many calls can run at a time: fewer than the limit while the machine refuses threads."""
        if not self._starts.refused:
            return self._limit
        return min(self._limit, len(self.threads) + self._starts.may_start())

    def put(self, call: _Call, *, may_wait: bool) -> None:
        """Have a thread run ``call``, which must not raise.

        Raises NotStarted where there is no thread for it; with ``may_wait`` only if there is none at all.
        """
        with self._lock:
            running = len(self.threads)
            started = running >= self._limit or running > self._put - sum(self._ended) or self._start()
            if not started and not (running and may_wait):
                raise NotStarted("can't start new thread")
            self._put += 1
        self._calls.put(call)

    def start(self) -> None:
        """Start the first thread now."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Let the threads end once their calls have."""
        for _ in self.threads:
            self._calls.put(None)

    def take_waiting(self) -> list[_Call]:
        """Take out the calls that no thread has begun."""
        taken: list[_Call] = []
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return taken
            if call is not None:
                taken.append(call)

    def _start(self) -> bool:
        name = f"{self._name}-{len(self.threads) + 1}"

        def start() -> threading.Thread:
            self._ended.append(0)
            number = len(self._ended) - 1
            thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=self._daemon)
            thread.start()
            return thread

        thread = self._starts.start(start, len(self.threads))
        if thread is not None:
            self.threads.append(thread)
        return thread is not None

    def _work(self, number: int) -> None:
        if self._prepare is not None:
            self._prepare()
        django = ThreadConnections()

        def after() -> None:
            django.clean()
            self._ended[number] += 1

        while True:
            try:
                call = self._calls.get(timeout=IDLE_TIMEOUT)
            except queue.Empty:
                django.close_idle()
                continue
            if call is None:
                break
            django.check()
            call(after)
            del call  # what it refers to must not live until the next one
        django.close()


class SyncThreads:
    """Runs sync tasks, at most ``limit`` at a time, each in a fresh context.

    ``async_to_sync`` inside a task lands on the worker's loop.
    """

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = _Pool("aiotasks-sync", "sync tasks", limit, prepare=self._prepare)
        self._done: deque[asyncio.Future[None]] = deque()
        self._wake_scheduled = False

    def capacity(self) -> int:
        """How many tasks may be given to ``run`` at a time, at the moment."""
        return self._pool.capacity()

    def run(self, call: Callable[[], None]) -> "asyncio.Future[None]":
        """Run ``call``, which must not raise, in a thread; the future is done when it is.

        Raises NotStarted where the machine refuses a thread for it.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def run(after: Callable[[], None]) -> None:
            Context().run(call)
            after()
            self._tell(future)

        self._pool.put(run, may_wait=False)
        return future

    def close(self) -> None:
        """Let idle threads end."""
        self._pool.close()

    def _prepare(self) -> None:
        # What SyncToAsync sets in a thread that it runs code in: it is how AsyncToSync finds its
        # way back to the loop (there is no public name for it).
        SyncToAsync.threadlocal.main_event_loop = self._loop
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()

    def _tell(self, future: "asyncio.Future[None]") -> None:
        self._done.append(future)
        if not self._wake_scheduled:  # one wake-up of the loop for all that finish meanwhile
            self._wake_scheduled = True
            with suppress(RuntimeError):  # an embedded worker's loop has closed; its heartbeat does the rest
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # The flag goes down first: a thread that finishes now schedules another delivery.
        self._wake_scheduled = False
        while self._done:
            future = self._done.popleft()
            if not future.done():
                future.set_result(None)


class DefaultExecutor(ThreadPoolExecutor):
    """The default executor of a worker's loop: for ``asyncio.to_thread()`` and the like.

    Each call is a job by itself for Django's connections. To be shut down before the process ends, which
    waits for these threads. (asyncio demands a ThreadPoolExecutor; of that class's own machinery nothing
    is used.)
    """

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(max_workers, thread_name_prefix="aiotasks-default")
        limit = max_workers or min(32, (os.cpu_count() or 1) + 4)
        self._calls = _Pool(
            "aiotasks-default", "the loop's default executor", limit, daemon=False, connects=False
        )
        self._closed = False
        self._cancels = False
        self._calls.start()  # with one thread calls can wait, whatever the machine refuses later on

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run ``call`` in a thread. Raises RuntimeError after the shutdown, or where there is no thread."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Result] = Future()

        def run(after: Callable[[], None]) -> None:
            if self._cancels:
                future.cancel()
            fulfil(future, call, args, kwargs, then=after)

        self._calls.put(run, may_wait=True)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Those that wait are run all the same, unless ``cancel_futures``."""
        if not self._closed:
            self._closed = True
            if cancel_futures:
                self._cancels = True
                for run in self._calls.take_waiting():
                    run(lambda: None)
            self._calls.close()
        if wait:
            for thread in self._calls.threads:
                thread.join()

    def ends_within(self, seconds: float) -> bool:
        """After the shutdown: return whether the threads have ended within so many seconds."""
        end = time.monotonic() + seconds
        for thread in self._calls.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._calls.threads)


class OrmThreads:
    """The threads that ``sync_to_async(thread_sensitive=True)`` uses inside coroutine tasks.

    asgiref's default is one thread for the whole process, so that a hundred tasks would wait
    for each other's queries. Here each job is bound to one of ``size`` threads at its first
    call and stays there, so jobs run in parallel on few connections (measured: 100 tasks of
    five 10 ms queries, 18/s on the one thread, 135/s on eight). A thread that is stuck in a call
    gets no new job; another is started, up to ``limit``.

    - A job whose call has left something in its session (a setting, a role, a lock, a temporary table, an
      open transaction) owns its thread from then on, until that is over or the job has ended. Whatever
      other jobs have put there meanwhile moves to another thread: of theirs nothing is in that session.
    - What an owner leaves behind is discarded before the thread runs anything else.
    - Owned threads don't count as part of ``size``. Where all ``limit`` are owned, one more is started.
    - Where the machine refuses the only thread, calls wait for one.
    """

    def __init__(self, size: int, *, limit: int) -> None:
        self._size = size
        self._limit = max(size, limit)
        self._threads: list[ConnectionThread] = []
        self._started = 0
        self._closed = False
        self._lock = (
            threading.Lock()
        )  # for all that is shared: jobs' threads, owners, whether a job has ended
        self._waiting: deque[tuple[OrmSession, _OrmCall]] = deque()
        self._retries = False  # a look at those is due
        self._loop = asyncio.get_running_loop()
        self._blocks = BlockSlots(size)
        self._starts = _Starts("the ORM calls of coroutine tasks", connects=True)
        # One for all jobs, entered in a context that each job gets a copy of: an ``async with`` in
        # every job took 8 % of a no-op's time.
        self._context = Context()
        self._context.run(drive, ThreadSensitiveContext(executor=_ByContext()).__aenter__())  # type: ignore[no-untyped-call]
        self._context.run(lender_of_worker.set, self)

    def session(self) -> "OrmSession":
        """What one job needs to make its calls here. Costs nothing until used."""
        return OrmSession(self, self._context.copy())

    def put(self, job: "OrmSession", call: "_OrmCall") -> None:
        """Have the job's thread run ``call``."""
        with self._lock:
            if job.ended:
                fulfil(call.future, _outlived, (), {})
                return
            if job.thread is None:
                job.thread = self._lease()
            if job.thread is not None:
                job.thread.put(partial(self._run, job.thread, job, call))
                return
            self._waiting.append((job, call))
            if self._retries:
                return
            self._retries = True
        with suppress(RuntimeError):  # the loop has closed, and with it whoever waits for this
            self._loop.call_soon_threadsafe(self._loop.call_later, RETRY_DELAY, self._retry)

    def leave(self, job: "OrmSession") -> None:
        """The job has ended: its thread may take another in its place."""
        with self._lock:
            job.ended = True
            thread, job.thread = job.thread, None
            if thread is None:
                return
            thread.jobs -= 1
            if thread.owner is job:
                thread.put(partial(self._take_from_ended, thread))
            if self._closed and not thread.jobs:
                self._stop(thread)
        if self._waiting:
            self._put_waiting()

    async def lend(self, within: float) -> "_LentJob":
        """Return what an ``aiotasks.atomic()`` block makes its calls by. At most ``size`` are open at a time;
        raises OperationalError where none ends within so many seconds."""
        await self._blocks.take(within)
        return _LentJob(OrmSession(self, self._context.copy()), self._blocks.release)

    def close(self) -> None:
        """Let the threads end once their calls have."""
        with self._lock:
            self._closed = True
            for thread in list(self._threads):
                self._stop(thread)

    def _stop(self, thread: ConnectionThread) -> None:
        if thread in self._threads:
            self._threads.remove(thread)
            thread.stop()

    def _lease(self) -> ConnectionThread | None:
        """The thread for a job's calls: the one with the fewest jobs that isn't stuck, nor somebody's own."""
        now = time.monotonic()
        shared = [thread for thread in self._threads if thread.owner is None or thread.owner.ended]
        free = [thread for thread in shared if not thread.is_stuck(now)]
        best = min(free, key=_jobs, default=None)
        if best is not None:
            wanted = best.jobs > 0 and len(shared) < self._size and len(self._threads) < self._limit
        else:
            wanted = not shared or len(self._threads) < self._limit
        if wanted and (another := self._starts.start(self._start, len(self._threads))) is not None:
            best = another
        if best is None:
            best = min(shared, key=_jobs, default=None)
        if best is not None:
            best.jobs += 1
        return best

    def _start(self) -> ConnectionThread:
        thread = ConnectionThread(f"aiotasks-orm-{self._started + 1}")
        self._started += 1
        self._threads.append(thread)
        return thread

    def _retry(self) -> None:
        self._retries = False
        self._put_waiting()

    def _put_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            self.put(*self._waiting.popleft())

    # --- In a thread

    def _run(self, thread: ConnectionThread, job: "OrmSession", call: "_OrmCall") -> None:
        with self._lock:
            owner = thread.owner
            is_anothers = owner is not None and owner is not job and not owner.ended
            if is_anothers and job.thread is thread:
                thread.jobs -= 1
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
        """After a call, before anybody hears of its end: whose is the thread now?"""
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
    """One job's place among the threads: its thread-sensitive calls run one at a time, on one thread.

    ``context`` is a fresh one for the job to run in. The rest is for ``OrmThreads``.
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
        """The job has ended: its thread may take another in its place."""
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
    """What asgiref wants to be called, and the future for it."""

    __slots__ = ("call", "future")

    def __init__(self, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.call = (call, args, kwargs)
        self.future: Future[Any] = Future()


class _ByContext(Executor):
    """The executor that asgiref is given: leads to the job in whose context it is used."""

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        orm_call = _OrmCall(call, args, kwargs)
        _job.get().submit(orm_call)
        return orm_call.future


def _outlived() -> None:
    raise RuntimeError(
        "This asyncio task has outlived the task that started it, which had the thread for its ORM calls. "
        "Await it in there."
    )


def _jobs(thread: ConnectionThread) -> int:
    return thread.jobs
