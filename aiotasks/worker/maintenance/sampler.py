"""Sampler: writes the figures of the queues down, once a minute, for metrics and dashboards."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db import utils

from ...db.errors import waited_too_long
from ...metrics import Family
from ...queue_figures import QueueCounts, families_of, read_queue_figures
from ...rows import LANES
from ...store.inspection import StoredWorker
from ...store.store import Store

__all__ = ["SAMPLE_INTERVAL", "Sampler"]

logger = logging.getLogger("aiotasks.worker")

# Seconds between two samples, and for which one is kept. Chosen: Prometheus asks about as often, and a
# week of a backend has 10,080 rows.
SAMPLE_INTERVAL = 60.0
KEEP = 7 * 86_400.0

# Seconds for reading the figures. Chosen: behind an old snapshot, with millions of dead rows to skip, the
# statements would otherwise keep the database busy for most of each minute.
READ_TIMEOUT = 5.0

# At which counting stops, as in ``status``; and queues in one sample: some 20 KB.
MOST = 10_000
MOST_QUEUES = 200
OTHER = "other"


class Sampler:
    """Every worker has one. Which of them reads a minute's figures is decided by the row that it makes.

    shows: ``families()`` returns the newest figures, which another worker may have read.
    """

    def __init__(self, store: Store, *, backend: str, shows: bool) -> None:
        self._store = store
        self._backend = backend
        self._shows = shows
        self._newest: tuple[dict[str, Any], float] | None = None  # and when they were read: time.monotonic()
        self._is_told = False

    async def sample(self) -> None:
        """Write the figures of this minute, if no worker has; keep the newest ones."""
        store, backend = self._store, self._backend
        if (id := await store.begin_sample(backend, KEEP)) is not None:
            if (figures := await self._read_in_time()) is None:
                return
            await store.finish_sample(id, json.dumps(figures, separators=(",", ":")))
            self._newest = figures, time.monotonic()
        elif self._shows and (found := await store.select_samples(backend, KEEP, 1)):
            self._newest = json.loads(found[0].figures), time.monotonic() - found[0].age

    def families(self) -> list[Family]:
        """Return the newest figures as metrics; nothing before there are any. May be called in any thread."""
        if (newest := self._newest) is None:
            return []
        figures, at = newest
        return families_of(figures, time.monotonic() - at, self._backend)

    async def _read_in_time(self) -> dict[str, Any] | None:
        """The figures; None if they took too long, which is logged once, until they don't."""
        try:
            # Not a time-out of each statement: after one, the driver takes the server for lost.
            async with asyncio.timeout(READ_TIMEOUT):
                figures = await self._read()
        except (TimeoutError, utils.OperationalError) as error:
            if not waited_too_long(error):
                raise
            if not self._is_told:
                logger.warning("The figures of the queues can't be read in time seconds=%g", READ_TIMEOUT)
            self._is_told = True
            return None
        self._is_told = False
        return figures

    async def _read(self) -> dict[str, Any]:
        store, backend = self._store, self._backend
        workers = [one for one in await store.select_workers(backend) if one.lease > 0]
        names = {name for worker in workers for name in worker.queues}
        found = await read_queue_figures(store, backend, names, MOST)
        failed = await store.count_failed_jobs(backend, MOST)
        snapshot = (await store.oldest_snapshot()).holder
        used: Counter[str] = Counter()
        for count in found.running:
            used[count.lane] += count.number
        slots = {
            "loop": sum(worker.concurrency for worker in workers),
            "thread": sum(worker.threads for worker in workers),
        }
        shown, others = found.queues[:MOST_QUEUES], found.queues[MOST_QUEUES:]
        queues = {one.name: _figures(one, found.limit, workers) for one in shown}
        if others:
            summed = [*others, *(one for one in shown if one.name == OTHER)]
            queues[OTHER] = _figures(_sum(summed), found.limit, workers)
        return {
            "queues": queues,
            "failed_hour": failed.in_hour,
            "failed_day": failed.in_day,
            "workers": len(workers),
            "slots": slots,
            "used": {lane: used[lane] for lane in LANES},
            "snapshot_age": None if snapshot is None else snapshot.seconds,
        }


def _figures(one: QueueCounts, limit: int, workers: Iterable[StoredWorker]) -> dict[str, Any]:
    return {
        "ready": one.ready,
        "ready_capped": one.ready >= limit,
        "oldest": None if one.oldest_ready is None else round(one.oldest_ready, 3),
        "scheduled": one.scheduled,
        "running": one.running,
        "workers": sum(not worker.queues or one.name in worker.queues for worker in workers),
    }


def _sum(queues: Iterable[QueueCounts]) -> QueueCounts:
    queues = list(queues)
    return QueueCounts(
        OTHER,
        sum(one.ready for one in queues),
        max((one.oldest_ready for one in queues if one.oldest_ready is not None), default=None),
        sum(one.scheduled for one in queues),
        sum(one.running for one in queues),
    )
