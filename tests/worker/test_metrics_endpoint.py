"""``/metrics`` of a worker and of a supervisor's processes, as prometheus-client's own parsers read it."""

import os
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from tests.conftest import ROOT
from tests.site import default_task_backend

from . import tasks
from .harness import Ledger, Process, Start, wait_until
from .test_health import address_of, ask, processes

QUICK = {"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 1}


def scrape(process: Process, accept: str = "text/plain") -> list[Sample]:
    """Return the samples; each series must be there once, as Prometheus demands."""
    request = urllib.request.Request(f"http://{address_of(process)}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as response:
        page, kind = response.read().decode(), response.headers["Content-Type"]
    parse = parse_openmetrics if kind.startswith("application/openmetrics-text") else parse_text
    samples: list[Sample] = [sample for family in parse(page) for sample in family.samples]
    series = Counter((one.name, *sorted(one.labels.items())) for one in samples)
    assert series
    assert max(series.values()) == 1
    return samples


def by_process(samples: list[Sample], name: str, **labels: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in samples:
        if one.name == name and labels.items() <= one.labels.items():
            found[one.labels["process"]] = found.get(one.labels["process"], 0) + one.value
    return found


def finished(process: Process) -> float:
    return sum(by_process(scrape(process), "aiotasks_tasks_finished_total").values())


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_a_worker_alone(start: Start, ledger: Ledger, accept: str) -> None:
    worker = start("-m", "aiotasks.worker", "--health-port", "0")
    wait_until(lambda: by_process(scrape(worker), "aiotasks_worker_slots") == {"0": 110.0})
    default_task_backend.enqueue_many(tasks.add, [((1, 2), {})] * 10)
    tasks.fail.enqueue("ValueError")
    wait_until(lambda: finished(worker) == 11)
    samples = scrape(worker, accept)
    labels = {"task": "tests.worker.tasks.add", "queue": "default"}
    assert by_process(samples, "aiotasks_tasks_finished_total", outcome="succeeded", **labels) == {"0": 10}
    assert by_process(samples, "aiotasks_tasks_finished_total", outcome="failed") == {"0": 1}
    assert by_process(samples, "aiotasks_task_duration_seconds_count", **labels) == {"0": 10}
    assert by_process(samples, "aiotasks_task_wait_seconds_bucket", le="+Inf", **labels) == {"0": 10}
    assert worker.stop() == 0


def test_two_processes_of_which_one_is_killed(start: Start, ledger: Ledger) -> None:
    """Each has series of its own, so that a new process is a reset of one counter, and no sum falls."""
    worker = start(
        *("-m", "aiotasks.worker", "--health-port", "0", "--processes", "2", "--concurrency", "1"),
        options=QUICK,
    )
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True, True])
    default_task_backend.enqueue_many(tasks.work, [((0.05,), {})] * 40)
    wait_until(lambda: finished(worker) == 40)
    before = by_process(scrape(worker), "aiotasks_tasks_finished_total")
    assert before.keys() == {"0", "1"}
    first, _ = processes(worker)
    psutil.Process(first["pid"]).suspend()
    # One that is silent is left out, and delays the scrape by a second at most.
    assert by_process(scrape(worker), "aiotasks_tasks_finished_total") == {"1": before["1"]}
    psutil.Process(first["pid"]).kill()
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True, True])
    after = scrape(worker)
    assert by_process(after, "aiotasks_tasks_finished_total").get("0", 0) == 0
    assert by_process(after, "aiotasks_tasks_finished_total")["1"] >= before["1"]
    assert by_process(after, "aiotasks_worker_slots") == {"0": 11.0, "1": 11.0}
    assert worker.stop() == 0


def test_a_process_has_one_label_for_life(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """Its counters under the label of another would look like that many tasks more."""
    go = tmp_path / "go"
    worker = start("-m", "aiotasks.worker", "--reload", "--max-tasks", "1", "--health-port", "0")
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True])
    long = tasks.wait_for_file.enqueue(os.fspath(go))
    wait_until(lambda: ledger.task(long.id).status == "RUNNING")
    tasks.add.enqueue(1, 2)
    wait_until(lambda: by_process(scrape(worker), "aiotasks_worker_info") == {"0": 1, "0b": 1})
    wait_until(lambda: by_process(scrape(worker), "aiotasks_worker_slots_used") == {"0": 1, "0b": 0})
    go.touch()
    wait_until(lambda: by_process(scrape(worker), "aiotasks_worker_info") == {"0b": 1})
    tasks.add.enqueue(1, 2)
    wait_until(lambda: by_process(scrape(worker), "aiotasks_worker_info") == {"0": 1})
    assert by_process(scrape(worker), "aiotasks_tasks_finished_total") == {}
    assert worker.stop() == 0


@pytest.mark.parametrize("number", ["1", "2"])
def test_without_the_extra_it_says_what_to_install(
    start: Start, ledger: Ledger, tmp_path: Path, number: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['prometheus_client'] = None\n")
    worker = start(
        *("-m", "aiotasks.worker", "--health-port", "0", "--processes", number),
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    code, body = ask(worker, "/metrics")
    assert code == 501
    assert "pip install 'django-aiotasks[prometheus]'" in body
    assert ask(worker, "/livez")[0] == 200
    worker.stop()
