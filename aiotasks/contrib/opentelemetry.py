"""OpenTelemetry: spans of enqueues and of attempts, by the conventions for messaging. Extra ``otel``.

``AiotasksInstrumentor().instrument()`` in the settings switches it on; ``opentelemetry-instrument`` finds it
by its entry point.
"""

from collections.abc import Mapping
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer, TracerProvider

from .. import __version__, tracing
from ..codec import CANCELLED
from ..logs.failures import last_words
from ..rows import Job
from ..tracing import set_tracer

__all__ = ["AiotasksInstrumentor"]

SYSTEM = "aiotasks"


class AiotasksInstrumentor:
    """Switches the spans on and off, for the whole process.

    It has the methods that ``opentelemetry-instrument`` calls, and isn't a BaseInstrumentor, because that
    takes another package.
    """

    def instrument(self, *, tracer_provider: TracerProvider | None = None, **_: Any) -> None:
        """Make spans from now on. ``tracer_provider``: None for the global one."""
        set_tracer(_Tracing(trace.get_tracer(SYSTEM, __version__, tracer_provider)))

    def uninstrument(self, **_: Any) -> None:
        """Make no more spans."""
        set_tracer(None)

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        """Whether spans are made."""
        return isinstance(tracing.tracer, _Tracing)


class _Tracing:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def send(self, queue_name: str, task_path: str, schedule: str | None) -> "_SentTasks":
        attributes = _attributes("send", queue_name, task_path)
        if schedule is not None:
            attributes["aiotasks.schedule"] = schedule
        span = self._tracer.start_span(f"send {queue_name}", kind=SpanKind.PRODUCER, attributes=attributes)
        return _SentTasks(span)

    def process(self, job: Job, carrier: Mapping[str, str], *, continues: bool) -> "_Attempt":
        sender = propagate.extract(carrier, context=Context())
        sent = trace.get_current_span(sender).get_span_context()
        span = self._tracer.start_span(
            f"process {job.queue_name}",
            context=sender if continues else trace.set_span_in_context(trace.INVALID_SPAN, sender),
            kind=SpanKind.CONSUMER,
            links=[Link(sent)] if sent.is_valid else None,
            attributes={
                **_attributes("process", job.queue_name, job.task_path),
                "messaging.message.id": str(job.id),
                "aiotasks.attempt": len(job.worker_ids),
            },
        )
        # The context is the attempt's, and ends with it.
        otel_context.attach(trace.set_span_in_context(span, sender))
        return _Attempt(span)


class _SentTasks:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.ids: list[str] = []
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(span))
        self.carrier: Mapping[str, str] = carrier

    def end(self, error: BaseException | None) -> None:
        if len(self.ids) == 1:
            self._span.set_attribute("messaging.message.id", self.ids[0])
        elif self.ids:
            self._span.set_attribute("messaging.batch.message_count", len(self.ids))
        if error is not None:
            self._span.set_attribute("error.type", f"{type(error).__module__}.{type(error).__qualname__}")
            # Without its text, which may quote arguments.
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _Attempt:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, outcome: str, error: Mapping[str, str] | None) -> None:
        span = self._span
        if error is not None and error["class"] == CANCELLED:
            outcome, error = "cancelled", None
        span.set_attribute("aiotasks.outcome", outcome)
        if error is not None:
            # From the stored error, because REDACT has processed that.
            kind, traceback = error["class"].removeprefix("builtins."), error["traceback"]
            words = last_words(error["class"], traceback)
            span.set_attribute("error.type", kind)
            span.add_event(
                "exception",
                {
                    "exception.type": kind,
                    "exception.message": words.partition(": ")[2],
                    "exception.stacktrace": traceback,
                },
            )
            span.set_status(Status(StatusCode.ERROR, words))
        span.end()


def _attributes(operation: str, queue_name: str, task_path: str) -> dict[str, str | int]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue_name,
        "code.function.name": task_path,
    }
