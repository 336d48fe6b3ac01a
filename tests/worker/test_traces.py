"""Traces go from the enqueue to the run: spans as OpenTelemetry has them for messaging."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, NoReturn

import pytest
from asgiref.sync import sync_to_async
from django.tasks.signals import task_finished, task_started
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aiotasks import tracing
from aiotasks.contrib.opentelemetry import AiotasksInstrumentor
from aiotasks.operations import schedules
from aiotasks.rows import Job
from tests.backend.support import finished, run_all
from tests.site import default_task_backend, postgres_result

from . import trace_tasks
from .harness import Configure, Ledger, Start


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AiotasksInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    trace_tasks.seen.clear()
    yield Spans(exporter)
    instrumentor.uninstrument()
    assert not instrumentor.is_instrumented_by_opentelemetry


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


async def test_a_run_continues_the_trace_of_its_enqueue(database: str, spans: Spans) -> None:
    result = await trace_tasks.on_loop.aenqueue()
    await run_all()
    sent, ran = spans.one("send default"), spans.one("process default")
    assert (sent.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert ids(ran)[0] == ids(sent)[0]
    assert ran.parent is not None
    assert ran.parent.span_id == ids(sent)[1]
    assert links(ran) == [ids(sent)]
    shared = {
        "messaging.system": "aiotasks",
        "messaging.destination.name": "default",
        "messaging.message.id": result.id,
        "code.function.name": "tests.worker.trace_tasks.on_loop",
    }
    assert facts(sent) == {
        **shared,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert facts(ran) == {
        **shared,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "aiotasks.attempt": 1,
        "aiotasks.outcome": "succeeded",
    }
    assert ran.status.status_code is StatusCode.UNSET


async def test_the_sync_api_is_part_of_the_callers_trace(database: str, spans: Spans) -> None:
    tracer = TracerProvider().get_tracer("the site's")
    with tracer.start_as_current_span("GET /") as request:
        await sync_to_async(trace_tasks.on_loop.enqueue)()
    assert ids(spans.one("send default"))[0] == request.get_span_context().trace_id


@pytest.mark.parametrize("name", ["on_loop", "in_thread"])
async def test_its_span_is_the_current_one_from_start_to_finish(
    database: str, spans: Spans, name: str
) -> None:
    def started(**kwargs: Any) -> None:
        trace_tasks.see("started")

    async def ended(**kwargs: Any) -> None:
        trace_tasks.see("finished")

    task_started.connect(started)
    task_finished.connect(ended)
    try:
        await getattr(trace_tasks, name).aenqueue()
        await run_all()
    finally:
        task_started.disconnect(started)
        task_finished.disconnect(ended)
    here = ids(spans.one("process default"))
    assert trace_tasks.seen == [("started", *here), (name, *here), ("finished", *here)]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_many_at_once_have_one_span_of_their_enqueue(database: str, spans: Spans) -> None:
    await default_task_backend.aenqueue_many(trace_tasks.on_loop, [((), {})] * 3)
    await run_all()
    sent = spans.one("send default")
    assert facts(sent)["messaging.batch.message_count"] == 3
    assert [links(ran) for ran in spans.named("process default")] == [[ids(sent)]] * 3


async def test_nobody_sees_what_a_row_carries(database: str, spans: Spans, ledger: Ledger) -> None:
    using = trace_tasks.tells_metadata.using(metadata={"tenant": 7})
    result = postgres_result(await using.aenqueue())
    assert result.metadata == {"tenant": 7}
    await run_all()
    result = postgres_result(await finished(result))
    assert result.return_value == {"tenant": 7}
    stored = ledger.task(result.id).metadata
    assert stored["tenant"] == 7
    assert stored[tracing.KEY]["traceparent"].split("-")[1] == f"{ids(spans.one('send default'))[0]:032x}"


async def test_metadata_that_leave_no_room_go_without_a_trace(database: str, spans: Spans) -> None:
    large = {"text": "x" * (64 * 1024 - 12)}
    await trace_tasks.tells_metadata.using(metadata=large).aenqueue()
    await run_all()
    assert spans.one("process default").parent is None


async def test_a_retry_has_a_trace_of_its_own_with_a_link(
    database: str, spans: Spans, configure: Configure
) -> None:
    configure(REDACT="tests.worker.trace_tasks.hide")
    await trace_tasks.fails_once.aenqueue()
    await run_all()
    sent, (first, second) = spans.one("send default"), spans.named("process default")
    assert ids(first)[0] == ids(sent)[0]
    assert ids(second)[0] != ids(sent)[0]
    assert second.parent is None
    assert links(second) == [ids(sent)]
    outcomes = [facts(span)["aiotasks.outcome"] for span in (first, second)]
    assert outcomes == ["retried", "succeeded"]
    assert [facts(span)["aiotasks.attempt"] for span in (first, second)] == [1, 2]
    assert first.status.description == "ValueError: ***: not yet"


async def test_a_failure_has_its_error(database: str, spans: Spans) -> None:
    await trace_tasks.fails.aenqueue()
    await run_all()
    ran = spans.one("process default")
    assert ran.status.status_code is StatusCode.ERROR
    assert facts(ran)["error.type"] == "LookupError"
    assert facts(ran)["aiotasks.outcome"] == "failed"
    (event,) = ran.events
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "no such card"
    assert str(event.attributes["exception.stacktrace"]).startswith("Traceback")


async def test_a_snooze_is_no_error(database: str, spans: Spans) -> None:
    await trace_tasks.snoozes_once.aenqueue()
    await run_all()
    first, second = spans.named("process default")
    assert facts(first)["aiotasks.outcome"] == "snoozed"
    assert first.status.status_code is StatusCode.UNSET
    assert links(second) == [ids(spans.one("send default"))]


async def test_a_tick_has_a_trace_of_its_own_with_a_link(database: str, spans: Spans) -> None:
    await schedules.aadd_schedule(
        "hourly", trace_tasks.on_loop.module_path, every=timedelta(hours=1), backend="default"
    )
    await schedules.arun_schedule("hourly")
    await run_all()
    sent, ran = spans.one("send default"), spans.one("process default")
    assert facts(sent)["aiotasks.schedule"] == "hourly"
    assert ran.parent is None
    assert ids(ran)[0] != ids(sent)[0]
    assert links(ran) == [ids(sent)]


async def test_an_enqueue_that_fails_is_an_error(database: str, spans: Spans) -> None:
    with pytest.raises(TypeError):
        await trace_tasks.on_loop.aenqueue("too many")
    sent = spans.one("send default")
    assert sent.status.status_code is StatusCode.ERROR
    assert facts(sent)["error.type"] == "builtins.TypeError"


class Broken:
    """A tracer whose exporter, sampler or propagator raises."""

    def send(self, queue_name: str, task_path: str, schedule: str | None) -> NoReturn:
        raise ConnectionRefusedError("the collector is away")

    def process(self, job: Job, carrier: Mapping[str, str], *, continues: bool) -> NoReturn:
        raise ConnectionRefusedError("the collector is away")


async def test_a_tracer_that_raises_fails_no_task(
    database: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    tracing.set_tracer(Broken())
    try:
        result = await trace_tasks.on_loop.aenqueue()
        await run_all()
    finally:
        tracing.set_tracer(None)
    assert ledger.task(result.id).status == "SUCCESSFUL"
    assert "The span of an enqueue could not be made path='tests.worker.trace_tasks.on_loop'" in caplog.text
    assert f"The span of an attempt could not be made id={result.id}" in caplog.text


async def test_rows_that_others_have_written(database: str, spans: Spans, ledger: Ledger) -> None:
    results = [await trace_tasks.on_loop.aenqueue() for _ in range(3)]
    for result, carried in zip(
        results, ['"x"', '{"traceparent": 5}', '{"traceparent": "00-zz"}'], strict=True
    ):
        ledger.rows(
            "UPDATE aiotasks_task SET metadata = %s WHERE id = %s RETURNING 1",
            f'{{"_trace": {carried}}}',
            result.id,
        )
    await run_all()
    assert {ledger.task(result.id).status for result in results} == {"SUCCESSFUL"}


def test_a_worker_imports_nothing_of_the_extras(start: Start, ledger: Ledger) -> None:
    process = start("-X", "importtime", "-m", "aiotasks.worker", "--until-empty")
    assert process.wait() == 0
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in process.log.splitlines()}
    assert "aiotasks" in imported
    assert not imported & {"opentelemetry", "prometheus_client", "rich", "shtab", "sentry_sdk"}


def test_the_instrumentor_needs_the_api_alone() -> None:
    """And not the SDK, which is the site's choice."""
    code = (
        "import sys\n"
        "from aiotasks.contrib.opentelemetry import AiotasksInstrumentor\n"
        "AiotasksInstrumentor().instrument(skip_dep_check=True)\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', "
        "'opentelemetry.instrumentation'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
