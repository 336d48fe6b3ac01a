"""The routes of coroutines that no sync code waits for.

An ``aiotasks.transaction()`` block is open: over its connection. Otherwise: coalesced over the pool of the
running loop.
"""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Sequence
from uuid import UUID

from django.dispatch import Signal

from .. import signals
from ..conf import Options
from ..db.errors import sqlstate
from ..db.retry import repeat
from ..rows import AnyResult, Job, NewJob
from .changes import told_of
from .loop import LoopResources, resources
from .route import Announcement, Call, Lost, Route, announce, nothing
from .settling import Duplicates, Settled, wakeups_after
from .store import Store
from .transaction import Transaction, current_transaction
from .unique import settle_in_transaction
from .wakeups import Wakeup, cancel_wakeups, wakeups_of

__all__ = ["LoopRoute", "TransactionRoute", "route_on_loop"]


class TransactionRoute:
    """Over the connection of an open ``aiotasks.transaction()`` block, one statement at a time."""

    def __init__(self, transaction: Transaction, options: Options) -> None:
        self._transaction = transaction
        self._options = options

    async def room(self) -> None:
        """Return at once: there is room, because a caller runs one statement at a time."""

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        await self._transaction.store.insert_jobs(jobs)
        if self._options.notify:
            self._transaction.wakeups.update(wakeups_of(jobs))

    async def insert_unique(self, jobs: Sequence[NewJob]) -> list[Settled]:
        settled = await settle_in_transaction(self._transaction.driver, jobs, self._options)
        if self._options.notify:
            self._transaction.wakeups.update(wakeups_after(jobs, settled))
        return settled

    async def select(self, backend: str, id: UUID) -> Job | None:
        jobs = await self._transaction.store.select_jobs([id], backend)
        return jobs[0] if jobs else None

    async def cancel(self, backend: str, id: UUID, error: str) -> Job | None:
        jobs = await self._transaction.store.cancel_jobs([id], backend, error)
        if self._options.notify:
            self._transaction.wakeups.update(cancel_wakeups(jobs))
        self.tell(told_of(jobs))
        return jobs[0] if jobs else None

    async def run[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        return await call(self._transaction.store)

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        async with self._transaction.driver.savepoint() as inner:
            return await call(Store(inner))

    def wake(self, wakeups: Iterable[Wakeup]) -> None:
        if self._options.notify:
            self._transaction.wakeups.update(wakeups)

    def tell(self, ids: Collection[UUID]) -> None:
        if self._options.notify:
            self._transaction.changed.update(ids)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        await signals.asend(signal, sender, result)

    async def send_finished(self, sender: type, result: AnyResult, exception: BaseException) -> None:
        await signals.asend_finished(sender, result, exception)

    async def after_commit(self, call: Announcement) -> None:
        def ended(is_committed: bool) -> Awaitable[None]:
            return announce(call, LoopRoute(resources(self._options))) if is_committed else call(self)

        self._transaction.announcements.append(ended)


class LoopRoute:
    """Coalesced with the other callers of the running loop, over its pool."""

    def __init__(self, loop_resources: LoopResources) -> None:
        self._loop_resources = loop_resources

    async def room(self) -> None:
        await self._loop_resources.enqueuer.room()

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        if len(jobs) == 1:
            await self._loop_resources.enqueuer.call(jobs[0])
        else:
            await self._loop_resources.insert(jobs)

    async def insert_unique(self, jobs: Sequence[NewJob]) -> list[Settled]:
        wakeups = wakeups_of(jobs)  # they may be stored even if this is cancelled or has no answer
        try:
            settled = await self._loop_resources.unique.insert(jobs)
            wakeups = wakeups_after(jobs, settled)
        except Duplicates:
            wakeups = []
            raise
        finally:
            if self._loop_resources.options.notify:
                self._loop_resources.notifier.notify(wakeups)
        return settled

    async def select(self, backend: str, id: UUID) -> Job | None:
        return await self._loop_resources.lookups.call((backend, id))

    async def cancel(self, backend: str, id: UUID, error: str) -> Job | None:
        # Not repeated, because a second try couldn't distinguish its own success from another caller's.
        jobs = await self._loop_resources.store.cancel_jobs([id], backend, error)
        if self._loop_resources.options.notify:
            self._loop_resources.notifier.notify(cancel_wakeups(jobs))
        self.tell(told_of(jobs))
        return jobs[0] if jobs else None

    async def run[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        has_failed = False

        async def try_once() -> Result:
            nonlocal has_failed
            try:
                return await call(self._loop_resources.store)
            except BaseException:
                has_failed = True
                raise

        try:
            return await repeat(try_once, within=self._loop_resources.options.command_timeout)
        finally:
            if has_failed:
                lost()

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        try:
            return await call(self._loop_resources.store)
        except BaseException as error:
            if sqlstate(error) is None:  # the server hasn't answered
                lost()
            raise

    def wake(self, wakeups: Iterable[Wakeup]) -> None:
        if self._loop_resources.options.notify:
            self._loop_resources.notifier.notify(wakeups)

    def tell(self, ids: Collection[UUID]) -> None:
        self._loop_resources.teller.tell(ids)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        await signals.asend(signal, sender, result)

    async def send_finished(self, sender: type, result: AnyResult, exception: BaseException) -> None:
        await signals.asend_finished(sender, result, exception)

    async def after_commit(self, call: Announcement) -> None:
        await call(self)


def route_on_loop(options: Options) -> Route:
    """The route of a coroutine that no sync code waits for."""
    if (transaction := current_transaction(options.database)) is not None:
        return TransactionRoute(transaction, options)
    return LoopRoute(resources(options))
