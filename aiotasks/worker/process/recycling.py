"""Recycling: after how many tasks, or with how much memory, a worker's process makes way for another."""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from ..figures import Figures

__all__ = ["DRAIN_TIMEOUT", "Limits"]

# Seconds between two looks, and so the least between two processes that follow each other.
LOOK_INTERVAL = 1.0

# The part of a limit by which it may be lower, at random: so processes that were started together don't all
# make way at the same time.
JITTER = 0.1

# Seconds for which a worker that makes way waits for its running tasks, where --grace isn't longer. Chosen:
# nobody waits for its end, so most tasks may finish, but the memory of two processes isn't taken forever.
DRAIN_TIMEOUT = 600.0


class Limits(NamedTuple):
    """tasks: attempts that may end in one process. rss: bytes of memory that it may have. None: no limit."""

    tasks: int | None = None
    rss: int | None = None

    def drawn(self) -> "Limits":
        """Return the limits of one process, each lower by JITTER at the most."""
        part = 1.0 - JITTER * random.random()
        return Limits(*(None if limit is None else max(1, round(limit * part)) for limit in self))

    def reached(self, figures: Figures) -> str:
        """Return what has reached its limit, for the log; an empty text where nothing has."""
        if self.tasks is not None and figures.ended >= self.tasks:
            return f"tasks={figures.ended} limit={self.tasks}"
        if self.rss is not None and figures.rss >= self.rss:
            return f"rss_mb={figures.rss // 2**20} limit_mb={self.rss // 2**20}"
        return ""

    async def wait_until_reached(self, read: Callable[[], Figures | None]) -> str:
        """Wait until something has reached its limit; returns what."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            figures = read()
            if figures is not None and (reached := self.reached(figures)):
                return reached
