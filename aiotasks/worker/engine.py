"""Engine: the parts of one worker, put together and run."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
from django.db import utils

from .. import __version__, logs
from ..db.retry import repeat
from ..store.loop import LoopResources
from .build import Builder
from .events import Events
from .execution import Execution
from .figures import Gauges
from .fleet import Fleet, Turn
from .handover import Handover
from .hang import HangHandler
from .lease.heartbeat import Heartbeat, Registration
from .lease.keeper import LeaseKeeper
from .lease.lease import Lease
from .maintenance.canceller import Canceller
from .maintenance.declarer import DECLARE_INTERVAL, Declarer
from .maintenance.expirer import Expirer
from .maintenance.limit_pruner import LIMITS_INTERVAL, LimitPruner
from .maintenance.periodic import periodically
from .maintenance.promoter import LONGEST_WAIT, Promoter
from .maintenance.promotion import TIMEOUT
from .maintenance.pruner import Pruner
from .maintenance.rescuer import Rescuer
from .maintenance.sampler import SAMPLE_INTERVAL, Sampler
from .maintenance.ticker import Ticker
from .ownership import Ownership
from .recycler import Recycler
from .running.orm_threads import OrmThreads
from .running.sync_threads import SyncThreads
from .running.watchdog import LoopWatchdog
from .shutdown import Shutdown
from .slots import Slots
from .slow_tasks import SlowTasks
from .stalls import Stalls
from .start_log import log_start
from .startup import Room
from .task_log import TaskLog
from .waker import Waker
from .writing.lost import LostTasks

__all__ = ["Engine"]

logger = logging.getLogger("aiotasks.worker")

# Seconds between two deletions of finished tasks whose time is over, where there are few. Chosen: a task is
# kept a minute longer.
PRUNE_INTERVAL = 60.0

# Seconds for which the start waits for LISTEN to work, and goes on by polling.
LISTEN_TIMEOUT = 2.0

# Seconds for which the end waits for a NOTIFY of its own, and for the last records of its log.
LAST_WORDS = 0.1

# Threads that import the modules of tasks. Imports hold locks, so more of them would wait for each other.
IMPORT_THREADS = 4


class Engine:
    """The parts of one worker. Made on the loop that it runs on, once the database is there.

    tried: is set once the worker has started, or a first try has failed. worn, exhausted:
        while threads are stuck, see ``Recycler``.
    metrics: they are shown.
    own_process: the process is the worker's alone, and ends if the loop hangs.
    """

    def __init__(
        self,
        loop_resources: LoopResources,
        *,
        backend: str,
        sender: type,
        queues: Sequence[str],
        limits: Mapping[str, int],
        concurrency: int,
        room: Room,
        tried: asyncio.Event,
        worn: asyncio.Event,
        exhausted: asyncio.Event,
        own_process: bool,
        events: Events,
        metrics: bool,
    ) -> None:
        options, store = loop_resources.options, loop_resources.store
        threads = room.threads
        main = asyncio.current_task()  # which a loop's runner cancels together with all others
        self.resources = loop_resources
        self.events = events
        self.task_log = TaskLog(slow=options.slow_task, moved_tasks=options.moved_tasks)
        events.subscribe(self.task_log)
        self.changed = asyncio.Event()  # an execution has ended
        self.stuck = False  # after the end: a task, or an unwritten outcome, has outlasted it
        self._options = options
        self._backend, self._queues, self._concurrency, self._room = backend, queues, concurrency, room
        self._tried = tried

        self.workers = Fleet()  # of the backend: they share its maintenance
        self.peers = Fleet()  # that find the same tasks: they share the polls
        self.waker = Waker(loop_resources, backend, listens=options.notify and room.listens, observer=events)
        self.lease = Lease(options.lease_timeout)
        self.keeper = LeaseKeeper(
            self.lease,
            self.waker,
            events,
            workers=self.workers,
            peers=self.peers,
            connections=loop_resources.driver.cache,
            tried=tried,
            changed=self.changed,
        )
        self.heartbeat = Heartbeat(
            options,
            self.lease,
            Registration(
                backend=backend,
                queues=queues,
                concurrency=concurrency,
                threads=threads,
                version=__version__,
                channel=self.waker.channel,
                queue_limits=[limits.get(name) for name in queues] if limits else None,
            ),
            self.keeper,
            events,
        )

        # Where connections are few, a thread in the place of a stuck one has none.
        self.sync_threads = SyncThreads(threads or 1, spare=0 if room.shared else threads)
        # Not the loop's default executor, whose threads tasks may occupy for as long as they like.
        self.importer = ThreadPoolExecutor(IMPORT_THREADS, thread_name_prefix="aiotasks-import")
        self.orm_threads = OrmThreads(
            room.orm_threads, limit=room.orm_threads if room.shared else concurrency
        )
        self.slots = Slots(loop=concurrency, threads=threads, pool=self.sync_threads)
        builder = Builder(backend=backend, sender=sender, options=options, observer=events)
        self.finisher = builder.finisher(
            store,
            make_context=self.orm_threads.session,
            wake=self.waker.wake,
            tell=self.waker.tell,
            settled=lambda job: self.claimer.slot_freed(job),
        )
        self.runner = builder.runner(
            slots=self.slots,
            threads=self.sync_threads,
            make_context=self.orm_threads.session,
            saves=self.finisher.metadata,
            done=self._done,
            closing=lambda: main is not None and main.cancelling() > 0,
            importer=self.importer,
            returned=lambda job: self.claimer.slot_freed(job),
            queues=queues,
        )
        self.ownership = Ownership(self.runner, self.finisher)
        self.claimer = builder.claimer(
            store,
            queues=queues,
            peers=self.peers,
            lease=self.lease,
            slots=self.slots,
            runner=self.runner,
            finisher=self.finisher,
            ownership=self.ownership,
            # A crash while tasks wait would count against each of them.
            beyond_slots=options.max_crashes > 1,
            limits=limits,
            others=self.waker if self.waker.listens else None,
            tell=self.waker.tell,
            resolve=self.runner.resolve,
        )

        poll = options.poll_interval
        self.stalls = Stalls(
            store, self.claimer, self.slots, self.lease, events, backend=backend, poll_interval=poll
        )
        self.ticker = Ticker(
            loop_resources.driver, backend=backend, options=options, waker=self.waker, observer=events
        )
        self.declarer = Declarer(
            loop_resources.driver,
            backend=backend,
            options=options,
            lease=self.lease,
            waker=self.waker,
            importer=self.importer,
        )
        self.promoter = Promoter(
            store,
            backend=backend,
            waker=self.waker,
            peers=self.peers,
            ticker=None if options.schedules is False else self.ticker,
            # Without LISTEN no wake-up comes for a task that is due earlier than the one waited for.
            longest_wait=LONGEST_WAIT if self.waker.listens else options.poll_interval,
            timeout=min(TIMEOUT, options.command_timeout),
            observer=events,
        )
        lost_tasks = LostTasks(self.finisher, self.importer, sender=sender, options=options, observer=events)
        self.rescuer = Rescuer(
            store,
            backend=backend,
            options=options,
            lease=self.lease,
            ownership=self.ownership,
            waker=self.waker,
            lost_tasks=lost_tasks,
            observer=events,
        )
        self.expirer = Expirer(
            store,
            backend=backend,
            options=options,
            lost_tasks=lost_tasks,
            tell=self.waker.tell,
            try_keys=self.waker.try_keys,
        )
        self.pruner = Pruner(
            store, backend=backend, keep_successful=options.keep_successful, keep_failed=options.keep_failed
        )
        self.limit_pruner = LimitPruner(store, backend=backend)
        self.sampler = Sampler(store, backend=backend, shows=metrics)
        # Where metrics show the figures of the queues, each worker reads them every minute.
        self.sample_turn = (Fleet() if metrics else self.workers).turn(SAMPLE_INTERVAL)
        self.sample_turn.take_within(0.0 if metrics else SAMPLE_INTERVAL)
        self.canceller = Canceller(
            store,
            lease=self.lease,
            runner=self.runner,
            poll_interval=options.poll_interval,
            observer=events,
        )

        self.waker.connect(self.claimer, self.promoter, self.canceller, self.heartbeat)
        self.ticker.connect(self.promoter)
        self.ownership.connect(self.claimer.intake)
        self.rescue_turn = self.workers.turn(self.lease.interval)
        self.declare_turn = self.workers.turn(DECLARE_INTERVAL)
        self.recycler = Recycler(
            self.sync_threads,
            self.runner.deadlines,
            self.ownership,
            self.heartbeat,
            events,
            worn=worn,
            exhausted=exhausted,
        )
        self.handover = Handover(self.ownership, self.lease, self.waker, builder)
        self.hang_handler = HangHandler(
            self.lease, self.heartbeat, self.runner, self.handover, events, own_process=own_process
        )
        self.watchdog = LoopWatchdog(self.hang_handler, timeout=options.loop_timeout, observer=events)
        self.gauges = Gauges(self)
        self.keeper.connect(
            self.runner,
            self.sync_threads,
            self.claimer,
            rescue=self.rescue_turn,
            declare=self.declare_turn,
            gauges=self.gauges,
        )

    async def run(
        self,
        *,
        stopping: asyncio.Event,
        hurried: asyncio.Event,
        grace: Callable[[], float],
        keep_threads: bool,
    ) -> None:
        """Work until ``stopping`` is set or a part fails, then shut down, and set ``stuck``.

        ``grace`` returns the seconds for which the end waits; ``hurried`` ends it.
        """
        self.heartbeat.start()
        self.watchdog.start()
        with self.waker.listening():
            async with anyio.create_task_group() as group:
                try:
                    for name, part in self._parts(hurried).items():
                        group.start_soon(part, name=f"aiotasks {name}")
                    await stopping.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        self.stuck = await self._shut_down(hurried, grace(), keep_threads)
                    group.cancel_scope.cancel()

    def give_up(self, timeout: float, *, blamed: Collection[Execution]) -> None:
        """Hand the tasks over to other workers within about ``timeout`` seconds; ``blamed`` count as crashed.

        Called in another thread while the loop hangs.
        """
        self.hang_handler.give_up(timeout, blamed=blamed)

    def _done(self, execution: Execution) -> None:
        self.finisher.finish(execution)
        if execution.in_thread and execution.began is not None:
            self.claimer.prefetch.took(time.monotonic() - execution.began)
        self.claimer.slot_freed()
        self.changed.set()

    def _parts(self, hurried: asyncio.Event) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Return what runs for as long as the worker, by the names of its asyncio tasks."""

        async def watch_heartbeat() -> None:
            try:
                await self.heartbeat.wait()
            except RuntimeError:
                hurried.set()  # the lease may not last as long as the grace
                raise

        expire_turn = self.workers.turn(self._options.poll_interval)
        expire_turn.take_within(0.0)  # what has expired while no worker ran makes each claim slower
        upkeep: list[tuple[str, Callable[[], Awaitable[float | None]], Turn]] = [
            ("rescuer", self.rescuer.sweep, self.rescue_turn),
            # Its own claims: nobody shares them.
            ("lost claims", self.rescuer.release_lost_claims, Fleet().turn(self.lease.interval)),
            ("expirer", self.expirer.sweep, expire_turn),
            ("pruner", self.pruner.run_round, self.workers.turn(PRUNE_INTERVAL)),
            ("limit pruner", self.limit_pruner.sweep, self.workers.turn(LIMITS_INTERVAL)),
            ("stalls", self.stalls.look, self.peers.turn(self._options.poll_interval)),
            ("sampler", self.sampler.sample, self.sample_turn),
        ]
        parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "claimer": self.claimer.run,
            "promoter": self.promoter.run,
            "canceller": self.canceller.run,
            "recycler": self.recycler.run,
            "lease": partial(self.keeper.watch, self.heartbeat),
            "heartbeat": watch_heartbeat,
            "start": self._report_start,
        }
        if self._options.schedules is not False:
            parts["ticker"] = self.ticker.run
            upkeep.append(("declarer", self.declarer.declare, self.declare_turn))
        if (slow := self._options.slow_task) is not None:
            parts["slow tasks"] = SlowTasks(lambda: self.runner.running, slow=slow).run
        return parts | {name: partial(periodically, call, turn, name=name) for name, call, turn in upkeep}

    async def _report_start(self) -> None:
        """Once the worker has a lease and LISTEN works, write the start's log and set ``tried``."""
        await self.keeper.registered_once.wait()
        await self.waker.wait_until_woken(LISTEN_TIMEOUT)
        log_start(
            self.lease.worker_id,
            backend=self._backend,
            queues=self._queues,
            concurrency=self._concurrency,
            room=self._room,
            options=self._options,
            is_woken=self.waker.is_woken(),
            lease_interval=self.lease.interval,
        )
        self._tried.set()

    async def _shut_down(self, hurried: asyncio.Event, grace: float, keep_threads: bool) -> bool:
        shutdown = Shutdown(
            self.claimer,
            self.claimer.intake,
            self.runner,
            self.finisher,
            self.heartbeat,
            self.ownership,
            self.handover,
            changed=self.changed,
            hurried=hurried,
        )
        stuck = await shutdown.run(grace=grace, keep_threads=keep_threads)
        with anyio.CancelScope(deadline=shutdown.goodbye_by):
            worker_id = self.lease.worker_id
            if not shutdown.keeps_lease and worker_id is not None:
                store = self.resources.store
                with suppress(utils.Error):  # then the lease expires, and another worker removes the row
                    await repeat(lambda: store.remove_worker(worker_id), within=1.0)
        all_ended = await shutdown.wait_for_receivers()
        self.watchdog.stop()
        self.orm_threads.close()
        self.sync_threads.close()
        self.importer.shutdown(wait=False, cancel_futures=True)
        with anyio.move_on_after(LAST_WORDS):  # receivers may have enqueued
            await self.resources.notifier.all_sent()
            await self.resources.teller.all_sent()
        self.task_log.flush()
        logger.info("stopped")
        with anyio.move_on_after(LAST_WORDS if all_ended else 0):
            await logs.flushed()
        return stuck or not all_ended or self.runner.has_outlasting_coroutines()
