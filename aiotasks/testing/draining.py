"""drain: a worker made of the real parts, run by a test."""

import asyncio
import logging
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import anyio
from asgiref.sync import async_to_sync
from django.db import utils

from .. import __version__
from ..rows import Job
from ..store.store import Store
from ..store.wakeups import Wakeup
from ..worker.build import Builder
from ..worker.events import EventLog, Events
from ..worker.execution import Execution
from ..worker.fleet import Fleet
from ..worker.lease.lease import Lease, boottime
from ..worker.maintenance.expirer import Expirer
from ..worker.maintenance.promoter import Promoter
from ..worker.ownership import Ownership
from ..worker.slots import Slots
from ..worker.startup import backend_of
from ..worker.task_log import TaskLog
from ..worker.writing.lost import LostTasks
from .calls import Count, here_or_awaited
from .drivers import Watched, driver_of
from .thread import Savepoints, TestContext, TestThread, in_savepoints

__all__ = ["drain"]

logger = logging.getLogger("aiotasks.testing")

# Seconds that a drain may take by default.
TIMEOUT = 60.0

# The lease of a drain's worker, in seconds: nothing renews it.
LEASE_TIMEOUT = 24 * 3600.0

# Seconds for each step of the clean-up after a drain was cancelled or has reached its limit.
CLEAN_UP_TIMEOUT = 1.0


def drain(backend: str = "default", *, timeout: float | None = TIMEOUT) -> Any:
    """Run the backend's tasks in this process until none is READY or due; returns how many ran.

    ``drain()`` in sync code, ``await drain()`` in coroutines. The tasks pass through the real
    claim, runner and finisher, one at a time; tasks that they enqueue run, too, and a task that fails is
    FAILED, as its result says. One with attempts left runs again if its next attempt is due at once. Tasks
    scheduled for later are left alone, as those that wait for an attempt or have snoozed. Sync tasks and ORM
    calls run where the test's own do, so that they see what it sees. If a transaction is open there, each
    task has a savepoint: a database error outside ``atomic()`` undoes the writes of its task, and nothing
    else. Tasks that have expired are FAILED, and don't count.

    ``timeout`` is for all of it, in seconds (None: no limit). Raises TimeoutError, which says what the
    drain waited for; ImproperlyConfigured for an alias that isn't a backend of aiotasks, or has a mistake in
    its settings; RuntimeError where a task has closed the connection of the test's transaction.
    """

    def run() -> Count:
        return Count(async_to_sync(_Drain.run_all)(backend, timeout))

    return here_or_awaited("drain", run, lambda: _Drain.run_all(backend, timeout))


class _Drain:
    """A worker made of the real parts. It runs one task after another, because savepoints are a stack."""

    def __init__(self, alias: str, limit: asyncio.Timeout) -> None:
        backend = backend_of(alias)
        thread = TestThread()
        self.ran = 0
        self.waits_for = "the database"
        self.driver = Watched(driver_of(backend.config, thread))
        self._limit = limit
        self._options = backend.config
        self._backend = alias
        self._thread = thread
        self._store = store = Store(self.driver)
        self._claimed: deque[Job] = deque()
        self._execution: Execution | None = None  # of the task that has just ended
        self._ended = asyncio.Event()
        self._lease = Lease(LEASE_TIMEOUT)
        self._slots = Slots(loop=1, threads=1)  # for the tasks that are claimed and haven't begun
        self._task_log = TaskLog(slow=backend.config.slow_task, moved_tasks=backend.config.moved_tasks)
        events = Events(EventLog(), self._task_log)
        builder = Builder(backend=alias, sender=type(backend), options=backend.config, observer=events)
        # Receivers of task_finished have savepoints, as tasks do.
        self._finisher = builder.finisher(
            store,
            make_context=TestContext,
            wrap=lambda sending: in_savepoints(thread, sending),
        )
        self._runner = builder.runner(
            slots=Slots(loop=1, threads=1),
            threads=thread,
            make_context=TestContext,
            saves=self._finisher.metadata,
            done=self._done,
        )
        self._ownership = Ownership(self._runner, self._finisher)
        self._claimer = builder.claimer(
            store,
            queues=[],
            peers=Fleet(),
            lease=self._lease,
            slots=self._slots,
            runner=self,
            finisher=self._finisher,
            ownership=self._ownership,
            beyond_slots=False,
            resolve=self._runner.resolve,
            waits_for_rates=False,
        )
        self._promoter = Promoter(store, backend=alias, waker=self, peers=Fleet())
        lost_tasks = LostTasks(
            self._finisher, None, sender=type(backend), options=backend.config, observer=events
        )
        self._expirer = Expirer(store, backend=alias, options=backend.config, lost_tasks=lost_tasks)

    @classmethod
    async def run_all(cls, alias: str, timeout: float | None) -> int:
        """The number of tasks run. Raises TimeoutError."""
        limit = asyncio.timeout(timeout)
        drain = cls(alias, limit)
        try:
            async with limit:
                await drain._run()
        except TimeoutError as error:
            if not limit.expired():
                raise
            answer = drain.driver.error
            raise TimeoutError(
                f"drain() has run {drain.ran} tasks in {timeout:g} s, and waits for {drain.waits_for}."
                + (f" The database's last error: {answer}" if answer is not None else "")
                + " If that is intended, pass a longer `timeout`."
            ) from error
        finally:
            drain._task_log.flush()
        return drain.ran

    async def _run(self) -> None:
        worker_id = uuid4()
        await self._store.register_worker(
            worker_id, self._backend, "", 0, [], 1, 1, __version__, LEASE_TIMEOUT
        )
        self._lease.registered(worker_id, boottime())
        try:
            while True:
                await self._promoter.run_once()
                await self._expirer.sweep()
                await self._finisher.announcer.all_announced()
                self._claimer.wake()
                if not await self._claim():
                    break
                while self._claimed:
                    await self._run_next()
                self.waits_for = "the database"
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._give_all_back(worker_id)
            raise
        await self._store.remove_worker(worker_id)

    async def _claim(self) -> int:
        """Claim. If this is cancelled meanwhile, the claimed tasks are known all the same, and given back."""
        claiming = asyncio.ensure_future(self._claim_any())
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with anyio.move_on_after(CLEAN_UP_TIMEOUT, shield=True):
                await claiming
            raise

    async def _claim_any(self) -> int:
        """Claim tasks without limits or, if there are none, with limits. (Rates count for nothing here.)"""
        keyed = self._claimer.keyed
        claimed = await self._claimer.run_once()
        while not claimed and keyed.is_looking:
            if keyed.has_work(asyncio.get_running_loop().time()):
                claimed = await self._claimer.run_keyed_once()
            else:
                await asyncio.sleep(0.001)
        return claimed

    async def _give_all_back(self, worker_id: UUID) -> None:
        while self._claimed:
            self._ownership.give_back(self._next_claimed())
        await self._finisher.wait_idle(CLEAN_UP_TIMEOUT)
        with anyio.move_on_after(CLEAN_UP_TIMEOUT):
            await self._finisher.announcer.all_announced()  # its savepoints must not outlive the drain
        with anyio.move_on_after(CLEAN_UP_TIMEOUT), suppress(utils.Error):  # an error is on its way already
            await self._store.remove_worker(worker_id)

    async def _run_next(self) -> None:
        job = self._claimed[0]
        savepoints = await self._thread.enter_savepoints()
        self._next_claimed()
        close = partial(savepoints.close, f"The task {job.task_path}")
        self.waits_for = f"the task {job.task_path} (id {job.id})"
        self._ended.clear()
        self._runner.start(job)
        try:
            await self._ended.wait()
            await self._thread.run(close)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._cancel_task(savepoints, close)
            raise
        self.ran += 1
        self.waits_for = f"the outcome of {job.task_path} (id {job.id}) to be written, or for receivers of it"
        await self._finish()

    async def _finish(self) -> None:
        if self._execution is not None:
            self._finisher.finish(self._execution)
        while not await self._finisher.wait_idle(self._options.command_timeout):
            pass
        await self._finisher.announcer.all_announced()

    async def _cancel_task(self, savepoints: Savepoints, close: Callable[[], None]) -> None:
        """Cancel the running task if possible, and give it back; store the outcome of an ended one."""
        for execution in list(self._runner.running):
            if self._limit.expired():
                self.waits_for += _stack_of(execution, savepoints.thread_id)
                if execution.in_thread:
                    # The thread that could raise the error is busy with the task until that ends.
                    logger.error("drain() waits for %s", self.waits_for)
                    savepoints.interrupt()
            self._runner.cancel(execution, "shutdown")
        with anyio.move_on_after(CLEAN_UP_TIMEOUT):
            await self._ended.wait()
            await self._thread.run(close)
            await self._finish()

    # --- For the claimer and the promoter

    @property
    def running(self) -> set[Execution]:
        """Nothing runs while the drain claims."""
        return set()

    def start(self, job: Job) -> bool:
        """Keep ``job`` until it is its turn."""
        self._claimed.append(job)
        self._slots.take(job.lane)
        return False

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        """Have the next claim find promoted tasks."""
        if since is not None:
            self._claimer.look_back(since)
        self._claimer.wake()

    def wake_self(self) -> None:
        """Do nothing: each claim of a drain follows a wake-up for all queues."""

    def _next_claimed(self) -> Job:
        job = self._claimed.popleft()
        self._slots.release(job.lane)
        return job

    def _done(self, execution: Execution) -> None:
        self._execution = execution
        self._ended.set()


def _stack_of(execution: Execution, thread_id: int) -> str:
    """The task's stack, as text."""
    if execution.in_thread:
        stack = traceback.extract_stack(sys._current_frames().get(thread_id), limit=20)
    else:
        frames = []
        inner: Any = execution.task.get_coro() if execution.task is not None else None
        while (frame := getattr(inner, "cr_frame", None)) is not None:
            frames.append((frame, frame.f_lineno))
            inner = inner.cr_await
        stack = traceback.StackSummary.extract(iter(frames))
    return ", which is here:\n" + "".join(stack.format())
