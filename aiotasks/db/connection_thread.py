"""Threads of aiotasks and Django's connections in them: checked, kept, returned, and left clean.

A *use* of a thread is a series of calls that belong together, and share what they leave in a session.
"""

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
from .thread_sessions import ThreadSession, has_pool, has_unread_data, sessions_of_this_thread

__all__ = ["IDLE_TIMEOUT", "ConnectionThread", "ThreadConnections", "fulfil", "share_connections", "tidy"]

logger = logging.getLogger("aiotasks.store")

# Seconds after which a call holds up its thread for too long: the thread gets no new users.
STUCK_AFTER = 1.0

# Seconds without use after which a thread closes its connections.
IDLE_TIMEOUT = 60.0

# Seconds for which a thread waits for a connection where threads share a few, and the shortest and longest
# pause between two tries. A server takes milliseconds to end a session that has been closed.
SHARED_WITHIN = 30.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.1

# The databases whose connections the threads of this process share, by alias, each with a lock: one thread
# connects at a time, because PostgreSQL counts the connects that it is about to refuse, so overlapping ones
# would have each other refused.
_shared: dict[str, threading.Lock] = {}


def share_connections(alias: str) -> None:
    """Have the threads share connections to the database ``alias``, for a server that allows too few.

    No thread keeps one between uses, nor between the calls of a use unless the session has been changed. A
    thread that needs one waits until another thread has closed its own.
    """
    _shared.setdefault(alias, threading.Lock())


class ThreadConnections:
    """Looks after Django's connections of the thread that makes it and calls it.

    ``check()`` comes before a use, ``clean()`` after it, ``rest()`` between its calls where others may use
    the thread meanwhile, ``close_idle()`` after ``IDLE_TIMEOUT`` without a use. None of them raises, because
    a driver that fails to close must not end the thread. No connection is opened.

    CONN_MAX_AGE of 0 isn't obeyed, because each use would connect again; above 0 it limits a connection's
    age. A connection of Django's pool (OPTIONS ``pool``) returns to it after each use or call, and one that
    threads share (``share_connections()``) is closed.
    """

    def __init__(self) -> None:
        self._sessions = sessions_of_this_thread()

    def check(self) -> None:
        """Before a use: close connections that are broken, too old or long unused; forget logged queries."""
        for session in list(self._sessions.values()):
            if session.connection.queries_log:
                session.connection.queries_log.clear()
            if session.connection.connection is not None:
                tidy(partial(_check, session))
        if _shared:
            tidy(_have_connects_wait)

    def clean(self) -> None:
        """After a use: leave no trace of it in any session, and no connection of a pool."""
        for connection in connections.all(initialized_only=True):
            session = self._sessions.get(connection)
            if session is None:
                if connection.connection is not None:  # a receiver before that of thread_sessions has raised
                    tidy(ThreadSession(connection).discard)
                continue
            if connection.queries_log:
                connection.queries_log.clear()
            if session.is_private():
                tidy(session.discard)
            elif connection.connection is not None:
                if _is_for_one_use(connection):
                    tidy(connection.close)
                elif session.used:
                    session.used, session.used_at = False, time.monotonic()
        if _shared:
            tidy(_have_connects_wait)  # also those in place of discarded ones

    def rest(self) -> bool:
        """Between two calls of a use: return whether a call has left something that others must not see.

        Where it hasn't, a connection of a pool goes back, and a shared one is closed.
        """
        is_private = self.are_private()
        if not is_private:
            for session in self._sessions.values():
                if session.connection.connection is not None and _is_for_one_use(session.connection):
                    tidy(session.connection.close)
        return is_private

    def are_private(self) -> bool:
        """Return whether a session has been changed, or holds a transaction or a cursor."""
        return any(session.is_private() for session in self._sessions.values()) or any(
            connection.connection is not None and connection not in self._sessions
            for connection in connections.all(initialized_only=True)
        )

    def close_idle(self) -> None:
        """Close the connections that are in no use, and forget logged queries."""
        for session in list(self._sessions.values()):
            if not session.is_private():
                session.connection.queries_log.clear()
                tidy(session.connection.close)

    def close(self) -> None:
        """Close all connections, because the thread ends."""
        tidy(connections.close_all)


class ConnectionThread:
    """Runs calls one after another, in a daemon thread that keeps its connections between them.

    ``connections`` is for calls, in the thread. ``users`` and ``owner`` are for the code that assigns
    threads: how many users are bound to this one, and the one that has it for itself. Raises RuntimeError if
    the machine refuses another thread.
    """

    connections: ThreadConnections

    def __init__(self, name: str) -> None:
        self.users = 0
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
    """Run ``call`` for ``future``, unless that is cancelled, and ``then`` before the future is done."""
    result, failure = None, None
    runs = future.set_running_or_notify_cancel()
    if runs:
        since = forks.generation
        try:
            result = call(*args, **kwargs)
        except BaseException as error:  # for the code that waits, as in concurrent.futures  # noqa: BLE001
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
        failure = None  # or its traceback and this frame would keep each other alive


def _is_for_one_use(connection: Any) -> bool:
    return has_pool(connection) or connection.alias in _shared


def _have_connects_wait() -> None:
    """Have this thread's connections to databases of ``_shared`` wait until another thread has closed one."""
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

    For any reason, because psycopg gives no SQLSTATE of a failed connect, and its text may be in any
    language.
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
        return  # its owner goes on with it; a new connection wouldn't have the tenant that the owner has set
    now = time.monotonic()
    expired = connection.settings_dict["CONN_MAX_AGE"] and (
        connection.close_at is not None and now >= connection.close_at
    )
    unused = session.used_at and now - session.used_at > IDLE_TIMEOUT
    if expired or unused:
        connection.close()
    elif connection.errors_occurred or has_unread_data(connection.connection):
        if connection.is_usable():
            connection.errors_occurred = False
        else:
            connection.close()
    connection.health_check_done = False  # CONN_HEALTH_CHECKS: Django checks before the next statement


def tidy(close: Callable[[], None]) -> None:
    """Call ``close``, which closes connections. A driver's error is logged, and must not end the thread."""
    try:
        close()
    except Exception:
        logger.exception("A connection could not be closed")
