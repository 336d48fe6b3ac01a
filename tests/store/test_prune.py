"""prune_jobs, prune_kept_jobs: finished tasks go when their time is over, by the database's clock."""

import asyncio
import math
from datetime import timedelta
from uuid import UUID

import asyncpg

from aiotasks.rows import Status
from aiotasks.store.loop import LoopResources
from aiotasks.store.statements import load
from aiotasks.store.store import Store

from .rows import claim, fail, finish, insert, lane, new_job, worker

EVER = -math.inf
HOUR = 3600.0


async def finished(
    store: Store,
    conn: asyncpg.Connection,
    *ages: float,
    status: str = "SUCCESSFUL",
    backend: str = "default",
    keep_result: float | None = None,
) -> list[UUID]:
    """Tasks that were finished so many seconds ago."""
    ids = await insert(store, len(ages), backend=backend, keep_result=keep_result)
    worker_id = await worker(store, backend=backend)
    jobs = await claim(store, worker_id, backend=backend, loop=lane(slots=len(ages)))
    await (finish if status == "SUCCESSFUL" else fail)(store, *jobs)
    await conn.executemany(
        "UPDATE aiotasks_task SET finished_at = now() - make_interval(secs => $2) WHERE id = $1",
        list(zip(ids, ages, strict=True)),
    )
    return ids


async def left(conn: asyncpg.Connection) -> list[UUID]:
    return [id for (id,) in await conn.fetch("SELECT id FROM aiotasks_task ORDER BY id")]


async def test_what_is_older_than_its_status_is_kept_goes(store: Store, conn: asyncpg.Connection) -> None:
    _, new = await finished(store, conn, 3601, 3500)
    failed = await finished(store, conn, 9000, 3500, status="FAILED")
    (elsewhere,) = await finished(store, conn, 9000, backend="other")
    number, last, _ = await store.prune_jobs("default", Status.SUCCESSFUL, HOUR, EVER, 10)
    assert (number, await left(conn)) == (1, sorted([new, *failed, elsewhere]))
    assert timedelta(seconds=last).total_seconds() < await conn.fetchval(
        "SELECT date_part('epoch', now() - interval '1 hour')"
    )
    assert (await store.prune_jobs("default", Status.FAILED, 2 * HOUR, EVER, 10)).number == 1
    assert await left(conn) == sorted([new, failed[1], elsewhere])
    assert await store.prune_jobs("default", Status.FAILED, 2 * HOUR, EVER, 10) == (0, EVER, 0)


async def test_a_tasks_own_time_comes_first(store: Store, conn: asyncpg.Connection) -> None:
    (short,) = await finished(store, conn, 600, keep_result=500)
    (long,) = await finished(store, conn, 10 * HOUR, keep_result=11 * HOUR, status="FAILED")
    (ever,) = await finished(store, conn, 10 * HOUR, keep_result=math.inf)
    assert (await store.prune_jobs("default", Status.SUCCESSFUL, 60.0, EVER, 10)).number == 0
    assert (await store.prune_kept_jobs("default", EVER, 10)).number == 1
    assert await left(conn) == sorted([long, ever])
    assert short not in await left(conn)
    assert (await store.prune_kept_jobs("other", EVER, 10)).number == 0
    await conn.execute("UPDATE aiotasks_task SET finished_at = now() - interval '12 hours'")
    assert (await store.prune_kept_jobs("default", EVER, 10)).number == 1
    assert await left(conn) == [ever]


async def test_for_ever(store: Store, conn: asyncpg.Connection) -> None:
    ids = await finished(store, conn, 10_000 * 86_400)
    assert (await store.prune_jobs("default", Status.SUCCESSFUL, None, EVER, 10)).number == 0
    assert await left(conn) == ids


async def test_what_has_just_been_finished_stays_for_a_minute(store: Store, conn: asyncpg.Connection) -> None:
    """Its worker may not have had the reply, and looks whether the row has its result."""
    new, _ = await finished(store, conn, 50, 70)
    kept, _ = await finished(store, conn, 50, 70, keep_result=0)
    assert (await store.prune_jobs("default", Status.SUCCESSFUL, 0.0, EVER, 10)).number == 1
    assert (await store.prune_kept_jobs("default", EVER, 10)).number == 1
    assert await left(conn) == sorted([new, kept])


async def test_only_finished_tasks_go(store: Store, conn: asyncpg.Connection) -> None:
    """Whatever else somebody has written into the row."""
    waiting = [*await insert(store), *await insert(store, keep_result=0.0)]
    await conn.execute("UPDATE aiotasks_task SET finished_at = now() - interval '1 year', run_after = now()")
    for status in ("READY", "SCHEDULED", "RUNNING"):
        await conn.execute("UPDATE aiotasks_task SET status = $1", status)
        for prunable in (Status.SUCCESSFUL, Status.FAILED):
            assert (await store.prune_jobs("default", prunable, 0.0, EVER, 10)).number == 0
        assert (await store.prune_kept_jobs("default", EVER, 10)).number == 0
    assert await left(conn) == sorted(waiting)


async def test_the_oldest_first_and_no_more_than_asked_for(store: Store, conn: asyncpg.Connection) -> None:
    for keep_result in (None, 1.0):
        ids = await finished(store, conn, 5 * HOUR, 7 * HOUR, 6 * HOUR, keep_result=keep_result)
        since, gone = EVER, 0
        for stay in ([ids[0]], []):
            if keep_result is None:
                number, since, _ = await store.prune_jobs("default", Status.SUCCESSFUL, HOUR, since, 2)
            else:
                number, since, _ = await store.prune_kept_jobs("default", since, 2)
            gone += number
            assert await left(conn) == stay
        assert gone == 3


async def test_a_batch_begins_where_the_last_has_ended(store: Store, conn: asyncpg.Connection) -> None:
    for keep_result in (None, 1.0):
        old, new = await finished(store, conn, 7 * HOUR, 5 * HOUR, keep_result=keep_result)
        since = await conn.fetchval("SELECT date_part('epoch', now() - interval '6 hours')")
        if keep_result is None:
            number, last, _ = await store.prune_jobs("default", Status.SUCCESSFUL, HOUR, since, 10)
        else:
            number, last, _ = await store.prune_kept_jobs("default", since, 10)
        assert (number, await left(conn)) == (1, [old])
        assert abs(last - since - HOUR) < 60
        await conn.execute("DELETE FROM aiotasks_task")
        assert new != old


async def test_a_batch_says_in_which_time_its_tasks_were_finished(
    store: Store, conn: asyncpg.Connection
) -> None:
    await finished(store, conn, 7 * HOUR, 5 * HOUR, 4 * HOUR)
    await finished(store, conn, 7 * HOUR, 5 * HOUR, 4 * HOUR, keep_result=1.0)
    for batch in (
        await store.prune_jobs("default", Status.SUCCESSFUL, HOUR, EVER, 2),
        await store.prune_kept_jobs("default", EVER, 2),
    ):
        assert batch.number == 2
        assert abs(batch.span - 2 * HOUR) < 60


async def test_a_delete_does_not_wait_for_the_disk(store: Store, conn: asyncpg.Connection) -> None:
    """That is local to its transaction."""
    await finished(store, conn, 1.0)
    async with conn.transaction():
        for name, arguments in (
            ("prune_jobs", ("default", "SUCCESSFUL", HOUR, EVER, 10)),
            ("prune_kept_jobs", ("default", EVER, 10)),
        ):
            await conn.execute("SET LOCAL synchronous_commit = 'on'")
            await conn.fetch(load(name).sql, *arguments)
            assert await conn.fetchval("SHOW synchronous_commit") == "off"
    assert await conn.fetchval("SHOW synchronous_commit") == "on"


async def test_pruning_waits_for_nobody(store: Store, conn: asyncpg.Connection) -> None:
    locked, free = await finished(store, conn, 7 * HOUR, 5 * HOUR)
    kept, _ = await finished(store, conn, 7 * HOUR, 5 * HOUR, keep_result=1.0)
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = ANY($1) FOR UPDATE", [locked, kept])
        assert (await store.prune_jobs("default", Status.SUCCESSFUL, HOUR, EVER, 10)).number == 1
        assert (await store.prune_kept_jobs("default", EVER, 10)).number == 1
        assert await left(conn) == sorted([locked, kept])
    assert free not in await left(conn)


async def test_pruners_work_side_by_side(held: LoopResources, conn: asyncpg.Connection) -> None:
    await finished(held.store, conn, *[7 * HOUR] * 200)
    runs = await asyncio.gather(
        *(held.store.prune_jobs("default", Status.SUCCESSFUL, HOUR, EVER, 30) for _ in range(8))
    )
    assert sum(run.number for run in runs) == 200 - len(await left(conn))
    assert max(run.number for run in runs) == 30


async def test_the_time_is_stored_with_the_task(store: Store) -> None:
    jobs = [new_job(keep_result=keep) for keep in (None, 1.5, math.inf)]
    await store.insert_jobs(jobs)
    await store.insert_job(single := new_job(keep_result=math.inf))
    found = await store.select_jobs([UUID(job.id) for job in [*jobs, single]], "default")
    assert sorted(job.policy.keep_result or 0 for job in found) == [0, 1.5, math.inf, math.inf]
    claimed = await claim(store, await worker(store))
    assert {job.id: job.policy.keep_result for job in claimed} == {
        job.id: job.policy.keep_result for job in found
    }
