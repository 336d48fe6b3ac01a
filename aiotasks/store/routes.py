"""Routes: the three ways of an enqueue or a look-up to the database, behind one protocol.

- sync code waits: over Django's own connection, so inside its ``atomic()``;
- an ``aiotasks.transaction()`` block is open: over its connection;
- otherwise: coalesced over the pool of the running loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Protocol
from uuid import UUID

from django.db import connections, transaction, utils
from django.dispatch import Signal

from .. import signals
from ..compat import on_commit_hooks, savepoints
from ..conf import Options
from ..db.drivers import DjangoDriver
from ..db.errors import sqlstate
from ..db.retry import repeat
from ..rows import AnyResult, Job, NewJob
from ..sync import drive
from .changes import send_all, told_of
from .loop import LoopResources, resources
from .notifier import NOT_SENT, QUEUE_IS_FULL, throttle
from .settling import Duplicates, Settled, wakeups_after
from .store import Store
from .transaction import Transaction, current_transaction
from .unique import settle_in_transaction, settle_over_django
from .wakeups import Wakeup, cancel_wakeups, wakeups_of

__all__ = ["DjangoRoute", "Route", "route_on_loop"]

logger = logging.getLogger("aiotasks.store")

# So many of the transaction's last hooks are searched for one of aiotasks. With more, a loop that enqueues
# each task in a savepoint of its own would take quadratic time; a second hook costs a NOTIFY.
MOST_HOOKS = 20


# Sends signals, over the route that it is given.
type Announcement = Callable[[Route], Awaitable[None]]

type Call[Result] = Callable[[Store], Awaitable[Result]]
type Lost = Callable[[], None]


def _nothing() -> None:
    pass


class Route(Protocol):
    """The way of a backend's coroutines to the database, and to the receivers of signals."""

    async def room(self) -> None:
        """Wait until another task may be made and inserted: backpressure while many callers wait."""

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        """Store the tasks; durable on return, unless a transaction is open."""

    async def insert_unique(self, jobs: Sequence[NewJob]) -> list[Settled]:
        """Store those tasks whose unique keys no other task holds; as ``insert()`` otherwise. Raises
        Duplicates, with none stored, if one of several is refused."""

    async def select(self, backend: str, id: UUID) -> Job | None:
        """Look a task up."""

    async def cancel(self, backend: str, id: UUID, error: str) -> Job | None:
        """Cancel a task and wake its owner; returns None if it is too late to cancel it."""

    async def run[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
        """Return what ``call`` makes of the Store. It may be called again where the database was away.

        lost: called at the end if a try has failed, or is cancelled, that may have been committed all the
            same: its reply was lost, so nobody knows what it has written.
        """

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
        """The same, once. If it fails, a transaction that is open goes on as if it hadn't been called."""

    def wake(self, wakeups: Iterable[Wakeup]) -> None:
        """Wake the workers after the commit."""

    def tell(self, ids: Collection[UUID]) -> None:
        """Notify after the commit that these tasks, which somebody awaits, have changed."""

    async def pause(self, seconds: float) -> None:
        """Wait so long."""

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        """Send one of Django's task signals; a receiver's exception is the caller's."""

    async def send_finished(self, sender: type, result: AnyResult, exception: BaseException) -> None:
        """Send ``task_finished`` of a task that failed."""

    async def after_commit(self, call: Announcement) -> None:
        """Have signals sent once the transaction is committed that is open; at once without one, or where
        only the caller knows of its commit. ``call`` gets the route to use. After a commit its errors are
        logged."""


class DjangoRoute:
    """Over the calling thread's Django connection. Its coroutines never suspend."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._store = Store(DjangoDriver(options.database))

    async def room(self) -> None:
        """Return at once: there is room, because a caller runs one statement at a time."""

    async def insert(self, jobs: Sequence[NewJob]) -> None:
        self._refuse_other_connection()
        await self._store.insert_jobs(jobs)
        self._notify_on_commit(wakeups_of(jobs))

    async def insert_unique(self, jobs: Sequence[NewJob]) -> list[Settled]:
        self._refuse_other_connection()
        settled = await settle_over_django(self._store, jobs, self._options)
        self._notify_on_commit(wakeups_after(jobs, settled))
        return settled

    def _refuse_other_connection(self) -> None:
        if current_transaction(self._options.database) is not None:
            raise RuntimeError(
                "A sync enqueue() can't join the aiotasks.transaction() block around it. "
                "Use aenqueue() there, or transaction.atomic() around sync code."
            )

    def _notify_on_commit(self, wakeups: Collection[Wakeup], changed: Collection[UUID] = ()) -> None:
        if self._options.notify and (wakeups or changed):
            _notify_on_commit(self._options.database, wakeups, changed)

    async def select(self, backend: str, id: UUID) -> Job | None:
        jobs = await self._store.select_jobs([id], backend)
        return jobs[0] if jobs else None

    async def cancel(self, backend: str, id: UUID, error: str) -> Job | None:
        jobs = await self._store.cancel_jobs([id], backend, error)
        self._notify_on_commit(cancel_wakeups(jobs), told_of(jobs))
        return jobs[0] if jobs else None

    async def run[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
        return await call(self._store)

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
        connection = connections[self._options.database]
        is_open = connection.in_atomic_block or not connection.get_autocommit()
        with transaction.atomic(self._options.database) if is_open else nullcontext():
            return await call(self._store)

    def wake(self, wakeups: Iterable[Wakeup]) -> None:
        self._notify_on_commit(list(wakeups))

    def tell(self, ids: Collection[UUID]) -> None:
        self._notify_on_commit((), ids)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # sync code drives this, and never suspends

    async def send(self, signal: Signal, sender: type, result: AnyResult) -> None:
        signal.send(sender, task_result=result)  # Signal.send bridges async receivers itself

    async def send_finished(self, sender: type, result: AnyResult, exception: BaseException) -> None:
        signals.send_finished(sender, result, exception)

    async def after_commit(self, call: Announcement) -> None:
        connection = connections[self._options.database]
        if connection.in_atomic_block:
            connection.on_commit(lambda: drive(_announce(call, self)))
        else:
            await call(self)


async def _announce(call: Announcement, route: Route) -> None:
    """Send signals after a commit. An error must not look like one of the transaction."""
    try:
        await call(route)
    except Exception:  # receivers' exceptions are logged by Django
        logger.exception("task_finished was not sent for all tasks that a transaction has cancelled")


class _AfterCommit:
    """An on_commit hook that notifies of what was done since one savepoint: wakes the workers, and tells who
    awaits tasks that have ended."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self.wakeups: set[Wakeup] = set()
        self.changed: set[UUID] = set()

    def __call__(self) -> None:
        _notify(self._alias, self.wakeups, self.changed)


def _notify_on_commit(alias: str, wakeups: Collection[Wakeup], changed: Collection[UUID]) -> None:
    """NOTIFY after the commit, once for all tasks of a transaction."""
    connection = connections[alias]
    if not connection.in_atomic_block:
        if connection.get_autocommit():
            _notify(alias, wakeups, changed)
        else:  # the site commits by itself; the server keeps the NOTIFY until then
            _send(alias, wakeups, changed, alone=False)
        return
    here = savepoints(connection)  # a hook of the same savepoints is kept or dropped with this one
    hook = None
    for within, found, *_ in islice(reversed(on_commit_hooks(connection)), MOST_HOOKS):
        if within == here and isinstance(found, _AfterCommit):
            hook = found
            break
    if hook is None:
        hook = _AfterCommit(alias)
        connection.on_commit(hook)
    hook.wakeups.update(wakeups)
    hook.changed.update(changed)


def _notify(alias: str, wakeups: Iterable[Wakeup], changed: Collection[UUID]) -> None:
    """NOTIFY. The tasks are committed, so an error here must not look like one of the enqueue."""
    connection = connections[alias]
    # A site that commits by itself has the next transaction open already, and may roll it back.
    alone = connection.get_autocommit() and not connection.in_atomic_block
    unsent = [wakeup for wakeup in wakeups if not alone or throttle.should_notify_now(alias, wakeup)]
    if not unsent and not changed:
        return
    try:
        _send(alias, unsent, changed, alone=alone)
    except utils.Error as error:
        throttle.forget(alias, unsent)
        logger.warning(NOT_SENT, str(error))
    except Exception:  # a patched driver's error is no error of the enqueue either
        throttle.forget(alias, unsent)
        logger.exception("NOTIFY was not sent, the driver failed; workers find the tasks at their next poll")


def _send(alias: str, wakeups: Collection[Wakeup], changed: Collection[UUID], *, alone: bool) -> None:
    # Whether a NOTIFY is sent depends on the time, so Django's query log doesn't show it: assertNumQueries
    # counts one query for each enqueue.
    store = Store(DjangoDriver(alias, logged=False))
    if not drive(send_all(store, alias, wakeups, changed, alone=alone)):
        logger.warning(QUEUE_IS_FULL)


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

    async def run[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
        return await call(self._transaction.store)

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
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
        def announce(is_committed: bool) -> Awaitable[None]:
            return _announce(call, LoopRoute(resources(self._options))) if is_committed else call(self)

        self._transaction.announcements.append(announce)


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

    async def run[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
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

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = _nothing) -> Result:
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
