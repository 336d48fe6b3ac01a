"""Merging metadata into a task's by key, for anybody: read, merge in Python, write if nobody was faster."""

import random
import time
from uuid import UUID

from django.db import utils

from ..metadata.values import Metadata, merge
from .changes import WATCHED
from .route import Route

__all__ = ["merge_metadata"]

# Seconds until another try after others have been faster, at first and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.1


async def merge_metadata(route: Route, backend: str, id: UUID, values: Metadata, *, within: float) -> bool:
    """Write ``values`` over the same keys of a task's metadata; return whether there is such a task.

    Raises what ``merge()`` raises, and OperationalError if others have been faster for ``within`` seconds.
    """
    end = time.monotonic() + within
    pause = SHORTEST_PAUSE
    while True:
        job = await route.select(backend, id)
        if job is None:
            return False
        seen = job.metadata
        text = merge(seen, values, id)
        if text == seen:
            return True
        if await _replace(route, backend, id, text, seen):
            return True
        if time.monotonic() > end:
            raise utils.OperationalError(
                f"The metadata of task {id} were changed by others at each try for {within:g} s."
            )
        await route.pause(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


async def _replace(route: Route, backend: str, id: UUID, text: str | None, seen: str | None) -> bool:
    written, awaited = await route.run(lambda store: store.replace_metadata(id, backend, text, seen))
    if awaited == WATCHED:
        route.tell([id])
    return written
