"""Statements about the figures of a backend's queues, minute by minute."""

from datetime import datetime
from typing import NamedTuple

from .statement_group import StatementGroup

__all__ = ["SampleStatements", "StoredSample"]


class StoredSample(NamedTuple):
    """``age``: in seconds. ``figures``: as JSON, see ``aiotasks.queue_figures``."""

    at: datetime
    age: float
    figures: str


class SampleStatements(StatementGroup):
    """Write samples, one a minute and backend, and read them."""

    async def begin_sample(self, backend: str, keep: float) -> int | None:
        """Return the id of the sample of this minute if this call has made it; None if another has.

        A call that makes one deletes the backend's samples that are older than ``keep`` seconds.
        """
        rows = await self._fetch("begin_sample", backend, keep)
        return rows[0][0] if rows else None

    async def finish_sample(self, id: int, figures: str) -> None:
        """Store a sample's figures."""
        await self._fetch("finish_sample", id, figures)

    async def select_samples(self, backend: str, since: float, limit: int) -> list[StoredSample]:
        """Return the samples of the last ``since`` seconds that have figures, the newest first."""
        return [StoredSample(*row) for row in await self._fetch("select_samples", backend, since, limit)]
