"""Canceller: ends running tasks that are to be cancelled."""

import asyncio
import logging
from contextlib import suppress

from django.db import utils

from ...db.outage import Outage
from ...store.store import Store
from ..events import NULL, Observer
from ..protocols import Leases, Runs

__all__ = ["Canceller"]

logger = logging.getLogger("aiotasks.worker")


class Canceller:
    """Looks for requests on a wake-up, and at every poll interval while a task runs.

    A coroutine is cancelled where it awaits. A task in a thread can't be cancelled.
    """

    def __init__(
        self,
        store: Store,
        *,
        lease: Leases,
        runner: Runs,
        poll_interval: float,
        observer: Observer = NULL,
    ) -> None:
        self._store = store
        self._lease = lease
        self._runner = runner
        self._poll_interval = poll_interval
        self._asked = asyncio.Event()
        self._outage = Outage(
            logger, "canceller", "requests to cancel wait for the database", observer=observer
        )

    def look(self) -> None:
        """Look for requests now."""
        self._asked.set()

    async def run(self) -> None:
        """Look for requests, forever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval):
                    await self._asked.wait()
            self._asked.clear()
            try:
                await self.run_once()
            except utils.Error as error:
                self._outage.failed(error)  # the next look is the next try

    async def run_once(self) -> int:
        """Cancel the tasks that are to be cancelled; returns the number of those that could be."""
        running = list(self._runner.running)
        worker_id = self._lease.worker_id
        if not running or worker_id is None:
            return 0
        wanted = await self._store.select_cancelled_jobs(worker_id)
        self._outage.ended()
        return sum(
            self._runner.cancel(execution, "cancelled")
            for execution in running
            if execution.job.id in wanted and execution.cancelled_for is None
        )
