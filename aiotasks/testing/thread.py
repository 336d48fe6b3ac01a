"""The thread of a test's own sync code: a drain runs sync tasks and ORM calls there, in savepoints."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import anyio
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction

from ..compat import mark_as_testcases

__all__ = ["Savepoints", "TestContext", "TestThread", "in_savepoints"]

logger = logging.getLogger("aiotasks.testing")


class Savepoints:
    """A savepoint in each transaction that is open on the test's thread. Made and closed on that thread."""

    def __init__(self) -> None:
        self.thread_id = threading.get_ident()
        self._connections = connections.all(initialized_only=True)
        self._blocks: dict[str, transaction.Atomic] = {}
        for connection in self._connections:
            if connection.in_atomic_block:
                block = transaction.atomic(using=connection.alias)
                mark_as_testcases(block)
                block.__enter__()
                self._blocks[connection.alias] = block

    def close(self, who: str) -> None:
        """Keep the writes of ``who``, or undo them in a broken transaction; RuntimeError if it has ended."""
        for connection in connections.all(initialized_only=True):
            block = self._blocks.get(connection.alias)
            while connection.in_atomic_block and connection.atomic_blocks[-1:] != [block]:
                if block is not None and block not in connection.atomic_blocks:
                    break
                logger.warning("%s left an atomic() block open; it is rolled back", who)
                connection.atomic_blocks[-1].__exit__(RuntimeError, None, None)
            if block is None:
                continue
            if block in connection.atomic_blocks:
                with suppress(DatabaseError):  # then it has been rolled back
                    block.__exit__(None, None, None)
            if (
                connection.closed_in_transaction
                or connection.needs_rollback
                or not connection.in_atomic_block
            ):
                raise RuntimeError(
                    f"{who} has closed the connection {connection.alias!r} or ended its transaction, which "
                    "is the test's own. Use TransactionTestCase for such a task."
                )

    def interrupt(self) -> None:
        """End a statement that the thread waits for. Called from another thread, as drivers allow."""
        for connection in self._connections:
            if connection.connection is not None:
                connection.connection.cancel()


class TestThread:
    """The thread of the test's own sync code, for statements and sync tasks."""

    def __init__(self) -> None:
        # asgiref finds the waiting thread by the context, which runner and Batcher don't inherit.
        self._context = copy_context()

    def run[Result](self, call: Callable[[], Result]) -> "asyncio.Future[Result]":
        coroutine = sync_to_async(Context().run, thread_sensitive=True)(call)
        return asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())

    def widen(self) -> None:
        """Do nothing: this thread has no other in its place, so the drain waits for its task."""

    def narrow(self) -> None:
        """Do nothing."""

    async def enter_savepoints(self) -> Savepoints:
        """Open the savepoints. If this is cancelled meanwhile, none stays open."""
        entering = self.run(Savepoints)
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self.run(partial((await entering).close, "The cancelled drain"))
            raise


class TestContext:
    """A new context for a task; its ORM calls run where asgiref runs the test's own."""

    def __init__(self) -> None:
        self.context = Context()

    def release(self) -> None:
        """Do nothing: the context holds no thread."""


async def in_savepoints(thread: TestThread, sending: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine that calls receivers, whose writes are kept or undone together."""
    savepoints = await thread.enter_savepoints()
    try:
        await sending
    finally:
        await thread.run(partial(savepoints.close, "A receiver of task_finished"))
