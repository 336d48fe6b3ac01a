"""Statements about the states of tasks, as a browser shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ..codec import CANCELLED_START
from .statement_group import StatementGroup

__all__ = ["StateStatements", "TaskState"]


@dataclass(slots=True, eq=False)
class TaskState:
    """What a browser may see of a row. ``metadata`` is JSON text; the times are ISO 8601 in UTC.

    ``shown``: what is made of it once for all callers that share its look-up.
    """

    id: UUID
    status: str
    is_cancelled: bool
    metadata: str | None
    attempts: int
    enqueued_at: str | None
    started_at: str | None
    finished_at: str | None
    shown: Any = None


class StateStatements(StatementGroup):
    """Look-ups that are small, whatever the tasks' arguments and results are."""

    async def select_states(self, ids: Sequence[UUID], backend: str) -> list[TaskState]:
        rows = await self._fetch("select_states", list(ids), backend, CANCELLED_START)
        return [TaskState(*row) for row in rows]
