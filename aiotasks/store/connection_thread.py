"""ConnectionThread: a thread of our own that has Django connections and looks after them."""

import logging
import queue
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from django.db import connections

from .. import forks

__all__ = ["ConnectionThread", "check_connections", "fulfil", "tidy"]

logger = logging.getLogger("aiotasks.store")

# A call that takes this long holds up the other jobs of its thread: it gets no new ones.
STUCK_AFTER = 1.0

# Idle this long, a thread gives its connections back.
IDLE_TIMEOUT = 60.0


class ConnectionThread:
    """Runs calls one after another, in a daemon thread that keeps its connections between them.

    ``jobs`` is for its owner: how many share it at the moment.
    """

    def __init__(self, name: str) -> None:
        self.jobs = 0
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def is_stuck(self, now: float) -> bool:
        since = self._busy_since
        return since is not None and now - since > STUCK_AFTER

    def put(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def stop(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE_TIMEOUT)
            except queue.Empty:
                if not self.jobs:  # a job may be in the middle of a cursor, or hold a lock
                    tidy(connections.close_all)
                continue
            if call is None:
                break
            self._busy_since = time.monotonic()
            call()
            self._busy_since = None
        tidy(connections.close_all)


def fulfil(future: Future[Any], call: Callable[..., Any], args: Any, kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    since = forks.generation
    try:
        result = call(*args, **kwargs)
        if forks.generation != since:
            forks.end()
        future.set_result(result)
    except BaseException as error:  # the awaiting task's, like in concurrent.futures
        if forks.generation != since:
            forks.end(error)
        future.set_exception(error)


def check_connections() -> None:
    """Close this thread's connections that have died, before a job's first call.

    Django checks at the ends of a request, which this thread never sees: without this, a thread
    whose connection the server has closed would fail for ever. CONN_MAX_AGE=0 is not obeyed, or
    every job would connect anew; a connection's age is.
    """
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        expired = connection.settings_dict["CONN_MAX_AGE"] and (
            connection.close_at is not None and time.monotonic() >= connection.close_at
        )
        if expired or connection.errors_occurred or _has_something_to_say(connection.connection):
            if expired or not connection.is_usable():
                connection.close()
            else:
                connection.errors_occurred = False


def _has_something_to_say(connection: Any) -> bool:
    """Whether an idle connection can be read from: what a server says unasked is good-bye."""
    try:
        return bool(select.select([connection], [], [], 0)[0])
    except (OSError, ValueError, AttributeError, TypeError):
        return True


def tidy(close: Callable[[], None]) -> None:
    """Close connections; what a driver raises at that must not end the thread."""
    try:
        close()
    except Exception:
        logger.exception("a connection could not be closed")
