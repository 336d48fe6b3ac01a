"""The two ways a statement reaches PostgreSQL: asyncpg on a loop, or Django's own connection.

Both are ``await driver.fetch(statement, *args)`` and raise Django's ``django.db`` errors, so
what stands on them needn't know which one it has.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import asyncpg
from django.db import connections, utils
from django.db.backends.base.base import BaseDatabaseWrapper

from .cache import ConnectionCache
from .last_words import LastWords
from .statement import Statement

__all__ = [
    "READ_ONLY",
    "TOO_MANY_CONNECTIONS",
    "AsyncpgDriver",
    "ConnectionDriver",
    "DjangoDriver",
    "Driver",
    "about_tables",
    "as_django_error",
    "constraint",
    "django_errors",
    "is_away",
    "is_transient",
    "sqlstate",
    "was_rolled_back",
]

# How often a statement is sent that PostgreSQL rolls back each time (a serialization failure, a deadlock),
# and the longest pause between two tries in seconds.
MOST_TRIES = 20
LONGEST_PAUSE = 0.1

Row = Sequence[Any]
type Connection = asyncpg.Connection[asyncpg.Record]  # asyncpg ships no types yet


class Driver(Protocol):
    """Runs one statement in a transaction of its own, or in the one that it stands for."""

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        """Run ``statement`` and return its rows. ``timeout`` is in seconds (None: the default)."""


class AsyncpgDriver:
    """Statements over any free connection of an asyncpg pool, on the pool's loop."""

    def __init__(self, new_pool: "Callable[[], asyncpg.Pool[asyncpg.Record]]", *, timeout: float) -> None:
        self._new_pool = new_pool
        self.pool = new_pool()
        self.lending = ConnectionCache(self.pool)
        self._timeout = timeout
        self._opening: asyncio.Lock | None = asyncio.Lock()

    async def open(self) -> None:
        """Open POOL_MIN_SIZE connections, the first time."""
        if self._opening is not None:
            async with self._opening:
                try:
                    await self.pool
                except BaseException:  # asyncpg closes one that couldn't be opened, or wasn't waited for
                    self.pool.terminate()
                    self.pool = self._new_pool()
                    self.lending = ConnectionCache(self.pool, limit=self.lending.limit)
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
                await asyncio.sleep(_pause(tries))
                tries += 1

    async def _fetch(self, statement: Statement, args: Sequence[Any], timeout: float) -> Sequence[Row]:
        with django_errors():
            if self._opening is not None:
                await self.open()
            # Two limits, not one: waiting for a free connection says nothing of the server.
            connection = await self.lending.acquire(timeout=timeout)
            done = False
            try:
                rows: Sequence[Row] = await connection.fetch(statement.sql, *args, timeout=timeout)
                done = True
                return rows
            except (asyncpg.ReadOnlySQLTransactionError, TimeoutError):
                # A failover has left us at what isn't the primary any more, or at nobody: the others lead
                # there, too, and each would cost a time-out. connect() finds the new one.
                await self.lending.drop_all()
                raise
            finally:
                await self.lending.release(connection, keep=done)


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


class DjangoDriver:
    """Statements over the calling thread's own Django connection, so inside its ``atomic()``.

    Its coroutine never suspends: sync code may drive it with a single ``send(None)``. Goes
    through a cursor of Django's, so that assertNumQueries, execute wrappers, Django's errors
    and ``needs_rollback`` hold, whichever psycopg the site uses. With ``logged=False`` it goes through
    the database driver's cursor instead, which leaves no trace in Django's query log: for NOTIFY, which
    is sent or not depending on the time.

    Outside a transaction a statement that PostgreSQL has rolled back (a serialization failure, a
    deadlock) is sent again; the thread waits at most two seconds in all between the tries.
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
                    except (ValueError, *_UNREADABLE) as error:  # psycopg2's; psycopg has a DataError
                        raise utils.DataError(f"a value of the database can't be read: {error}") from error
            except utils.Error as error:
                if connection.in_atomic_block:
                    raise
                if sqlstate(error) == READ_ONLY:
                    connection.close()  # its server isn't the primary any more; the next one may be
                if tries >= MOST_TRIES or not was_rolled_back(error) or not connection.get_autocommit():
                    raise
            time.sleep(_pause(tries))  # noqa: ASYNC251  # sync code drives this, and never suspends
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


def _pause(tries: int) -> float:
    """Seconds to wait after so many tries that were rolled back, with jitter: the others try again, too."""
    return min(LONGEST_PAUSE, 0.002 * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)


def _with_arrays(sql: str, args: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """The statement and its parameters, lists as arrays.

    One with a None is written by its items, ``ARRAY[…]``: where a role or database has ``array_nulls = off``,
    a NULL in an array's text is a word like others.
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


# asyncpg's errors by SQLSTATE class, as psycopg's by PEP 249, which is what Django wraps.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_CLASS: dict[str, type[utils.DatabaseError]] = {
    "0A": utils.NotSupportedError,
    "22": utils.DataError,
    "23": utils.IntegrityError,
    "24": utils.InternalError,
    "25": utils.InternalError,
    "2D": utils.InternalError,
    "40": utils.OperationalError,
    "42": utils.ProgrammingError,
    "53": utils.OperationalError,
    "54": utils.OperationalError,
    "55": utils.OperationalError,
    "57": utils.OperationalError,
    "58": utils.OperationalError,
    "08": utils.OperationalError,
    "28": utils.OperationalError,
    "3D": utils.OperationalError,
    "3F": utils.ProgrammingError,
    "P0": utils.ProgrammingError,
    "XX": utils.InternalError,
}


# What drivers raise for values that Python hasn't: a time after 9999, text that isn't UTF-8.
_UNREADABLE = (OverflowError, UnicodeDecodeError)


def as_django_error(error: BaseException) -> utils.Error:
    """The ``django.db`` error that Django would raise over psycopg for this asyncpg error."""
    if isinstance(error, asyncpg.PostgresError):
        kind: type[utils.Error] = _BY_CLASS.get((error.sqlstate or "")[:2], utils.DatabaseError)
    elif isinstance(error, _UNREADABLE):
        return utils.DataError(f"a value of the database can't be read: {error}")
    elif isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        kind = utils.DataError  # asyncpg couldn't encode an argument
    elif isinstance(error, asyncpg.InterfaceError):
        kind = utils.InterfaceError
    else:
        kind = utils.OperationalError
    return kind(str(error) or type(error).__name__)


@contextmanager
def django_errors() -> Iterator[None]:
    """Raise what asyncpg raises inside as Django's errors. Not for blocks that run user code."""
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # seen where the server had just closed an idle connection
        OSError,
        TimeoutError,
        *_UNREADABLE,
    ) as error:
        raise as_django_error(error) from error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that PostgreSQL gave with a ``django.db`` error; None if it gave no answer."""
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code if isinstance(code, str) else None


def constraint(error: BaseException) -> str | None:
    """The name of the constraint that a ``django.db`` error is about; None if it isn't about one."""
    cause = error.__cause__  # psycopg has it in `diag`
    name = getattr(cause, "constraint_name", None) or getattr(
        getattr(cause, "diag", None), "constraint_name", None
    )
    return name if isinstance(name, str) else None


def about_tables(error: BaseException, database: str) -> str | None:
    """A sentence for a ``django.db`` error that means: tables are missing, lack columns, or refuse a row."""
    reason = next(iter(str(error).strip().splitlines()), "")
    match sqlstate(error):
        case "42P01" if "aiotasks_" in reason:
            return (
                f"The tables of aiotasks are missing in DATABASES[{database!r}]: "
                f"run `manage.py migrate --database {database}`."
            )
        case "42501" if "row-level security" in reason and "aiotasks_" in reason:
            return (
                f"DATABASES[{database!r}] refuses the row ({reason}): the role needs BYPASSRLS, or a policy "
                "that has WITH CHECK (true); `manage.py aiotasks check` says which."
            )
        case "42703":
            return (
                f"The tables of aiotasks in DATABASES[{database!r}] are of another version ({reason}): "
                f"run `manage.py migrate --database {database}`."
            )
    return None


# What the server of a standby says to a write.
READ_ONLY = "25006"

# What a server says where max_connections, or a limit of the role or the database, is reached.
TOO_MANY_CONNECTIONS = "53300"

# Serialization failures and deadlocks (40), resources such as connections and disk (53), lock
# timeouts (55P03), shutdowns and cancelled statements (57), I/O (58), connections (08), and a
# server that a failover has made read-only (25006).
_TRANSIENT = ("08", "40", "53", "55P03", "57", "58", READ_ONLY)


def was_rolled_back(error: BaseException) -> bool:
    """Whether PostgreSQL has rolled a statement back for the sake of others that ran beside it: a
    serialization failure or a deadlock. Nothing of it was stored, so any statement may be sent again.
    """
    return sqlstate(error) in ("40001", "40P01")


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may go through later: the server or the line was at fault."""
    if not isinstance(error, utils.OperationalError | utils.InterfaceError | utils.InternalError):
        return False
    code = sqlstate(error)
    return code is None or code.startswith(_TRANSIENT)


# Starting up, shutting down or not yet recovered; read-only; a full disk.
_AWAY = ("57P03", READ_ONLY, "53100")

# PgBouncer, for a server that it can't log in to; asyncpg gives it with one code or another.
_POOLER_SAYS = ("server login", "connect to server")


def is_away(error: BaseException) -> bool:
    """Whether somebody *answered* that nobody can write to the database: its host, that there is no
    server (connection refused); the server, that it starts up, is read-only or has a full disk; a
    pooler in front of it. Silence says nothing of the kind. Takes errors of ``django.db`` or asyncpg.
    """
    cause = error.__cause__ if isinstance(error, utils.Error) else error
    if isinstance(cause, ConnectionRefusedError | asyncpg.TargetServerAttributeNotMatched):
        return True
    code = getattr(cause, "sqlstate", None) or ""
    return code in _AWAY or (code.startswith("08") and any(text in str(cause) for text in _POOLER_SAYS))
