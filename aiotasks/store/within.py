"""How tasks stand inside of the transaction that is open around the caller."""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connections

from ..db.drivers import DjangoDriver
from ..rows import Job
from ..sync import drive
from .blocks import belongs_to_django
from .store import Store
from .transaction import current_transaction

__all__ = ["SeenWithin", "look_within", "look_within_django"]


class SeenWithin(NamedTuple):
    """The tasks that have ended; and the ids of those that haven't and can't before the transaction's end,
    because it has changed or locked them (``held``), and of those that aren't there."""

    ended: Sequence[Job]
    held: frozenset[UUID]
    missing: frozenset[UUID]


async def look_within(database: str, backend: str, ids: Collection[UUID]) -> SeenWithin | None:
    """Look tasks up in the transaction that is open around the caller; None without one.

    Raises TransactionClosed as ``belongs_to_django()`` does.
    """
    if belongs_to_django(database):
        return await sync_to_async(look_within_django, thread_sensitive=True)(database, backend, ids)
    if (transaction := current_transaction(database)) is not None:
        return await _look(transaction.store, backend, ids)
    return None


def look_within_django(database: str, backend: str, ids: Collection[UUID]) -> SeenWithin | None:
    """The same for the transaction of the thread's Django connection."""
    connection = connections[database]
    commits_itself = connection.connection is not None and not connection.autocommit
    if not connection.in_atomic_block and not commits_itself:
        return None
    return drive(_look(Store(DjangoDriver(database)), backend, ids))


async def _look(store: Store, backend: str, ids: Collection[UUID]) -> SeenWithin:
    own = await store.select_own_jobs(list(ids), backend)
    jobs = await store.select_jobs(list(own.ended), backend) if own.ended else []
    return SeenWithin(jobs, own.held, frozenset(ids) - own.ended - own.held - own.others)
