"""A connection for operators' commands, which works through any pooler in front of PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from ..backend import PostgresBackend
from ..db.connect import SESSION, connect
from ..db.drivers import Connection, Row
from ..db.errors import django_errors
from ..db.statement import Statement
from ..store.store import Store

__all__ = ["OperatorConnection", "operator_connection", "reading"]

# A statement is planned as a worker plans it (by its indexes, whatever the statistics are), and changes
# nothing in a session that a pooler may give to other clients.
_BEGIN = "BEGIN;" + SESSION.replace("SET ", "SET LOCAL ")


class OperatorConnection:
    """A driver over one connection, each of whose statements is a transaction of its own.

    So it works through a pooler in transaction mode too, whatever STATEMENT_CACHE_SIZE says.
    """

    def __init__(self, connection: Connection, *, timeout: float) -> None:
        self.connection = connection
        self._timeout = timeout
        # A statement that is given up here must end on the server, too.
        self._begin = f"{_BEGIN}SET LOCAL statement_timeout = {max(1, round(timeout * 1000))}"
        self._in_transaction = False

    @property
    def announced_pid(self) -> int:
        """The server process that the server announced when this connection was opened."""
        return int(self.connection.get_server_pid())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Have the statements inside share a transaction, and so a server process."""
        with django_errors():
            await self._execute(self._begin)
        self._in_transaction = True
        try:
            yield
        finally:
            self._in_transaction = False
            if not self.connection.is_closed():
                with django_errors():
                    await self._execute("COMMIT")  # of a transaction that has failed: ROLLBACK

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        if self._in_transaction:
            return await self._fetch(statement, *args, timeout=timeout)
        async with self.transaction():
            return await self._fetch(statement, *args, timeout=timeout)

    async def _fetch(self, statement: Statement, *args: Any, timeout: float | None) -> Sequence[Row]:
        with django_errors():
            async with self._cut_off(timeout):
                rows: Sequence[Row] = await self.connection.fetch(statement.sql, *args)
                return rows

    async def _execute(self, sql: str) -> None:
        async with self._cut_off(None):
            await self.connection.execute(sql)

    @asynccontextmanager
    async def _cut_off(self, timeout: float | None) -> AsyncIterator[None]:
        """Give up a connection that doesn't answer in time: a ROLLBACK over it would hang, too."""
        try:
            async with asyncio.timeout(timeout or self._timeout):
                yield
        except asyncpg.PostgresError:
            raise
        except BaseException:  # cancelled in the middle of a statement, so the connection's state is unknown
            self.connection.terminate()
            raise


@asynccontextmanager
async def operator_connection(alias: str, *, timeout: float) -> AsyncIterator[OperatorConnection]:
    """Connect to ``DATABASES[alias]``; ``timeout`` is in seconds, for that and for each statement.

    Raises a ``django.db`` error where that fails.
    """
    connection = await connect(alias, timeout=timeout, statement_cache_size=0)
    try:
        yield OperatorConnection(connection, timeout=timeout)
    finally:
        with suppress(Exception):  # the connection is cut then
            await connection.close(timeout=1.0)


@asynccontextmanager
async def reading(backend: PostgresBackend, *, timeout: float | None = None) -> AsyncIterator[Store]:
    """Return the statements of a backend's database over a connection of their own, for operators' readers.

    ``timeout``: seconds for the connection and for each statement (None: COMMAND_TIMEOUT). Raises a
    ``django.db`` error where the database doesn't answer in time.
    """
    timeout = timeout or backend.config.command_timeout
    async with operator_connection(backend.config.database, timeout=timeout) as connection:
        yield Store(connection)
