"""The span of an attempt: from its start to its outcome, and how that is called there."""

from ... import tracing
from ..execution import Execution
from ..outcomes import Failed, Outcome, Released, Retried, Snoozed

__all__ = ["begin_span", "end_span"]


def begin_span(tracer: tracing.Tracing, execution: Execution) -> None:
    """Begin the span of an attempt, and make it the current one of its context."""
    if execution.context is not None:
        execution.span = execution.context.run(tracing.begin, tracer, execution.job)


def end_span(execution: Execution, outcome: Outcome | None) -> None:
    """End the span of an attempt, unless it has none or has ended. None: nobody waits for an outcome."""
    span, execution.span = execution.span, None
    if span is None:
        return
    word, failure = "succeeded", None
    match outcome:
        case Failed():
            word, failure = "failed", outcome
        case Retried():
            word, failure = "retried", outcome.failure
        case Snoozed():
            word = "snoozed"
        case Released() | None:
            word = "released"
    tracing.end(span, execution.job, word, None if failure is None else failure.text)
