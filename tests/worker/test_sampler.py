"""The figures of the queues: read once a minute, by whichever worker comes first."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import aiotasks
from aiotasks import queue_figures
from aiotasks.store.loop import resources
from aiotasks.store.store import Store
from aiotasks.worker.maintenance import sampler as module
from aiotasks.worker.maintenance.sampler import Sampler
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, until

SAMPLES = "SELECT figures FROM aiotasks_sample ORDER BY at"


def sampler(*, shows: bool = True) -> Sampler:
    return Sampler(resources(default_task_backend.config).store, backend="default", shows=shows)


@pytest.fixture
async def within_a_minute(ledger: Ledger) -> None:
    """There are some seconds left of the minute by the database's clock."""
    await until(lambda: ledger.value("SELECT extract(second FROM clock_timestamp()) < 50"))


def shown(one: Sampler) -> dict[tuple[str, ...], float]:
    """The metrics, by name and queue."""
    return {
        (each.name, *(value for label, value in each.labels.items() if label != "backend")): each.value
        for family in one.families()
        for each in family.samples
    }


async def test_two_workers_read_the_figures_once_and_both_show_them(
    configure: Configure, ledger: Ledger, within_a_minute: None
) -> None:
    await default_task_backend.aenqueue_many(tasks.add, [((1, n), {}) for n in range(3)])
    await tasks.add.using(queue_name="later", run_after=datetime.now(UTC) + timedelta(hours=1)).aenqueue(1, 2)
    first, second, silent = sampler(), sampler(), sampler(shows=False)
    assert first.families() == []
    await asyncio.gather(first.sample(), second.sample(), silent.sample())
    await asyncio.gather(first.sample(), second.sample())  # who was not first had no figures to read yet
    (figures,) = [one for (one,) in ledger.rows(SAMPLES)]
    assert figures["queues"]["default"]["ready"] == 3
    assert figures["queues"]["later"] == {
        "ready": 0,
        "ready_capped": False,
        "oldest": None,
        "scheduled": 1,
        "running": 0,
        "workers": 0,
    }
    assert (figures["workers"], figures["slots"]) == (0, {"loop": 0, "thread": 0})
    for one in (first, second):
        found = shown(one)
        assert found["aiotasks_queue_ready", "default"] == 3
        assert found["aiotasks_queue_oldest_ready_seconds", "default"] > 0
        assert found["aiotasks_queue_scheduled", "later"] == 1
        assert (found["aiotasks_live_workers",], found["aiotasks_failed_last_hour",]) == (0, 0)
        assert 0 <= found["aiotasks_sample_age_seconds",] < 120
    ledger.connection.execute("UPDATE aiotasks_sample SET at = at - interval '1 minute'")
    await second.sample()
    assert len(ledger.rows(SAMPLES)) == 2


async def test_a_worker_that_dies_over_it_delays_nobody(
    configure: Configure, ledger: Ledger, within_a_minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sampler(), sampler()
    with monkeypatch.context() as patch:

        async def dies(*args: Any) -> None:
            raise asyncio.CancelledError

        patch.setattr(Store, "finish_sample", dies)
        with pytest.raises(asyncio.CancelledError):
            await first.sample()
    await second.sample()
    assert second.families() == []
    assert ledger.rows(SAMPLES) == [(None,)]
    ledger.connection.execute("UPDATE aiotasks_sample SET at = at - interval '1 minute'")
    await second.sample()
    assert shown(second)["aiotasks_live_workers",] == 0
    assert [one is None for (one,) in ledger.rows(SAMPLES)] == [True, False]


async def test_samples_are_kept_for_a_week(configure: Configure, ledger: Ledger) -> None:
    for age, backend in (("8 days", "default"), ("6 days", "default"), ("8 days", "other")):
        ledger.connection.execute(
            "INSERT INTO aiotasks_sample (backend, at) VALUES (%s, now() - %s::interval)", [backend, age]
        )
    await sampler().sample()
    left = ledger.rows("SELECT backend, now() - at > '7 days' AS old FROM aiotasks_sample ORDER BY at")
    assert left == [("other", True), ("default", False), ("default", False)]


async def test_figures_that_cannot_be_read_in_time_leave_nothing_and_are_told_of_once(
    configure: Configure,
    ledger: Ledger,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = sampler()
    with monkeypatch.context() as patch, psycopg.connect(database) as holder:
        patch.setattr(module, "READ_TIMEOUT", 0.2)
        holder.execute("LOCK TABLE aiotasks_task")  # so no statement about tasks has an answer
        await one.sample()
        assert ledger.rows(SAMPLES) == [(None,)]
        ledger.connection.execute("UPDATE aiotasks_sample SET at = at - interval '8 days'")
        await one.sample()
    assert ledger.rows(SAMPLES) == [(None,)]
    assert caplog.text.count("The figures of the queues can't be read in time") == 1
    ledger.connection.execute("UPDATE aiotasks_sample SET at = at - interval '1 hour'")
    await one.sample()
    assert shown(one)["aiotasks_live_workers",] == 0


async def test_the_queues_beyond_a_number_are_summed(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_QUEUES", 2)
    for number, name in enumerate(("a", "b", "c", "d", "other")):
        await default_task_backend.aenqueue_many(
            tasks.add.using(queue_name=name), [((1, 2), {}) for _ in range(number + 1)]
        )
    await sampler().sample()
    ((figures,),) = ledger.rows(SAMPLES)
    assert {name: one["ready"] for name, one in figures["queues"].items()} == {"a": 1, "b": 2, "other": 12}
    assert figures["queues"]["other"]["oldest"] > 0


async def test_a_worker_with_metrics_shows_the_figures_from_its_start(configure: Configure) -> None:
    async with aiotasks.Worker(queues=["default", "idle"], metrics=True) as worker:
        await until(worker.engine.sampler.families)
        names = {(one.name, one.labels.get("queue")) for each in worker.families() for one in each.samples}
    assert ("aiotasks_live_workers", None) in names


async def test_a_role_without_the_table_is_told_once_and_works(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.connection.execute("ALTER TABLE aiotasks_sample RENAME TO hidden")
    try:
        async with aiotasks.Worker(metrics=True) as worker:
            await until(lambda: "Maintenance fails until this is fixed part=sampler" in caplog.text)
            result = await tasks.add.aenqueue(1, 2)
            await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
            assert worker.families()
    finally:
        ledger.connection.execute("ALTER TABLE hidden RENAME TO aiotasks_sample")


def test_the_figures_of_a_sample_are_text_that_any_driver_writes(database: str) -> None:
    """Their names are the queues', whatever these are."""
    name = "'%s\" \\ {é}"
    counts = {"ready": 1, "oldest": None, "scheduled": 0, "running": 0}
    with psycopg.connect(database) as sql:
        figures = {"queues": {name: counts}, "failed_hour": 2, "workers": 1}
        row = sql.execute("SELECT %s::json", [json.dumps(figures)]).fetchone()
    assert row is not None
    families = queue_figures.families_of(row[0], 5.0, "default")
    assert [one.samples[0].value for one in families] == [1, 0, 0, 0, 2, 1, 5.0]
    assert families[0].samples[0].labels == {"backend": "default", "queue": name}
