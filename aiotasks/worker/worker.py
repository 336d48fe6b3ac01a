"""Worker: builds the parts, runs them, and takes them down in the right order."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import anyio
from django.core.exceptions import ImproperlyConfigured
from django.db import utils

from .. import __version__, signals
from ..exceptions import UnknownTask
from ..job import Job, Lane, Released
from ..store.drivers import is_transient
from ..store.pools import resources
from ..store.repeat import backoff
from ..store.store import Store
from ..store.wakeups import Wakeup
from ..tasks import result_of
from .canceller import Canceller
from .claimer import Claimer
from .execution import Execution
from .finisher import Finisher
from .guard import LoopGuard
from .heartbeat import Heartbeat, Lease, Registration
from .periodic import periodically
from .rescuer import Rescuer
from .runner import Runner
from .scheduler import Scheduler
from .shutdown import Shutdown
from .startup import backend_of, queues_of, reach_database, slots
from .threads import OrmThreads, SyncThreads

__all__ = ["Worker"]

logger = logging.getLogger("aiotasks.worker")

# Done but unwritten outcomes, in slots: a database that is away stops the claims, not the memory.
UNWRITTEN = 2

# A wake-up for a task due so soon may be for one that is READY already: clocks differ.
CLOCK_SKEW = 5.0


class Worker:
    """Runs the tasks of one backend on the running event loop, while its block lasts.

    ::

        async with aiotasks.Worker(queues=["default"], concurrency=20):
            ...

    backend: an alias of TASKS.
    queues: names to serve; None for all of the backend's QUEUES (any name, where that is empty).
    concurrency: slots for coroutine tasks, which run on this loop.
    threads: slots for sync tasks, which run in threads. Either may be 0: not served, then.
    grace: seconds for which the end of the block waits for running tasks. Then coroutines are
        cancelled and their tasks given back.
    database_timeout: seconds for which the start waits for a database that can't be reached; None
        to start anyway and go on trying.
    own_process: the process is the worker's alone: sync tasks that outlast the grace are given
        back when it leaves. Else their lease is kept for as long as their threads run.

    Raises ImproperlyConfigured for a mistake in the settings, before anything runs, and
    DatabaseNotReady where ``database_timeout`` is given and the database can't be used.
    """

    def __init__(
        self,
        *,
        backend: str = "default",
        queues: Sequence[str] | None = None,
        concurrency: int = 100,
        threads: int = 10,
        grace: float = 25.0,
        database_timeout: float | None = None,
        own_process: bool = False,
    ) -> None:
        found = backend_of(backend)
        self.backend = backend
        self.queues = queues_of(found, queues)
        self.concurrency = slots("concurrency", concurrency)
        self.threads = slots("threads", threads)
        if not self.concurrency and not self.threads:
            raise ImproperlyConfigured("A worker with concurrency 0 and threads 0 would run nothing.")
        if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 <= grace <= 86_400:
            raise ImproperlyConfigured(f"grace must be 0 to 86400 seconds, not {grace!r}.")
        self.grace = grace
        self.own_process = own_process
        self._database_timeout = database_timeout
        self._options = found.config
        self._sender = type(found)
        self.stuck = False  # after the end: a thread goes on that only os._exit gets rid of
        self._main_task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # the start has succeeded, or failed once
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._changed = asyncio.Event()  # an execution has ended
        self._built = asyncio.Event()  # there was a database, so there are parts

    # --- The block --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._main_task is not None:
            raise RuntimeError("A Worker runs once; make another one.")
        self._main_task = asyncio.get_running_loop().create_task(
            self._main(), context=Context(), name="aiotasks worker"
        )
        self._main_task.add_done_callback(self._main_ended)
        try:
            await self._tried.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise
        if self._main_task.done():
            await self._main_task  # raises
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop claiming, wait for what runs, give the rest back; returns when all is down."""
        assert self._main_task is not None
        self._stopping.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._main_task])

    def hurry(self) -> None:
        """Have no more grace: cancel what runs now."""
        self._stopping.set()
        self._hurried.set()

    async def wait(self) -> None:
        """Return when the worker has ended, by ``stop()`` or by a failure, which is raised."""
        assert self._main_task is not None
        await asyncio.shield(self._main_task)

    async def wait_until_empty(self) -> None:
        """Return once nothing is READY, RUNNING or due in the queues and lanes served.

        Raises what the worker has ended with, if it did meanwhile.
        """
        assert self._main_task is not None
        await self._built.wait()
        lanes = [lane for lane, slots in (("loop", self.concurrency), ("thread", self.threads)) if slots]
        store = resources(self._options).store
        failures = 0
        while not self._main_task.done():
            try:
                idle = not self._runner.running and not self._finisher.pending
                if idle and not await store.has_unfinished_jobs(self.backend, self.queues or None, lanes):
                    return
                failures = 0
            except utils.Error as error:
                if not is_transient(error):
                    raise
                failures += 1
            await asyncio.sleep(backoff(failures) if failures else 0.05)
        await self._main_task

    def _main_ended(self, task: "asyncio.Task[None]") -> None:
        self._tried.set()
        self._built.set()  # nobody is to wait for it any longer
        if not task.cancelled() and (error := task.exception()) is not None and not self.own_process:
            logger.critical("the worker has ended, no tasks are run here any more", exc_info=error)

    # --- Its phases -------------------------------------------------------------------------

    async def _main(self) -> None:
        if not await self._reach_database():
            return  # told to stop before there was a database
        self._build()
        self._built.set()
        self._heartbeat.start()
        self._guard.start()
        listening = (
            self._resources.listener.subscribed(self._heard) if self._options.notify else nullcontext()
        )
        with listening:
            async with anyio.create_task_group() as group:
                try:
                    for part in (*self._parts(), self._tell_when_started):
                        group.start_soon(part)
                    await self._stopping.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._shut_down()
                    group.cancel_scope.cancel()

    async def _reach_database(self) -> bool:
        """Wait until the tables can be read; False where the worker is stopped before that."""
        self._resources = resources(self._options)
        return await reach_database(
            self._resources.store,
            self.backend,
            database=self._options.database,
            within=self._database_timeout,
            stopping=self._stopping,
            failed=self._tried.set,  # embedded, the site starts anyway
        )

    def _build(self) -> None:
        options, store = self._options, self._resources.store
        self._lease = Lease(options.lease_timeout)
        self._heartbeat = Heartbeat(
            options,
            self._lease,
            Registration(
                backend=self.backend,
                queues=self.queues,
                concurrency=self.concurrency,
                threads=self.threads,
                version=__version__,
            ),
            changed=self._registered,
        )
        self._registered_once = asyncio.Event()
        self._sync_threads = SyncThreads(self.threads or 1)
        self._orm_threads = OrmThreads(options.async_db_threads, limit=self.concurrency)
        self._finisher = self._make_finisher(store)
        self._runner = Runner(
            sender=self._sender,
            options=options,
            threads=self._sync_threads,
            orm=self._orm_threads,
            done=self._done,
        )
        self._claimer = Claimer(
            store,
            backend=self.backend,
            queues=self.queues,
            poll_interval=options.poll_interval,
            worker_id=lambda: self._lease.worker_id if self._lease.remaining() > 0 else None,
            free=self._free,
            start=self._runner.start,
            drop=self._drop,
        )
        self._scheduler = Scheduler(
            store,
            backend=self.backend,
            wake=self._wake,
            # Without NOTIFY nobody tells of a task that is due earlier than the one waited for.
            longest_wait=60.0 if options.notify else options.poll_interval,
        )
        self._rescuer = Rescuer(
            store,
            backend=self.backend,
            options=options,
            worker_id=lambda: self._lease.worker_id,
            may_rescue=self._lease.may_rescue,
            held=self._held,
            wake=self._wake,
            announce=self._announce_lost,
        )
        self._canceller = Canceller(
            store,
            worker_id=lambda: self._lease.worker_id,
            running=lambda: self._runner.running,
            cancel=self._runner.cancel,
            poll_interval=options.poll_interval,
        )
        self._guard = LoopGuard()

    def _make_finisher(self, store: Store) -> Finisher:
        return Finisher(
            store,
            backend=self.backend,
            sender=self._sender,
            error_limit=self._options.max_error_size,
            executor=self._orm_threads.executor,
            wake=self._wake,
            written=lambda: self._claimer.slot_freed(),
        )

    def _parts(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        async def sweep() -> None:
            await periodically(self._rescuer.run_once, self._lease.interval, name="rescuer")

        return [self._claimer.run, self._scheduler.run, self._canceller.run, sweep, self._watch_lease]

    async def _tell_when_started(self) -> None:
        await self._registered_once.wait()
        if self._options.notify:
            # LISTEN first, so that "started" means "wakes up"; without it the polls must do.
            with anyio.move_on_after(2.0):
                await self._resources.listener.listening.wait()
        self._say_what_is_served()
        self._tried.set()

    def _say_what_is_served(self) -> None:
        options = self._options
        logger.info(
            "worker %s serves backend %r, queues %s",
            self._lease.worker_id,
            self.backend,
            ", ".join(self.queues) or "of any name",
        )
        logger.info("loop: %d coroutine tasks at a time on %s", self.concurrency, _loop_name())
        logger.info("threads: %d sync tasks at a time", self.threads)
        logger.info(
            "wake-ups: %s, polling within %g s",
            "LISTEN" if options.notify and self._resources.listener.listening.is_set() else "none",
            options.poll_interval,
        )
        logger.info("lease: %g s, renewed every %g s", options.lease_timeout, self._lease.interval)
        orm = options.async_db_threads if self.concurrency else 0
        logger.info(
            "connections: at most %d (pool %d, listener 1, heartbeat 1, ORM threads %d, sync threads %d)",
            options.pool_max_size + 2 + orm + self.threads,
            options.pool_max_size,
            orm,
            self.threads,
        )

    async def _shut_down(self) -> None:
        shutdown = Shutdown(
            self._claimer,
            self._runner,
            self._finisher,
            self._heartbeat,
            give_back=self._give_back,
            settle_late=self._settle_late,
            claim_timeout=self._options.command_timeout,
            changed=self._changed,
            hurried=self._hurried,
        )
        self.stuck = await shutdown.run(grace=self.grace, keep_threads=not self.own_process)
        self._guard.stop()
        self._orm_threads.close()
        self._sync_threads.close()
        with anyio.move_on_after(1.0):
            if not shutdown.keeps_lease and self._lease.worker_id is not None:
                with suppress(utils.Error):  # then the lease runs out, and another worker clears up
                    await self._resources.store.remove_worker(self._lease.worker_id)
            await self._resources.notifier.all_sent()
        logger.info("stopped")

    async def _give_back(self, executions: Sequence[Execution]) -> None:
        rows = [(e.job.id, e.job.claim_id, 0.0, None) for e in executions if e.job.claim_id is not None]
        try:
            released = await self._resources.store.release_jobs(sorted(rows))
        except utils.Error as error:
            logger.error("tasks could not be given back, their lease must run out error=%r", str(error))
        else:
            self._wake([Wakeup(self.backend, name) for name in set(released.values())])

    async def _settle_late(self, store: Store, executions: Sequence[Execution]) -> None:
        """On the heartbeat's loop, which keeps the lease: write what threads still do."""
        # No event: the threads would have to know of this loop, which is theirs only by accident.
        while any(execution.outcome is None for execution in executions):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        finisher = self._make_finisher(store)
        for execution in executions:
            finisher.finish(execution)
        await finisher.flush(self._options.command_timeout)
        if self._lease.worker_id is not None:
            await store.remove_worker(self._lease.worker_id)

    # --- What the parts tell each other -----------------------------------------------------

    def _free(self, lane: Lane) -> int:
        slots = self.concurrency if lane == "loop" else self.threads
        room = UNWRITTEN * (self.concurrency + self.threads) - len(self._finisher.pending)
        return min(slots - self._runner.count(lane), room)

    def _done(self, execution: Execution) -> None:
        self._finisher.finish(execution)
        self._claimer.slot_freed()
        self._changed.set()

    def _drop(self, job: Job) -> None:
        """A claim's reply came after the lease had ended: give the job back unrun."""
        execution = Execution(job)
        execution.outcome = Released()
        self._finisher.finish(execution)

    def _held(self) -> set[UUID]:
        executions = [*self._runner.running, *self._finisher.pending]
        return {execution.job.claim_id for execution in executions if execution.job.claim_id is not None}

    def _heard(self, wakeup: Wakeup | None) -> None:
        """The listener's callback: None where it may have missed something."""
        if wakeup is None:
            self._claimer.wake()
            self._scheduler.look()
            self._canceller.look()
        elif wakeup.backend == self.backend:
            if wakeup.cancel:
                self._canceller.look()
                return
            if wakeup.due is not None:
                self._scheduler.look(wakeup.due)
            if wakeup.due is None or wakeup.due <= time.time() + CLOCK_SKEW:
                self._claimer.wake(wakeup)

    def _wake(self, wakeups: Sequence[Wakeup]) -> None:
        """Tell ourselves, and the other workers."""
        for wakeup in wakeups:
            self._heard(wakeup)
        if self._options.notify and wakeups:
            resources(self._options).notifier.notify(wakeups)

    def _registered(self) -> None:
        """We have a lease under a new id: what was claimed under another isn't ours any more."""
        mine = str(self._lease.worker_id)
        for execution in list(self._runner.running):
            if execution.job.worker_ids[-1] != mine:
                self._runner.cancel(execution, "lost lease")
        self._registered_once.set()
        self._changed.set()
        self._claimer.wake()

    async def _watch_lease(self) -> None:
        """Enforce the deadline from the loop too: a dead line may hang the heartbeat's thread."""
        await self._registered_once.wait()
        while True:
            remaining = self._lease.remaining()
            if remaining <= 0 and self._lease.worker_id is not None:
                logger.error(
                    "the lease has run out, its tasks are cancelled worker_id=%s running=%d",
                    self._lease.worker_id,
                    len(self._runner.running),
                )
                self._heartbeat.renounce()
                for execution in list(self._runner.running):
                    self._runner.cancel(execution, "lost lease")
            await asyncio.sleep(remaining if remaining > 0 else self._lease.interval)

    async def _announce_lost(self, job: Job, error: Exception) -> None:
        """``task_finished`` for a task that its rescue has failed."""
        try:
            result = await asyncio.to_thread(result_of, job)  # which may import it
        except UnknownTask:
            return  # not a task of this process: there is no Task to show receivers
        await signals.asend_finished(self._sender, result, error, self._orm_threads.executor())


def _loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.split(".")[0]
