"""How a worker's process ends: in a bounded time, whatever the site's code has left in it.

Python itself would wait without a limit: for threads that aren't daemons, for functions of ``atexit``, and
for the reader of stdout. A thread can't be stopped, so the exit waits for all of this for a while, and then
leaves it.
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

__all__ = ["leave", "leave_now", "report_error"]

logger = logging.getLogger("aiotasks.worker")

# Seconds that threads, and then functions of atexit, get at the least.
LEAST_TIME = 0.5

# Seconds after which the threads that the exit waits for are logged.
LOG_AFTER = 0.3

# Seconds for the last records of the log.
LOG_FLUSH_TIMEOUT = 0.3


def leave(code: int, *, signals: ProcessSignals, until: float) -> NoReturn:
    """End this process with ``code``; threads and atexit functions get until ``until`` (monotonic).

    Call it in the main thread, once the worker's own work is done.
    """
    threads_time = max(LEAST_TIME, until - time.monotonic())
    # It joins the threads that aren't daemons, and has executors end theirs.
    _within(threads_time, threading._shutdown, if_slow=_log_threads)  # type: ignore[attr-defined]

    def overdue() -> None:
        logger.warning("The process ends although its atexit functions still run")
        leave_now(code)

    signals.call_later(max(LEAST_TIME, until - time.monotonic()), overdue)
    atexit.unregister(logging.shutdown)  # it waits for a handler that is busy, without a limit
    with suppress(Exception):  # Python prints the errors that they raise
        atexit._run_exitfuncs()
    if not logs.count_waiting():
        _within(max(LEAST_TIME, min(logs.PATIENCE, until - time.monotonic())), logging.shutdown)
    leave_now(code)


def leave_now(code: int) -> NoReturn:
    """End this process with ``code``, after writing the log for at most LOG_FLUSH_TIMEOUT."""
    logs.close(LOG_FLUSH_TIMEOUT)
    os._exit(code)


def report_error(sentence: str) -> int:
    """Write on stderr why this process ends; returns its exit code."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed
        sys.stderr.write(f"aiotasks: {sentence}\n")
    return 1


def _within(seconds: float, call: Callable[[], object], *, if_slow: Callable[[], None] | None = None) -> None:
    """Run ``call`` in a thread for at most so many seconds; ``if_slow`` is called after LOG_AFTER seconds."""
    thread = threading.Thread(target=call, name="aiotasks-exit", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return
    if if_slow is not None:
        thread.join(min(LOG_AFTER, seconds))
        if thread.is_alive():
            if_slow()
            seconds -= LOG_AFTER
    thread.join(max(0.0, seconds))


def _log_threads() -> None:
    main = threading.main_thread()
    # Python waits for threads of executors even if they are daemons, as those made in a sync task are.
    executors = set(concurrent.futures.thread._threads_queues)
    names = [
        thread.name
        for thread in threading.enumerate()
        if (not thread.daemon or thread in executors) and thread is not main
    ]
    logger.warning("Threads left behind by tasks delay the exit names=%s", ", ".join(names))
