"""What a worker reports of itself in its row, for other processes to see."""

import asyncio
from typing import Any
from unittest.mock import patch

import pytest

import aiotasks
from aiotasks.worker.figures import LONGEST_NAME, MOST_OUTLASTING, Figures, Gauges, Outlasting
from aiotasks.worker.running.watchdog import Blocked
from tests.site import default_task_backend
from tests.store.rows import new_job

from . import tasks, timeout_tasks
from .harness import TIMEOUT, Configure, Ledger, Start, until, wait_until

REPORT = "SELECT report FROM aiotasks_worker WHERE report IS NOT NULL"


def test_a_worker_whose_loop_is_blocked_reports_by_whom(start_worker: Start, ledger: Ledger) -> None:
    start_worker(options={"LEASE_TIMEOUT": 1.5})
    result = tasks.block.enqueue(30.0)
    report = wait_until(
        lambda: ledger.value("SELECT report FROM aiotasks_worker WHERE report->>'blocked' <> ''")
    )
    assert result.id in report["blocked"]["task"] or tasks.block.module_path in report["blocked"]["task"]
    assert report["blocked"]["seconds"] >= 1.0
    assert report["lag"] > 0.5
    assert (report["tasks"], report["draining"], report["outlasting"]) == (0, False, [])


async def test_threads_that_outlast_their_time_are_reported(configure: Configure, ledger: Ledger) -> None:
    timeout_tasks.seen.clear()
    timeout_tasks.released.clear()
    configure(LEASE_TIMEOUT=1.5)
    result = await timeout_tasks.waits.aenqueue()
    done = await tasks.add.aenqueue(1, 2)
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.task(done.id).status == "SUCCESSFUL")
        await until(lambda: ledger.task(result.id).status == "FAILED")
        await until(lambda: (ledger.value(REPORT) or {}).get("tasks") == 2)
        report = ledger.value(REPORT)
        timeout_tasks.released.set()
        await until(lambda: ledger.value(REPORT)["outlasting"] == [])
        figures = worker.engine.gauges.read()
    (one,) = report["outlasting"]
    assert (one["id"], one["path"], one["lane"]) == (result.id, timeout_tasks.waits.module_path, "thread")
    assert one["seconds"] >= 0
    assert (report["tasks"], report["blocked"], report["draining"]) == (2, None, False)
    assert report["rss"] > 1_000_000
    assert report["orm_threads"][0] <= report["orm_threads"][1]
    assert (figures.used, figures.pending, figures.running) == ({"loop": 0, "thread": 0}, 0, {})
    assert figures.slots == {"loop": 100, "thread": 10}


async def test_tasks_that_expire_are_none_that_have_ended_here(configure: Configure, ledger: Ledger) -> None:
    """``--max-tasks`` counts these: a sweep that fails many tasks wears out no process."""
    await default_task_backend.aenqueue_many(tasks.add.using(expires=0.01), [((1, 2), {})] * 3)
    await tasks.add.aenqueue(1, 2)
    await asyncio.sleep(0.02)  # what the tasks are given
    async with aiotasks.Worker() as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        await until(lambda: worker.outcomes() == (1, 3, 0))
        assert worker.engine.gauges.read().ended == 1


async def test_a_report_that_cannot_be_made_costs_no_lease(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    configure(LEASE_TIMEOUT=1.5)
    with patch.object(Gauges, "read", side_effect=ZeroDivisionError):
        async with aiotasks.Worker() as worker:
            worker_id = worker.engine.lease.worker_id
            await until(lambda: "A worker cannot report on itself" in caplog.text)
            await until(lambda: ledger.value("SELECT listening FROM aiotasks_worker"))
            assert worker.engine.lease.worker_id == worker_id
            assert ledger.value("SELECT count(*) FROM aiotasks_worker WHERE report IS NULL") == 1


def test_a_report_stays_small_and_is_text_that_postgresql_reads(ledger: Ledger) -> None:
    names = "\0\ud800" + "é" * 300
    job: Any = new_job()
    figures = Figures(
        worker_id=None,
        lease=-1.0,
        slots={"loop": 1, "thread": 0},
        used={"loop": 0, "thread": 0},
        running={},
        ended=0,
        pending=0,
        orm_threads=(0, 0),
        stuck_threads=50,
        lag=0.0,
        blocked=Blocked(2.0, "\0\ud800"),
        outlasting=[Outlasting(job.id, names, "thread", 1e6)] * 50,
        rss=1,
        stalled=None,
        draining=True,
    )
    query = "SELECT json_array_length(%s::json->'outlasting'), %s::jsonb->'blocked'->>'task'"
    ((number, blocked),) = ledger.rows(query, figures.report(), figures.report())
    assert (number, blocked) == (MOST_OUTLASTING, "\ufffd?")
    assert len(figures.report()) < MOST_OUTLASTING * (LONGEST_NAME * 6 + 120)


async def test_metrics_follow_the_worker(configure: Configure) -> None:
    worker = aiotasks.Worker(metrics=True)
    assert worker.figures() is None
    await tasks.add.aenqueue(1, 2)
    async with worker:
        await worker.wait_until_empty()
        found = {
            (one.name, *one.labels.values()): one.value for each in worker.families() for one in each.samples
        }
    assert found["aiotasks_tasks_finished_total", tasks.add.module_path, "default", "succeeded"] == 1
    assert found["aiotasks_tasks_started_total",] == 1
    assert found["aiotasks_worker_slots", "thread"] == 10
    assert found["aiotasks_worker_lease_seconds",] > 0
    assert not [one for one in aiotasks.Worker().families() if "tasks" in one.name]
