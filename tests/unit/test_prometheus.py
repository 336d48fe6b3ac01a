"""``contrib.prometheus``: families as prometheus-client shows them."""

import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from aiotasks.contrib import prometheus
from aiotasks.contrib.prometheus import FamilyCollector, render
from aiotasks.metrics import Family, Histogram, Sample, family
from aiotasks.worker.process.http import Request
from aiotasks.worker.process.scrape import metrics_route

HOSTILE = 'a "quoted" \\ path\nof two lines'


def families() -> list[Family]:
    histogram = Histogram((0.5, 1.0))
    for value in (0.1, 0.7, 5.0):
        histogram.add(value)
    labels = {"task": HOSTILE}
    name = "aiotasks_task_duration_seconds"
    return [
        family("counter", "aiotasks_tasks_finished", "Tasks.", (labels, 3)),
        family("gauge", "aiotasks_worker_info", "The version.", ({"version": "1"}, 1)),
        Family(name, "histogram", "Seconds.", histogram.samples(name, labels)),
    ]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
        ("application/openmetrics-text; version=abc", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text"),
    ],
)
def test_a_page_holds_the_samples(accept: str, kind: str) -> None:
    page, content_type = render(families(), accept)
    assert content_type.startswith(kind)
    parse = parse_text if kind == "text/plain" else parse_openmetrics
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for shown in parse(page.decode())
        for sample in shown.samples
    }
    samples: list[Sample] = [sample for one in families() for sample in one.samples]
    assert found == {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}


async def test_the_page_of_several_processes_is_made_beside_the_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []

    def rendered(found: Sequence[Family], accept: str) -> tuple[bytes, str]:
        threads.append(threading.current_thread())
        return render(found, accept)

    monkeypatch.setattr(prometheus, "render", rendered)

    async def scrape() -> list[tuple[str, Sequence[Family]]]:
        return [("0", families()), ("1", families())]

    response = await metrics_route(scrape)(Request())
    (thread,) = threads
    assert thread is not threading.current_thread()
    found = [sample for family in parse_text(response.body.decode()) for sample in family.samples]
    each = len([sample for family in families() for sample in family.samples])
    assert Counter(sample.labels["process"] for sample in found) == {"0": each, "1": each}


def test_a_sites_registry_shows_them_beside_its_own() -> None:
    registry = CollectorRegistry()
    registry.register(FamilyCollector(families))
    assert b"aiotasks_tasks_finished_total{" in generate_latest(registry)
