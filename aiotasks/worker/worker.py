"""Worker: the object that people start and stop, with its arguments, its start and its end."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import Self

from django.db import utils

from .. import logs
from ..db.errors import is_transient
from ..db.retry import backoff
from ..metrics import Family
from ..rows import LANES
from ..store.loop import resources
from .engine import Engine
from .events import EventLog, Events
from .execution import Execution
from .figures import Figures
from .health import Health, health_of
from .startup import (
    backend_of,
    check_descriptors,
    check_privileges,
    find_room,
    limits_of,
    number_of_slots,
    queues_of,
    reach_database,
    seconds_of_grace,
)
from .tally import Tally

__all__ = ["Worker", "workers_here"]

logger = logging.getLogger("aiotasks.worker")

# Those that have been started in this process and haven't ended.
_here: list["Worker"] = []


def workers_here() -> list["Worker"]:
    """Return the workers that run in this process, in the order of their starts. May be called in any
    thread.
    """
    return list(_here)


class Worker:
    """Runs the tasks of one backend on the running event loop, while its block lasts.

    ::

        async with aiotasks.Worker(queues=["default"], concurrency=20):
            ...

    backend: an alias of TASKS.
    queues: names to serve; None for all of the backend's QUEUES (any name, where that is empty). A mapping
        has with each name how many of its tasks may run here at a time, or None: ``{"reports": 2}``.
    concurrency: slots for coroutine tasks, which run on this loop.
    threads: slots for sync tasks, which run in threads. Either may be 0: not served, then.
    grace: seconds for which the end of the block waits for running tasks. Then coroutines are
        cancelled and their tasks given back.
    database_timeout: seconds for which the start waits for a database that can't be reached; None
        to start anyway and go on trying.
    own_process: the process is the worker's alone: sync tasks that outlast the grace are given
        back when it leaves. Else their lease is kept for as long as their threads run.

    metrics: count what ``families()`` returns, which takes 1 µs a task.

    Raises TypeError or ValueError for wrong arguments, and ImproperlyConfigured for a mistake in the
    settings, before anything runs. Where ``database_timeout`` is given, the start raises
    ImproperlyConfigured for too few file descriptors, and DatabaseNotReady where the database can't be used.
    """

    def __init__(
        self,
        *,
        backend: str = "default",
        queues: Sequence[str] | Mapping[str, int | None] | None = None,
        concurrency: int = 100,
        threads: int = 10,
        grace: float = 25.0,
        database_timeout: float | None = None,
        own_process: bool = False,
        metrics: bool = False,
    ) -> None:
        found = backend_of(backend)
        self.backend = backend
        self.queues = queues_of(found, queues)
        self.queue_limits = limits_of(queues)
        self.concurrency = number_of_slots("concurrency", concurrency)
        self.threads = number_of_slots("threads", threads)
        if not self.concurrency and not self.threads:
            raise ValueError("A worker with concurrency 0 and threads 0 would run nothing.")
        self.grace = self._end_grace = seconds_of_grace(grace)
        self.own_process = own_process
        self._database_timeout = database_timeout
        self._options = found.config
        self._sender = type(found)
        self.events = Events(EventLog())  # to subscribe an Observer to
        self.tally = Tally() if metrics else None
        if self.tally is not None:
            self.events.subscribe(self.tally)
        self.stuck = False  # after the end: a task, an unwritten outcome or a receiver has outlasted it
        self._main_task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # the start has succeeded, or failed once
        self._worn, self._exhausted = asyncio.Event(), asyncio.Event()  # see Recycler
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._built = asyncio.Event()  # there was a database, so there are parts

    # --- The block --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._main_task is not None:
            raise RuntimeError("A Worker runs once; make another one.")
        logs.start()
        self._main_task = asyncio.get_running_loop().create_task(
            self._main(), context=Context(), name="aiotasks worker"
        )
        self._main_task.add_done_callback(self._main_ended)
        _here.append(self)
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
        """Stop claiming, wait for the running tasks, give back the others; returns when the worker has ended.

        A cancellation of the call ends the grace. Raises RuntimeError before the start.
        """
        main_task = self._started_task()
        self._stopping.set()
        cancelled: asyncio.CancelledError | None = None
        while not main_task.done():
            try:
                await asyncio.wait([main_task])
            except asyncio.CancelledError as error:
                cancelled = error
                self._hurried.set()
        if cancelled is not None:
            raise cancelled

    def drain(self, grace: float) -> None:
        """Stop, and wait up to ``grace`` seconds for the running tasks; returns at once."""
        self._end_grace = grace
        self._stopping.set()

    def hurry(self) -> None:
        """Stop without grace: cancel the running tasks now."""
        self._stopping.set()
        self._hurried.set()

    def give_up(self, timeout: float) -> None:
        """Give back all tasks within ``timeout`` seconds. Called in another thread while the loop hangs."""
        if hasattr(self, "engine"):
            self.engine.give_up(timeout, blamed=())

    def running(self) -> list[Execution]:
        """Return the executions that run at the moment, also those that have outlasted their time. May be
        called in any thread.
        """
        if not hasattr(self, "engine"):
            return []
        runner = self.engine.runner
        return [*list(runner.running), *list(runner.deadlines.outlasting)]

    def health(self) -> Health:
        """Return whether the worker works, and if it isn't ready, why. May be called in any thread."""
        ended = self._main_task is None or self._main_task.done()
        return health_of(self, stopping=ended or self._stopping.is_set())

    def outcomes(self) -> tuple[int, int, int]:
        """Return how many tasks have succeeded here, failed, and been given back."""
        if not hasattr(self, "engine"):  # there was no database yet
            return 0, 0, 0
        finisher = self.engine.finisher
        return finisher.succeeded, finisher.failed, finisher.given_back

    def figures(self) -> Figures | None:
        """Return how the worker does at the moment; None while it has not reached the database. May be called
        in any thread.
        """
        return self.engine.gauges.read() if hasattr(self, "engine") else None

    def families(self) -> list[Family]:
        """Return the worker's metrics; those of its tasks only with ``metrics``. May be called in any
        thread.
        """
        figures = self.figures()
        running = 0 if figures is None else sum(figures.running.values())
        return [
            *([] if self.tally is None else self.tally.families(running)),
            *([] if figures is None else [*figures.families(), *self.engine.sampler.families()]),
        ]

    async def wait(self) -> None:
        """Wait until the worker has ended, by ``stop()`` or by a failure, which is raised.

        Raises RuntimeError before the start.
        """
        await asyncio.shield(self._started_task())

    async def wait_for_database(self) -> None:
        """Wait until the database has been reached, or the worker was stopped before that.

        Raises the error that the worker has ended with meanwhile, and RuntimeError before the start.
        """
        main_task = self._started_task()
        await self._built.wait()
        if main_task.done():
            await main_task

    async def wait_until_empty(self) -> None:
        """Wait until no task is READY, RUNNING or due in the queues and lanes that are served, and no tick
        of a schedule.

        Raises the error that the worker has ended with meanwhile, and RuntimeError before the start.
        """
        main_task = self._started_task()
        await self._built.wait()
        slots = {"loop": self.concurrency, "thread": self.threads}
        lanes = [lane for lane in LANES if slots[lane]]
        store, rules = resources(self._options).store, self.engine.claimer.keyed.rules

        async def is_waiting() -> bool:
            return await store.has_unfinished_jobs(
                self.backend, self.queues or None, lanes, unknown=rules.unknown()
            )

        failures = 0
        while not main_task.done():
            try:
                # Without a lease nothing can have been claimed, whatever the table shows of its rows.
                idle = self.engine.keeper.registered_once.is_set() and self.engine.ownership.is_idle()
                if idle and not await is_waiting() and not await self._ticks() and not await is_waiting():
                    return
                failures = 0
            except utils.Error as error:
                if not is_transient(error):
                    raise
                failures += 1
            await asyncio.sleep(backoff(failures) if failures else 0.05)
        await main_task

    async def _ticks(self) -> bool:
        """Enqueue the ticks that have come; returns whether some are left."""
        return self._options.schedules is not False and await self.engine.ticker.run_once() > 0

    async def wait_until_worn(self) -> None:
        """Wait until threads are stuck in tasks that have outlasted their time, and only a new process helps:
        the worker is idle otherwise, or has no thread left.
        """
        await self._worn.wait()

    async def wait_until_exhausted(self) -> None:
        """Wait until all threads of sync tasks are stuck so."""
        await self._exhausted.wait()

    def _started_task(self) -> "asyncio.Task[None]":
        if self._main_task is None:
            raise RuntimeError("This Worker has not been started: use it by `async with`.")
        return self._main_task

    def _main_ended(self, task: "asyncio.Task[None]") -> None:
        _here.remove(self)
        self._tried.set()
        self._built.set()  # for the callers who wait
        if not task.cancelled() and not self.own_process:
            error = task.exception()
            # Without an error, too: something may have cancelled one of its parts.
            if error is not None or not self._stopping.is_set():
                logger.critical("The worker has ended; this process runs no more tasks", exc_info=error)
        logs.stop()

    # --- Its phases -------------------------------------------------------------------------

    async def _main(self) -> None:
        loop_resources = resources(self._options)
        must = self._database_timeout is not None
        check_descriptors(loop_resources, lanes=bool(self.concurrency) + bool(self.threads), must=must)
        there = await reach_database(
            loop_resources.store,
            self.backend,
            database=self._options.database,
            within=self._database_timeout,
            stopping=self._stopping,
            failed=self._tried.set,  # embedded, the site starts anyway
        )
        if not there:
            return  # stopped before there was a database
        await check_privileges(loop_resources.store, must=must)
        room = await find_room(loop_resources, concurrency=self.concurrency, threads=self.threads, must=must)
        self.engine = Engine(
            loop_resources,
            backend=self.backend,
            sender=self._sender,
            queues=self.queues,
            limits=self.queue_limits,
            concurrency=self.concurrency,
            room=room,
            tried=self._tried,
            worn=self._worn,
            exhausted=self._exhausted,
            own_process=self.own_process,
            events=self.events,
            metrics=self.tally is not None,
        )
        self._built.set()
        try:
            await self.engine.run(
                stopping=self._stopping,
                hurried=self._hurried,
                grace=lambda: self._end_grace,
                keep_threads=not self.own_process,
            )
        finally:
            self.stuck = self.engine.stuck
