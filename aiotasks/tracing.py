"""Where traces of tasks go, if anywhere: from an enqueue to the run, by the metadata of the row.

``contrib.opentelemetry`` sets the tracer. Without one an enqueue and an attempt cost one look each. What the
site's tracer raises is logged, and nothing else.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from .codec import decode
from .rows import Job

__all__ = ["KEY", "SentTasks", "Span", "Tracing", "begin", "end", "sending", "set_tracer", "tracer"]

logger = logging.getLogger("aiotasks")

# The key of a row's metadata: an object with the headers of the site's propagator, traceparent for one. Its
# underscore makes it aiotasks' own, so that neither callers nor tasks see it.
KEY = "_trace"


class SentTasks(Protocol):
    """The span of an enqueue, until its tasks are stored.

    carrier: what the rows carry of it. ids: of the tasks, once they are known.
    """

    carrier: Mapping[str, str]
    ids: list[str]

    def end(self, error: BaseException | None) -> None:
        """End it: the tasks are stored, or the enqueue has failed with ``error``."""


class Span(Protocol):
    """The span of an attempt."""

    def end(self, outcome: str, error: Mapping[str, str] | None) -> None:
        """End it. ``outcome``: in one word. ``error``: as it is stored, with ``class`` and ``traceback``."""


class Tracing(Protocol):
    """Makes the spans."""

    def send(self, queue_name: str, task_path: str, schedule: str | None) -> SentTasks:
        """Begin the span of an enqueue. ``schedule``: the name of the one that enqueues."""

    def process(self, job: Job, carrier: Mapping[str, str], *, continues: bool) -> Span:
        """Begin the span of an attempt, and make it the current one of the context that the call is made in.

        It is part of the trace of ``carrier`` where it ``continues`` that; it is linked to it in any case.
        """


# Makes the spans of this process. Read it as an attribute of this module, because it changes.
tracer: Tracing | None = None


def set_tracer(new: Tracing | None) -> None:
    """Have ``new`` make the spans of this process from now on; None: nobody."""
    global tracer
    tracer = new


class _NotTraced:
    """In place of a span that couldn't be made."""

    def __init__(self) -> None:
        self.carrier: Mapping[str, str] = {}
        self.ids: list[str] = []

    def end(self, error: BaseException | None) -> None:
        pass


@contextmanager
def sending(
    tracer: Tracing, queue_name: str, task_path: str, schedule: str | None = None
) -> Iterator[SentTasks]:
    """Give the span of an enqueue, which ends with the block."""
    sent: SentTasks = _NotTraced()
    try:
        sent = tracer.send(queue_name, task_path, schedule)
    except Exception:  # the site's tracer may raise anything
        logger.exception("The span of an enqueue could not be made path=%r", task_path)
    error: BaseException | None = None
    try:
        yield sent
    except BaseException as raised:  # the span shows it
        error = raised
        raise
    finally:
        try:
            sent.end(error)
        except Exception:  # the site's tracer may raise anything
            logger.exception("The span of an enqueue could not be ended path=%r", task_path)


def begin(tracer: Tracing, job: Job) -> Span | None:
    """Begin the span of an attempt; call it in the context of the attempt.

    The first attempt of a task continues the trace of its enqueue. Later ones have traces of their own, and
    so have the tasks of schedules, because a trace that goes on for days shows nothing.
    """
    try:
        own: Any = decode(job.metadata) if job.metadata is not None and f'"{KEY}"' in job.metadata else {}
        carrier = own.get(KEY, {})
        return tracer.process(job, carrier, continues=len(job.worker_ids) == 1 and "_schedule" not in own)
    except Exception:  # the site's tracer may raise anything
        logger.exception("The span of an attempt could not be made id=%s", job.id)
        return None


def end(span: Span, job: Job, outcome: str, error_text: str | None) -> None:
    """End the span of an attempt. ``error_text``: its error, as it is stored."""
    try:
        span.end(outcome, None if error_text is None else decode(error_text))
    except Exception:  # the site's tracer may raise anything
        logger.exception("The span of an attempt could not be ended id=%s", job.id)
