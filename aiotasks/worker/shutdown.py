"""Shutdown: the phases in which a worker ends, each with a limit."""

import asyncio
import logging
from collections.abc import Sequence

import anyio

from .. import logs
from .execution import Execution
from .handover import Handover
from .ownership import Ownership
from .protocols import Beats, Claims, Finishes, Runs, TakesIn

__all__ = ["Shutdown"]

logger = logging.getLogger("aiotasks.worker")

# Seconds after the grace: for a coroutine to act on its cancellation and a claim to get its reply; then for
# the outcomes to be written; and for the last statements, with what is left of these. Chosen so that an exit
# is over within grace + 2 s, whatever the database does, and with the default grace of 25 s before the 30 s
# after which Kubernetes kills.
CANCEL_TIMEOUT = 0.7
FLUSH_TIMEOUT = 0.7
GOODBYE_TIMEOUT = 0.3


class Shutdown:
    """Stop claiming, wait with the heartbeat on, cancel, write, give back.

    ``ownership`` makes the tasks READY again that don't end in time. ``handover`` settles those in threads
    that the process keeps, on the heartbeat's loop, which renews the lease until then.
    """

    def __init__(
        self,
        claimer: Claims,
        intake: TakesIn,
        runner: Runs,
        finisher: Finishes,
        heartbeat: Beats,
        ownership: Ownership,
        handover: Handover,
        *,
        changed: asyncio.Event,
        hurried: asyncio.Event,
    ) -> None:
        self._claimer = claimer
        self._intake = intake
        self._runner = runner
        self._finisher = finisher
        self._heartbeat = heartbeat
        self._ownership = ownership
        self._handover = handover
        self._changed = changed
        self._hurried = hurried
        self.goodbye_by = 0.0  # by the loop's clock: when the last statements must have ended
        self._receivers_by = 0.0  # likewise: when receivers and the handlers of the log must have ended
        self.keeps_lease = False  # after the end: tasks are still RUNNING under this worker's id

    async def run(self, *, grace: float, keep_threads: bool) -> bool:
        """Go through the phases; returns whether a task, or an unwritten outcome, has outlasted them.

        ``grace`` is in seconds. ``keep_threads``: tasks in threads keep their lease for as long as they run,
        instead of being given back.
        """
        logger.info("stopping, running=%d grace=%g", len(self._runner.running), grace)
        clock = asyncio.get_running_loop().time
        end = clock() + grace
        stopping = asyncio.create_task(self._claimer.stop(), name="aiotasks last claim")
        await self._wait_for_claims(stopping, grace)
        await self._wait_for_running(end - clock())
        if self._hurried.is_set():
            end = clock()
        stuck = await self._cancel(stopping)
        self.goodbye_by = clock() + FLUSH_TIMEOUT + GOODBYE_TIMEOUT
        self._receivers_by = max(end, self.goodbye_by)
        written = await self._finisher.wait_idle(FLUSH_TIMEOUT)
        kept = await self._part_from(stuck, keep_threads)
        self.keeps_lease = kept or not written
        return bool(stuck) or not written

    async def wait_for_receivers(self) -> bool:
        """Give the receivers of ``task_finished`` and the handlers of the log the rest of the grace.

        (Django's handlers mail failures to ADMINS.) To be called after ``run``, when no task is RUNNING under
        this worker's id. Returns whether they have ended in time.
        """
        clock = asyncio.get_running_loop().time
        ended = asyncio.ensure_future(self._receivers_and_log())
        hurry = asyncio.ensure_future(self._hurried.wait())
        try:
            await asyncio.wait(
                [ended, hurry],
                timeout=max(0.0, self._receivers_by - clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ended.cancel()
            hurry.cancel()
        if ended.done():
            return True
        if self._finisher.announcer.pending:
            logger.warning(
                "Receivers of task_finished outlasted the grace and are cancelled count=%d",
                len(self._finisher.announcer.pending),
            )
        if waiting := logs.count_waiting():
            logger.warning(
                "Log records wait for their handlers after the grace, mails to ADMINS perhaps count=%d",
                waiting,
            )
        return False

    async def _receivers_and_log(self) -> None:
        await self._finisher.announcer.all_announced()
        await logs.flushed_at_stop()

    async def _wait_for_claims(self, stopping: "asyncio.Task[None]", timeout: float) -> None:
        """Wait for the last claim, at most ``timeout`` seconds: its reply says what the worker owns."""
        hurry = asyncio.ensure_future(self._hurried.wait())
        try:
            await asyncio.wait([stopping, hurry], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()

    async def _cancel(self, stopping: "asyncio.Task[None]") -> list[Execution]:
        """Cancel the running tasks, and a claim without a reply; returns the tasks that didn't end."""
        end = asyncio.get_running_loop().time() + CANCEL_TIMEOUT
        self._intake.start_no_more()
        for execution in list(self._runner.running):
            self._runner.cancel(execution, "shutdown")
        self._hurried.clear()
        await self._wait_for_running(CANCEL_TIMEOUT, threads=False)
        await self._wait_for_claims(stopping, max(0.0, end - asyncio.get_running_loop().time()))
        if not stopping.done():
            logger.warning("Gave up a claim without a reply; its tasks must be rescued")
            self._claimer.abort()
        stuck = list(self._runner.running)
        for execution in stuck:
            logger.warning(
                "A task outlasted the shutdown id=%s path=%r", execution.job.id, execution.job.task_path
            )
            self._runner.abandon(execution)
        return stuck

    async def _part_from(self, stuck: Sequence[Execution], keep_threads: bool) -> bool:
        """Give back the tasks that are stuck; returns whether some are kept, with the lease."""
        kept = [execution for execution in stuck if keep_threads and execution.in_thread]
        if given_back := [execution for execution in stuck if execution not in kept]:
            await self._ownership.give_back_running(
                given_back, self.goodbye_by - asyncio.get_running_loop().time()
            )
        if kept:
            # A thread can't be stopped, and its task must not run twice while it goes on.
            self._heartbeat.stop(lambda store: self._handover.settle_late(store, kept))
        else:
            with anyio.CancelScope(deadline=self.goodbye_by):  # a dead connection may hold it up
                await self._heartbeat.stop()
        return bool(kept)

    async def _wait_for_running(self, timeout: float, *, threads: bool = True) -> None:
        """Wait until no task runs (with ``threads``, nor in threads), for at most ``timeout`` seconds."""
        with anyio.move_on_after(timeout):
            while not self._hurried.is_set() and any(
                threads or not execution.in_thread for execution in self._runner.running
            ):
                self._changed.clear()
                waiting = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._hurried)]
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in waiting:
                        one.cancel()
