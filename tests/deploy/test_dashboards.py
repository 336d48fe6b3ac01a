"""docs/deploy/alerts.yaml, grafana.json, the scalers, and the pages about them: every metric exists."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ..conftest import ROOT
from ..unit.test_docs import HOME, anchors
from ..unit.test_reference import first_cells
from ..worker import tasks
from ..worker.harness import Ledger, Start, wait_until
from ..worker.test_health import address_of
from .files import DEPLOY, manifests

_METRIC = re.compile(r"\baiotasks_\w+")
_LABELS = re.compile(r"(?:\b(?:by|on) \(([\w, ]+)\)|\{([^}$]*(?:\$queue[^}]*)?)\})")

# Of Prometheus and of histograms, not the worker's.
OTHERS_LABELS = {"instance", "le"}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text("utf-8"))["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana.json").read_text("utf-8")))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """All of PromQL, with values in the places of Grafana's variables."""
    for alert in alerts():
        yield alert["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$queue", ".*")
    (keda,) = manifests("keda")
    yield keda["spec"]["triggers"][0]["metadata"]["query"]


def test_every_metric_and_label_is_a_workers(start: Start, ledger: Ledger) -> None:
    worker = start("-m", "aiotasks.worker", "--health-port", "0", options={"POLL_INTERVAL": 1})
    tasks.add.enqueue(1, 2)
    tasks.fail.enqueue("ValueError")

    def scraped() -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{address_of(worker)}/metrics", timeout=20) as response:
            return {one.name: one for one in text_string_to_metric_families(response.read().decode())}

    wait_until(lambda: len(scraped()["aiotasks_tasks_finished"].samples) == 2)
    wait_until(lambda: scraped().get("aiotasks_sample_age_seconds"))
    families = scraped()
    assert worker.stop() == 0
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    names = {f"{name}{suffix}" for name, one in families.items() for suffix in suffixes[one.type]}
    # A histogram and a gauge may have no samples yet, and no labels.
    labels = {label for one in families.values() for sample in one.samples for label in sample.labels}

    used = {name for expression in expressions() for name in _METRIC.findall(expression)}
    (hpa,) = manifests("hpa")
    metric = hpa["spec"]["metrics"][0]["external"]["metric"]
    assert used | {metric["name"]} <= names
    assert set(metric["selector"]["matchLabels"]) <= labels
    found = {
        label
        for expression in expressions()
        for by, matchers in _LABELS.findall(expression)
        for label in [*re.findall(r"\w+", by), *re.findall(r"(\w+)(?==|!~|=~)", matchers)]
    }
    assert {"queue", "task", "outcome"} <= found
    assert found <= labels | OTHERS_LABELS | {"part"}

    page = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    assert sorted(first_cells(page.partition("\n## ")[2])) == sorted(
        f"{name}_total" if one.type == "counter" else name for name, one in families.items()
    )


def test_alerts_lead_to_their_runbooks() -> None:
    page = ROOT / "docs/howto/monitor.md"
    found = set(anchors(page))
    for alert in alerts():
        address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert address == f"{HOME}docs/howto/monitor.md"
        assert anchor in found
        assert anchor == alert["alert"].lower()
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]


def test_dead_workers_wake_somebody_though_the_last_figures_stay() -> None:
    """The number of live workers among them is at least 1, for a worker has counted it."""
    pages = [alert["expr"] for alert in alerts() if alert["labels"]["severity"] == "page"]
    assert any("aiotasks_sample_age_seconds" in expression for expression in pages)


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {one["name"] for one in dashboard()["templating"]["list"]} | {"__rate_interval"}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= variables
            assert target["expr"].count("(") == target["expr"].count(")")


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool isn't installed")
def test_prometheus_reads_the_expressions(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", DEPLOY / "alerts.yaml"], check=True)
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    copy = tmp_path / "panels.yaml"
    copy.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", copy], check=True)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool isn't installed")
def test_when_alerts_fire() -> None:
    subprocess.run(["promtool", "test", "rules", Path(__file__).with_name("alerts_test.yaml")], check=True)
