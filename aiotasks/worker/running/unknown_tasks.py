"""UnknownTasks: snoozes the jobs of tasks that cannot be imported here."""

import asyncio
import logging
import random

from ...exceptions import UnknownTask
from ...rows import Job
from ..outcomes import Snoozed
from .failures import Failures
from .imports import MOST_UNKNOWNS

__all__ = ["UnknownTasks"]

logger = logging.getLogger("aiotasks.worker")

# A rolling deploy may be about to bring a task that no worker can import: it is snoozed for 10 s again and
# again for an hour, which is longer than the deploys that we know of, and fails then.
UNKNOWN_DELAY = 10.0
UNKNOWN_WINDOW = 3600.0

# Up to so much longer, at random: the second in which a task is due decides which worker looks first. Every
# ten seconds, of four workers, it was one of the same two for minutes, and these didn't know the task.
JITTER = 0.2


class UnknownTasks:
    """For a flood of such jobs the task is imported and logged once, not for each."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._loop = asyncio.get_running_loop()
        # By path, with the loop's time until which that holds.
        self._snoozed: dict[str, tuple[Snoozed, float]] = {}

    def snoozed_lately(self, task_path: str) -> Snoozed | None:
        """Return the outcome that another job of the task has had just now."""
        snoozed, until = self._snoozed.get(task_path, (None, 0.0))
        return snoozed if self._loop.time() < until else None

    def snooze(self, job: Job, error: UnknownTask) -> Snoozed:
        """Return the outcome of a job whose task's import has failed with ``error``."""
        if (snoozed := self.snoozed_lately(job.task_path)) is not None:
            return snoozed
        if job.task_path not in self._snoozed:
            logger.warning(
                "Task cannot be imported here; snoozing it for %g s id=%s error=%r",
                UNKNOWN_DELAY,
                job.id,
                str(error),
            )
            if len(self._snoozed) >= MOST_UNKNOWNS:
                self._snoozed.clear()
        delay = UNKNOWN_DELAY * random.uniform(1.0, 1.0 + JITTER)
        snoozed = Snoozed(delay, self._failures.failed(error), UNKNOWN_WINDOW)
        self._snoozed[job.task_path] = snoozed, self._loop.time() + UNKNOWN_DELAY / 2
        return snoozed
