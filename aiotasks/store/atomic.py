"""``aiotasks.atomic()``: Django's ``transaction.atomic()`` for coroutines."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction

from ..compat import call_coroutines_on, executor_of_loop, restore_context, waiting_executor
from ..conf import Options
from ..db.connection_thread import fulfil, tidy
from .block_threads import block_threads
from .blocks import Block, closed, innermost, innermost_of
from .transaction import Transaction, options_for

__all__ = ["AtomicBlock", "atomic"]

logger = logging.getLogger("aiotasks.store")

# Seconds that the server has for cancelling a statement, over a connection of its own.
CANCEL_TIMEOUT = 5.0

type Put = Callable[[Callable[[], None]], object]


@asynccontextmanager
async def atomic(
    using: str = "default", savepoint: bool = True, durable: bool = False
) -> AsyncIterator[None]:
    """Open a transaction of Django's in which the async ORM, sync code and enqueues are one.

    Inside, the async ORM, ``sync_to_async`` (``thread_sensitive=True``, its default), ``aenqueue``,
    ``aenqueue_many``, ``aget_result`` and ``acancel`` use one connection, one call after another. Blocks
    nest: an inner one is a savepoint, and while it is open other asyncio tasks' calls in the outer one wait.
    The parameters, the errors and ``transaction.on_commit`` are those of Django's ``atomic()``.

    The connection is that of one of ASYNC_DB_THREADS threads, or the sync code's own if sync code waits for
    this coroutine (an async test of TestCase, an async view under WSGI). An exception or a cancellation rolls
    the block back; a COMMIT that has begun is waited for.

    asyncio tasks started inside must end before the block does, because later their enqueues and ORM calls
    raise TransactionClosed. Raises OperationalError if no thread comes free within COMMAND_TIMEOUT, and
    RuntimeError inside ``aiotasks.transaction()`` on the same database.
    """
    around = innermost(using)
    if isinstance(around, Transaction) and around.open:
        raise RuntimeError(
            "aiotasks.atomic() can't be opened inside aiotasks.transaction() on the same database: it is "
            "another connection. Use aiotasks.atomic() for both, or end the transaction() block first."
        )
    outer = innermost_of(AtomicBlock)
    waiting = waiting_executor()
    if waiting is None and outer is not None and outer.open:
        async with outer.inner_lock:
            if not outer.open:
                raise closed(outer)
            outer.inner = AtomicBlock(using, savepoint, durable, outer.put)
            try:
                async with _opened(outer.inner):
                    yield
            finally:
                outer.inner_has_ended()
    elif waiting := waiting or executor_of_loop():
        async with _opened(AtomicBlock(using, savepoint, durable, waiting.submit)):
            yield
    else:
        options = _options(using)
        thread = await block_threads(options).lend(options.command_timeout)
        async with _opened(AtomicBlock(using, savepoint, durable, thread.put), then=thread.release):
            yield


def _options(using: str) -> Options:
    try:
        return options_for(using)
    except ImproperlyConfigured:  # no backend of aiotasks is on this database
        return Options()


class AtomicBlock(Block):
    """One open block. ``put`` runs a call in the thread of the transaction's connection, after earlier calls.

    While a nested block is open, calls from outside of it wait for its end, because they would be rolled back
    with it. So do other nested blocks, because Django's savepoints are a stack.
    """

    name = "aiotasks.atomic()"
    is_django = True

    def __init__(self, using: str, savepoint: bool, durable: bool, put: Put) -> None:
        super().__init__(using)
        self.put = put
        self.inner: AtomicBlock | None = None
        self.inner_lock = asyncio.Lock()
        self._held_back: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._atomic = transaction.Atomic(using, savepoint, durable)
        self._is_begun = False
        self._running: set[Future[Any]] = set()
        self._connection: Any = None
        self._cancelling: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        if not self.open:
            raise closed(self)
        future: Future[Any] = Future()
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        if self.inner is None:
            self.put(partial(fulfil, future, call, (), {}))
        else:
            self._held_back.append((future, call))
        return future

    def inner_has_ended(self) -> None:
        self.inner = None
        while self._held_back:
            future, call = self._held_back.popleft()
            self.put(partial(fulfil, future, call, (), {}))

    def close(self) -> None:
        """Have all later calls fail, and the calls that wait for the nested block's end."""
        self.open = False
        while self._held_back:
            future, _ = self._held_back.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(closed(self))

    def begin(self) -> None:
        """Begin the transaction. Called in the thread."""
        self._atomic.__enter__()
        self._is_begun = True
        self._connection = connections[self.using]

    def interrupt(self) -> None:
        """Have the server cancel a statement that still runs, because the rollback waits for it.

        Not for a nested block, because a late cancel would hit ROLLBACK TO SAVEPOINT, for which Django
        silently rolls the outer block back.
        """
        if any(future.running() for future in list(self._running)) and self._connection is not None:
            cancelling = threading.Thread(target=_cancel, args=[self._connection.connection], daemon=True)
            with suppress(RuntimeError):  # no thread can be started: the statement is waited for
                cancelling.start()
                self._cancelling = cancelling

    def await_cancel(self) -> None:
        """Wait for the cancel, or it would hit the next statement. Called in the thread."""
        if self._cancelling is not None:
            self._cancelling.join(CANCEL_TIMEOUT)
            if self._cancelling.is_alive():  # the session ends, so it can't hit another statement
                tidy(self._connection.close)

    def end(self, error: BaseException | None) -> None:
        """End the transaction, unless it hasn't begun or has been ended. Called in the thread."""
        if self._is_begun:
            self._is_begun = False
            self._atomic.__exit__(
                type(error) if error else None, error, error.__traceback__ if error else None
            )


@asynccontextmanager
async def _opened(block: AtomicBlock, then: Callable[[], None] | None = None) -> AsyncIterator[None]:
    """The block from its begin to its end, each a call in the thread. ``then`` is called after the end."""

    def put_end(error: BaseException | None) -> "asyncio.Future[None]":
        ending = _in_thread(block, partial(_end, block, error))
        if then is not None:
            ending.add_done_callback(lambda _: then())
        return ending

    beginning = _in_thread(block, block.begin)
    try:
        await asyncio.shield(beginning)
    except BaseException as error:
        block.close()
        ending = put_end(error)
        if beginning.done():
            await _outcome(ending)
        else:  # cancelled while it connects, which may take long, so the end isn't waited for
            beginning.add_done_callback(_retrieve)
            ending.add_done_callback(_retrieve)
        raise
    block.enter()
    try:
        yield
    except BaseException as error:
        block.leave()
        block.close()
        _close_nested(block)
        if then is not None:
            block.interrupt()
        await _outcome(put_end(error))
        raise
    was_ended = not block.open  # by the outer block, or by a time limit
    block.leave()
    block.close()
    left_open = _close_nested(block)
    await _outcome(put_end(left_open or (closed(block) if was_ended else None)))
    if left_open is not None:
        raise left_open
    if was_ended:
        raise closed(block)


def _cancel(session: Any) -> None:
    try:
        session.cancel()  # psycopg's, 2 and 3
    except Exception:  # of any driver; the statement is waited for then
        logger.info("Could not cancel a statement of an atomic() block; waiting for its end", exc_info=True)


def _close_nested(block: AtomicBlock) -> RuntimeError | None:
    """Close the nested blocks that other asyncio tasks left open; returns the error to raise for them."""
    if block.inner is None:
        return None
    inner: AtomicBlock | None = block.inner
    while inner is not None:
        inner.close()
        inner = inner.inner
    return RuntimeError(
        "An aiotasks.atomic() block has ended while another asyncio task had one open inside it. Both are "
        "rolled back: await that task before the end of the outer block."
    )


def _end(block: AtomicBlock, error: BaseException | None) -> None:
    """End the block, after the open ones inside. Called in the thread."""
    block.await_cancel()
    if block.inner is not None:
        _end(block.inner, error)
    block.end(error)


def _in_thread(block: AtomicBlock, call: Callable[[], None]) -> "asyncio.Future[None]":
    """Run a call in the block's thread, as asgiref's sync_to_async would.

    It makes no asyncio task, because code that cancels all tasks of the loop would cancel it.
    """
    loop = asyncio.get_running_loop()
    context = copy_context()

    def in_context() -> None:
        restore_context(context)  # a language, a time zone
        call()

    def run() -> None:
        call_coroutines_on(loop)  # for async_to_sync in a hook
        context.run(in_context)

    future: Future[None] = Future()
    block.put(partial(fulfil, future, run, (), {}))
    return asyncio.wrap_future(future)


async def _outcome(future: "asyncio.Future[None]") -> None:
    """Wait for the outcome, also if cancelled meanwhile; raises CancelledError then."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        _retrieve(future)
        raise cancelled
    future.result()


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Keep asyncio from logging that the future's exception was never retrieved."""
    with suppress(asyncio.CancelledError):
        future.exception()
