"""LostTasks: the event and ``task_finished`` of tasks that failed without an execution."""

import asyncio
import logging
from concurrent.futures import Executor

import anyio

from ... import signals
from ...conf import Options
from ...exceptions import InvalidRow, UnknownTask
from ...row_results import result_of
from ...rows import Job
from ..events import NULL, Observer
from .finisher import Finisher

__all__ = ["LostTasks"]

logger = logging.getLogger("aiotasks.worker")


class LostTasks:
    """Announces failures that no execution of this worker has brought: tasks of lost workers, and tasks that
    expired. They count as failed here.

    importer: imports the tasks' modules, which may take long; None: the loop's default executor.
    """

    def __init__(
        self,
        finisher: Finisher,
        importer: Executor | None,
        *,
        sender: type,
        options: Options,
        observer: Observer = NULL,
    ) -> None:
        self._finisher = finisher
        self._importer = importer
        self._sender = sender
        self._options = options
        self._observer = observer

    def announce(self, job: Job, error: Exception) -> None:
        """Report that ``job`` is FAILED by ``error``, and send ``task_finished`` soon."""
        self._finisher.announcer.start(self._announce(job, error))

    async def wait_for_receivers(self, most: int, timeout: float) -> None:
        """Wait until so many receivers run at most, but no more than ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            await self._finisher.announcer.wait_until_few(most)

    async def _announce(self, job: Job, error: Exception) -> None:
        self._finisher.failed += 1
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self._importer, result_of, job, self._options.moved_tasks
            )
        except UnknownTask:
            return  # this process has no Task to show receivers
        except InvalidRow as broken:
            logger.error("Could not send task_finished id=%s error=%r", job.id, str(broken))
            return
        finally:
            # Not before: the log says more where this process doesn't know the task, and nobody else will.
            self._observer.lost(job, job.errors[-1])
        # Each task has an error of its own: raising one for the receivers adds to its traceback.
        await signals.asend_finished(self._sender, result, type(error)(*error.args))
