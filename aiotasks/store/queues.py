"""Statements about queues: which have tasks, which tasks are due, and the wake-up by NOTIFY."""

from collections.abc import Sequence
from datetime import datetime

from .statement_group import StatementGroup

__all__ = ["QueueStatements"]


class QueueStatements(StatementGroup):
    """Read and promote queues, and notify their workers."""

    async def list_queues(self, backend: str) -> list[str]:
        return [row[0] for row in await self._fetch("list_queues", backend)]

    async def has_unfinished_jobs(
        self, backend: str, queues: Sequence[str] | None, lanes: Sequence[str]
    ) -> bool:
        rows = await self._fetch(
            "has_unfinished_jobs", backend, None if queues is None else list(queues), list(lanes)
        )
        return bool(rows[0][0])

    async def promote_due_jobs(self, backend: str, limit: int) -> list[tuple[str, float]]:
        """Returns the queue name of every task promoted, and its place there: when it was due, in epoch
        seconds."""
        return [(row[0], row[1]) for row in await self._fetch("promote_due_jobs", backend, limit)]

    async def next_due(self, backend: str) -> tuple[datetime, float] | None:
        """When the earliest scheduled task is due, and in how many seconds."""
        rows = await self._fetch("next_due", backend)
        return (rows[0][0], rows[0][1]) if rows else None

    async def notify(self, channel: str, payloads: Sequence[str], *, alone: bool) -> bool:
        """``alone``: this statement is a transaction of its own. Returns whether it was sent: inside
        somebody's transaction it isn't where PostgreSQL's queue of notifications is half full.
        """
        return bool(await self._fetch("notify", channel, list(payloads), alone))
