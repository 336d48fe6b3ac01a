"""Child: a worker's process as its supervisor has it, with the pipe and the channel of reports to it."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from subprocess import DEVNULL
from typing import Any

from ...metrics import Family
from .probes import ProcessHealth
from .reports import VARIABLE, Channel
from .scrape import decoded

__all__ = ["Child"]


class Child:
    """A worker's process.

    name: its slot in the supervisor, with a ``b`` if the process whose place it takes has no ``b``.
    ready: it has reached its database.
    worn: is set when it asks for another in its place. ended: is set after ``wait()``.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pipe: socket.socket,
        reports: socket.socket,
        name: str,
        on_ready: Callable[[], None],
    ) -> None:
        self.pid = process.pid
        self.name = name
        self.ready = False
        self.worn, self.ended = asyncio.Event(), asyncio.Event()
        self._process = process
        self._pipe = pipe
        self._on_ready = on_ready
        self._reports = Channel(reports, heard=self._heard)
        self._reporting = asyncio.ensure_future(self._reports.run())
        # When its event loop last ran, by the monotonic clock; None while it has never answered: it imports
        # the site, or is of a release without answers.
        self._turned_at: float | None = None
        pipe.setblocking(False)
        asyncio.get_running_loop().add_reader(pipe, self._read)

    @classmethod
    async def start(cls, command: Sequence[str], name: str, on_ready: Callable[[], None]) -> "Child":
        """Raises OSError if the machine refuses another process."""
        pairs = [socket.socketpair()]
        try:
            pairs.append(socket.socketpair())
            (pipe, _), (reports, _) = pairs
            theirs = [end.fileno() for _, end in pairs]
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--supervised", str(theirs[0])),
                stdin=DEVNULL,  # a session of its own has no terminal to read from
                env={**os.environ, VARIABLE: str(theirs[1])},
                pass_fds=theirs,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which passes it on once
            )
        except BaseException:
            for own, _ in pairs:
                own.close()
            raise
        finally:
            for _, end in pairs:
                end.close()
        return cls(process, pipe, reports, name, on_ready)

    def stop(self) -> None:
        self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def hurry(self) -> None:
        with suppress(OSError):  # it has ended
            self._pipe.send(b"\n")

    def drain(self) -> None:
        """Have it end once its running tasks have: another has taken its place."""
        if self._reporting.done():  # the channel has failed, and it waits for this word
            self.stop()
        else:
            self._reports.say("drain")

    async def outlasts(self, event: asyncio.Event) -> bool:
        """Wait until ``event`` is set, or the process has ended; returns whether it still runs."""
        waiting = [asyncio.ensure_future(each) for each in (self._process.wait(), event.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return not waiting[0].done()
        finally:
            for one in waiting:
                one.cancel()

    async def health(self) -> ProcessHealth:
        """Return how it is; one that doesn't answer isn't ready."""
        found = self._understood(await self._reports.ask("health"))
        now = time.monotonic()
        if found is not None:
            self._turned_at = now - found.turned
            return found
        turned = 0.0 if self._turned_at is None else now - self._turned_at
        silent = "it starts" if self._turned_at is None else "it does not answer"
        return ProcessHealth(
            process=self.name, pid=self.pid, turned=turned, ready=False, reasons=(silent,), status=silent
        )

    async def metrics(self) -> list[Family] | None:
        """Return what it has counted; None if it doesn't answer."""
        answer = await self._reports.ask("metrics")
        try:
            return None if answer is None else decoded(answer)
        except (TypeError, ValueError):
            return None

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, or minus the number of the signal that killed it."""
        code = await self._process.wait()
        self._read()  # it may have been ready for only a moment
        asyncio.get_running_loop().remove_reader(self._pipe)
        self._pipe.close()
        self._reporting.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await self._reporting
        self._reports.close()
        self.ended.set()
        return code

    def _understood(self, answer: Any) -> ProcessHealth | None:
        """Read an answer to "health", which may be of another release; None if it can't be read."""
        try:
            return ProcessHealth(
                process=self.name,
                pid=int(answer.get("pid", self.pid)),
                turned=float(answer["turned"]),
                ready=bool(answer["ready"]),
                reasons=[str(reason) for reason in answer.get("reasons", ())],
                status=str(answer.get("status", "")),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None

    def _heard(self, word: str) -> None:
        if word == "recycle":
            self.worn.set()

    def _read(self) -> None:
        try:
            byte = self._pipe.recv(1)
        except BlockingIOError:
            return
        except OSError:
            byte = b""
        asyncio.get_running_loop().remove_reader(self._pipe)
        if byte:
            self.ready = True
            self._on_ready()
