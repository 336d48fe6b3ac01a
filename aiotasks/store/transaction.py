"""``aiotasks.transaction()``: an asyncpg transaction that enqueues and look-ups join."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, utils
from django.tasks import task_backends

from ..compat import sync_code_waits
from ..conf import Options
from ..db.cache import ConnectionCache, is_dead
from ..db.connect import PLAIN_SESSION, SESSION
from ..db.drivers import Connection, ConnectionDriver
from ..db.errors import Code, as_django_error, django_errors, sqlstate
from ..db.last_words import LastWords
from ..db.statement_text import may_write
from .blocks import Block, block_around, closed, innermost
from .changes import send_all
from .loop import LoopResources, resources
from .notifier import NOT_SENT, QUEUE_IS_FULL
from .store import Store

if TYPE_CHECKING:
    from uuid import UUID

    from .wakeups import Wakeup

__all__ = ["Transaction", "current_transaction", "transaction"]

logger = logging.getLogger("aiotasks.store")

# Seconds for resetting a session; opening another one takes a hundredth of that.
RESET_TIMEOUT = 1.0


class Transaction(Block):
    """One open block."""

    name = "aiotasks.transaction()"
    is_django = False

    def __init__(
        self, using: str, connection: Connection, driver: ConnectionDriver, words: LastWords
    ) -> None:
        super().__init__(using)
        self.connection = connection
        self.driver = driver
        self.store = Store(driver)
        self.words = words
        self.wakeups: set[Wakeup] = set()
        self.changed: set[UUID] = set()  # tasks that somebody awaits
        # Called after the commit with True; with False before it, if only the caller will know of it.
        self.announcements: list[Callable[[bool], Awaitable[None]]] = []
        self.is_committing = False  # COMMIT has been sent

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Run ``call`` where it would run without the block.

        Its writes over Django's connection are refused, because they wouldn't be part of the transaction.
        """
        return self.submit_outside(partial(self._run_guarded, call) if self.open else call)

    def _run_guarded(self, call: Callable[[], Any]) -> Any:
        with connections[self.using].execute_wrapper(_refuse_writes):
            return call()


def _refuse_writes(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """An execute wrapper of Django's. A call may run code in a context without the block, as drain() does."""
    if isinstance(sql, bytes):  # drivers accept bytes, too
        text = sql.decode(errors="replace")
    else:
        text = sql if isinstance(sql, str) else sql.as_string(context["connection"].connection)
    block = innermost(context["connection"].alias)
    if isinstance(block, Transaction) and may_write(text):
        raise RuntimeError(
            "Inside aiotasks.transaction() Django's ORM and cursors would write outside of that transaction. "
            "Use `async with aiotasks.atomic():` for the ORM, or the asyncpg connection that the block "
            f"yields. The statement was: {text:.100}"
        )
    return execute(sql, params, many, context)


def current_transaction(using: str) -> Transaction | None:
    """The ``transaction()`` block around the caller for ``DATABASES[using]``.

    Raises TransactionClosed where that block, or an ``atomic()`` block, has ended.
    """
    found = block_around(using)
    return found if isinstance(found, Transaction) else None


@asynccontextmanager
async def transaction(
    using: str = "default", connection: Connection | None = None
) -> AsyncIterator[Connection]:
    """Open an asyncpg transaction that every ``aenqueue`` and look-up inside joins.

    ``using`` is an alias of DATABASES. ``connection`` is a connection of your own to the same database; by
    default one of aiotasks' pool is used. Yields the connection, for your own SQL. Blocks nest: an inner one
    is a savepoint. Workers are woken after the commit.

    Django's ORM isn't part of the transaction: its writes inside raise RuntimeError (use
    ``aiotasks.atomic()`` for them), and its reads don't see the transaction.

    asyncio tasks started inside must end before the block does, because later enqueues in them raise
    TransactionClosed. Raises RuntimeError below ``async_to_sync`` (use ``transaction.atomic()`` there),
    ImproperlyConfigured if no backend of aiotasks uses that database, and a ``django.db`` error if no
    connection comes free within COMMAND_TIMEOUT: POOL_MAX_SIZE - 2 blocks may be open at once on one event
    loop. Your own SQL raises asyncpg's errors.
    """
    if connection is None and sync_code_waits():
        raise RuntimeError(
            "aiotasks.transaction() can't be used while sync code waits for this coroutine. "
            "Open django.db.transaction.atomic() in the sync code: enqueues inside join it."
        )
    outer = innermost(using)
    if outer is not None and outer.open and outer.is_django:
        raise RuntimeError(
            f"aiotasks.transaction() can't be opened inside {outer.name} on the same database: it is another "
            "connection. Enqueues join the block around; for SQL use connection.cursor() in sync_to_async."
        )
    if isinstance(outer, Transaction) and outer.open and connection in (None, outer.connection):
        async with _block(using, outer.connection, outer) as block:
            yield outer.connection
        outer.wakeups |= block.wakeups
        outer.changed |= block.changed
        outer.announcements += block.announcements
    elif connection is not None:
        in_callers_transaction = connection.is_in_transaction()
        async with _block(using, connection) as block:
            yield connection
            if in_callers_transaction:
                # The caller commits later; the server keeps the NOTIFY until then.
                await _notify(block, alone=False)
                await _announce(block, is_committed=False)
        if not in_callers_transaction:
            await _notify(block, alone=True)
            await _announce(block, is_committed=True)
    else:
        loop_resources = resources(options_for(using))
        async with _pooled(loop_resources) as pooled:
            block = None
            try:
                async with _block(using, pooled) as block:
                    yield pooled
            finally:
                # The tasks may be stored even if the COMMIT was cancelled or had no answer.
                if block is not None and block.is_committing:
                    loop_resources.notifier.notify(block.wakeups)
                    loop_resources.teller.tell(block.changed)
        if block is not None:
            await _announce(block, is_committed=True)


async def _announce(block: Transaction, *, is_committed: bool) -> None:
    for announce in block.announcements:
        await announce(is_committed)


@asynccontextmanager
async def _pooled(loop_resources: LoopResources) -> AsyncIterator[Connection]:
    """A connection of the pool, for as long as a block lasts."""
    within = loop_resources.options.command_timeout
    await loop_resources.blocks.take(within)
    try:
        with django_errors():
            await loop_resources.driver.open()
            pooled = await loop_resources.driver.cache.acquire(timeout=within)
        try:
            if loop_resources.options.statement_cache_size:
                with django_errors():
                    await pooled.execute(PLAIN_SESSION)  # PostgreSQL's own planning for the caller's SQL
            yield pooled
        except (asyncpg.ReadOnlySQLTransactionError, utils.InternalError) as error:
            if sqlstate(error) == Code.READ_ONLY:
                await loop_resources.driver.cache.drop_all()
            raise
        finally:
            try:
                await _reset(
                    pooled,
                    loop_resources.driver.cache,
                    is_ours=loop_resources.options.statement_cache_size > 0,
                )
            finally:
                await loop_resources.driver.cache.release(pooled, keep=False)
    finally:
        loop_resources.blocks.release()


@asynccontextmanager
async def _block(
    using: str, connection: Connection, outer: Transaction | None = None
) -> AsyncIterator[Transaction]:
    """The transaction, or inside ``outer`` on the same connection a savepoint of it.

    Errors of the body are passed on as they are; start, commit and rollback raise Django's.
    """
    words = outer.words if outer else LastWords(connection)
    # A nested block uses the same connection, so the same lock: its driver's.
    driver = outer.driver if outer else ConnectionDriver(connection, words)
    block = Transaction(using, connection, driver, words)
    try:
        transaction = connection.transaction()
        with django_errors():
            await transaction.__aenter__()
        block.enter()
        try:
            yield block
        except BaseException as error:
            await _roll_back(block, transaction, error)
            raise
        else:
            if not block.open:  # closed by a time limit
                ended = closed(block)
                await _roll_back(block, transaction, ended)
                raise ended
            await _commit(block, transaction)
        finally:
            block.leave()
    finally:
        if outer is None:
            words.close()


async def _commit(block: Transaction, transaction: Any) -> None:
    block.open = False
    block.is_committing = True
    try:
        await transaction.__aexit__(None, None, None)
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError, OSError) as error:
        raise block.words.error(error) or as_django_error(error) from error
    except TimeoutError as error:
        raise as_django_error(error) from error


async def _roll_back(block: Transaction, transaction: Any, error: BaseException) -> None:
    """Undo the block whose body has raised ``error``, which the caller raises again."""
    block.open = False
    try:
        await transaction.__aexit__(type(error), error, error.__traceback__)
    except Exception as failure:  # the body's error is raised; without a connection all is undone  # noqa: BLE001
        if ended := block.words.error(failure):
            error.add_note(str(ended))
        else:
            block.connection.terminate()
            error.add_note(f"ROLLBACK failed, so the connection was closed: {failure}")


async def _reset(connection: Connection, cache: ConnectionCache, *, is_ours: bool) -> None:
    """Undo the settings that the caller may have SET, because the pool doesn't, or else cut the connection.

    It raises no error of its own, because the block has ended already. Behind a pooler in transaction mode
    the session belongs to another client by then, and stays as it is.
    """
    if is_dead(connection):
        return
    if not is_ours:
        if connection.is_in_transaction():
            connection.terminate()
        return
    try:
        await connection.reset(timeout=RESET_TIMEOUT)
        # RESET ALL doesn't reset the first two, and resets the settings of every session of aiotasks.
        await connection.execute(f"RESET SESSION AUTHORIZATION; RESET ROLE; {SESSION}", timeout=RESET_TIMEOUT)
    except BaseException as error:
        if not is_dead(connection):  # asyncpg leaves it open if the server doesn't answer its cancel
            connection.terminate()
        if not isinstance(error, Exception):
            raise
        await cache.drop_all()  # no answer on this connection, so most likely on none


async def _notify(block: Transaction, *, alone: bool) -> None:
    """Notify over the caller's connection, inside its transaction or (``alone``) after the commit.

    After the commit an error isn't raised, because the tasks are stored and it would look like one of the
    block.
    """
    try:
        if not await send_all(block.store, block.using, block.wakeups, block.changed, alone=alone):
            logger.warning(QUEUE_IS_FULL)
    except utils.Error as error:
        if not alone:
            raise
        logger.warning(NOT_SENT, str(error))


def options_for(using: str) -> Options:
    """The options of the first aiotasks backend on ``DATABASES[using]``."""
    for backend in task_backends.all():
        options = getattr(backend, "config", None)
        if isinstance(options, Options) and options.database == using:
            return options
    raise ImproperlyConfigured(f"No aiotasks backend in TASKS has the DATABASE {using!r}.")
