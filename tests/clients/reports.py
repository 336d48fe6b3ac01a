"""What the observing packages have to say, a line each, in files that the tests read: of all processes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


def _append(folder: str, name: str, line: dict[str, Any]) -> None:
    with Path(folder, name).open("a") as file:
        file.write(json.dumps(line, default=str) + "\n")


def read(folder: str, name: str) -> list[dict[str, Any]]:
    """The lines so far; the last may be half written."""
    path = Path(folder, name)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def configure_structlog(folder: str) -> None:
    def keep(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        _append(folder, "structlog", event)
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])


def keep_event(folder: str) -> Callable[[Any, Any], None]:
    """Sentry's ``before_send``, which lets nothing out."""

    def keep(event: Any, hint: Any) -> None:
        _append(folder, "sentry", dict(event))

    return keep


class SpanFile(SpanExporter):
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context = span.get_span_context()
            trace_id = None if context is None else f"{context.trace_id:032x}"
            line = {"name": span.name, "trace_id": trace_id, **dict(span.attributes or {})}
            _append(self._folder, "spans", line)
        return SpanExportResult.SUCCESS
