"""Standalone: one worker that has its process to itself, with its signals and its end."""

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ...store.loop import close_pools
from ..belonging import own_tasks_hidden
from ..worker import Worker
from .default_executor import DefaultExecutor
from .event_loop import drive, worker_loop
from .exits import complain, leave, leave_now
from .forked_child import unshared
from .kills import kills_refused
from .pipe import SupervisorPipe
from .signals import IGNORED, QUIT, REPORT, STOP, ProcessSignals, signal_name
from .stacks import stack_of_thread, stacks_of_tasks, stacks_of_threads
from .supervisor import TASKS_FAILED

__all__ = ["Standalone"]

logger = logging.getLogger("aiotasks.worker")

# Objects made, less those freed, between two collections: of running tasks and their results mostly.
GC_THRESHOLD = 20_000

# Seconds that asyncio tasks which tasks have left get to end, and that closing the connections may take.
CLOSE_TIMEOUT = 0.2

# Seconds after the grace within which an orderly end is over …
OVERDUE = 2.0

# … or a little later, while the loop still turns.
OVERDUE_AGAIN = 0.5

# Seconds for handing the tasks over at an end by force.
FORCE_TIMEOUT = 0.5

# Seconds between two looks at whether a task has taken the signals away.
TURN_INTERVAL = 0.25


# Seconds for which a call from other code, which goes on afterwards, waits for threads that tasks use.
THREADS_TIMEOUT = 0.5


class Standalone:
    """Runs ``worker`` in this process until a signal, its end, the end of its supervisor, or an empty table.

    line: leads to the supervisor that has started this process.
    leaves: the process ends with the worker, whatever tasks have left in it.
    """

    def __init__(
        self, worker: Worker, line: SupervisorPipe | None, *, until_empty: bool, leaves: bool
    ) -> None:
        self._worker = worker
        self._line = line
        self._until_empty = until_empty
        self._leaves = leaves
        self._signals = ProcessSignals(self._received)
        self._ignored: set[int] = set()
        # What has been asked for. 1: stop, 2: stop without grace, 3: end the process.
        self._urgency = 0
        self._stop_by: float | None = None  # by the monotonic clock: the end of the grace
        self._ending = False  # the loop has ended, and the process is about to
        self._exit_code = 0
        self._overdue_once = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = 0.0  # when the loop was last seen to run, by the monotonic clock

    def run(self) -> int:
        """Return the exit code, unless the process ends in here. Raises what the worker has failed with."""
        supervisor = None if self._line is None else os.getppid()
        with self._signals.received(), kills_refused(supervisor=supervisor), own_tasks_hidden():
            executor = DefaultExecutor()
            runner = asyncio.Runner(loop_factory=worker_loop)
            runner.get_loop().set_default_executor(executor)
            failure: Exception | None = None
            try:
                with unshared(runner.get_loop()):
                    drive(runner.get_loop(), self._serve())
            except ImproperlyConfigured as error:
                self._exit_code = complain(str(error))
            except Exception as error:
                failure = error
                self._exit_code = 1
            if self._until_empty and failure is None:
                self._sum_up()
            self._ending = True
            executor.shutdown(wait=False, cancel_futures=True)
            if self._leaves or self._worker.stuck or not executor.ends_within(THREADS_TIMEOUT):
                if failure is not None:
                    logger.critical("the worker has failed", exc_info=failure)
                leave(
                    self._exit_code,
                    signals=self._signals,
                    until=self._end_of_grace(failed=self._exit_code == 1),
                )
            runner.close()
        if failure is not None:
            raise failure
        return self._exit_code

    def _sum_up(self) -> None:
        succeeded, failed, given_back = self._worker.outcomes()
        logger.info("until empty: succeeded=%d failed=%d given_back=%d", succeeded, failed, given_back)
        if failed and not self._exit_code:
            self._exit_code = TASKS_FAILED

    # --- On the loop ------------------------------------------------------------------------

    async def _serve(self) -> None:
        worker, line = self._worker, self._line
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._loop = loop
        self._obey()  # what came before there was a loop
        self._look_after_signals()
        if line is not None:
            self._signals.read(line.fileno, self._read_line)

        # What Django has loaded stays, so no collection needs to look at it; nor at what is running each
        # time that a few hundred tasks have been started (measured: 6 of the 15 µs that a start takes
        # beside 10,000 others).
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)

        async def tell_ready(line: SupervisorPipe) -> None:
            with suppress(Exception):  # what the worker has ended with is raised by its block
                await worker.wait_for_database()
                line.tell_ready()

        async def work() -> None:
            # At once, not when it has started: a task that ends its worker by then mustn't be taken for a
            # mistake in the settings.
            telling = None if line is None else asyncio.create_task(tell_ready(line))
            async with worker:
                if telling is not None:
                    await telling
                ends = [worker.wait()] + ([worker.wait_until_empty()] if self._until_empty else [])
                await _first(*ends)

        try:
            await _first(work(), self._stopping.wait())
        finally:
            if self._leaves or worker.stuck:  # else the loop's runner clears up, without a limit
                await _end_what_is_left(loop)
            await close_pools(CLOSE_TIMEOUT)

    def _obey(self) -> None:
        if self._urgency >= 1:
            self._stopping.set()
        if self._urgency >= 2:
            self._worker.hurry()

    def _look_after_signals(self) -> None:
        assert self._loop is not None
        self._turn = time.monotonic()
        self._signals.restore()
        self._loop.call_later(TURN_INTERVAL, self._look_after_signals)

    # --- In the thread that receives the signals --------------------------------------------

    def _received(self, number: int) -> None:
        if number == REPORT:
            logger.warning("SIGUSR1: what runs in this process\n%s", self._report())
        elif number in STOP:  # a supervisor sends one, too, and everything further over its line
            self._ask_for(1 if self._line is not None else self._urgency + 1)
        elif number == QUIT:
            self._ask_for(2 if self._line is not None else max(2, self._urgency + 1))
        else:
            if number in IGNORED and number not in self._ignored:
                self._ignored.add(number)
                logger.info("%s is ignored", signal_name(number))
            self._on_loop(
                lambda: None
            )  # under uvloop, a handler that a task has is run when the loop wakes up

    def _read_line(self) -> bool:
        """What the supervisor says: no more grace, or nothing ever again. Whether there may be more."""
        assert self._line is not None
        match self._line.read():
            case "hurry":
                self._ask_for(2)
            case "gone":
                logger.warning("the supervisor has gone, this worker stops pid=%d", os.getpid())
                self._ask_for(1)
                return False
        return True

    def _ask_for(self, urgency: int) -> None:
        if self._ending:
            leave_now(self._exit_code)
        if urgency >= 3:
            self._overdue_once = True
            self._overdue()
        if urgency <= self._urgency:
            return
        grace = self._worker.grace if urgency == 1 else 0.0
        self._urgency = urgency
        self._stop_by = time.monotonic() + grace
        self._signals.call_later(grace + OVERDUE, self._overdue)
        self._on_loop(self._obey)

    def _overdue(self) -> None:
        """An orderly end would be over: the loop hangs, or what it waits for does."""
        if time.monotonic() - self._turn < 4 * TURN_INTERVAL and not self._overdue_once:
            self._overdue_once = True  # it is slow, on a busy machine
            self._signals.call_later(OVERDUE_AGAIN, self._overdue)
            return
        logger.critical(
            "The worker is ended by force: its event loop does not come to its end\n%s",
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
        # Whoever looks at a worker that has failed would take it for alive.
        return time.monotonic() + (0.0 if failed else self._worker.grace)

    def _report(self) -> str:
        now = datetime.now(UTC)
        lines = [
            f"{execution.lane} task {execution.job.id} {execution.job.task_path}, for "
            f"{(now - execution.job.last_attempted_at).total_seconds():.1f} s"
            for execution in self._worker.running()
            if execution.job.last_attempted_at is not None
        ]
        if self._loop is not None:
            lines.append(f"The event loop has last turned {time.monotonic() - self._turn:.1f} s ago.")
            lines.append(stacks_of_tasks(self._loop))
        return "\n".join([*lines, stacks_of_threads()])


async def _end_what_is_left(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the asyncio tasks that tasks have left on the loop, and close its async generators."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in left:
        task.cancel()
    if left:
        _, stubborn = await asyncio.wait(left, timeout=CLOSE_TIMEOUT)
        if stubborn:
            names = ", ".join(task.get_name() for task in stubborn)
            logger.warning("asyncio tasks that tasks have left behind do not end names=%s", names)
    await asyncio.wait([asyncio.ensure_future(loop.shutdown_asyncgens())], timeout=CLOSE_TIMEOUT)


async def _first(*awaitables: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of these, cancel the others and wait for them; raises what one raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
