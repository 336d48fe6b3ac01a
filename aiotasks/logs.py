"""Log records that can't end, fail or hold up anything, and that a worker never keeps to itself.

The loggers of this package, and those that Django and asyncio use on a worker's behalf, stay
ordinary loggers of ``logging``. They differ in this:

- What a site's handlers, filters, formatters and record factory raise stays in here.
- While a worker runs in the process (``start``), a record is made where it is logged, with its time,
  caller and exception, and handed to a thread, which brings it to the handlers in a copy of the
  context that it was logged in. The order is kept. When 10,000 wait, further ones are dropped and counted.
- While a worker runs, what the site's LOGGING shows nowhere goes to stderr from INFO on, unless LOGGING
  configures a logger ``aiotasks`` or one below.
"""

import asyncio
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any

from django.conf import settings
from django.utils.log import AdminEmailHandler, RequireDebugFalse, RequireDebugTrue

__all__ = [
    "are_threaded",
    "close",
    "count_waiting",
    "flush",
    "flushed",
    "flushed_at_stop",
    "lets_nothing_through",
    "shown_by",
    "start",
    "stop",
]

# Records that wait for one thread.
MOST_WAITING = 10_000

# Seconds that handlers have at a stop for records below ERROR.
PATIENCE = 5.0

# Seconds between two lines on stderr about the site's logging failing.
REPORT_INTERVAL = 60.0

type _Handle = Callable[[logging.LogRecord], object]


# --- What is done with a record --------------------------------------------------------------------


class _Guarded(logging.Logger):
    """A logger whose records do no harm. Mixed into whatever class a logger has."""

    _is_own = False

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        try:
            return super().makeRecord(name, level, fn, lno, msg, args, exc_info, func, extra, sinfo)
        except Exception as error:  # a site's record factory may raise anything
            _failures.report(error)
            return logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)

    def handle(self, record: logging.LogRecord) -> None:
        if (threads := _threads) is not None:
            threads[0 if self._is_own else 1].put(self._bring, record)
        else:
            self._bring(record)

    def _bring(self, record: logging.LogRecord) -> None:
        """Bring the record to its handlers."""
        try:
            super().handle(record)
        except Exception as error:  # a site's filters and handlers may raise anything
            _failures.report(error)
            if self._is_own and _threads is not None:
                _stderr.emit(record)


class _Own(_Guarded):
    """A logger of this package: beside a worker neither ``disable_existing_loggers`` nor a level of the
    root logger silences it.
    """

    _is_own = True

    @property
    def disabled(self) -> bool:
        return self.__dict__.get("disabled", False) and _threads is None

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self.__dict__["disabled"] = value

    def getEffectiveLevel(self) -> int:
        level = super().getEffectiveLevel()
        if _threads is None or any(one.level or _is_configured(one) for one in _own_chain(self)):
            return level
        return min(level, logging.INFO)


class _Stderr(logging.Handler):
    """Shows on stderr what the site's handlers don't show."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        logger = logging.getLogger(record.name)
        if any(_is_configured(one) for one in _own_chain(logger)):
            return False
        return next(shown_by(logger, record.levelno), None) is None and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if sys.stderr is not None:
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
        except Exception:  # it is closed or full, or the record can't be formatted
            self.handleError(record)


def shown_by(logger: logging.Logger, level: int) -> Iterator[logging.Handler]:
    """The site's handlers that take a record of ``logger``, but for those that mail it.

    ``NullHandler`` is among them: whoever gives that to the root logger wants to see nothing.
    """
    one: logging.Logger | None = logger
    while one is not None:
        for handler in one.handlers:
            if (
                level >= handler.level
                and not isinstance(handler, AdminEmailHandler | _Stderr)
                and not any(map(lets_nothing_through, handler.filters))
            ):
                yield handler
        one = one.parent if one.propagate else None


def lets_nothing_through(filter: object) -> bool:
    """Whether it is one of Django's filters that drop everything: its console's is one in production."""
    kind = type(filter)
    return (kind is RequireDebugTrue and not settings.DEBUG) or (
        kind is RequireDebugFalse and bool(settings.DEBUG)
    )


def _own_chain(logger: logging.Logger) -> Iterator[logging.Logger]:
    """``logger`` and those above it that are this package's."""
    one: logging.Logger | None = logger
    while isinstance(one, _Own):
        yield one
        one = one.parent


def _is_configured(logger: logging.Logger) -> bool:
    """Whether the site's LOGGING says where the records of this logger go."""
    return not logger.propagate or any(handler is not _stderr for handler in logger.handlers)


# --- The threads -----------------------------------------------------------------------------------


class _LogThread:
    """Brings records to their handlers, one after another. A daemon: it holds up no exit."""

    def __init__(self, name: str) -> None:
        self._items: SimpleQueue[tuple[Context, _Handle, logging.LogRecord] | Future[None] | None] = (
            SimpleQueue()
        )
        self._marks: set[Future[None]] = set()
        self._current: logging.LogRecord | None = None
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, handle: _Handle, record: logging.LogRecord) -> None:
        """Have ``handle(record)`` called soon. Never waits."""
        if self._items.qsize() >= MOST_WAITING:
            if not self._dropped:
                _say(f"log records are dropped, {MOST_WAITING} wait for the handlers of {record.name!r}")
            self._dropped += 1
            return
        self._items.put((copy_context(), handle, record))

    def mark(self) -> Future[None]:
        """Done once all that has been put so far is through."""
        mark: Future[None] = Future()
        self._marks.add(mark)
        self._items.put(mark)
        return mark

    def end(self) -> None:
        """Let the thread end once all that has been put so far is through."""
        self._items.put(None)

    def count(self) -> int:
        """How many records aren't through."""
        return self._items.qsize() - len(self._marks) + (self._current is not None)

    @property
    def current(self) -> logging.LogRecord | None:
        """The record that its handlers are busy with."""
        return self._current

    def drop_unimportant(self) -> tuple[int, int]:
        """Drop what waits below ERROR; returns how many, and how many wait still."""
        kept: list[tuple[Context, _Handle, logging.LogRecord] | Future[None] | None] = []
        dropped = 0
        with suppress(Empty):
            while True:
                item = self._items.get_nowait()
                if isinstance(item, tuple) and item[2].levelno < logging.ERROR:
                    dropped += 1
                else:
                    kept.append(item)
        for item in kept:
            self._items.put(item)
        return dropped, sum(isinstance(item, tuple) for item in kept)

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, Future):
                self._marks.discard(item)
                with suppress(InvalidStateError):  # nobody waits for it any longer
                    item.set_result(None)
                continue
            context, handle, record = item
            self._current = record
            try:
                context.run(handle, record)
            except BaseException as error:  # a site's filters and handlers may raise anything
                _failures.report(error)
            # So that this thread doesn't hold on to a traceback's frames until the next record.
            del item, context, handle, record
            self._current = None
            if self._dropped and self._items.qsize() < MOST_WAITING // 2:
                dropped, self._dropped = self._dropped, 0
                _package.warning("log records were dropped, the handlers are too slow count=%d", dropped)


# This package's records, and Django's and asyncio's: mails to ADMINS don't hold up the worker's own log.
_threads: tuple[_LogThread, _LogThread] | None = None
_users = 0
_lock = threading.Lock()


def start() -> None:
    """Have records go through threads from now on, and none of this package's go nowhere, until ``stop``.

    May be called more than once; as many calls of ``stop`` undo it. Without a thread to be had, records
    are handled directly.
    """
    global _threads, _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for name in _GUARDED_IN_WORKERS:
            _guard(name, _Guarded)
        try:
            _threads = _LogThread("aiotasks-log"), _LogThread("aiotasks-log-others")
        except RuntimeError as error:
            _say(f"there is no thread for the log, so its handlers may hold up the worker: {error}")
        _package.addHandler(_stderr)
        _package.setLevel(_package.level)  # has loggers forget what they have remembered of levels


def stop() -> None:
    """Undo one ``start``. Returns at once; what waits is still handled."""
    global _threads, _users
    with _lock:
        _users -= 1
        if _users:
            return
        threads, _threads = _threads, None
        _package.removeHandler(_stderr)
        _package.setLevel(_package.level)
        for thread in threads or ():
            thread.end()


def are_threaded() -> bool:
    """Whether a record costs whoever logs it no more than making it."""
    return _threads is not None


def count_waiting() -> int:
    """How many records wait for their handlers, or are with one."""
    return sum(thread.count() for thread in _threads or ())


def flush(timeout: float) -> bool:
    """Wait until all that has been logged is handled, at most ``timeout`` seconds; whether it is."""
    return not wait([thread.mark() for thread in _threads or ()], timeout).not_done


async def flushed() -> None:
    """Wait on a loop until all that has been logged so far is handled."""
    for mark in [thread.mark() for thread in _threads or ()]:
        await asyncio.wrap_future(mark)


async def flushed_at_stop() -> None:
    """Wait like ``flushed``, but for records below ERROR only PATIENCE seconds: then they are dropped, and
    stderr says how many.

    Those from ERROR on, Django's mails to ADMINS among them, are waited for, unless their thread has been
    busy with one and the same lesser record for all that time.
    """
    threads = _threads or ()
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
            _say(f"log records are dropped at the stop, their handlers are too slow count={total}")
        await asyncio.wait(marks)
    finally:
        for mark in marks:
            mark.cancel()


def close(timeout: float) -> bool:
    """Flush, with the site's handlers and the standard streams; False where that isn't over in time.

    For the end of a process, which must then leave by ``os._exit``: a handler that hangs, or a stream
    whose reader does, holds a lock that an orderly exit waits for. ``timeout`` is in seconds.
    """
    end = time.monotonic() + timeout
    if not (is_closed := flush(timeout)):
        _say(f"log records are lost at the exit, their handlers are too slow count={count_waiting()}")
    calls = [stream.flush for stream in (sys.stdout, sys.stderr) if stream is not None]
    closing = [
        threading.Thread(target=_call, args=[call], name="aiotasks-log-end", daemon=True)
        for call in [*calls, logging.shutdown]
    ]
    for thread in closing:
        try:
            thread.start()
        except RuntimeError:  # there is no thread to be had
            return False
    for thread in closing:
        thread.join(max(0.01, end - time.monotonic()))
    return is_closed and not any(thread.is_alive() for thread in closing)


def _call(flush: Callable[[], object]) -> None:
    with suppress(OSError, ValueError):  # the stream is closed or full
        flush()


def _forget_threads() -> None:
    """In a forked child: the threads aren't there, and records go directly."""
    global _threads, _users, _lock
    _threads, _users, _lock = None, 0, threading.Lock()


os.register_at_fork(after_in_child=_forget_threads)


# --- Last resorts ----------------------------------------------------------------------------------


def _say(sentence: str) -> None:
    """Write a line to stderr, past ``logging``; nothing where that would block."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} aiotasks: {sentence}\n"
    try:
        if sys.stderr is None:
            return
        fileno = sys.stderr.fileno()
        poll = select.poll()
        poll.register(fileno, select.POLLOUT)
        if any(event == select.POLLOUT for _, event in poll.poll(0)):
            os.write(fileno, line.encode(errors="replace")[:4000])  # a page is what a pipe has room for
    except (OSError, ValueError):
        pass  # it is closed, or none of the system's


class _Failures:
    """Reports what the site's logging raises: the first at once, then once a minute how many there were."""

    def __init__(self) -> None:
        self._count = 0
        self._next = 0.0

    def report(self, error: BaseException) -> None:
        self._count += 1
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REPORT_INTERVAL
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        where = (
            f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
            if traceback is not None
            else ""
        )
        try:
            what = repr(error)[:300]
        except Exception:  # __repr__ is the site's code, too
            what = type(error).__name__
        _say(f"the site's logging raised {what}{where} count={self._count}")
        self._count = 0


_failures = _Failures()


# --- The loggers -----------------------------------------------------------------------------------


def _guard(name: str, kind: type[_Guarded]) -> logging.Logger:
    """Give the logger ``name`` the ways of ``kind``, and leave it its own."""
    logger = logging.getLogger(name)
    if not isinstance(logger, kind):
        old = type(logger)
        new = kind if old is logging.Logger else type(kind.__name__, (kind, old), {})
        logger.__class__ = new
    return logger


# Where a record on a worker's loop comes from that isn't the tasks': a failed callback, a failed receiver.
_GUARDED_IN_WORKERS = ("asyncio", "concurrent.futures", "django.dispatch", "py.warnings")

_package = _guard("aiotasks", _Own)
_stderr = _Stderr()
for _name in ("asgi", "store", "supervisor", "testing", "worker"):
    _guard(f"aiotasks.{_name}", _Own)
_guard("django.tasks", _Guarded)  # enqueue() must not fail by its record, when the task has been stored
