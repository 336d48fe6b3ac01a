"""Statements about queues: which have tasks, which tasks are due, and the wake-up by NOTIFY."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..rows import Lane, keyed_lane
from .statement_group import StatementGroup
from .wakeups import Wakeup

__all__ = ["START", "Due", "Promoted", "QueueStatements", "ReadyIn"]


class ReadyIn(NamedTuple):
    """A queue and a lane, as it is stored, that have READY tasks."""

    queue_name: str
    lane: str


# Before all queues.
START = ReadyIn("", "")


class Promoted(NamedTuple):
    """The queue of a task that was made READY, its place there (when it was due, in epoch seconds), and its
    lane, as it is stored.
    """

    queue_name: str
    ready_at: float
    lane: str


class Due(NamedTuple):
    """When the earliest scheduled task is due or a pause is over, whichever comes first, and in how many
    seconds by the database's clock (None: neither); when the next pause is over (None: there is none); and
    when the next schedule ticks, and in how many seconds (None: none does).
    """

    at: datetime | None
    seconds: float | None
    pause_end: datetime | None
    tick_at: datetime | None
    tick_seconds: float | None


class QueueStatements(StatementGroup):
    """Read and promote queues, and notify their workers."""

    async def list_queues(
        self, backend: str, after: ReadyIn = START, limit: int | None = None
    ) -> list[ReadyIn]:
        """List the queues and lanes that have READY tasks: at most ``limit`` of those behind ``after``.

        They are in the database's order of names, which needn't be Python's.
        """
        return [ReadyIn(*row) for row in await self._fetch("list_queues", backend, *after, limit)]

    async def has_claimable(
        self, backend: str, queues: Sequence[str], lanes: Sequence[Lane], seconds: float
    ) -> str | None:
        """Return the queue of a task that a claim would have taken for so many seconds; None if there is
        none. Tasks with limits aren't among them.
        """
        rows = await self._fetch("has_claimable", backend, list(queues), list(lanes), seconds)
        return rows[0][0] if rows else None

    async def has_unfinished_jobs(
        self,
        backend: str,
        queues: Sequence[str] | None,
        lanes: Sequence[Lane],
        *,
        unknown: Sequence[str] = (),
    ) -> bool:
        """Whether tasks of the lanes, with limits or without, wait to be started or run. ``unknown``: names
        of limits that the worker leaves to others, unless an operator has set them."""
        names = None if queues is None else list(queues)
        stored = [name for lane in lanes for name in (lane, keyed_lane(lane))]
        rows = await self._fetch("has_unfinished_jobs", backend, names, stored, list(unknown))
        return bool(rows[0][0])

    async def promote_due_jobs(
        self,
        backend: str,
        limit: int,
        *,
        only: Sequence[UUID] | None = None,
        refused: Sequence[UUID] = (),
        timeout: float | None = None,
    ) -> list[Promoted]:
        """Make tasks READY that are due, the earliest first: of all, or of ``only`` these, but none that was
        ``refused``."""
        rows = await self._fetch(
            "promote_due_jobs",
            backend,
            limit,
            None if only is None else list(only),
            list(refused),
            timeout=timeout,
        )
        return [Promoted(*row) for row in rows]

    async def list_due_jobs(
        self, backend: str, limit: int, *, refused: Sequence[UUID] = (), timeout: float | None = None
    ) -> list[UUID]:
        """The ids of the tasks that ``promote_due_jobs`` takes."""
        rows = await self._fetch("list_due_jobs", backend, limit, list(refused), timeout=timeout)
        return [row[0] for row in rows]

    async def next_due(self, backend: str, *, refused: Sequence[UUID] = ()) -> Due | None:
        """The earliest scheduled task that wasn't ``refused``, end of a pause, and tick; None where there is
        none of these."""
        rows = await self._fetch("next_due", backend, list(refused))
        return Due(*rows[0]) if rows else None

    async def wake_workers(self, channel: str, wakeups: Sequence[Wakeup]) -> None:
        """Notify two workers for each wake-up, on their own channels; where there are none, ``channel``."""
        await self._fetch(
            "wake_workers",
            channel,
            [wakeup.backend for wakeup in wakeups],
            [wakeup.queue_name for wakeup in wakeups],
            [wakeup.stored_lane for wakeup in wakeups],
            [wakeup.passed for wakeup in wakeups],
            [wakeup.sender for wakeup in wakeups],
            [wakeup.payload() for wakeup in wakeups],
        )

    async def notify(self, channel: str, payloads: Sequence[str], *, alone: bool) -> bool:
        """Notify ``channel``; return whether that was done. ``alone``: this statement is a transaction of its
        own.

        Inside of a caller's transaction nothing is sent while PostgreSQL's queue of notifications is half
        full.
        """
        return bool(await self._fetch("notify", channel, list(payloads), alone))
