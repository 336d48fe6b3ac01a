"""The views ``livez``, ``readyz``, ``metrics``: in the test's own process, and beside an embedded worker."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from django.test import AsyncClient, Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from aiotasks.models import Sample
from aiotasks.web import health
from tests.proxy import Proxy
from tests.worker import tasks
from tests.worker.harness import Ledger, Start, wait_until

FIGURES = {
    "queues": {"default": {"ready": 3, "oldest": 7.5, "scheduled": 2, "running": 1}},
    "failed_hour": 4,
    "workers": 2,
}


@pytest.fixture
def site(settings: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.ROOT_URLCONF = "tests.web.health_site"
    settings.ALLOWED_HOSTS = ["*"]
    monkeypatch.setattr(health, "_samples", {})


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    params = connection.settings_dict
    with Proxy(params["HOST"], int(params["PORT"])) as proxy:
        yield proxy


def samples(text: str) -> dict[str, float]:
    """The values by series; each series must be there once."""
    found = [one for family in text_string_to_metric_families(text) for one in family.samples]
    series = {}
    for one in found:
        labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
        series[f"{one.name}{{{labels}}}"] = one.value
    assert len(series) == len(found)
    return series


def make_sample(age: float) -> None:
    Sample.objects.create(backend="default", at=timezone.now() - timedelta(seconds=age), figures=FIGURES)


async def test_a_process_without_a_worker(site: None) -> None:
    live = await AsyncClient().get("/livez")
    assert (live.status_code, live.content) == (200, b"live\n")
    ready = await AsyncClient().get("/readyz")
    assert (ready.status_code, ready.content) == (200, b"ready\ndatabase of backend default: answers\n")
    values = json.loads((await AsyncClient().get("/readyz?json")).content)
    assert values == {"ready": True, "databases": {"default": True}, "workers": []}


def test_under_wsgi(site: None) -> None:
    assert Client().get("/livez").status_code == 200
    assert Client().get("/readyz").status_code == 200
    make_sample(30)
    found = samples(Client().get("/metrics").content.decode())
    assert found["aiotasks_queue_ready{backend=default,process=site,queue=default}"] == 3


async def test_the_newest_sample_is_shown_with_its_age(site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scrape() -> dict[str, float]:
        return samples((await AsyncClient().get("/metrics")).content.decode())

    assert await scrape() == {}
    await sync_to_async(make_sample)(90)
    assert await scrape() == {}  # it isn't looked up each time
    monkeypatch.setattr(health, "SAMPLE_TIMEOUT", 0.0)
    found = await scrape()
    assert found["aiotasks_queue_oldest_ready_seconds{backend=default,process=site,queue=default}"] == 7.5
    assert found["aiotasks_live_workers{backend=default,process=site}"] == 2
    assert found["aiotasks_sample_age_seconds{backend=default,process=site}"] >= 90
    await sync_to_async(make_sample)(10)
    assert 10 <= (await scrape())["aiotasks_sample_age_seconds{backend=default,process=site}"] < 90


async def test_other_methods_and_formats(site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await AsyncClient().head(path)).status_code == 200
        refused = await AsyncClient().post(path)
        assert (refused.status_code, refused["Allow"]) == (405, "GET, HEAD")
    other = await AsyncClient().get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert other["Content-Type"].startswith("application/openmetrics-text")
    monkeypatch.setitem(sys.modules, "aiotasks.contrib.prometheus", None)
    missing = await AsyncClient().get("/metrics")
    assert missing.status_code == 501
    assert b"django-aiotasks[prometheus]" in missing.content


def test_beside_an_embedded_worker(start: Start, ledger: Ledger, proxy: Proxy) -> None:
    process = start(
        *("-m", "uvicorn", "tests.web.health_site:application", "--port", "0"),
        options={"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 1},
        env={"DJANGO_SETTINGS_MODULE": "tests.web.settings_health", "AIOTASKS_DB_PORT": str(proxy.port)},
    )
    url = re.search(r"running on (http://\S+)", process.wait_for("Uvicorn running on"))
    assert url is not None
    with httpx.Client(base_url=url[1], trust_env=False, timeout=30) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert "worker: ready, running 0 of 24" in client.get("/readyz").text
        tasks.add.enqueue(1, 2)

        def series(start: str) -> list[str]:
            return [one for one in samples(client.get("/metrics").text) if one.startswith(start)]

        wait_until(lambda: series("aiotasks_tasks_finished_total"))
        (finished,) = series("aiotasks_tasks_finished_total")
        assert f"process={process.pid}-0" in finished
        proxy.mode = "refuse"
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/livez").status_code == 200
        values = client.get("/readyz?json").json()
        assert values["databases"] == {"default": False}
        wait_until(lambda: not client.get("/readyz?json").json()["workers"][0]["ready"])
        assert client.get("/metrics").status_code == 200
        proxy.mode = "pass"
        wait_until(lambda: client.get("/readyz").status_code == 200)
    assert process.stop() == -signal.SIGTERM  # uvicorn raises it again once all has ended
