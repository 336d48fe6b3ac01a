"""Refuses signals by which a task would stop its own worker, or the worker's supervisor.

Such a stop would look like an operator's: no crash is counted, the task is given back, and the next worker
that runs it stops, too. SIGKILL and SIGSEGV, which kill the process at once, are let through: they count.
"""

import _thread
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...executing import current
from .signals import QUIT, STOP, signal_name

__all__ = ["kills_refused"]

# A process stopped by SIGSTOP and its like does nothing, and no supervisor replaces it.
_STOPPING = {*STOP, QUIT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_EVENTS = frozenset({"os.kill", "os.killpg", "signal.pthread_kill"})

# An audit hook can't be removed, so it is added once and reads these.
_worker: int | None = None
_supervisor: int | None = None
_is_hooked = False


@contextmanager
def kills_refused(*, supervisor: int | None) -> Iterator[None]:
    """While the block lasts, tasks get PermissionError for a signal that would stop this process.

    supervisor: the id of a process to which tasks can't send any signal.

    In a child that a task has forked this holds for its parent and their process group. A signal from
    another process, or from a thread that the task has started by itself, counts as an operator's.
    """
    global _worker, _supervisor, _is_hooked
    if not _is_hooked:
        sys.addaudithook(_audit)
        _is_hooked = True
    _worker, _supervisor = os.getpid(), supervisor
    # Neither raises an audit event; the second simulates SIGINT, or the signal that it is given.
    replaced = signal.raise_signal, _thread.interrupt_main
    signal.raise_signal = _checked(signal.raise_signal)
    _thread.interrupt_main = _checked(_thread.interrupt_main)
    try:
        yield
    finally:
        signal.raise_signal, _thread.interrupt_main = replaced
        _worker = _supervisor = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS and _worker is not None and current.get() is not None:
        target, number = args
        if event == "signal.pthread_kill":
            meant = os.getpid() == _worker
        elif event == "os.killpg":
            meant = target in (0, os.getpgid(_worker))
        else:
            meant = target in (_worker, 0, -1, -os.getpgid(_worker))
            if target == _supervisor and number:
                _refuse(event, number)
        if meant and number in _STOPPING:
            _refuse(event, number)


def _checked(send: Callable[..., None]) -> Callable[..., None]:
    def checked(number: int = signal.SIGINT, /) -> None:
        if current.get() is not None and number in _STOPPING and os.getpid() == _worker:
            _refuse(send.__name__, number)
        send(number)

    return checked


def _refuse(name: str, number: int) -> None:
    raise PermissionError(f"A task can't stop its own worker: {name} with {signal_name(number)} is refused.")
