"""Supervisor: keeps worker processes running, each a new interpreter with this process's command line.

The supervisor doesn't fork: a fork after Django's setup would share its connections, threads and locks. Nor
does it use multiprocessing: starting the same command again keeps whatever manage.py or a wrapper does
before the worker, shows the command in ``ps``, and keeps Ctrl-C from each child from its first
instruction. ``pipe`` says how the two talk.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import anyio

from ...metrics import Family
from .child import Child
from .exits import leave_now
from .health_thread import kept
from .http import Responder
from .probes import ProcessHealth, routes
from .sd_notify import ServiceManager
from .signals import QUIT, REPORT, STOP, ProcessSignals

__all__ = ["RECYCLED", "RECYCLED_AFTER_FAILURES", "START_AGAIN", "TASKS_FAILED", "Supervisor"]

logger = logging.getLogger("aiotasks.supervisor")

# The exit code of a worker with --until-empty if tasks have failed.
TASKS_FAILED = 3

# The exit code of a worker that asks for a new process, because threads of it are stuck in tasks. It is
# EX_TEMPFAIL of sysexits.h.
START_AGAIN = 75

# The exit codes of a worker that has made way for another; the second with --until-empty, if tasks of it have
# failed.
RECYCLED = 76
RECYCLED_AFTER_FAILURES = 77

# Seconds until a worker that died, or asked for it, is replaced: doubled for each one that ends young.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

# Seconds of life after which the next end counts as the first.
STEADY = 60.0

# Seconds that running tasks get when the code has changed; then they are given back, without a spent attempt.
RELOAD_GRACE = 2.0

# Seconds after the grace until a worker is killed. It ends itself by force before that.
KILL_AFTER = 4.0

# Seconds after which the supervisor ends, if it hangs, without waiting for killed workers.
LEAVE_AFTER = 2.0


class Supervisor:
    """Keeps ``processes`` workers running until a signal asks for an end; the workers get the signal, too.

    command: starts one worker, given ``--supervised FD`` at its end.
    grace: seconds for which a worker's stop waits for running tasks. KILL_AFTER later it is killed.
    until_empty: a worker that exits with 0 or TASKS_FAILED is done, and isn't replaced. One that exits with
        START_AGAIN is replaced, and counts as one with failed tasks: their time was over.
    change: returns a description once the code has changed; awaited again and again.
    listening: a socket for the health endpoints.
    manager: gets to know when the first worker is ready, how they are, and when they stop.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        processes: int,
        grace: float = 25.0,
        until_empty: bool = False,
        change: Callable[[], Awaitable[str]] | None = None,
        listening: socket.socket | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._command = command
        self._processes = processes
        self._grace = grace
        self._until_empty = until_empty
        self._change = change
        self._listening = listening
        self._manager = manager
        self._edition = _Edition()
        self._children: set[Child] = set()
        self._has_served = False
        self._stopping = False
        self._exit_code = 0

    async def run(self) -> int:
        """Return when the last worker has ended: the exit code is that of a worker that failed, or 0."""
        loop = asyncio.get_running_loop()

        def received(number: int) -> None:
            loop.call_soon_threadsafe(self._signalled, number)

        self._signals = ProcessSignals(received)
        with self._signals.received():
            async with anyio.create_task_group() as group:
                if self._change is not None:
                    group.start_soon(self._reload, self._change)
                if self._listening is not None:
                    group.start_soon(kept, Responder(self._listening, routes(self.health, self._scrape)).run)
                if self._manager is not None:
                    group.start_soon(kept, partial(self._manager.run, self.health))
                async with anyio.create_task_group() as keepers:
                    self._keepers = keepers
                    for slot in range(self._processes):
                        keepers.start_soon(self._keep_one, slot)
                group.cancel_scope.cancel()
            logger.info("Stopped exit=%d", self._exit_code)
        return self._exit_code

    async def health(self) -> list[ProcessHealth]:
        """Return how the workers' processes are."""
        found = await asyncio.gather(*(child.health() for child in self._children))
        if self._stopping:
            found = [replace(one, ready=False, reasons=("the supervisor is stopping",)) for one in found]
        return sorted(found, key=lambda one: one.process)

    async def _scrape(self) -> list[tuple[str, Sequence[Family]]]:
        children = sorted(self._children, key=lambda child: child.name)
        found = await asyncio.gather(*(child.metrics() for child in children))
        return [
            (child.name, families)
            for child, families in zip(children, found, strict=True)
            if families is not None
        ]

    # --- Signals and changes ----------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        """The first signal ends the workers with grace, the second and SIGQUIT without."""
        if number == REPORT:
            logger.warning("SIGUSR1: processes=%s", ", ".join(str(child.pid) for child in self._children))
            for child in self._children:
                if child.ready:  # before that the signal would end it
                    child.send(REPORT)
        if number not in STOP and number != QUIT:
            return
        if number == QUIT or self._stopping:
            logger.info("Stopping without grace processes=%d", len(self._children))
            self._signals.call_later(KILL_AFTER, self._kill)
            if not self._stopping:
                self._stop()
            for child in self._children:
                child.hurry()
            return
        logger.info("Stopping processes=%d", len(self._children))
        self._signals.call_later(self._grace + KILL_AFTER, self._kill)
        self._stop()

    def _kill(self) -> None:
        """In the thread that receives signals: workers end in time by themselves, unless they can't."""
        for child in list(self._children):
            child.send(signal.SIGKILL)
        self._signals.call_later(LEAVE_AFTER, lambda: leave_now(1))

    def _stop(self) -> None:
        self._stopping = True
        if self._manager is not None:
            self._manager.notify("STOPPING=1")
        self._edition.end()
        for child in self._children:
            child.stop()

    async def _reload(self, change: Callable[[], Awaitable[str]]) -> None:
        while True:
            what = await change()
            if self._stopping:
                return
            logger.info("The code has changed; restarting workers processes=%d %s", len(self._children), what)
            edition, self._edition = self._edition, _Edition()
            edition.end()
            for child in self._children:
                child.stop()
                # It is never killed: that would count as a crash of its tasks.
                asyncio.get_running_loop().call_later(RELOAD_GRACE, child.hurry)

    # --- One worker -------------------------------------------------------------------------

    async def _keep_one(self, slot: int) -> None:
        """Keep one worker process running; the others wait until the first has shown that it works."""
        failures = 0
        leaving: Child | None = None  # which this one takes the place of
        while not self._stopping:
            edition = self._edition
            if slot:
                await edition.proven.wait()
            if edition.over.is_set():
                continue
            began = time.monotonic()
            try:
                child = await self._start(edition, slot, leaving)
            except OSError as error:
                failures += 1
                logger.error(
                    "Could not start a process for a worker; trying again pause=%g error=%r",
                    _pause(failures),
                    str(error),
                )
                await edition.rest(_pause(failures))
                continue
            if await child.outlasts(child.worn) and (leaving is None or await child.outlasts(leaving.ended)):
                leaving = child
                self._keepers.start_soon(self._see_off, child, edition)
                failures = 0 if time.monotonic() - began >= STEADY else failures + 1
                pause = _pause(failures) if failures else 0.0
                logger.info("Starting another worker in the place of one pid=%d pause=%g", child.pid, pause)
                await edition.rest(pause)
                continue
            code = await child.wait()
            self._children.discard(child)
            if self._stopping:
                self._note_exit(code)
            elif edition.over.is_set():
                failures = 0
            elif code == START_AGAIN and child.ready:
                failures = 1 if time.monotonic() - began >= STEADY else failures + 1
                if self._until_empty:
                    self._exit_code = self._exit_code or TASKS_FAILED
                logger.info(
                    "A worker has ended to be started again pid=%d pause=%g", child.pid, _pause(failures)
                )
                await edition.rest(_pause(failures))
            elif code in (0, TASKS_FAILED) and self._until_empty:
                self._exit_code = self._exit_code or code
                edition.proven.set()
                return
            elif code > 0 and not child.ready and not any(other.ready for other in self._children):
                await self._give_up(child, code, edition)
            else:
                failures = 1 if time.monotonic() - began >= STEADY else failures + 1
                logger.warning(
                    "A worker has ended; starting another pid=%d %s pause=%g",
                    child.pid,
                    _describe(code),
                    _pause(failures),
                )
                await edition.rest(_pause(failures))

    async def _see_off(self, child: Child, edition: "_Edition") -> None:
        """Wait for the end of a worker that another takes the place of."""
        code = await child.wait()
        self._children.discard(child)
        if self._until_empty and code in (TASKS_FAILED, START_AGAIN, RECYCLED_AFTER_FAILURES):
            self._exit_code = self._exit_code or TASKS_FAILED
        if self._stopping:
            self._note_exit(code)
        elif code in (0, TASKS_FAILED, START_AGAIN, RECYCLED, RECYCLED_AFTER_FAILURES):
            logger.info("A worker has made way for another pid=%d", child.pid)
        elif not edition.over.is_set():
            logger.warning("A worker has ended before it made way pid=%d %s", child.pid, _describe(code))

    async def _start(self, edition: "_Edition", slot: int, leaving: Child | None) -> Child:
        def ready() -> None:
            if self._manager is not None and not self._has_served:
                self._manager.notify("READY=1")
            self._has_served = True
            edition.proven.set()
            if leaving is not None:
                leaving.drain()

        # A name for life, because its counters have it: under another they would be counted once more. Of the
        # two names of a slot one is free, because no third process starts before the first of them has ended.
        name = f"{slot}b" if leaving is not None and leaving.name == str(slot) else str(slot)
        child = await Child.start(self._command, name, ready)
        logger.info("Started a worker pid=%d", child.pid)
        self._children.add(child)
        if edition.over.is_set():
            child.stop()
        return child

    async def _give_up(self, child: Child, code: int, edition: "_Edition") -> None:
        """No worker is ready and this one could not start, so another wouldn't either. It has logged why."""
        if self._change is None or not self._has_served:
            logger.error("A worker could not start; stopping pid=%d %s", child.pid, _describe(code))
            self._exit_code = code
            self._stop()
        else:
            logger.error(
                "A worker could not start; waiting for the next change of the code pid=%d %s",
                child.pid,
                _describe(code),
            )
            await edition.over.wait()

    def _note_exit(self, code: int) -> None:
        # A worker that still imports is ended by the signal itself.
        if (
            code not in (0, START_AGAIN, RECYCLED, RECYCLED_AFTER_FAILURES)
            and -code not in {*STOP, QUIT}
            and not self._exit_code
        ):
            self._exit_code = code if code > 0 else 128 - code  # as a shell reports it


class _Edition:
    """The workers' code between two changes."""

    def __init__(self) -> None:
        self.proven = asyncio.Event()  # a worker has started with it, or it is over
        self.over = asyncio.Event()  # it has changed, or the supervisor stops

    def end(self) -> None:
        self.over.set()
        self.proven.set()

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until it is over."""
        with anyio.move_on_after(seconds):
            await self.over.wait()


def _pause(failures: int) -> float:
    """Seconds to wait after so many early deaths in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 10))


def _describe(code: int) -> str:
    return f"exit={code}" if code >= 0 else f"signal={-code} ({signal.strsignal(-code)})"
