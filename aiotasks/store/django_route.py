"""The route of sync code, which waits: over Django's own connection, so inside its ``atomic()``."""

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from uuid import UUID

from django.db import connections, transaction
from django.dispatch import Signal

from .. import signals
from ..conf import Options
from ..db.drivers import DjangoDriver
from ..rows import AnyResult, Job, NewJob
from ..sync import drive
from .changes import told_of
from .commit_hooks import notify_on_commit
from .route import Announcement, Call, Lost, announce, nothing
from .settling import Settled, wakeups_after
from .store import Store
from .transaction import current_transaction
from .unique import settle_over_django
from .wakeups import Wakeup, cancel_wakeups, wakeups_of

__all__ = ["DjangoRoute"]


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
            notify_on_commit(self._options.database, wakeups, changed)

    async def select(self, backend: str, id: UUID) -> Job | None:
        jobs = await self._store.select_jobs([id], backend)
        return jobs[0] if jobs else None

    async def cancel(self, backend: str, id: UUID, error: str) -> Job | None:
        jobs = await self._store.cancel_jobs([id], backend, error)
        self._notify_on_commit(cancel_wakeups(jobs), told_of(jobs))
        return jobs[0] if jobs else None

    async def run[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        return await call(self._store)

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
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
            connection.on_commit(lambda: drive(announce(call, self)))
        else:
            await call(self)
