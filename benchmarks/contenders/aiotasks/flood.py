"""A flood: no-ops in a queue of which there are always some thousand to run."""

import asyncio
import math

from ..common import WorkerProcess
from ..site import insert_rows
from .support import connection

__all__ = ["Flood"]

# READY rows that there are at least, and those that are added at a time.
READY = 5_000
PORTION = 10_000


class Flood:
    """``inserted`` counts its tasks; ``ran_dry`` says whether there was a moment without any to run."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.inserted = 0
        self.ran_dry = False

    async def feed(self, process: WorkerProcess, total: float = math.inf) -> None:
        """Insert, as fast as the worker runs them, until there have been ``total``."""
        async with connection() as opened:
            while self.inserted < total:
                process.check()
                ready = await opened.fetchval(
                    """
                    SELECT count(*) FROM aiotasks_task
                    WHERE status = 'READY' AND backend = 'default' AND queue_name = $1
                    """,
                    self._queue,
                )
                self.ran_dry |= self.inserted > 0 and ready == 0
                if ready < READY:
                    count = int(min(PORTION, total - self.inserted))
                    await insert_rows(opened, count, queue=self._queue)
                    self.inserted += count
                await asyncio.sleep(0.02)
