"""Standalone: one worker that has its process to itself; signals, its supervisor and the process's end."""

import asyncio
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ...metrics import Family
from ...rows import time_of
from ...store.loop import close_pools
from ..belonging import own_tasks_hidden
from ..stacks import stack_of_thread, stacks_of_tasks, stacks_of_threads
from ..worker import Worker
from .default_executor import DefaultExecutor
from .event_loop import LEFTOVERS_TIMEOUT, drive, end_leftovers, until_first, worker_loop
from .exits import leave, leave_now, report_error
from .forked_child import unshared
from .health_thread import HealthThread, Job
from .http import Responder
from .kills import kills_refused
from .pipe import SupervisorPipe
from .probes import ProcessHealth, routes
from .recycling import DRAIN_TIMEOUT, Limits
from .reports import Channel
from .sd_notify import ServiceManager
from .signals import IGNORED, QUIT, REPORT, STOP, ProcessSignals, signal_name
from .supervisor import RECYCLED, RECYCLED_AFTER_FAILURES, START_AGAIN, TASKS_FAILED

__all__ = ["Standalone"]

logger = logging.getLogger("aiotasks.worker")

# Objects made minus objects freed between two garbage collections; most belong to running tasks.
GC_THRESHOLD = 20_000

# Seconds after the grace within which an orderly end is over …
OVERDUE = 2.0

# … or a little later, while the loop still runs.
OVERDUE_AGAIN = 0.5

# Seconds for handing the tasks over when the worker is ended by force.
FORCE_TIMEOUT = 0.5

# Seconds between two checks whether a task has replaced signal handlers.
TURN_INTERVAL = 0.25

# Seconds for which run() waits for threads that tasks use, where the caller's process goes on afterwards.
THREADS_TIMEOUT = 0.5


class Standalone:
    """Runs ``worker`` in this process until a signal, a failure, the supervisor's end, or empty queues.

    pipe: the pipe to the supervisor that has started this process.
    until_empty: the worker ends once its queues are empty.
    leaves: the process ends with the worker, whatever tasks have left in it.
    reports: this process's end of the channel to the supervisor, if that has one.
    listening: a socket for the health endpoints.
    manager: gets to know when the worker has started, how it is, and when it stops.
    limits: after how much it makes way for another process.
    """

    def __init__(
        self,
        worker: Worker,
        pipe: SupervisorPipe | None,
        *,
        until_empty: bool,
        leaves: bool,
        reports: socket.socket | None = None,
        listening: socket.socket | None = None,
        manager: ServiceManager | None = None,
        limits: Limits = Limits(),  # it is immutable  # noqa: B008
    ) -> None:
        self._worker = worker
        self._pipe = pipe
        self._until_empty = until_empty
        self._leaves = leaves
        self._signals = ProcessSignals(self._received)
        self._ignored: set[int] = set()
        # What signals have asked for. 1: stop, 2: stop without grace, 3: end the process.
        self._urgency = 0
        self._stop_by: float | None = None  # by the monotonic clock: the end of the grace
        self._ending = False  # the loop has ended, and the process is about to
        self._exit_code = 0
        self._overdue_once = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = time.monotonic()  # when the loop last ran
        self._manager = manager
        self._limits = limits
        self._draining = False
        self._may_drain = asyncio.Event()  # the supervisor has another worker
        self._channel: Channel | None = None
        jobs: list[Job] = []
        if listening is not None:
            jobs.append(Responder(listening, routes(self._processes, self._scrape)).run)
        if reports is not None:
            answers = {"health": self._report_health, "metrics": self._report_metrics}
            self._channel = Channel(reports, answers=answers, heard=self._heard)
            jobs.append(self._channel.run)
        if manager is not None:
            jobs.append(partial(manager.run, self._processes))
        self._health_thread = HealthThread(*jobs)

    def run(self) -> int:
        """Return the exit code, unless the process ends in here. Raises the worker's failure."""
        supervisor = None if self._pipe is None else os.getppid()
        with (
            self._signals.received(),
            self._health_thread.running(),
            kills_refused(supervisor=supervisor),
            own_tasks_hidden(),
        ):
            executor = DefaultExecutor()
            runner = asyncio.Runner(loop_factory=worker_loop)
            runner.get_loop().set_default_executor(executor)
            failure: Exception | None = None
            try:
                with unshared(runner.get_loop()):
                    drive(runner.get_loop(), self._serve())
            except ImproperlyConfigured as error:
                self._exit_code = report_error(str(error))
            except Exception as error:  # it is reported below  # noqa: BLE001
                failure = error
                self._exit_code = 1
            if self._until_empty and failure is None:
                self._log_outcomes()
            self._ending = True
            executor.shutdown(wait=False, cancel_futures=True)
            if self._leaves or self._worker.stuck or not executor.ends_within(THREADS_TIMEOUT):
                if failure is not None:
                    logger.critical("The worker failed", exc_info=failure)
                leave(
                    self._exit_code,
                    signals=self._signals,
                    until=self._end_of_grace(failed=self._exit_code == 1),
                )
            runner.close()
        if failure is not None:
            raise failure
        return self._exit_code

    def _log_outcomes(self) -> None:
        succeeded, failed, given_back = self._worker.outcomes()
        logger.info("until empty: succeeded=%d failed=%d given_back=%d", succeeded, failed, given_back)
        if failed:
            self._exit_code = {0: TASKS_FAILED, RECYCLED: RECYCLED_AFTER_FAILURES}.get(
                self._exit_code, self._exit_code
            )

    # --- On the loop ------------------------------------------------------------------------

    async def _serve(self) -> None:
        worker, pipe = self._worker, self._pipe
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._loop = loop
        self._obey()  # signals received before there was a loop
        self._keep_signals(loop)
        if pipe is not None:
            self._signals.read(pipe.fileno, partial(self._read_pipe, pipe))

        # Django and the site stay loaded, so no collection needs to visit their objects; nor the running
        # tasks' for every few hundred that start (measured: 6 of the 15 µs that a start takes beside
        # 10,000 others).
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)

        async def notify_ready(pipe: SupervisorPipe) -> None:
            with suppress(Exception):  # the worker's block raises it, too
                await worker.wait_for_database()
                pipe.notify_ready()

        async def ask_for_another() -> None:
            if pipe is not None:
                await worker.wait_until_worn()
            else:  # perhaps nobody starts another, so the worker stays as long as sync tasks can run
                await worker.wait_until_exhausted()
            self._stop_to_be_replaced()
            await self._stopping.wait()

        async def work() -> None:
            # Before the start is over: if a task ends its worker by then, the supervisor must not take that
            # for a mistake in the settings.
            notifying = None if pipe is None else asyncio.create_task(notify_ready(pipe))
            async with worker:
                if notifying is not None:
                    await notifying
                if self._manager is not None:
                    self._manager.notify("READY=1")
                ends = [worker.wait(), ask_for_another()]
                if any(self._limits):
                    ends.append(self._make_way())
                if self._until_empty:
                    ends.append(worker.wait_until_empty())
                await until_first(*ends)

        try:
            await until_first(work(), self._stopping.wait())
        finally:
            if self._leaves or worker.stuck:  # else the loop's runner cleans up, without a limit
                await end_leftovers(loop)
            await close_pools(LEFTOVERS_TIMEOUT)

    def _obey(self) -> None:
        if self._urgency >= 1:
            self._stopping.set()
        if self._urgency == 1 and self._draining:  # which may wait for longer
            asyncio.get_running_loop().call_later(self._worker.grace, self._worker.hurry)
        if self._urgency >= 2:
            self._worker.hurry()

    def _keep_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn = time.monotonic()
        self._signals.restore()
        loop.call_later(TURN_INTERVAL, self._keep_signals, loop)

    def _stop_to_be_replaced(self) -> None:
        """Stop as the first signal would, unless there was one."""
        if not self._urgency:
            logger.warning("The worker stops to be started again exit=%d", START_AGAIN)
            self._exit_code = START_AGAIN
            self._ask_for(1)

    async def _make_way(self) -> None:
        """Make way for another process once a limit is reached."""
        reached = await self._limits.wait_until_reached(self._worker.figures)
        if self._channel is not None:  # the worker goes on until its supervisor has another
            logger.info("A limit is reached; the worker asks for another in its place %s", reached)
            self._channel.say("recycle")
            await self._may_drain.wait()
        else:
            logger.info("A limit is reached; the worker stops to be started again %s", reached)
        self._drain()
        await self._worker.wait()

    def _drain(self) -> None:
        """End once the running tasks have ended, unless a signal has asked for an end."""
        if self._urgency:
            return
        self._draining = True
        self._exit_code = START_AGAIN if self._channel is None else RECYCLED
        # No STOPPING=1 to a service manager: systemd would kill the worker TimeoutStopSec later, before this
        # may be over, and a crash of its tasks would be counted.
        grace = max(self._worker.grace, DRAIN_TIMEOUT)
        self._signals.call_later(grace + OVERDUE, self._overdue)
        self._worker.drain(grace)

    # --- In the thread that answers probes --------------------------------------------------

    def health(self) -> ProcessHealth:
        """Return how the worker is."""
        health = self._worker.health()
        return ProcessHealth(
            process="0",
            pid=os.getpid(),
            turned=time.monotonic() - self._turn,
            ready=health.ready and not self._urgency,
            reasons=health.reasons,
            status=health.status_line,
        )

    async def _processes(self) -> list[ProcessHealth]:
        return [self.health()]

    async def _scrape(self) -> list[tuple[str, Sequence[Family]]]:
        return [("0", self._worker.families())]

    def _heard(self, word: str) -> None:
        if word == "drain":
            self._on_loop(self._may_drain.set)

    async def _report_health(self) -> dict[str, Any]:
        return asdict(self.health())

    async def _report_metrics(self) -> list[Family]:
        return self._worker.families()

    # --- In the thread that receives the signals --------------------------------------------

    def _received(self, number: int) -> None:
        if number == REPORT:
            logger.warning("SIGUSR1: tasks and stacks of this process\n%s", self._report())
        elif number in STOP:  # a supervisor sends one, too, and anything further over the pipe
            self._ask_for(1 if self._pipe is not None else self._next_urgency())
        elif number == QUIT:
            self._ask_for(2 if self._pipe is not None else max(2, self._next_urgency()))
        else:
            if number in IGNORED and number not in self._ignored:
                self._ignored.add(number)
                logger.info("Ignored signal=%s", signal_name(number))
            # Under uvloop, a task's handler runs when the loop wakes up.
            self._on_loop(lambda: None)

    def _read_pipe(self, pipe: SupervisorPipe) -> bool:
        """Act on a message of the supervisor; returns whether there may be more."""
        match pipe.read():
            case "hurry":
                self._ask_for(2)
            case "gone":
                logger.warning("The supervisor has ended; this worker stops pid=%d", os.getpid())
                self._ask_for(1)
                return False
        return True

    def _next_urgency(self) -> int:
        """The first signal while the worker stops by itself asks for what is under way."""
        if self._exit_code == START_AGAIN:
            self._exit_code = 0
            return 1
        return self._urgency + 1

    def _ask_for(self, urgency: int) -> None:
        if self._ending:
            leave_now(self._exit_code)
        if urgency >= 3:
            self._overdue_once = True
            self._overdue()
        if urgency <= self._urgency:
            return
        grace = self._worker.grace if urgency == 1 else 0.0
        if self._manager is not None and not self._urgency:
            self._manager.notify("STOPPING=1")
        self._urgency = urgency
        self._stop_by = time.monotonic() + grace
        self._signals.call_later(grace + OVERDUE, self._overdue)
        self._on_loop(self._obey)

    def _overdue(self) -> None:
        """An orderly end would be over by now: the loop hangs, or something that it waits for does."""
        if time.monotonic() - self._turn < 4 * TURN_INTERVAL and not self._overdue_once:
            self._overdue_once = True  # it is slow, on a busy machine
            self._signals.call_later(OVERDUE_AGAIN, self._overdue)
            return
        logger.critical(
            "Ending the worker by force, because its event loop does not end\n%s",
            stack_of_thread(threading.main_thread().ident),
        )
        self._worker.give_up(FORCE_TIMEOUT)
        leave_now(1)

    def _on_loop(self, call: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has been closed
                self._loop.call_soon_threadsafe(call)

    def _end_of_grace(self, *, failed: bool) -> float:
        if self._stop_by is not None:
            return self._stop_by
        # Not after a failure: to a process manager the worker would look alive.
        return time.monotonic() + (0.0 if failed else self._worker.grace)

    def _report(self) -> str:
        now = datetime.now(UTC)
        lines = [
            f"{execution.lane} task {execution.job.id} {execution.job.task_path}, for "
            f"{(now - since).total_seconds():.1f} s"
            for execution in self._worker.running()
            if (since := time_of(execution.job.last_attempted_at)) is not None
        ]
        if self._loop is not None:
            lines.append(f"The event loop last ran {time.monotonic() - self._turn:.1f} s ago.")
            lines.append(stacks_of_tasks(self._loop))
        return "\n".join([*lines, stacks_of_threads()])
