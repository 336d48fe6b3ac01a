"""ThreadSession: what the calls of a thread have left in the session of one of Django's connections.

A session holds settings (``SET``, ``set_config(…, false)``), the role, advisory locks, temporary tables, open
cursors and transactions. With row-level security such a setting decides which rows are visible, so a use of a
thread must never get a session that another one has changed.
"""

import select
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from ..compat import connect_first, new_on_commit_hooks, on_commit_hooks
from .statement_text import changes_session

__all__ = ["ThreadSession", "has_pool", "has_unread_data", "sessions_of_this_thread"]

# The sessions of this thread by connection. Only threads of aiotasks have the attribute.
_thread = threading.local()

# psycopg's TransactionStatus: a statement or COPY runs, a transaction is open, one has failed.
_IN_TRANSACTION = (1, 2, 3)


def sessions_of_this_thread() -> dict[BaseDatabaseWrapper, "ThreadSession"]:
    """Return the sessions of the calling thread, whose connections are observed from the first call on."""
    try:
        sessions: dict[BaseDatabaseWrapper, ThreadSession] = _thread.sessions
    except AttributeError:
        sessions = _thread.sessions = {}
    return sessions


class ThreadSession:
    """Observes the statements of one connection, as long as the thread has it."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.changed = False  # by a statement, as far as its text shows
        self.used = False  # has made a cursor
        self.used_at = 0.0  # for the owner of the thread: the time of the last use
        self._raw: Any = None  # the driver's connection that is observed
        self._connecting: list[Any] | None = None
        self._wrappers: list[Any] = []  # execute wrappers of the site's, which stay
        self._earlier_wrappers: list[Any] = []
        self._cursors: list[Any] = []  # server-side ones
        # On the instance, because Django has no public way to observe callproc() and the statements that
        # execute wrappers return. (The class must stay the engine's own: connection_created sends it as
        # sender.)
        instance: Any = connection
        instance.make_cursor = partial(self._make_cursor, connection.make_cursor)
        instance.make_debug_cursor = partial(self._make_cursor, connection.make_debug_cursor)
        instance.close = partial(self._close, connection.close)

    def connected(self) -> None:
        """The connection is new, and its connect() sends ``connection_created``."""
        self.changed = False
        self._raw = self.connection.connection
        self._cursors.clear()
        _observe_driver(self._raw, self)
        self._earlier_wrappers = list(self.connection.execute_wrappers)
        # Settings that the site makes for every session, in a receiver after this one, aren't a use's.
        # connect() replaces this list as its last step, which shows that it is over.
        self._connecting = new_on_commit_hooks(self.connection)

    def is_private(self) -> bool:
        """Whether a call has left something that another use must neither see nor lose."""
        connection = self.connection
        raw = connection.connection
        if any(wrapper not in self._site_wrappers() for wrapper in connection.execute_wrappers):
            return True
        if raw is None:
            return connection.in_atomic_block  # closed inside the block, which isn't over
        if self._cursors:
            self._cursors = [cursor for cursor in self._cursors if not cursor.closed]
        return bool(
            self.changed
            or raw is not self._raw  # another receiver has raised, so this one wasn't observed
            or self._cursors
            or connection.in_atomic_block
            or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
            or _transaction_status(raw) in _IN_TRANSACTION
        )

    def discard(self) -> None:
        """Close the connection, also if it is a pool's; the thread's next one is another object.

        So neither the server's session stays nor the attributes of the object, Django's or the site's (a
        tenant, atomic blocks, savepoints, execute wrappers).
        """
        connection, raw = self.connection, self.connection.connection
        alias = connection.alias
        try:
            if raw is not None:
                _close_for_good(raw)
            connection.close()
        finally:
            sessions_of_this_thread().pop(connection, None)
            if connections[alias] is connection:
                del connections[alias]

    def note(self, statement: Any) -> None:
        """``statement`` is about to be executed."""
        if self.changed or self.connection.vendor == "sqlite":  # which has no such sessions
            return
        if self._is_observed() and changes_session(statement, self._raw):
            self.changed = True

    def note_driver(self, cursor: Any, statement: Any) -> None:
        """``statement`` is about to be executed by psycopg's ``cursor``, made by Django or by the site."""
        if getattr(cursor, "name", None) and not any(one is cursor for one in self._cursors):
            self._cursors.append(cursor)
        self.note(statement)

    def _is_observed(self) -> bool:
        """Whether connect() is over."""
        connection = self.connection
        return connection.connection is self._raw and on_commit_hooks(connection) is not self._connecting

    def _site_wrappers(self) -> list[Any]:
        """The execute wrappers that receivers of ``connection_created`` have installed."""
        if self._connecting is not None and on_commit_hooks(self.connection) is not self._connecting:
            self._connecting = None
            known = self._earlier_wrappers + self._wrappers
            self._wrappers += [one for one in self.connection.execute_wrappers if one not in known]
        return self._wrappers

    def _make_cursor(self, make_cursor: Callable[[Any], CursorWrapper], cursor: Any) -> CursorWrapper:
        made: Any = make_cursor(cursor)
        self.used = True
        if self._connecting is not None:
            self._site_wrappers()
        if getattr(cursor, "name", None):
            self._cursors.append(cursor)
        try:
            made.__class__ = _observed(type(made))  # type: ignore[arg-type]  # a class can be hashed
            made.aiotasks_session = self
        except (TypeError, AttributeError):  # an engine's own cursor, whose statements can't be observed
            self.changed = True
        return made  # type: ignore[no-any-return]

    def _close(self, close: Callable[[], None]) -> None:
        """``connection.close()``: a pool must not get back a session that has been changed."""
        if self.is_private() and (raw := self.connection.connection) is not None:
            _close_for_good(raw)
        close()


@cache
def _observed(kind: type[CursorWrapper]) -> type[CursorWrapper]:
    """A subclass of the cursor class ``kind`` that notes each statement in its session."""

    class Observed(kind):  # type: ignore[misc,valid-type]
        def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
            self.aiotasks_session.note(sql)
            return super()._execute(sql, params, *ignored)

        def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any:
            self.aiotasks_session.note(sql)
            return super()._executemany(sql, param_list, *ignored)

        def callproc(self, procname: Any, *params: Any, **more: Any) -> Any:
            self.aiotasks_session.note(f"SELECT {procname}()" if isinstance(procname, str) else procname)
            return super().callproc(procname, *params, **more)

        # psycopg2's, which Django's cursor passes on; psycopg 3's cursors are observed themselves.
        def copy_expert(self, sql: Any, *params: Any, **more: Any) -> Any:
            self.aiotasks_session.note(sql)
            return self.cursor.copy_expert(sql, *params, **more)

    Observed.__name__, Observed.__qualname__ = kind.__name__, kind.__qualname__
    return Observed


def _observe_driver(raw: Any, session: ThreadSession) -> None:
    """Have psycopg 3's connection make cursors that note their statements in ``session``.

    Also those of ``raw.execute()``, ``copy()`` and ``stream()``, which bypass Django.
    """
    if getattr(raw, "pgconn", None) is None:
        return
    raw.aiotasks_session = session  # a pool's connection belongs to another session the next time
    for factory in ("cursor_factory", "server_cursor_factory"):
        kind = getattr(raw, factory)
        if isinstance(kind, type) and not hasattr(kind, "aiotasks_observes"):
            setattr(raw, factory, _observed_driver(kind))


@cache
def _observed_driver(kind: Any) -> Any:
    """A subclass of psycopg's cursor class ``kind`` that notes each statement in its connection's session."""

    class Observed(kind):  # type: ignore[misc]  # the base is known at run time only
        aiotasks_observes = True

        def execute(self, query: Any, *args: Any, **more: Any) -> Any:
            self.connection.aiotasks_session.note_driver(self, query)
            return super().execute(query, *args, **more)

        def executemany(self, query: Any, *args: Any, **more: Any) -> Any:
            self.connection.aiotasks_session.note_driver(self, query)
            return super().executemany(query, *args, **more)

        def stream(self, query: Any, *args: Any, **more: Any) -> Any:
            self.connection.aiotasks_session.note_driver(self, query)
            return super().stream(query, *args, **more)

        def copy(self, statement: Any, *args: Any, **more: Any) -> Any:
            self.connection.aiotasks_session.note_driver(self, statement)
            return super().copy(statement, *args, **more)

    Observed.__name__, Observed.__qualname__ = kind.__name__, kind.__qualname__
    return Observed


def has_pool(connection: Any) -> bool:
    return bool(connection.settings_dict["OPTIONS"].get("pool"))


def has_unread_data(connection: Any) -> bool:
    """Whether an idle connection can be read from: then the server has closed it, or is about to."""
    try:
        poll = select.poll()  # select() fails above 1,024 descriptors
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError, TypeError):
        return True


def _transaction_status(raw: Any) -> int:
    """The driver's status of the transaction, also of one that Django didn't begin."""
    try:
        return int(raw.info.transaction_status)  # psycopg's, 2 and 3
    except AttributeError:
        return 0  # another database's driver


def _close_for_good(raw: Any) -> None:
    """End the server's session even where Django's close() gives the connection back to a pool."""
    pgconn = getattr(raw, "pgconn", None)  # psycopg 3's; other drivers have no pool
    if pgconn is not None:
        pgconn.finish()


def _replace_dead(connection: Any) -> None:
    """If the pool has given a connection that broke while it was idle, take the next one.

    Django has a pool check its connections only with CONN_HEALTH_CHECKS, by a query each time.
    """
    for _ in range(connection.pool.max_size):
        raw = connection.connection
        if not has_unread_data(raw) or connection.is_usable():
            return
        _close_for_good(raw)  # else the pool, which doesn't know either, would keep it
        connection.close()
        connection.connection = connection.get_new_connection(connection.get_connection_params())
        connection.set_autocommit(connection.settings_dict["AUTOCOMMIT"])


def _connected(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """The receiver of ``connection_created``."""
    sessions: dict[BaseDatabaseWrapper, ThreadSession] | None = getattr(_thread, "sessions", None)
    if (
        sessions is None
        or connection.alias not in connections
        or connections[connection.alias] is not connection
    ):
        return  # not a thread of aiotasks, or a copy that the site has made
    if has_pool(connection):
        _replace_dead(connection)
    if (session := sessions.get(connection)) is None:
        session = sessions[connection] = ThreadSession(connection)
    session.connected()


# Before the site's own receivers, so that what those do isn't taken for a call's doing.
connect_first(connection_created, _connected, dispatch_uid="aiotasks.db.thread_sessions")
