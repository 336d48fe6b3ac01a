"""Check ``pooler``: what is in front of PostgreSQL, and whether the options suit it."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ...db.drivers import Driver
from ...store.store import Store
from ..connection import operator_connection
from .examination import Examination, Pooler
from .finding import Result

__all__ = ["check", "find_pooler"]

# A pooler has been seen to give two connections the same process at the first try; other clients of it
# may interfere.
ROUNDS = 3


async def check(examination: Examination) -> Result:
    """Return whether STATEMENT_CACHE_SIZE suits the pooler; sets ``pooler``."""
    async with operator_connection(examination.database, timeout=examination.timeout) as other:
        examination.pooler = await find_pooler(examination.connection, other)
    size = examination.options.statement_cache_size
    match examination.pooler:
        case "none":
            return "ok", "None: connections go to PostgreSQL itself.", ""
        case "session":
            return "ok", "One that gives each connection a session of its own.", ""
        case "transaction" if size:
            return (
                "error",
                "A pooler in transaction mode is in front, where prepared statements and session "
                f"settings get lost, and STATEMENT_CACHE_SIZE is {size}.",
                "Set STATEMENT_CACHE_SIZE to 0 in OPTIONS, or the pooler to session mode.",
            )
    return "ok", "One in transaction mode; STATEMENT_CACHE_SIZE is 0, as it has to be.", ""


class ServerConnection(Driver, Protocol):
    """A connection as ``find_pooler`` needs it."""

    @property
    def announced_pid(self) -> int:
        """The server process that the server announced when it was opened."""

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Have the statements inside share a transaction."""


async def find_pooler(one: ServerConnection, other: ServerConnection) -> Pooler:
    """Return which pooler is in front of PostgreSQL, by the server processes that answer on two connections.

    A pooler in transaction mode gives the process that has answered one connection to the other, as soon as
    that begins a transaction. One in session mode has announced a process that doesn't exist. One that
    balances load changes the process from statement to statement.
    """
    ours, theirs = Store(one), Store(other)
    for _ in range(ROUNDS):
        pid = await ours.backend_pid()
        if await ours.backend_pid() != pid:
            return "transaction"
        async with other.transaction():  # it keeps its process until the end of the block
            if await theirs.backend_pid() == pid or await ours.backend_pid() != pid:
                return "transaction"
    return "none" if pid == one.announced_pid else "session"
