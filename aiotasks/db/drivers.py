"""The two ways a statement reaches PostgreSQL: asyncpg on a loop, or Django's own connection.

Both are ``await driver.fetch(statement, *args)`` and raise Django's ``django.db`` errors, so their callers
needn't know which one they have.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Protocol

import asyncpg
from django.db import connections, utils
from django.db.backends.base.base import BaseDatabaseWrapper

from .cache import ConnectionCache, is_dead
from .errors import UNREADABLE, Code, django_errors, sqlstate, timed_out, was_rolled_back
from .last_words import LastWords
from .statement import Statement

__all__ = [
    "MOST_TRIES",
    "AsyncpgDriver",
    "Connection",
    "ConnectionDriver",
    "DjangoDriver",
    "Driver",
    "Row",
    "pause_after_rollback",
]

# How often a statement is sent that PostgreSQL rolls back each time (a serialization failure, a deadlock),
# and the longest pause between two tries in seconds.
MOST_TRIES = 20
LONGEST_PAUSE = 0.1

Row = Sequence[Any]
type Connection = asyncpg.Connection[asyncpg.Record]  # asyncpg ships no types yet


class Driver(Protocol):
    """Runs one statement in a transaction of its own, or in the one that the driver is made for."""

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        """Run ``statement`` and return its rows. ``timeout`` is in seconds (None: the default)."""


class AsyncpgDriver:
    """Statements over any free connection of an asyncpg pool, on the pool's loop."""

    def __init__(self, new_pool: "Callable[[], asyncpg.Pool[asyncpg.Record]]", *, timeout: float) -> None:
        self._new_pool = new_pool
        self.pool = new_pool()
        self.cache = ConnectionCache(self.pool)
        self._timeout = timeout
        self._opening: asyncio.Lock | None = asyncio.Lock()

    async def open(self) -> None:
        """Open POOL_MIN_SIZE connections, the first time."""
        if self._opening is not None:
            async with self._opening:
                try:
                    await self.pool
                except BaseException:  # asyncpg closes a pool that it couldn't open
                    self.pool.terminate()
                    self.pool = self._new_pool()
                    self.cache = ConnectionCache(self.pool, limit=self.cache.limit)
                    raise
            self._opening = None

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        timeout = timeout or self._timeout
        tries = 1
        while True:
            try:
                return await self._fetch(statement, args, timeout)
            except utils.OperationalError as error:
                if tries >= MOST_TRIES or not was_rolled_back(error):
                    raise
                await asyncio.sleep(pause_after_rollback(tries))
                tries += 1

    async def _fetch(self, statement: Statement, args: Sequence[Any], timeout: float) -> Sequence[Row]:
        with django_errors():
            if self._opening is not None:
                await self.open()
            # Two limits, because waiting for a free connection says nothing about the server.
            connection = await self.cache.acquire(timeout=timeout)
            done = False
            try:
                rows: Sequence[Row] = await connection.fetch(statement.sql, *args, timeout=timeout)
                done = True
                return rows
            except (asyncpg.ReadOnlySQLTransactionError, TimeoutError):
                # After a failover the connections lead to a standby, or to no server at all, and each would
                # cost a time-out. connect() finds the primary.
                await self.cache.drop_all()
                raise
            finally:
                await self.cache.release(connection, keep=done)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["ConnectionDriver"]:
        """A transaction of several statements over one connection; an exception rolls it back."""
        with django_errors():
            await self.open()
            connection = await self.cache.acquire(timeout=self._timeout)
        ended = False
        try:
            transaction = connection.transaction()
            with django_errors():
                await transaction.start()
            try:
                yield ConnectionDriver(connection)
            except BaseException:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                    await transaction.rollback()
                    ended = True
                raise
            with django_errors():
                await transaction.commit()
            ended = True
        except utils.Error as error:
            if timed_out(error) or sqlstate(error) == Code.READ_ONLY:  # as in _fetch()
                await self.cache.drop_all()
            raise
        finally:
            if not ended and not is_dead(connection):
                connection.terminate()  # the pool would lend it with the transaction open
            await self.cache.release(connection, keep=ended)


class ConnectionDriver:
    """Statements over one asyncpg connection: an open transaction's.

    A connection runs one statement at a time, so concurrent callers queue up.
    """

    def __init__(self, connection: Connection, words: LastWords | None = None) -> None:
        self._connection = connection
        self._words = words
        self._lock = asyncio.Lock()

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        with django_errors():
            async with self._lock:
                try:
                    rows: Sequence[Row] = await self._connection.fetch(statement.sql, *args, timeout=timeout)
                except (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError) as error:
                    if self._words is not None and (ended := self._words.error(error)) is not None:
                        raise ended from error
                    raise
                return rows

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator["ConnectionDriver"]:
        """A savepoint, for the statements of the driver that it yields; other callers wait for its end.

        An exception rolls it back, and is raised as it is. Where that isn't possible, the connection is
        closed, because the transaction around must not go on with what was to be undone.
        """
        async with self._lock:
            savepoint = self._connection.transaction()
            with django_errors():
                await savepoint.start()
            try:
                yield ConnectionDriver(self._connection, self._words)
            except BaseException as error:
                try:
                    await savepoint.rollback()
                except BaseException as failure:
                    if not is_dead(self._connection):
                        self._connection.terminate()
                    if not isinstance(failure, Exception):  # the caller was cancelled meanwhile
                        raise
                    error.add_note(f"ROLLBACK TO SAVEPOINT failed, so the connection was closed: {failure}")
                raise
            with django_errors():
                await savepoint.commit()


class DjangoDriver:
    """Statements over the calling thread's own Django connection, so inside its ``atomic()``.

    Its coroutine never suspends, so sync code may drive it with a single ``send(None)``. It uses a cursor of
    Django's, so that assertNumQueries, execute wrappers, Django's errors and ``needs_rollback`` hold, with
    either psycopg. With ``logged=False`` it uses the database driver's cursor instead, which leaves no trace
    in Django's query log: for NOTIFY, which is sent or not depending on the time.

    Outside a transaction a statement that PostgreSQL has rolled back (a serialization failure, a deadlock) is
    sent again; the thread waits at most two seconds in all between the tries.
    """

    def __init__(self, alias: str, *, logged: bool = True) -> None:
        self._alias = alias
        self._logged = logged

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        connection = connections[self._alias]
        sql, params = _with_arrays(statement.django_sql, args)
        tries = 1
        while True:
            try:
                with self._cursor(connection) as cursor:
                    cursor.execute(sql, params)
                    try:
                        return cursor.fetchall() if cursor.description else []
                    except (ValueError, *UNREADABLE) as error:  # psycopg2's; psycopg has a DataError
                        raise utils.DataError(f"a value of the database can't be read: {error}") from error
            except utils.Error as error:
                if connection.in_atomic_block:
                    raise
                if sqlstate(error) == Code.READ_ONLY:
                    connection.close()  # its server is a standby after a failover; the next may not be
                if tries >= MOST_TRIES or not was_rolled_back(error) or not connection.get_autocommit():
                    raise
            time.sleep(pause_after_rollback(tries))  # noqa: ASYNC251  # sync code drives this, and never suspends
            tries += 1

    @contextmanager
    def _cursor(self, connection: BaseDatabaseWrapper) -> Iterator[Any]:
        if self._logged:
            with connection.cursor() as cursor:
                yield cursor
            return
        connection.ensure_connection()
        with connection.wrap_database_errors, connection.connection.cursor() as cursor:
            yield cursor


def pause_after_rollback(tries: int) -> float:
    """Seconds to wait after so many rolled-back tries, with jitter, because the others try again, too."""
    return min(LONGEST_PAUSE, 0.002 * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)


def _with_arrays(sql: str, args: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """The statement and its parameters, lists as arrays.

    A list with a None is written by its items, ``ARRAY[…]``, because a role or database may have
    ``array_nulls = off``: a NULL in an array's text is then a word like others.
    """
    parameters: dict[str, Any] = {}
    for number, arg in enumerate(args, 1):
        name = f"p{number}"
        if not isinstance(arg, list):
            parameters[name] = arg
        elif None not in arg:
            parameters[name] = _array(arg)
        else:
            items = {f"{name}_{n}": None if value is None else str(value) for n, value in enumerate(arg)}
            parameters |= items
            sql = sql.replace(f"%({name})s", f"ARRAY[{', '.join(f'%({item})s' for item in items)}]")
    return sql, parameters


def _array(values: list[Any]) -> str:
    """PostgreSQL's text form of an array, whose type the statement gives.

    psycopg's own adaptation of a dozen lists takes 100 µs, as much as the rest of an enqueue.
    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    return f"{{{','.join([_element(value) for value in values])}}}"


def _element(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
