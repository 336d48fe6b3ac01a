"""Statements about the metadata of tasks."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from .statement_group import StatementGroup

__all__ = ["MetadataAnswer", "MetadataStatements", "MetadataWrite"]


class MetadataWrite(NamedTuple):
    """Metadata to write over those that the owner of a running task has ``seen``. JSON text; None: NULL."""

    id: UUID
    claim_id: UUID | None
    text: str | None
    seen: str | None


class MetadataAnswer(NamedTuple):
    """What became of it. Neither written nor changed: the row is locked, or was a moment ago.

    changed: the row has ``there``, which isn't what was seen. awaited: as in the row, where it was written.
    """

    written: bool
    changed: bool
    there: str | None
    awaited: int | None


class MetadataStatements(StatementGroup):
    """Write metadata: of running tasks for their owner, of any task for others."""

    async def save_metadata(self, writes: Sequence[MetadataWrite]) -> dict[UUID, MetadataAnswer]:
        """Return what became of each task that runs under its claim, by id."""
        ids, claim_ids, texts, seen = (list(column) for column in zip(*writes, strict=True))
        rows = await self._fetch("save_metadata", ids, claim_ids, texts, seen)
        return {row[0]: MetadataAnswer(*row[1:]) for row in rows}

    async def replace_metadata(
        self, id: UUID, backend: str, text: str | None, seen: str | None
    ) -> tuple[bool, int | None]:
        """Write a task's metadata if they are as ``seen``; return whether they were, and ``awaited``."""
        rows = await self._fetch("replace_metadata", id, backend, text, seen)
        return (True, rows[0][0]) if rows else (False, None)
