"""Engine: the parts of one worker, put together. Who tells whom what is all here."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from uuid import UUID

import anyio
from django.conf import settings
from django.db import utils

from .. import __version__, logs, signals
from ..codec import dump_error
from ..db.retry import repeat
from ..exceptions import InvalidRow, TaskCancelled, UnknownTask
from ..results import result_of
from ..rows import Job, Lane
from ..store.loop import LoopResources, resources
from ..store.store import Store
from ..store.wakeups import Wakeup
from .belonging import current
from .build import Builder
from .claiming.loop import Claimer
from .claiming.overclaim import OverclaimPolicy
from .claiming.prefetch import PrefetchBuffer
from .claiming.quarantine import Quarantine
from .claiming.rotation import QueueRotation
from .events import Events, LeaseLoss
from .execution import Execution
from .handover import hand_over
from .lease.heartbeat import Heartbeat, Registration
from .lease.lease import Lease
from .maintenance.canceller import Canceller
from .maintenance.periodic import periodically
from .maintenance.promoter import LONGEST_WAIT, Promoter
from .maintenance.pruner import Pruner
from .maintenance.rescuer import Rescuer
from .outcomes import Released
from .process.exits import leave_now
from .process.stacks import stack_of_thread
from .running.orm_threads import OrmThreads
from .running.sync_threads import SyncThreads
from .running.watchdog import LoopWatchdog
from .shutdown import Shutdown
from .startup import Room
from .writing.failure_log import log_failure
from .writing.finisher import Finisher

__all__ = ["Engine"]

logger = logging.getLogger("aiotasks.worker")

# Outcomes that are unwritten or untold, in slots: a database that is away stops the claims, not the memory.
UNWRITTEN = 5

# Seconds between two looks for finished tasks whose time is over.
PRUNE_INTERVAL = 60.0

# Seconds for which the end waits for a NOTIFY of its own, and for its last line of the log.
LAST_WORDS = 0.1

# Seconds for handing the tasks over when the loop hangs.
HANG_TIMEOUT = 1.0

# Imports hold the locks of their modules, so more threads would wait for each other.
IMPORT_THREADS = 4

# A wake-up for a task due so soon may be for one that is READY already: clocks differ.
CLOCK_SKEW = 5.0


class Engine:
    """Made on the loop that it runs on, once the database is there. The parts are public here and
    know nothing of each other.
    """

    def __init__(
        self,
        held: LoopResources,
        *,
        backend: str,
        sender: type,
        queues: Sequence[str],
        concurrency: int,
        room: Room,
        failed: Callable[[], None],
        own_process: bool,
        events: Events,
    ) -> None:
        self._own_process = own_process
        self.events = events
        self.resources = held
        self.backend = backend
        self.queues = queues
        self.concurrency = concurrency
        self.threads = room.threads
        self._options = options = held.options
        self._sender = sender
        self._wants_notify = options.notify and room.listens
        self._room = room
        store = held.store
        main = asyncio.current_task()  # which a loop's runner cancels together with all others
        self.changed = asyncio.Event()  # an execution has ended
        self.stuck = False  # after the end: a task, or an unwritten outcome, has outlasted it
        self.lease = Lease(options.lease_timeout)
        self.heartbeat = Heartbeat(
            options,
            self.lease,
            Registration(
                backend=self.backend,
                queues=self.queues,
                concurrency=self.concurrency,
                threads=self.threads,
                version=__version__,
            ),
            listening=self._listens,
            changed=self._registered,
            lost=self._lost_lease,
            failed=failed,
            crowded=held.driver.cache.shed,
        )
        self.registered_once = asyncio.Event()
        self.sync_threads = SyncThreads(self.threads or 1)
        # Not the loop's default executor, whose threads tasks may occupy for as long as they like.
        self.importer = ThreadPoolExecutor(IMPORT_THREADS, thread_name_prefix="aiotasks-import")
        self.orm_threads = OrmThreads(
            room.orm_threads, limit=room.orm_threads if room.shared else self.concurrency
        )
        self._builder = Builder(backend=self.backend, sender=self._sender, options=options, observer=events)
        self.finisher = self._builder.finisher(
            store,
            make_context=self.orm_threads.session,
            wake=self._wake,
            settled=lambda job: self.claimer.slot_freed(job),
        )
        self.runner = self._builder.runner(
            threads=self.sync_threads,
            make_context=self.orm_threads.session,
            done=self._done,
            closing=lambda: main is not None and main.cancelling() > 0,
            importer=self.importer,
        )
        self.prefetch = PrefetchBuffer(
            self.threads, free=lambda: self._free("thread"), start=self._start_waiting, drop=self._drop
        )
        self.claimer = Claimer(
            store,
            QueueRotation(store, backend=self.backend, queues=self.queues),
            backend=self.backend,
            poll_interval=options.poll_interval,
            worker_id=self._worker_id,
            free=lambda: self._free("loop"),
            threads=self.prefetch,
            overclaim=OverclaimPolicy(
                free=lambda: self._free("loop"), ahead=self._ahead, allowed=options.max_crashes > 1
            ),
            quarantine=Quarantine(busy=lambda: bool(self.runner.running)),
            may_claim=self._may_claim,
            start=self.runner.start,
            drop=self._drop,
            observer=events,
        )
        self.promoter = Promoter(
            store,
            backend=self.backend,
            wake=self._wake,
            look_back=self.claimer.look_back,
            # Without NOTIFY nobody tells of a task that is due earlier than the one waited for.
            longest_wait=LONGEST_WAIT if self._wants_notify else options.poll_interval,
        )
        self.rescuer = Rescuer(
            store,
            backend=self.backend,
            options=options,
            worker_id=lambda: self.lease.worker_id,
            may_rescue=self.lease.may_rescue,
            remaining=self.lease.should_remain,
            held=self._held,
            wake=self._wake_rescued,
            announce=lambda job, error: self.finisher.announcer.start(self._tell_of_lost(job, error)),
            observer=events,
        )
        self.pruner = Pruner(
            store,
            backend=self.backend,
            keep_successful=options.keep_successful,
            keep_failed=options.keep_failed,
        )
        self.canceller = Canceller(
            store,
            worker_id=lambda: self.lease.worker_id,
            running=lambda: self.runner.running,
            cancel=self.runner.cancel,
            poll_interval=options.poll_interval,
        )
        self._loop = asyncio.get_running_loop()
        self.guard = LoopWatchdog(
            timeout=options.loop_timeout, hung=self._hung, back=self.heartbeat.resume, observer=events
        )

    async def run(
        self,
        *,
        stopping: asyncio.Event,
        hurried: asyncio.Event,
        started: Callable[[], None],
        grace: float,
        keep_threads: bool,
    ) -> None:
        """Work until ``stopping`` is set or a part fails, then shut down; ``stuck`` says how that went.

        ``started`` is called once the worker has a lease and listens. ``hurried`` ends the grace.
        """
        self.heartbeat.start()
        self.guard.start()
        listening = self.resources.listener.subscribed(self._heard) if self._wants_notify else nullcontext()
        with listening:
            async with anyio.create_task_group() as group:
                try:
                    for part in self._parts(hurried):
                        group.start_soon(part)
                    group.start_soon(self._tell_when_started, started)
                    await stopping.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        self.stuck = await self._shut_down(hurried, grace, keep_threads)
                    group.cancel_scope.cancel()

    def is_idle(self) -> bool:
        """Whether nothing is running here, or waiting to be written."""
        return not self.runner.running and not self.finisher.pending

    @contextmanager
    def _finisher_elsewhere(self, store: Store) -> Iterator[Finisher]:
        """A Finisher for the heartbeat's loop, which has an ORM thread of its own for receivers: the worker's
        belong to the worker's loop."""
        orm_threads = OrmThreads(1, limit=1)
        try:
            yield self._builder.finisher(store, make_context=orm_threads.session, wake=self._notify)
        finally:
            orm_threads.close()

    def _parts(self, hurried: asyncio.Event) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        async def sweep() -> None:
            await periodically(self.rescuer.run_once, self.lease.interval, name="rescuer")

        async def prune() -> None:
            await periodically(self.pruner.run_once, PRUNE_INTERVAL, name="pruner")

        async def watch_heartbeat() -> None:
            try:
                await self.heartbeat.wait()
            except RuntimeError:
                hurried.set()  # the lease may not last as long as the grace
                raise

        return [
            self.claimer.run,
            self.promoter.run,
            self.canceller.run,
            sweep,
            prune,
            self._watch_lease,
            watch_heartbeat,
        ]

    async def _tell_when_started(self, started: Callable[[], None]) -> None:
        await self.registered_once.wait()
        if self._wants_notify:
            # LISTEN first, so that "started" means "wakes up"; without it the polls must do.
            with anyio.move_on_after(2.0):
                await self.resources.listener.listening.wait()
        self._say_what_is_served()
        started()

    def _say_what_is_served(self) -> None:
        options = self._options
        if settings.DEBUG:
            logger.warning("DEBUG is True: Django keeps the queries of each task in memory until its end")
        logger.info(
            "worker %s serves backend %r, queues %s",
            self.lease.worker_id,
            self.backend,
            ", ".join(self.queues) or "of any name",
        )
        logger.info("loop: %d coroutine tasks at a time on %s", self.concurrency, _loop_name())
        logger.info("threads: %d sync tasks at a time", self.threads)
        logger.info(
            "wake-ups: %s, polling within %g s",
            "LISTEN" if self._listens() else "none",
            options.poll_interval,
        )
        logger.info("lease: %g s, renewed every %g s", options.lease_timeout, self.lease.interval)
        room = self._room
        orm = options.orm_connections(self.concurrency)
        logger.info(
            "connections: at most %d (pool %d, listener %d, heartbeat 1, %s)",
            room.pool + room.listens + 1 + (room.shared or orm + self.threads),
            room.pool,
            room.listens,
            f"all threads {room.shared}"
            if room.shared
            else f"ORM threads {orm}, sync threads {self.threads}",
        )

    async def _shut_down(self, hurried: asyncio.Event, grace: float, keep_threads: bool) -> bool:
        shutdown = Shutdown(
            self.claimer,
            self.runner,
            self.finisher,
            self.heartbeat,
            give_back=self._give_back,
            settle_late=self._settle_late,
            changed=self.changed,
            hurried=hurried,
        )
        stuck = await shutdown.run(grace=grace, keep_threads=keep_threads)
        with anyio.CancelScope(deadline=shutdown.goodbye_by):
            worker_id = self.lease.worker_id
            if not shutdown.keeps_lease and worker_id is not None:
                store = self.resources.store
                with suppress(utils.Error):  # then the lease runs out, and another worker clears up
                    await repeat(lambda: store.remove_worker(worker_id), within=1.0)
        heard = await shutdown.wait_for_receivers()
        self.guard.stop()
        self.orm_threads.close()
        self.sync_threads.close()
        self.importer.shutdown(wait=False, cancel_futures=True)
        with anyio.move_on_after(LAST_WORDS):  # receivers may have enqueued
            await self.resources.notifier.all_sent()
        logger.info("stopped")
        with anyio.move_on_after(LAST_WORDS if heard else 0):
            await logs.flushed()
        return stuck or not heard

    async def _give_back(self, executions: Sequence[Execution], timeout: float) -> None:
        for execution in executions:
            self.finisher.finish(execution.given_back())
        if not await self.finisher.wait_idle(timeout) and self.finisher.pending:
            logger.error("Could not release tasks; they stay RUNNING until the lease expires")

    async def _settle_late(self, store: Store, executions: Sequence[Execution]) -> None:
        """On the heartbeat's loop, which keeps the lease: write what threads still do."""
        # No event: the threads would have to know of this loop, which is theirs only by accident.
        while any(execution.outcome is None for execution in executions):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with self._finisher_elsewhere(store) as finisher:
            for execution in executions:
                finisher.finish(execution)
            await finisher.wait_idle(self._options.command_timeout)
            with anyio.move_on_after(self._options.command_timeout):
                await finisher.announcer.all_announced()
        if self.lease.worker_id is not None:
            await store.remove_worker(self.lease.worker_id)

    # --- While the loop hangs, in other threads ----------------------------------------------

    def give_up(self, timeout: float, *, blamed: Collection[Execution]) -> None:
        """Hand the tasks over within about ``timeout`` seconds; ``blamed`` count as crashed."""
        # Nothing more is claimed or started, should the loop go on.
        worker_id, self.lease.worker_id = self.lease.worker_id, None
        if worker_id is not None:
            self.heartbeat.stop(self._hand_over(worker_id, timeout, blamed))
        self.heartbeat.join(timeout)

    def _hand_over(
        self, worker_id: UUID, timeout: float, blamed: Collection[Execution]
    ) -> Callable[[Store], Coroutine[Any, Any, None]]:
        executions = {*list(self.runner.running), *list(self.finisher.pending)}
        unstarted = [*self.claimer.waiting(), *self.prefetch.waiting()]
        cancelled = dump_error(
            TaskCancelled("The task was cancelled before it ran."),
            limit=self._options.max_error_size,
            redact=self._options.redact,
        )

        async def hand_all_over(store: Store) -> None:
            with self._finisher_elsewhere(store) as finisher:
                await hand_over(
                    store,
                    finisher,
                    worker_id,
                    executions=executions,
                    unstarted=unstarted,
                    blamed=blamed,
                    cancelled=cancelled,
                    timeout=timeout,
                )

        return hand_all_over

    def _hung(self, seconds: float, task: "asyncio.Task[Any] | None") -> None:
        """The loop has been blocked for LOOP_TIMEOUT."""
        execution = None if task is None else task.get_context().get(current)
        self.events.stalled(
            seconds,
            None if execution is None else execution.job,
            stack_of_thread(self.guard.loop_thread),
            process_ends=self._own_process,
        )
        if not self._own_process:
            self.heartbeat.suspend()  # the process, and what else runs in it, is the site's
            return
        # A callback hangs that nobody can be named for: it may be any coroutine task's.
        in_coroutines = [one for one in list(self.runner.running) if not one.in_thread]
        self.give_up(HANG_TIMEOUT, blamed=in_coroutines if execution is None else [execution])
        leave_now(1)

    # --- What the parts tell each other -----------------------------------------------------

    def _listens(self) -> bool:
        """Whether NOTIFY wakes us at the moment. Asked by the heartbeat's thread, too."""
        return self._wants_notify and self.resources.listener.listening.is_set()

    def _free(self, lane: Lane) -> int:
        limit = self.concurrency if lane == "loop" else self.threads
        if lane == "thread" and self.sync_threads.is_short:
            limit = min(limit, self.sync_threads.capacity())
        return limit - self.runner.count(lane)

    def _ahead(self) -> int:
        return self.prefetch.ahead() if self.sync_threads.capacity() >= self.threads else 0

    def _worker_id(self) -> UUID | None:
        """The id under which tasks may be claimed and started."""
        return self.lease.worker_id if self.lease.remaining() > 0 else None

    def _start_waiting(self, job: Job) -> None:
        """Start what has waited for a thread, if it is ours still."""
        if job.worker_ids[-1] == str(self._worker_id()):
            self.runner.start(job)
        else:
            self._drop(job)

    def _may_claim(self) -> bool:
        unwritten = len(self.finisher.pending) + len(self.finisher.announcer.pending)
        return unwritten < UNWRITTEN * (self.concurrency + self.threads) and not self.finisher.crowded

    def _done(self, execution: Execution) -> None:
        self.finisher.finish(execution)
        if execution.in_thread and execution.began is not None:
            self.prefetch.took(time.monotonic() - execution.began)
        self.claimer.slot_freed()
        self.changed.set()

    def _drop(self, job: Job) -> None:
        """A claim's reply came after the lease had ended: give the job back unrun."""
        execution = Execution(job)
        execution.outcome = Released()
        self.finisher.finish(execution)

    def _held(self) -> set[UUID]:
        executions = [*self.runner.running, *self.finisher.pending]
        ids = {execution.job.claim_id for execution in executions} | self.claimer.claiming
        return {id for id in ids if id is not None}

    def _heard(self, wakeup: Wakeup | None) -> None:
        """The listener's callback: None where it may have missed something."""
        if wakeup is None:
            self.claimer.wake()
            self.promoter.look()
            self.canceller.look()
        elif wakeup.backend == self.backend:
            if wakeup.cancel:
                self.canceller.look()
                return
            if wakeup.due is not None:
                self.promoter.look(wakeup.due)
            if wakeup.due is None or wakeup.due <= time.time() + CLOCK_SKEW:
                self.claimer.wake(wakeup)

    def _wake(self, wakeups: Sequence[Wakeup]) -> None:
        """Tell ourselves, and the other workers."""
        for wakeup in wakeups:
            self._heard(wakeup)
        self._notify(wakeups)

    def _notify(self, wakeups: Sequence[Wakeup]) -> None:
        """Notify the other workers, by a connection of the running loop."""
        if self._options.notify and wakeups:
            resources(self._options).notifier.notify(wakeups)

    def _wake_rescued(self, wakeups: Sequence[Wakeup]) -> None:
        if wakeups:
            self.claimer.suspect()
            self._wake(wakeups)

    def _registered(self) -> None:
        """We have a lease under a new id: what was claimed under another isn't ours any more."""
        mine = str(self.lease.worker_id)
        for execution in list(self.runner.running):
            if execution.job.worker_ids[-1] != mine:
                self.runner.cancel(execution, "lost lease")
        self.registered_once.set()
        self.changed.set()
        self.claimer.wake()

    async def _watch_lease(self) -> None:
        """Enforce the deadline from the loop too: a dead line may hang the heartbeat's thread."""
        await self.registered_once.wait()
        while True:
            remaining, worker_id = self.lease.remaining(), self.lease.worker_id
            if remaining <= 0 and worker_id is not None:
                self.heartbeat.renounce()
                self._lost_lease(worker_id, "expired")
            await asyncio.sleep(remaining if remaining > 0 else self.lease.interval)

    def _lost_lease(self, worker_id: UUID, reason: LeaseLoss = "removed") -> None:
        self.events.lease_lost(worker_id, len(self.runner.running), reason)
        for execution in list(self.runner.running):
            self.runner.cancel(execution, "lost lease")

    async def _tell_of_lost(self, job: Job, error: Exception) -> None:
        """The log and ``task_finished`` for a task that its rescue has failed."""
        self.finisher.failed += 1
        log_failure(job, job.errors[-1])
        try:
            result = await asyncio.get_running_loop().run_in_executor(  # as it may import the task
                self.importer, result_of, job, self._options.moved_tasks
            )
        except UnknownTask:
            return  # not a task of this process: there is no Task to show receivers
        except InvalidRow as broken:
            logger.error("task_finished can't be sent id=%s error=%r", job.id, str(broken))
            return
        await signals.asend_finished(self._sender, result, error)


def _loop_name() -> str:
    """Whose loop it is: uvloop, asyncio, or what an embedding site runs on."""
    names = (base.__module__.split(".")[0] for base in type(asyncio.get_running_loop()).__mro__)
    return next(name for name in names if name != __name__.split(".")[0])
