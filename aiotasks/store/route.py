"""Route: the protocol of the ways of an enqueue or a look-up to the database."""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Protocol
from uuid import UUID

from django.dispatch import Signal

from ..rows import AnyResult, Job, NewJob
from .settling import Settled
from .store import Store
from .wakeups import Wakeup

__all__ = ["Announcement", "Call", "Lost", "Route", "announce", "nothing"]

logger = logging.getLogger("aiotasks.store")

# Sends signals, over the route that it is given.
type Announcement = Callable[[Route], Awaitable[None]]

type Call[Result] = Callable[[Store], Awaitable[Result]]
type Lost = Callable[[], None]


def nothing() -> None:
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

    async def run[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
        """Return what ``call`` makes of the Store. It may be called again where the database was away.

        lost: called at the end if a try has failed, or is cancelled, that may have been committed all the
            same: its reply was lost, so nobody knows what it has written.
        """

    async def run_alone[Result](self, call: Call[Result], *, lost: Lost = nothing) -> Result:
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


async def announce(call: Announcement, route: Route) -> None:
    """Send signals after a commit. An error must not look like one of the transaction."""
    try:
        await call(route)
    except Exception:  # receivers' exceptions are logged by Django
        logger.exception("task_finished was not sent for all tasks that a transaction has cancelled")
