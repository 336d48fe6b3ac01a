"""Execution: one claimed job on its way through the worker."""

import asyncio
from typing import Literal

from ..job import AnyResult, Job, Lane, Outcome

__all__ = ["Execution"]


class Execution:
    """A job that is being run, and what has become of it so far.

    ``cancelled_for`` says that *we* cancelled it, and why: whatever the body raises after that
    is our doing, and the job goes back instead of failing.
    """

    __slots__ = ("abandoned", "cancelled_for", "in_thread", "job", "lane", "outcome", "result", "task")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lane: Lane = job.lane  # a hint until the task is imported
        self.task: asyncio.Task[None] | None = None
        self.result: AnyResult | None = None
        self.outcome: Outcome | None = None
        self.cancelled_for: Literal["shutdown", "lost lease", "cancelled"] | None = None
        self.in_thread = False  # its body has gone to a thread, which can't be cancelled
        self.abandoned = False
