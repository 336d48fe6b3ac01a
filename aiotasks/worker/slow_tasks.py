"""SlowTasks: a line of the log for each running attempt that takes longer than SLOW_TASK."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from ..logs.formats import printable
from .execution import Execution

__all__ = ["SlowTasks"]

logger = logging.getLogger("aiotasks.tasks")

# Seconds between two looks, at most: chosen, a slow task is known that much later.
INTERVAL = 5.0


class SlowTasks:
    """Logs a running attempt once when it has taken ``slow`` seconds; TaskLog says how it has ended.

    running: returns the attempts that run.
    """

    def __init__(self, running: Callable[[], Iterable[Execution]], *, slow: float) -> None:
        self._running = running
        self._slow = slow
        self._logged: set[Execution] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(min(INTERVAL, self._slow))
            self.look()

    def look(self) -> None:
        """Log the slow ones that weren't logged before."""
        now = time.monotonic()
        slow = {
            execution
            for execution in self._running()
            if execution.began is not None
            and execution.seconds is None  # else its body has ended, and the loop is about to see that
            and now - execution.began > self._slow
        }
        for execution in slow - self._logged:
            job = execution.job
            seconds = now - (execution.began or now)
            logger.warning(
                "%s is slow and still runs id=%s queue=%s attempt=%d seconds=%.1f slow_task=%g",
                printable(job.task_path),
                job.id,
                printable(job.queue_name),
                len(job.worker_ids),
                seconds,
                self._slow,
                extra={
                    "task_path": job.task_path,
                    "task_id": str(job.id),
                    "queue": job.queue_name,
                    "attempt": len(job.worker_ids),
                    "seconds": round(seconds, 6),
                },
            )
        self._logged = slow
