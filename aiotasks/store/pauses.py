"""Statements about pauses: queues and tasks that no worker starts for the time being."""

from datetime import datetime
from typing import Literal, NamedTuple

from .statement_group import StatementGroup

__all__ = ["Kind", "PauseStatements", "Paused"]

type Kind = Literal["queue", "task"]


class Paused(NamedTuple):
    """A queue or a task that is paused.

    name: the queue's, or the path of the task. age: for how many seconds it has been paused. until: when it
    ends by itself, in epoch seconds; None: not before somebody resumes it.
    """

    kind: Kind
    name: str
    reason: str
    age: float
    until: float | None


class PauseStatements(StatementGroup):
    """Pause and resume queues and tasks. The claims obey."""

    async def insert_pause(
        self,
        backend: str,
        kind: Kind,
        name: str,
        reason: str,
        until: datetime | None,
        seconds: float | None,
    ) -> Paused:
        """Pause, until a time or for so many seconds (both None: until it is resumed)."""
        (row,) = await self._fetch("insert_pause", backend, kind, name, reason, until, seconds)
        return Paused(*row)

    async def delete_pause(self, backend: str, kind: Kind, name: str) -> bool:
        """Return whether there was a pause that hadn't ended."""
        rows = await self._fetch("delete_pause", backend, kind, name)
        return bool(rows and rows[0][0])

    async def select_pauses(self, backend: str) -> list[Paused]:
        """The pauses that haven't ended, the oldest first."""
        return [Paused(*row) for row in await self._fetch("select_pauses", backend)]
