"""Ownership: which tasks the worker has claimed and not settled, and how it gives them back."""

import logging
from collections.abc import Sequence
from uuid import UUID

from ..rows import Job
from .execution import Execution
from .outcomes import Released
from .protocols import Finishes, Runs, TakesIn

__all__ = ["Ownership"]

logger = logging.getLogger("aiotasks.worker")


class Ownership:
    """Derives the claims that the worker holds from its executions and its claims under way, at each call: a
    ledger beside them could be wrong. ``connect`` must be called before the questions.
    """

    def __init__(self, runner: Runs, finisher: Finishes) -> None:
        self._runner = runner
        self._finisher = finisher

    def connect(self, intake: TakesIn) -> None:
        """Name the part that sends claims and starts their jobs."""
        self._intake = intake

    def executions(self) -> set[Execution]:
        """Return the executions that run, or whose outcomes aren't written. May be called in any thread."""
        return {*list(self._runner.running), *list(self._finisher.pending)}

    def unstarted(self) -> list[Job]:
        """Return the claimed jobs that haven't been started. May be called in any thread."""
        return self._intake.waiting()

    def held_claims(self) -> set[UUID]:
        """Return the ids of all claims that the worker holds; claims under way are among them."""
        ids = {execution.job.claim_id for execution in self.executions()} | self._intake.claiming
        return {id for id in ids if id is not None}

    def claimed_at(self) -> float:
        """Return when the last claim ended that has taken tasks, or may have, by ``time.monotonic()``;
        ``-inf`` if there was none.
        """
        return self._intake.claimed_at

    def is_idle(self) -> bool:
        """Return whether nothing runs, or waits to be written."""
        return not self._runner.running and not self._finisher.pending

    def give_back(self, job: Job) -> None:
        """Make ``job`` READY again, without an attempt spent: it was claimed and has not been started."""
        execution = Execution(job)
        execution.outcome = Released()
        self._finisher.finish(execution)

    async def give_back_running(self, executions: Sequence[Execution], timeout: float) -> None:
        """Make the tasks of ``executions`` READY again within ``timeout`` seconds, no attempt spent."""
        for execution in executions:
            self._finisher.finish(execution.given_back())
        if not await self._finisher.wait_idle(timeout) and self._finisher.pending:
            logger.error("Could not release tasks; they stay RUNNING until the lease expires")
