"""``aiotasks.transaction()``: an asyncpg transaction that enqueues and look-ups join."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import asyncpg
from django.core.exceptions import ImproperlyConfigured
from django.db import utils
from django.tasks import task_backends

from ..conf import Options
from ..exceptions import TransactionClosed
from .connect import PLAIN_SESSION, SESSION
from .drivers import READ_ONLY, Connection, ConnectionDriver, django_errors, sqlstate
from .lending import Lending, is_dead
from .pools import LoopResources, resources
from .store import Store
from .waiting import sync_code_waits
from .wakeups import CHANNEL, Wakeup

__all__ = ["Transaction", "current_transaction", "transaction"]

# Seconds that a session may take to be as before; a new one takes a hundredth of that.
RESET_TIMEOUT = 1.0

_current: ContextVar["Transaction | None"] = ContextVar("aiotasks_transaction", default=None)


class Transaction:
    """One open block. Background tasks inherit it, so it knows whether it has ended."""

    def __init__(
        self, using: str, connection: Connection, store: Store, around: "Transaction | None"
    ) -> None:
        self.using = using
        self.connection = connection
        self.store = store
        self.around = around  # perhaps on another database
        self.open = True
        self.wakeups: set[Wakeup] = set()


def current_transaction(using: str) -> Transaction | None:
    """The block around the caller for ``DATABASES[using]``.

    Raises TransactionClosed where that block has ended: the caller is a background task that
    outlived it, and what it writes would belong to nobody's transaction, or a stranger's.
    """
    found = _innermost(using)
    if found is not None and not found.open:
        raise TransactionClosed(
            "This code was started inside an aiotasks.transaction() block that has ended since. "
            "Await it before the block ends, or start it outside (with an empty contextvars.Context)."
        )
    return found


def _innermost(using: str) -> Transaction | None:
    """The innermost block around the caller on ``DATABASES[using]``, ended or not."""
    found = _current.get()
    while found is not None and found.using != using:
        found = found.around
    return found


@asynccontextmanager
async def transaction(
    using: str = "default", connection: Connection | None = None
) -> AsyncIterator[Connection]:
    """Open an asyncpg transaction that every ``aenqueue`` and look-up inside joins.

    ``using`` is an alias of DATABASES. ``connection`` is a connection of your own to the same
    database; without one, one is taken from aiotasks' pool. Yields the connection, for your own
    SQL. Blocks nest: an inner one is a savepoint. Workers are woken after the commit.

    Background tasks started inside must end before the block does: later enqueues in them raise
    TransactionClosed. Raises RuntimeError below ``async_to_sync``, where ``transaction.atomic()``
    is the one to use, ImproperlyConfigured where no backend of aiotasks uses that database, and a
    ``django.db`` error where no connection can be had within COMMAND_TIMEOUT: POOL_MAX_SIZE - 2 blocks
    may be open at once on one event loop. What your own SQL raises is asyncpg's.
    """
    if connection is None and sync_code_waits():
        raise RuntimeError(
            "aiotasks.transaction() can't be used while sync code waits for this coroutine. "
            "Open django.db.transaction.atomic() in the sync code: enqueues inside join it."
        )
    outer = _innermost(using)
    if outer is not None and outer.open and connection in (None, outer.connection):
        async with _block(using, outer.connection, outer.store) as block:
            yield outer.connection
        outer.wakeups |= block.wakeups
    elif connection is not None:
        in_callers_transaction = connection.is_in_transaction()
        async with _block(using, connection) as block:
            yield connection
            if in_callers_transaction:
                # The commit is the caller's, some time later: the server holds NOTIFY until then.
                await _notify(block)
        if not in_callers_transaction:
            await _notify(block)
    else:
        held = resources(options_for(using))
        async with _pooled(held) as pooled, _block(using, pooled) as block:
            yield pooled
        held.notifier.notify(block.wakeups)


@asynccontextmanager
async def _pooled(held: LoopResources) -> AsyncIterator[Connection]:
    """A connection of the pool, for as long as a block lasts."""
    within = held.options.command_timeout
    try:
        async with asyncio.timeout(within):
            await held.blocks.acquire()
    except TimeoutError:
        raise utils.OperationalError(
            f"No transaction() block has ended within COMMAND_TIMEOUT ({within:g} s), and as many are open "
            f"as POOL_MAX_SIZE ({held.options.pool_max_size}) allows: raise it, or let them end sooner."
        ) from None
    try:
        with django_errors():
            await held.driver.open()
            pooled = await held.driver.lending.acquire(timeout=within)
        try:
            if held.options.statement_cache_size:
                with django_errors():
                    await pooled.execute(PLAIN_SESSION)  # the caller's own SQL is to be planned as ever
            yield pooled
        except (asyncpg.ReadOnlySQLTransactionError, utils.InternalError) as error:
            if READ_ONLY in (getattr(error, "sqlstate", None), sqlstate(error)):
                await held.driver.lending.drop_all()
            raise
        finally:
            try:
                await _reset(pooled, held.driver.lending, is_ours=held.options.statement_cache_size > 0)
            finally:
                await held.driver.lending.release(pooled, keep=False)
    finally:
        held.blocks.release()


@asynccontextmanager
async def _block(
    using: str, connection: Connection, store: Store | None = None
) -> AsyncIterator[Transaction]:
    # A nested block stands on the same connection, so behind the same lock: its store's.
    block = Transaction(using, connection, store or Store(ConnectionDriver(connection)), _current.get())
    async with connection.transaction():
        token = _current.set(block)
        try:
            yield block
        finally:
            block.open = False
            _current.reset(token)


async def _reset(connection: Connection, lending: Lending, *, is_ours: bool) -> None:
    """Undo what the caller may have SET, which our pool doesn't; a connection that can't be is cut.

    Never raises an error of its own: the block has ended, one way or the other. Behind a pooler in
    transaction mode the session is somebody else's by now, and left alone.
    """
    if is_dead(connection):
        return
    if not is_ours:
        if connection.is_in_transaction():
            connection.terminate()
        return
    try:
        await connection.reset(timeout=RESET_TIMEOUT)
        # RESET ALL leaves the first two as they are, and takes away what every session of ours has.
        await connection.execute(f"RESET SESSION AUTHORIZATION; RESET ROLE; {SESSION}", timeout=RESET_TIMEOUT)
    except BaseException as error:
        if not is_dead(connection):  # as asyncpg leaves one that doesn't answer its cancel
            connection.terminate()
        if not isinstance(error, Exception):
            raise
        await lending.drop_all()  # silence on this line, so most likely on all of them


async def _notify(block: Transaction) -> None:
    if block.wakeups:
        payloads = [wakeup.payload() for wakeup in block.wakeups]
        await block.store.notify(CHANNEL, payloads, alone=not block.connection.is_in_transaction())


def options_for(using: str) -> Options:
    """The options of the first aiotasks backend on ``DATABASES[using]``."""
    for backend in task_backends.all():
        options = getattr(backend, "config", None)
        if isinstance(options, Options) and options.database == using:
            return options
    raise ImproperlyConfigured(f"No aiotasks backend in TASKS has the DATABASE {using!r}.")
