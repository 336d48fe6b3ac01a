"""The threads that pass records to their handlers."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue

from .last_resort import failures, write_to_stderr

__all__ = ["Handle", "LogThread"]

logger = logging.getLogger("aiotasks")

# Records that wait for one thread. 10,000 of a line each are a few megabytes.
MOST_WAITING = 10_000

type Handle = Callable[[logging.LogRecord], object]


class LogThread:
    """Passes records to their handlers, one after another. A daemon, so that it delays no exit."""

    def __init__(self, name: str) -> None:
        self._items: SimpleQueue[tuple[Context, Handle, logging.LogRecord] | Future[None] | None] = (
            SimpleQueue()
        )
        self._marks: set[Future[None]] = set()
        self._current: logging.LogRecord | None = None
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, handle: Handle, record: logging.LogRecord) -> None:
        """Have ``handle(record)`` called soon; return at once."""
        if self._items.qsize() >= MOST_WAITING:
            if not self._dropped:
                write_to_stderr(
                    f"log records are dropped, {MOST_WAITING} wait for the handlers of {record.name!r}"
                )
            self._dropped += 1
            return
        self._items.put((copy_context(), handle, record))

    def mark(self) -> Future[None]:
        """Return a future that is done once all records put so far are handled."""
        mark: Future[None] = Future()
        self._marks.add(mark)
        self._items.put(mark)
        return mark

    def end(self) -> None:
        """Let the thread end once all records put so far are handled."""
        self._items.put(None)

    def count(self) -> int:
        """Return how many records aren't handled yet."""
        # Not below 0: a mark that the thread has just taken from the queue is still among the marks.
        return max(0, self._items.qsize() - len(self._marks)) + (self._current is not None)

    @property
    def current(self) -> logging.LogRecord | None:
        """The record that a handler is busy with."""
        return self._current

    def drop_unimportant(self) -> tuple[int, int]:
        """Drop waiting records below ERROR; return how many, and how many still wait."""
        kept: list[tuple[Context, Handle, logging.LogRecord] | Future[None] | None] = []
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
                with suppress(InvalidStateError):  # its waiter has given up
                    item.set_result(None)
                continue
            context, handle, record = item
            self._current = record
            try:
                context.run(handle, record)
            except BaseException as error:  # a site's filters and handlers may raise anything  # noqa: BLE001
                failures.report(error)
            # Otherwise this thread would keep a traceback's frames alive until the next record.
            del item, context, handle, record
            self._current = None
            if self._dropped and self._items.qsize() < MOST_WAITING // 2:
                dropped, self._dropped = self._dropped, 0
                logger.warning("log records were dropped, the handlers are too slow count=%d", dropped)
