"""run_jobs_now: tasks whose time hasn't come become READY, and keep what their callers have asked for."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from aiotasks.rows import Status, time_of
from aiotasks.store.bulk import DueJob, Meant
from aiotasks.store.store import Store

from .limits import LINE, ONE, claim_keys, ids_of
from .rows import CANCELLED, claim, claimed, finish, insert, release, row, worker

SCHEDULED = Meant("default", [Status.SCHEDULED])
HOUR = timedelta(hours=1)


async def run_now(store: Store, *ids: UUID) -> list[DueJob]:
    return await store.run_jobs_now(ids, SCHEDULED)


async def test_a_task_has_the_place_of_a_new_one(store: Store, conn: asyncpg.Connection) -> None:
    asked = datetime.now(UTC) + HOUR
    (before,) = await insert(store)
    (later,) = await insert(store, run_after=asked)
    assert await run_now(store, later) == [(later, "default", "loop")]
    (behind,) = await insert(store)
    assert [job.id for job in await claim(store, await worker(store))] == [before, later, behind]
    (found,) = await store.select_jobs([later], "default")
    assert time_of(found.run_after) == asked
    assert (await row(conn, later))["run_after"] < asked


async def test_a_retry_comes_at_once_and_counts_on(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store)
    await release(store, job, delay=3600.0, error="{}")
    assert await run_now(store, job.id) == [(job.id, "default", "loop")]
    (again,) = await claim(store, worker_id)
    assert (again.id, again.failures, len(again.errors)) == (job.id, 1, 1)
    (found,) = await store.select_jobs([job.id], "default")
    assert found.run_after is None  # as its caller has asked
    # A second delay doesn't take the time of the first for the caller's.
    await release(store, again, delay=3600.0, error="{}")
    (found,) = await store.select_jobs([job.id], "default")
    assert found.run_after is None


async def test_only_scheduled_tasks_of_the_backend(store: Store, conn: asyncpg.Connection) -> None:
    later = datetime.now(UTC) + HOUR
    (ready,) = await insert(store)
    (cancelled,) = await insert(store, run_after=later)
    await store.cancel_jobs([cancelled], "default", CANCELLED)
    others = await insert(store, backend="other", run_after=later)
    before = {id: await row(conn, id) for id in (ready, cancelled, *others)}
    assert await run_now(store, *before) == []
    assert {id: await row(conn, id) for id in before} == before


async def test_what_is_locked_is_left(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await insert(store, 2, run_after=datetime.now(UTC) + HOUR)
    lock = conn.transaction()
    await lock.start()
    await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", first)
    async with asyncio.timeout(10):
        assert [id for id, *_ in await run_now(store, first, second)] == [second]
    await lock.rollback()
    assert (await row(conn, first))["status"] == "SCHEDULED"


@pytest.mark.parametrize("ordered", [None, "stop"])
async def test_it_is_in_the_line_of_its_key_as_if_enqueued_now(store: Store, ordered: str | None) -> None:
    (before,) = await insert(store, limit_key="l", ordered=ordered)
    (later,) = await insert(store, limit_key="l", ordered=ordered, run_after=datetime.now(UTC) + HOUR)
    assert await run_now(store, later) == [(later, "default", "loop+")]
    (behind,) = await insert(store, limit_key="l", ordered=ordered)
    me = await worker(store)
    for id in (before, later, behind):
        (job,) = (await claim_keys(store, me, rules=[LINE if ordered else ONE], slots=1)).jobs
        assert job.id == id
        await finish(store, job)


async def test_a_line_that_waits_for_a_retry_goes_on(store: Store, conn: asyncpg.Connection) -> None:
    """With the place that it has: nothing else of the key has started meanwhile."""
    first, _ = await insert(store, 2, limit_key="l", ordered="continue")
    me = await worker(store)
    (job,) = (await claim_keys(store, me, rules=[LINE])).jobs
    place = (await row(conn, first))["limit_place"]
    await release(store, job, delay=3600.0, error="{}")
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == []
    await run_now(store, first)
    assert (await row(conn, first))["limit_place"] == place
    assert ids_of(await claim_keys(store, me, rules=[LINE])) == [first]
