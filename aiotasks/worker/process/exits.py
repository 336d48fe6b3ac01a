"""How a worker's process ends: in a bounded time, whatever the site's code has left in it.

Python itself would wait without a limit: for threads that aren't daemons, for what ``atexit`` calls, and
for whoever reads stdout. A thread can't be stopped, so all of this is waited for, and then left.
"""

import atexit
import concurrent.futures.thread
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ... import logs
from .signals import ProcessSignals

__all__ = ["complain", "leave", "leave_now"]

logger = logging.getLogger("aiotasks.worker")

# Seconds that threads, and then the functions of atexit, get in any case.
LEAST_TIME = 0.5

# Seconds after which the log says what the exit waits for.
SAY_AFTER = 0.3

# Seconds for the last words of the log.
FLUSH_TIMEOUT = 0.3


def leave(code: int, *, signals: ProcessSignals, until: float) -> NoReturn:
    """End this process with ``code``; threads and atexit functions get until ``until`` (monotonic).

    To be called in the main thread, with all of the worker's own work done.
    """
    threads_time = max(LEAST_TIME, until - time.monotonic())
    # It joins the threads that aren't daemons, and has executors end theirs.
    _within(threads_time, threading._shutdown, told=_tell_of_threads)  # type: ignore[attr-defined]

    def overdue() -> None:
        logger.warning("The process ends before its atexit functions have")
        leave_now(code)

    signals.call_later(max(LEAST_TIME, until - time.monotonic()), overdue)
    atexit.unregister(logging.shutdown)  # it waits for a handler that is busy, without a limit
    with suppress(Exception):  # Python says what one of them raised
        atexit._run_exitfuncs()
    if not logs.count_waiting():
        _within(max(LEAST_TIME, min(logs.PATIENCE, until - time.monotonic())), logging.shutdown)
    leave_now(code)


def leave_now(code: int) -> NoReturn:
    """End this process with ``code``, with what can be written of the log within a moment."""
    logs.close(FLUSH_TIMEOUT)
    os._exit(code)


def complain(sentence: str) -> int:
    """Say on stderr why this process ends; returns its exit code."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed
        sys.stderr.write(f"aiotasks: {sentence}\n")
    return 1


def _within(seconds: float, call: Callable[[], object], *, told: Callable[[], None] | None = None) -> None:
    """Run ``call`` in a thread for at most so many seconds; ``told`` is called if it takes long."""
    thread = threading.Thread(target=call, name="aiotasks-exit", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return
    if told is not None:
        thread.join(min(SAY_AFTER, seconds))
        if thread.is_alive():
            told()
            seconds -= SAY_AFTER
    thread.join(max(0.0, seconds))


def _tell_of_threads() -> None:
    main = threading.main_thread()
    # An executor's threads are waited for even if they are daemons, as those made in a sync task are.
    executors = set(concurrent.futures.thread._threads_queues)
    names = [
        thread.name
        for thread in threading.enumerate()
        if (not thread.daemon or thread in executors) and thread is not main
    ]
    logger.warning("Threads that tasks have left behind hold up the exit names=%s", ", ".join(names))
