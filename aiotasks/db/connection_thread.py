"""Threads of our own and Django's connections in them: checked, kept, given back, and left clean."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from django.db import connections

from .. import forks
from .thread_sessions import ThreadSession, has_pool, has_something_to_say, sessions_of_this_thread

__all__ = ["IDLE_TIMEOUT", "ConnectionThread", "ThreadConnections", "fulfil", "share_connections", "tidy"]

logger = logging.getLogger("aiotasks.store")

# A call that takes this long holds up the other jobs of its thread: it gets no new ones.
STUCK_AFTER = 1.0

# Seconds without use after which a thread closes its connections.
IDLE_TIMEOUT = 60.0

# Seconds for which a thread waits for a connection where threads share a few, and its shortest and longest
# pause between two tries. A server takes milliseconds to end a session that has been closed.
SHARED_WITHIN = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.1

# The databases whose connections the threads of this process share, by alias: each with the lock of the
# thread whose turn it is to connect. PostgreSQL counts those that it is about to refuse, so connects that
# overlap would have each other refused.
_shared: dict[str, threading.Lock] = {}


def share_connections(alias: str) -> None:
    """From now on have no thread of ours keep a connection to the database ``alias`` between jobs, nor
    between the calls of a job unless the session has been changed; and have it wait for one that others
    have at the moment. For a server that allows fewer than there are threads."""
    _shared.setdefault(alias, threading.Lock())


class ThreadConnections:
    """Looks after Django's connections of the thread that makes it and calls it.

    ``check()`` comes before a job, ``clean()`` after it, ``rest()`` between its calls where other jobs
    may use the thread meanwhile, ``close_idle()`` after ``IDLE_TIMEOUT`` without a job. None of them
    raises: a driver that fails to close must not end the thread. No connection is opened.

    CONN_MAX_AGE of 0 isn't obeyed, or each job would connect again; above 0 it limits a connection's
    age. A connection of Django's pool (OPTIONS ``pool``) goes back to it after each job or call, and one
    that threads share (``share_connections()``) is closed.
    """

    def __init__(self) -> None:
        self._sessions = sessions_of_this_thread()

    def check(self) -> None:
        """Before a job: close what has died, is too old or hasn't been used; forget logged queries."""
        for session in list(self._sessions.values()):
            if session.connection.queries_log:
                session.connection.queries_log.clear()
            if session.connection.connection is not None:
                tidy(partial(_check, session))
        if _shared:
            tidy(_have_connects_wait)

    def clean(self) -> None:
        """After a job: leave no trace of it in any session, and no connection of a pool."""
        for connection in connections.all(initialized_only=True):
            session = self._sessions.get(connection)
            if session is None:
                if connection.connection is not None:  # a receiver before ours has raised
                    tidy(ThreadSession(connection).discard)
                continue
            if connection.queries_log:
                connection.queries_log.clear()
            if session.is_private():
                tidy(session.discard)
            elif connection.connection is not None:
                if _is_for_one_job(connection):
                    tidy(connection.close)
                elif session.used:
                    session.used, session.used_at = False, time.monotonic()
        if _shared:
            tidy(_have_connects_wait)  # also of what comes in place of one that was discarded

    def rest(self) -> bool:
        """Between two calls of a job: return whether a call has left something that other jobs mustn't
        see. Where it hasn't, a connection of a pool goes back, and a shared one is closed."""
        is_private = self.are_private()
        if not is_private:
            for session in self._sessions.values():
                if session.connection.connection is not None and _is_for_one_job(session.connection):
                    tidy(session.connection.close)
        return is_private

    def are_private(self) -> bool:
        """Return whether a session has been changed, or holds a transaction or a cursor."""
        return any(session.is_private() for session in self._sessions.values()) or any(
            connection.connection is not None and connection not in self._sessions
            for connection in connections.all(initialized_only=True)
        )

    def close_idle(self) -> None:
        """Close what isn't in anybody's use, and forget logged queries."""
        for session in list(self._sessions.values()):
            if not session.is_private():
                session.connection.queries_log.clear()
                tidy(session.connection.close)

    def close(self) -> None:
        """Close all: the thread ends."""
        tidy(connections.close_all)


class ConnectionThread:
    """Runs calls one after another, in a daemon thread that keeps its connections between them.

    ``connections`` is for calls, in the thread. ``jobs`` and ``owner`` are for whoever shares the thread
    out: how many jobs are bound to it, and the one that has it for itself. Raises RuntimeError where the
    machine refuses another thread.
    """

    connections: ThreadConnections

    def __init__(self, name: str) -> None:
        self.jobs = 0
        self.owner: Any = None
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def is_stuck(self, now: float) -> bool:
        since = self._busy_since
        return since is not None and now - since > STUCK_AFTER

    def put(self, call: Callable[[], None]) -> None:
        """Have ``call``, which must not raise, run after those before it."""
        self._calls.put(call)

    def stop(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        self.connections = ThreadConnections()
        while True:
            try:
                call = self._calls.get(timeout=IDLE_TIMEOUT)
            except queue.Empty:
                self.connections.close_idle()
                continue
            if call is None:
                break
            self._busy_since = time.monotonic()
            call()
            self._busy_since = None
        self.connections.close()


def fulfil(
    future: Future[Any],
    call: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    then: Callable[[], None] | None = None,
) -> None:
    """Run ``call`` for ``future``, unless that is cancelled, and ``then`` before anybody hears of its end."""
    result, failure = None, None
    runs = future.set_running_or_notify_cancel()
    if runs:
        since = forks.generation
        try:
            result = call(*args, **kwargs)
        except BaseException as error:  # the awaiting task's, like in concurrent.futures
            failure = error
        if forks.generation != since:
            forks.end(failure)
    if then is not None:
        then()
    if not runs:
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
        failure = None  # or its traceback and this frame would keep each other


def _is_for_one_job(connection: Any) -> bool:
    return has_pool(connection) or connection.alias in _shared


def _have_connects_wait() -> None:
    """Have this thread's connections to databases of ``_shared`` wait until others have left one."""
    for alias, turn in _shared.items():
        connection: Any = connections[alias]
        if not has_pool(connection) and "get_new_connection" not in vars(connection):
            connection.get_new_connection = partial(
                _connect_in_turn, turn, connection.get_new_connection, connection.Database.OperationalError
            )


def _connect_in_turn(
    turn: threading.Lock, connect: Callable[[Any], Any], refused: type[Exception], params: Any
) -> Any:
    """Call ``connect`` until it isn't refused, for ``SHARED_WITHIN``, while no other thread does.

    Whatever the reason: psycopg tells no SQLSTATE of a failed connect, and the text may be in any language.
    """
    end = time.monotonic() + SHARED_WITHIN
    pause = SHORTEST_PAUSE
    is_mine = turn.acquire(timeout=SHARED_WITHIN)
    try:
        while True:
            try:
                return connect(params)
            except refused:
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    finally:
        if is_mine:
            turn.release()


def _check(session: ThreadSession) -> None:
    connection: Any = session.connection  # django-stubs lack some attributes
    if session.is_private():
        return  # its owner goes on with it: a new connection wouldn't have the tenant that it has set
    now = time.monotonic()
    expired = connection.settings_dict["CONN_MAX_AGE"] and (
        connection.close_at is not None and now >= connection.close_at
    )
    unused = session.used_at and now - session.used_at > IDLE_TIMEOUT
    if expired or unused:
        connection.close()
    elif connection.errors_occurred or has_something_to_say(connection.connection):
        if connection.is_usable():
            connection.errors_occurred = False
        else:
            connection.close()
    connection.health_check_done = False  # Django's own, before the next statement: CONN_HEALTH_CHECKS


def tidy(close: Callable[[], None]) -> None:
    """Close connections; what a driver raises at that must not end the thread."""
    try:
        close()
    except Exception:
        logger.exception("A connection could not be closed")
