"""ProcessSignals: receives a process's signals in a thread, whatever its main thread is doing.

A signal handler in Python runs between two steps of the main thread: not while that is inside a call of
C code, and under uvloop not while the loop waits. So Python's own C handler writes the number of each
signal into a socket pair (``signal.set_wakeup_fd``), and a thread reads it.
"""

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["IGNORED", "QUIT", "REPORT", "STOP", "ProcessSignals", "signal_name"]

logger = logging.getLogger("aiotasks.worker")


def _numbers(*names: str) -> frozenset[int]:
    """The numbers of those signals that this platform has."""
    return frozenset(int(getattr(signal, name)) for name in names if hasattr(signal, name))


# Signals that ask a process to end; a closed terminal and a CPU limit send some of them.
STOP = _numbers("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")
QUIT = signal.SIGQUIT
REPORT = signal.SIGUSR1

# Signals that would end the process, and ask for nothing that a worker could do.
_REALTIME = range(signal.SIGRTMIN, signal.SIGRTMAX + 1) if hasattr(signal, "SIGRTMIN") else range(0)
IGNORED = _numbers("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT") | frozenset(
    _REALTIME
)

# Python ignores these, so that a write to a closed pipe raises an error.
_IGNORED_BY_PYTHON = _numbers("SIGPIPE", "SIGXFSZ")

# If the process is started with one of these ignored (nohup, a shell's "&"), the worker ignores it, too.
_LEFT_IGNORED = _numbers("SIGHUP", "SIGQUIT")


def signal_name(number: int) -> str:
    """SIGTERM, or the number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class ProcessSignals:
    """While ``received()`` runs, a thread calls ``on_signal(number)`` for every signal received.

    That thread also keeps a deadline, and reads from other file descriptors on request. It never waits for
    the main thread or its event loop. Signals that the site's own code handles are left to that code, except
    for the ones in STOP.
    """

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._replaced: dict[int, Any] = {}  # handlers that were there before, by signal
        self._readers: dict[int, Callable[[], bool]] = {}
        self._deadline: tuple[float, Callable[[], None]] | None = None
        self._closing = False

    @contextmanager
    def received(self) -> Iterator[None]:
        """Receive the signals until the end of the block. Use it in the main thread."""
        self._open()
        try:
            yield
        finally:
            self._close()

    # --- For any thread ---------------------------------------------------------------------

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Have the thread call ``call`` after so many seconds. This replaces an earlier request."""
        self._deadline = time.monotonic() + seconds, call
        self._wake()

    def read(self, fileno: int, readable: Callable[[], bool]) -> None:
        """Have the thread call ``readable`` whenever ``fileno`` can be read, until it returns False.

        A forked child closes ``fileno``.
        """
        self._readers[fileno] = readable
        self._wake()

    # --- For the main thread ----------------------------------------------------------------

    def restore(self) -> None:
        """Restore the handlers and the wake-up descriptor that a task may have replaced.

        ``loop.add_signal_handler()`` and ``signal.set_wakeup_fd()`` do that.
        """
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        taken = []
        for number in self._replaced:
            handler = signal.getsignal(number)
            # A task may handle SIGALRM and the like; without a handler they would end the process.
            if handler != self._handle and (number in STOP or handler == signal.SIG_DFL):
                signal.signal(number, self._handle)
                taken.append(signal_name(number))
        for number in _IGNORED_BY_PYTHON:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, signal.SIG_IGN)
                taken.append(signal_name(number))
        if taken:
            logger.warning(
                "Restored signal handlers that other code had replaced signals=%s", ", ".join(taken)
            )

    def _open(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        caught = _caught_by_c_code()
        for number in sorted({*STOP, QUIT, REPORT, *IGNORED}):
            handler = signal.getsignal(number)
            if number in STOP and not (number in _LEFT_IGNORED and handler == signal.SIG_IGN):
                replaces = True
            else:
                replaces = handler == signal.SIG_DFL and number not in caught
            if replaces:
                # Not SIG_IGN: programs that tasks start would inherit it.
                self._replaced[number] = signal.signal(number, self._handle)
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        _open.append(self)
        threading.Thread(target=self._watch, name="aiotasks-process", daemon=True).start()

    def _close(self) -> None:
        _open.remove(self)
        self._give_back(self._fd_before)
        self._closing = True
        self._wake()

    def _give_back(self, wakeup_fd: int) -> None:
        """Give back the handlers and the wake-up descriptor."""
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in self._replaced.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """The handler in Python: forwards the number if other code has replaced the wake-up descriptor."""
        mine = self._writer.fileno()
        used = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
        if used != mine:
            signal.set_wakeup_fd(used)  # until restore(): another signal's number may have been written there
            with suppress(OSError):
                self._writer.send(bytes([number]))

    # --- The thread -------------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(OSError):  # the buffer is full, so the thread will wake up anyway
            self._writer.send(b"\0")

    def _watch(self) -> None:
        while True:
            deadline = self._deadline
            timeout = None if deadline is None else max(0.0, deadline[0] - time.monotonic())
            # poll(), as select() takes no descriptor above 1023.
            poll = select.poll()
            for fileno in (self._reader.fileno(), *self._readers):
                poll.register(fileno, select.POLLIN)
            readable = {fileno for fileno, _ in poll.poll(None if timeout is None else timeout * 1000)}
            if self._closing:
                self._reader.close()
                self._writer.close()
                return
            numbers = b""
            with suppress(BlockingIOError):
                numbers = self._reader.recv(4096)
            for number in numbers:
                if number:
                    self._call(self._on_signal, number)
            for fileno in readable & self._readers.keys():
                if not self._call(self._readers[fileno]):
                    del self._readers[fileno]
            if deadline is not None and deadline is self._deadline and time.monotonic() >= deadline[0]:
                self._deadline = None
                self._call(deadline[1])

    def _call(self, call: Callable[..., object], *args: Any) -> object:
        try:
            return call(*args)
        except Exception:  # the next signal must be received all the same
            logger.exception("A signal could not be handled")
            return False

    # --- A forked child ---------------------------------------------------------------------

    def forget_in_child(self) -> None:
        """Give a forked child the handlers from before, and none of the descriptors."""
        self._give_back(-1)
        self._reader.close()
        self._writer.close()
        for fileno in self._readers:
            with suppress(OSError):
                os.close(fileno)


def _caught_by_c_code() -> frozenset[int]:
    """Return the signals with a handler in C code, which ``signal.getsignal()`` doesn't see (Linux only)."""
    try:
        with open("/proc/self/status") as status:
            mask = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError):
        return frozenset()
    return frozenset(number for number in range(1, 65) if mask >> (number - 1) & 1)


_open: list[ProcessSignals] = []
_masks = threading.local()


def _before_fork() -> None:
    """Block signals: a child that still has our handlers would write them into the socket of the parent."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) if _open else None


def _after_fork_in_parent() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    while _open:
        _open.pop().forget_in_child()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
