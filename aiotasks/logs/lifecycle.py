"""From the start of the first worker in this process to the end of the last: records go through threads."""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress

from . import loggers
from .last_resort import write_to_stderr
from .loggers import GUARDED_IN_WORKERS, GuardedLogger, guard, package_logger, stderr_handler
from .threads import LogThread

__all__ = [
    "PATIENCE",
    "are_threaded",
    "close",
    "count_waiting",
    "flush",
    "flushed",
    "flushed_at_stop",
    "start",
    "stop",
]

# Seconds that handlers have at a stop for records below ERROR.
PATIENCE = 5.0

_users = 0
_lock = threading.Lock()


def start() -> None:
    """Pass records through threads from now on, and show this package's on stderr if nobody else does.

    May be called more than once; as many calls of ``stop`` undo it. If the machine refuses a thread, records
    are handled directly.
    """
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for name in GUARDED_IN_WORKERS:
            guard(name, GuardedLogger)
        try:
            loggers.threads = LogThread("aiotasks-log"), LogThread("aiotasks-log-others")
        except RuntimeError as error:
            write_to_stderr(
                f"the machine refuses a thread for the log, so its handlers may delay the worker: {error}"
            )
        package_logger.addHandler(stderr_handler)
        package_logger.setLevel(package_logger.level)  # clears the levels that loggers have cached


def stop() -> None:
    """Undo one ``start``. Return at once; waiting records are still handled."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        threads, loggers.threads = loggers.threads, None
        package_logger.removeHandler(stderr_handler)
        package_logger.setLevel(package_logger.level)
        for thread in threads or ():
            thread.end()


def are_threaded() -> bool:
    """Return whether records go through threads, so that logging costs the caller no more than a record."""
    return loggers.threads is not None


def count_waiting() -> int:
    """Return how many records wait for their handlers, or are being handled."""
    return sum(thread.count() for thread in loggers.threads or ())


def flush(timeout: float) -> bool:
    """Wait until all records are handled, at most ``timeout`` seconds; return whether they are."""
    return not wait([thread.mark() for thread in loggers.threads or ()], timeout).not_done


async def flushed() -> None:
    """Wait on an event loop until all records logged so far are handled."""
    for mark in [thread.mark() for thread in loggers.threads or ()]:
        await asyncio.wrap_future(mark)


async def flushed_at_stop() -> None:
    """Wait like ``flushed``, but for records below ERROR at most PATIENCE seconds: then they are dropped, and
    their number goes to stderr.

    Records from ERROR on, including Django's mails to ADMINS, are waited for, unless their thread has been
    busy with the same lesser record all that time.
    """
    threads = loggers.threads or ()
    before = [thread.current for thread in threads]
    marks = [asyncio.wrap_future(thread.mark()) for thread in threads]
    try:
        if not marks or not (await asyncio.wait(marks, timeout=PATIENCE))[1]:
            return
        total = 0
        for thread, busy_with, mark in zip(threads, before, marks, strict=True):
            dropped, waiting = thread.drop_unimportant()
            total += dropped
            current = thread.current
            if (
                current is not None
                and current.levelno < logging.ERROR
                and (current is busy_with or not waiting)
            ):
                mark.cancel()
        if total:
            write_to_stderr(
                f"log records are dropped at the stop, because their handlers are too slow count={total}"
            )
        await asyncio.wait(marks)
    finally:
        for mark in marks:
            mark.cancel()


def close(timeout: float) -> bool:
    """Flush the records, the site's handlers and the standard streams within ``timeout`` seconds; return
    whether that has succeeded.

    For the end of a process, which must leave by ``os._exit`` afterwards, because a handler that hangs, or a
    stream whose reader does, holds a lock that an orderly exit would wait for.
    """
    end = time.monotonic() + timeout
    if not (is_closed := flush(timeout)):
        write_to_stderr(
            f"log records are lost at the exit, because their handlers are too slow count={count_waiting()}"
        )
    calls = [stream.flush for stream in (sys.stdout, sys.stderr) if stream is not None]
    closing = [
        threading.Thread(target=_call, args=[call], name="aiotasks-log-end", daemon=True)
        for call in [*calls, logging.shutdown]
    ]
    for thread in closing:
        try:
            thread.start()
        except RuntimeError:  # the machine refuses a thread
            return False
    for thread in closing:
        thread.join(max(0.01, end - time.monotonic()))
    return is_closed and not any(thread.is_alive() for thread in closing)


def _call(flush: Callable[[], object]) -> None:
    with suppress(OSError, ValueError):  # the stream is closed or full
        flush()


def _forget_threads() -> None:
    """In a forked child, which has no threads: handle records directly."""
    global _users, _lock
    loggers.threads, _users, _lock = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_forget_threads)
