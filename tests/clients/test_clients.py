"""Packages of others at work with aiotasks: each with real workers, by `nox -s clients`."""

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import transaction
from django.test import Client
from django.utils import timezone
from django_periodic_tasks.models import ScheduledTask, TaskExecution
from django_periodic_tasks.scheduler import PeriodicTaskScheduler
from django_periodic_tasks.sync import sync_code_schedules
from maintenance_tasks import runner
from maintenance_tasks.models import Run
from overseer.models import Job
from wagtail.models import Page
from wagtail.search.backends import get_search_backend

from tests.clients import reports
from tests.clients.site import tasks
from tests.clients.site.models import Item
from tests.worker.harness import Ledger, Process, Start, wait_until

# Seconds that a process may take for all these packages, which may have to be compiled first.
LOADING = 120.0

ENV = {"DJANGO_SETTINGS_MODULE": "tests.clients.settings", "CLIENTS_FOLDER": settings.FOLDER}


@pytest.fixture(autouse=True)
def _empty(database: str) -> None:
    Item.objects.all().delete()


@pytest.fixture
def work(start: Start, ledger: Ledger) -> Iterator[Process]:
    """A worker while the test lasts; at its end nothing is left to do, and it stops cleanly."""
    worker = start("-m", "aiotasks.worker", env=ENV)
    worker.wait_for("connections: at most", timeout=LOADING)
    yield worker
    wait_until(lambda: not ledger.statuses().keys() & {"READY", "RUNNING"})
    assert worker.stop() == 0


def test_overseer(work: Process, ledger: Ledger) -> None:
    """It records tasks by their signals, and retries by enqueueing again in the worker."""
    # In one transaction: django-overseer's receiver of task_enqueued records the job, and a worker
    # that starts the task meanwhile would record another.
    with transaction.atomic():
        tasks.flaky.enqueue("overseer")
    wait_until(lambda: Job.objects.filter(status="SUCCEEDED").exists())
    job = Job.objects.get()
    assert job.args == ["overseer"]
    assert [run.status for run in job.runs.order_by("attempt")] == ["FAILED", "SUCCESSFUL"]
    assert Item.objects.filter(name="overseer").count() == 2


def test_maintenance_tasks(work: Process, ledger: Ledger) -> None:
    Item.objects.bulk_create([Item(name=str(n)) for n in range(10)])
    run = runner.start("tests.clients.site.maintenance_tasks.Backfill")
    wait_until(lambda: Run.objects.get(pk=run.pk).status == Run.Status.SUCCEEDED)
    assert Item.objects.filter(done=True).count() == 10


def test_crontask(work: Process, start: Start, ledger: Ledger) -> None:
    scheduler = start("-m", "django", "crontask", "--no-heartbeat", env=ENV)
    wait_until(lambda: Item.objects.filter(name="crontask").count() >= 2, timeout=LOADING)
    assert scheduler.stop() == 0


def test_periodic_tasks(work: Process, ledger: Ledger) -> None:
    sync_code_schedules()
    ScheduledTask.objects.update(next_run_at=timezone.now() - timedelta(seconds=1))
    PeriodicTaskScheduler(interval=1).tick()
    wait_until(lambda: TaskExecution.objects.filter(status=TaskExecution.Status.COMPLETED).count() == 1)
    assert Item.objects.filter(name="periodic").count() == 1


def test_wagtail(work: Process, ledger: Ledger) -> None:
    """Saving a page enqueues that it is indexed."""
    root = Page.get_first_root_node() or Page.add_root(
        title="Root", content_type=ContentType.objects.get_for_model(Page)
    )
    page = root.add_child(instance=Page(title="Aardvark", slug=f"aardvark-{time.time_ns()}"))
    wait_until(lambda: page.pk in [found.pk for found in get_search_backend().search("aardvark", Page)])
    paths = {row.task_path for row in ledger.rows("SELECT task_path FROM aiotasks_task")}
    assert "modelsearch.tasks.insert_or_update_object_task" in paths


def test_sentry(work: Process, ledger: Ledger) -> None:
    """A failed task is one event, with its exception: the worker's line at ERROR is none. An enqueue is a
    span, which needn't be looked at."""
    messages = [f"sentry {kind} {time.time_ns()}" for kind in ("sync", "async")]
    tasks.fail.enqueue(messages[0])
    tasks.afail.enqueue(messages[1])

    def found() -> dict[str, Any]:
        events = reports.read(settings.FOLDER, "sentry")
        by_message = {
            value["value"]: event
            for event in events
            for value in (event.get("exception") or {}).get("values", [])
        }
        return {message: by_message[message] for message in messages if message in by_message}

    wait_until(lambda: len(found()) == 2)
    wait_until(lambda: all(f"ValueError: {message}" in work.log for message in messages))
    assert found()[messages[0]]["exception"]["values"][-1]["type"] == "ValueError"
    about = [json.dumps(event) for event in reports.read(settings.FOLDER, "sentry")]
    assert [sum(message in event for event in about) for message in messages] == [1, 1]
    assert len(re.findall("ERROR aiotasks.tasks: tests.clients.site.tasks.a?fail failed ", work.log)) == 2


def test_structlog(work: Process, ledger: Ledger) -> None:
    """What was bound at the enqueue is bound where the task starts, in its body, and at its end."""
    word = f"structlog {time.time_ns()}"
    # In one transaction: django-structlog's receiver of task_enqueued hands the context on, and a worker
    # would be quicker sometimes.
    with structlog.contextvars.bound_contextvars(request_id=word), transaction.atomic():
        results = [tasks.log.enqueue(word), tasks.alog.enqueue(word)]

    def events(id: str) -> set[str]:
        lines = reports.read(settings.FOLDER, "structlog")
        return {
            line["event"] for line in lines if line.get("task_id") == id and line.get("request_id") == word
        }

    expected = {"task_started", "from the body", "task_succeeded"}
    wait_until(lambda: all(events(result.id) >= expected for result in results))


def test_opentelemetry(work: Process, ledger: Ledger) -> None:
    """A request has its span, its task's run is part of that trace, and the worker's statements over asyncpg
    have spans."""
    response = Client().get("/enqueue/")
    id = response.json()["id"]
    wait_until(lambda: ledger.task(id).status == "SUCCESSFUL")

    def of_the_task() -> list[dict[str, Any]]:
        spans = reports.read(settings.FOLDER, "spans")
        return [span for span in spans if span.get("messaging.message.id") == id]

    wait_until(lambda: len(of_the_task()) == 2)
    sent, ran = of_the_task()
    assert (sent["messaging.operation.name"], ran["messaging.operation.name"]) == ("send", "process")
    spans = reports.read(settings.FOLDER, "spans")
    assert {span["name"].split()[0] for span in spans if span["trace_id"] == ran["trace_id"]} >= {
        "GET",
        "send",
        "process",
    }
    wait_until(
        lambda: any(
            "UPDATE aiotasks_task" in str(span.get("db.statement", ""))
            for span in reports.read(settings.FOLDER, "spans")
        )
    )


def test_the_checks_are_quiet() -> None:
    call_command("check", fail_level="ERROR")
