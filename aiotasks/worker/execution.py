"""Execution: one claimed job on its way through the worker."""

import time
from collections.abc import Iterable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..compat import restore_context
from ..rows import AnyResult, Job, Lane
from .outcomes import Outcome, Released

if TYPE_CHECKING:
    import asyncio

    from ..executing import Joining
    from ..metadata.running import RunningMetadata
    from ..policies.timeout import TimeLimit
    from ..tracing import Span

__all__ = ["Execution", "NotStarted", "Reason", "RunContext", "carry", "carry_here"]

# Why the worker cancels a running task.
type Reason = Literal["shutdown", "lost lease", "cancelled", "timed out"]


class NotStarted(RuntimeError):
    """The machine refuses a thread, so the call won't run."""


class RunContext(Protocol):
    """Where user code runs: a context, and the thread of its ORM calls until the release."""

    @property
    def context(self) -> Context: ...

    def release(self) -> None: ...


def carry(source: Context, into: Context, own: Iterable[ContextVar[Any]]) -> None:
    """Set the variables of one context in another, as asgiref does between a coroutine and its threads.

    The variables in ``own`` keep their values.
    """
    into.run(carry_here, source, own)


def carry_here(source: Context, own: Iterable[ContextVar[Any]]) -> None:
    """Set the variables of ``source`` in the current context, but those in ``own``."""
    here = copy_context()
    kept = [(variable, here[variable]) for variable in own if variable in here]
    restore_context(source)
    for variable, value in kept:
        variable.set(value)


class Execution:
    """A job that is being run, and its state.

    cancelled_for: why the worker cancelled it; None if it didn't. Whatever the body raises after
        that, the job is released instead of failing; after its time is over, only CancelledError is ours.
    asked_to_end: why it was cancelled while its body was in a thread. That has no effect until the body is
        back on the loop, if it ever is.
    limit: the time of the attempt; None without a ``timeout``, or before the body begins.
    metadata: what the body makes of the task's metadata; None if it has no context, so that it can't.
    result: the job as receivers and the task's context get it, made only if one of them needs it.
    perhaps_written: a statement with its outcome may have succeeded.
    context: that of receivers and body. thread_context: that of a body in a thread, because a context
        can't be entered twice at a time.
    """

    __slots__ = (
        "abandoned",
        "asked_to_end",
        "began",
        "cancelled_for",
        "context",
        "has_slot",
        "in_thread",
        "interference_logged",
        "job",
        "joining",
        "lane",
        "limit",
        "metadata",
        "outcome",
        "perhaps_written",
        "result",
        "run_context",
        "seconds",
        "span",
        "task",
        "thread_context",
    )

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lane: Lane = job.lane  # a hint until the task is imported
        self.run_context: RunContext | None = None
        self.context: Context | None = None
        self.thread_context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.result: AnyResult | None = None
        self.outcome: Outcome | None = None
        self.perhaps_written = False
        self.cancelled_for: Reason | None = None
        self.asked_to_end: Reason | None = None
        self.limit: TimeLimit | None = None
        self.metadata: RunningMetadata | None = None
        self.joining: Joining | None = None  # the part of its worker that it waits for other tasks by
        self.has_slot = True  # False while it waits for other tasks
        self.in_thread = False  # its body is in a thread, which can't be cancelled
        self.began: float | None = None  # when it, or its body in a thread, began: monotonic clock
        self.seconds: float | None = (
            None  # the duration of the attempt; None if it hasn't ended, or never began
        )
        self.span: Span | None = None  # where traces are made
        self.abandoned = False
        self.interference_logged = False  # an attempt on the loop or on others' asyncio tasks has been logged

    def end(self, outcome: Outcome) -> None:
        """Set ``seconds`` and then the outcome. Call it in the thread in which the body has ended."""
        if self.seconds is None and self.began is not None:
            self.seconds = time.monotonic() - self.began
        self.outcome = outcome

    def is_cancelled(self) -> bool:
        """Return whether nobody waits for the body's result any more. May be called in any thread."""
        return self.abandoned or self.cancelled_for is not None or self.asked_to_end is not None

    def given_back(self) -> "Execution":
        """Return an execution of the same claim that is Released: a thread may still end this one."""
        return self.settled(Released())

    def settled(self, outcome: Outcome) -> "Execution":
        """Return an execution of the same claim with ``outcome``, which the body of this one can't change."""
        other = Execution(self.job)
        other.lane, other.in_thread, other.began = self.lane, self.in_thread, self.began
        other.metadata = self.metadata
        other.context = self.context  # for receivers; not thread_context, which the body may still change
        other.end(outcome)
        return other

    def release_context(self) -> None:
        """Release the thread of its ORM calls."""
        if self.run_context is not None:
            self.run_context.release()
            self.run_context = None
