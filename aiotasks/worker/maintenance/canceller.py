"""Canceller: ends running tasks that somebody has asked to cancel."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from uuid import UUID

from django.db import utils

from ...db.outage import Outage
from ...store.store import Store
from ..execution import Execution, Reason

__all__ = ["Canceller"]

logger = logging.getLogger("aiotasks.worker")


class Canceller:
    """Looks for requests when one is told of, and every poll interval while anything runs.

    A coroutine is cancelled where it awaits. What runs in a thread can't be, and ends as it ends.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker_id: Callable[[], UUID | None],
        running: Callable[[], Iterable[Execution]],
        cancel: Callable[[Execution, Reason], bool],
        poll_interval: float,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._running = running
        self._cancel = cancel
        self._poll_interval = poll_interval
        self._asked = asyncio.Event()
        self._outage = Outage(logger, "canceller", "requests to cancel wait for the database")

    def look(self) -> None:
        """A request was made."""
        self._asked.set()

    async def run(self) -> None:
        """Look, for ever."""
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
        """Cancel what is to be cancelled; returns how many could be."""
        running = list(self._running())
        worker_id = self._worker_id()
        if not running or worker_id is None:
            return 0
        wanted = await self._store.select_cancelled_jobs(worker_id)
        self._outage.ended()
        return sum(
            self._cancel(execution, "cancelled")
            for execution in running
            if execution.job.id in wanted and execution.cancelled_for is None
        )
