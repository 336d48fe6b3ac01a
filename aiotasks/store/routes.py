"""The three ways an enqueue or a look-up can go, behind one small protocol.

- sync code waits: over Django's own connection, so inside its ``atomic()``;
- an ``aiotasks.transaction()`` block is open: over its connection;
- otherwise: coalesced over the pool of the running loop.
"""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from django.db import transaction as django_transaction
from django.dispatch import Signal

from .. import signals
from ..conf import Options
from ..job import AnyResult, Job, NewJob
from ..sync import run_now
from .drivers import DjangoDriver
from .pools import LoopResources, resources
from .store import Store
from .transaction import Transaction, current_transaction
from .wakeups import CHANNEL, wakeups_of

__all__ = ["DjangoRoute", "Route", "route_on_loop"]


class Route(Protocol):
    """How a backend's coroutines reach the database, and how they tell of it."""

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        """Store the tasks; durable on return, unless a transaction is open."""

    async def select(self, backend: str, id: UUID) -> Job | None:
        """Look a task up."""

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        """Send one of Django's task signals; a receiver's exception is the caller's."""


class DjangoRoute:
    """Over the calling thread's Django connection. Its coroutines never suspend."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._store = Store(DjangoDriver(options.database))

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        if current_transaction(self._options.database) is not None:
            raise RuntimeError(
                "A sync enqueue() can't join the aiotasks.transaction() block around it. "
                "Use aenqueue() there, or transaction.atomic() around sync code."
            )
        await self._store.insert_jobs(jobs)
        if self._options.notify:
            payloads = [wakeup.payload() for wakeup in wakeups_of(jobs)]
            # Robust: the task is committed, so a NOTIFY that fails must not look like a failed
            # enqueue; the poll finds it.
            django_transaction.on_commit(
                lambda: self._notify(payloads), using=self._options.database, robust=True
            )

    def _notify(self, payloads: Sequence[str]) -> None:
        run_now(self._store.notify(CHANNEL, payloads))

    async def select(self, backend: str, id: UUID) -> Job | None:
        jobs = await self._store.select_jobs([id], backend)
        return jobs[0] if jobs else None

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        signal.send(sender, task_result=result)  # Signal.send bridges async receivers itself


class TransactionRoute:
    """Over the connection of an open ``aiotasks.transaction()`` block, one statement at a time."""

    def __init__(self, transaction: Transaction, options: Options) -> None:
        self._transaction = transaction
        self._options = options

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        await self._transaction.store.insert_jobs(jobs)
        if self._options.notify:
            self._transaction.wakeups += wakeups_of(jobs)

    async def select(self, backend: str, id: UUID) -> Job | None:
        jobs = await self._transaction.store.select_jobs([id], backend)
        return jobs[0] if jobs else None

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        await signals.asend(signal, sender, result)


class LoopRoute:
    """Coalesced with the other callers of the running loop, over its pool."""

    def __init__(self, held: LoopResources) -> None:
        self._held = held

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        if len(jobs) == 1:
            await self._held.enqueuer.submit(jobs[0])
        else:
            await self._held.insert(jobs)

    async def select(self, backend: str, id: UUID) -> Job | None:
        return await self._held.lookups.submit((backend, id))

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        await signals.asend(signal, sender, result)


def route_on_loop(options: Options) -> Route:
    """The way for a coroutine that no sync code waits for."""
    if (transaction := current_transaction(options.database)) is not None:
        return TransactionRoute(transaction, options)
    return LoopRoute(resources(options))
