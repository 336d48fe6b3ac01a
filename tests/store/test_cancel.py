"""cancel_jobs and select_cancelled_jobs, and what others make of a task that is to be cancelled."""

from datetime import UTC, datetime, timedelta

import asyncpg

from aiotasks.store.store import Store

from .rows import CANCELLED, claim, claimed, expire, finish, insert, release, rescue, row, worker


async def test_waiting_tasks_fail_at_once(store: Store) -> None:
    ready = await insert(store)
    scheduled = await insert(store, run_after=datetime.now(UTC) + timedelta(hours=1))
    others = await insert(store)
    jobs = await store.cancel_jobs(ready + scheduled, "default", CANCELLED)
    assert sorted(job.id for job in jobs) == sorted(ready + scheduled)
    for job in jobs:
        assert (job.status, job.errors, job.worker_ids) == ("FAILED", [CANCELLED], [])
        assert job.finished_at is not None
    assert [job.id for job in await claim(store, await worker(store))] == others


async def test_a_running_task_is_only_asked(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job, other) = await claimed(store, 2)
    assert await store.select_cancelled_jobs(worker_id) == set()
    (asked,) = await store.cancel_jobs([job.id], "default", CANCELLED)
    assert (asked.status, asked.errors, asked.finished_at) == ("RUNNING", [], None)
    assert await store.select_cancelled_jobs(worker_id) == {job.id}
    since = (await row(conn, job.id))["cancel_requested_at"]
    await store.cancel_jobs([job.id], "default", CANCELLED)
    assert (await row(conn, job.id))["cancel_requested_at"] == since
    # Its owner writes what came of it; and gives back what wasn't to be cancelled.
    assert await release(store, job, other) == {other.id: "default", job.id: None}
    finished = await finish(store, job)
    assert finished.keys() == {job.id}


async def test_what_is_final_stays_as_it_is(store: Store, conn: asyncpg.Connection) -> None:
    _, (job,) = await claimed(store)
    await finish(store, job)
    before = await row(conn, job.id)
    assert await store.cancel_jobs([job.id], "default", CANCELLED) == []
    assert await row(conn, job.id) == before


async def test_another_backends_tasks_are_not_ours_to_cancel(store: Store) -> None:
    ids = await insert(store, backend="other")
    assert await store.cancel_jobs(ids, "default", CANCELLED) == []


async def test_rescue_ends_a_task_that_was_to_be_cancelled(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job, other) = await claimed(store, 2)
    await store.cancel_jobs([job.id], "default", CANCELLED)
    await expire(conn, worker_id)
    rescued = {one.id: one for one in await rescue(store)}
    assert (rescued[job.id].status, rescued[job.id].errors) == ("FAILED", [CANCELLED])
    assert rescued[other.id].status == "READY"
