"""``expires``: what claims leave out, and what expire_jobs makes of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from aiotasks.store.loop import LoopResources
from aiotasks.store.store import Store

from .rows import claim, claimed, expire, finish, insert, lane, release, rescue, row, worker

EXPIRED = '{"class": "aiotasks.exceptions.TaskExpired", "traceback": "expired"}'


async def pass_by(conn: asyncpg.Connection, *ids: UUID) -> None:
    """Let the time of these tasks be over."""
    await conn.execute(
        "UPDATE aiotasks_task SET expires_at = clock_timestamp() - interval '1 s' WHERE id = ANY($1)", ids
    )


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_an_expired_task_is_not_claimed(store: Store, conn: asyncpg.Connection, kind: str) -> None:
    """Although no sweep has come by yet; those behind it are."""
    ids = await insert(store, 4, expires=3600.0, lane=kind)
    ids += await insert(store, 1, lane=kind)
    await pass_by(conn, ids[0], ids[2])
    lanes: dict[str, Any] = {kind: lane(slots=10)}
    jobs = await claim(store, await worker(store), **lanes)
    assert [job.id for job in jobs] == [ids[1], ids[3], ids[4]]


async def test_a_suspect_that_has_expired_is_not_claimed(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store, expires=3600.0)
    await conn.execute("UPDATE aiotasks_task SET crashes = 2, max_crashes = 5")
    me = await worker(store)
    await pass_by(conn, id)
    assert await store.claim_suspect(me, UUID(int=1), "default", "loop", None) == []
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp() + interval '1 h'")
    assert len(await store.claim_suspect(me, UUID(int=1), "default", "loop", None)) == 1


async def test_the_time_counts_from_when_the_task_is_due(store: Store, conn: asyncpg.Connection) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    (scheduled,) = await insert(store, expires=60.0, run_after=later)
    (ready,) = await insert(store, expires=60.0, run_after=datetime.now(UTC) - timedelta(hours=1))
    assert (await row(conn, scheduled))["expires_at"] == later + timedelta(seconds=60)
    assert (await row(conn, ready))["expires_at"] > datetime.now(UTC)
    assert await store.expire_jobs("default", EXPIRED, 10) == []


async def test_the_sweep_fails_what_waits_and_nothing_else(store: Store, conn: asyncpg.Connection) -> None:
    running_on, (runs,) = await claimed(store, expires=3600.0)
    (ready, kept) = await insert(store, 2, expires=3600.0)
    (without,) = await insert(store)
    (scheduled,) = await insert(store, expires=3600.0, run_after=datetime.now(UTC) + timedelta(hours=1))
    (others,) = await insert(store, expires=3600.0, backend="other")
    await pass_by(conn, runs.id, ready, scheduled, others)
    jobs = await store.expire_jobs("default", EXPIRED, 10)
    assert sorted(job.id for job in jobs) == sorted([ready, scheduled])
    for job in jobs:
        assert (job.status, job.errors, job.worker_ids) == ("FAILED", [EXPIRED], [])
        assert job.finished_at is not None
        assert job.started_at is None
    assert await store.expire_jobs("default", EXPIRED, 10) == []
    assert (await finish(store, runs)).keys() == {runs.id}  # what runs goes on
    assert [job.id for job in await claim(store, running_on)] == [kept, without]
    assert (await row(conn, others))["status"] == "READY"


async def test_those_that_expired_first_come_first(store: Store, conn: asyncpg.Connection) -> None:
    ids = await insert(store, 3, expires=3600.0)
    for age, id in enumerate(ids):
        await conn.execute(
            "UPDATE aiotasks_task SET expires_at = clock_timestamp() - $2::float8 * interval '1 s' "
            "WHERE id = $1",
            id,
            1.0 + age,
        )
    jobs = await store.expire_jobs("default", EXPIRED, 2)
    assert sorted(job.id for job in jobs) == sorted(ids[1:])


async def test_what_comes_back_is_not_started_too_late(store: Store, conn: asyncpg.Connection) -> None:
    """A rescue, a release and a promotion renew nothing."""
    me, (lost,) = await claimed(store, expires=3600.0)
    _, (released, snoozed) = await claimed(store, 2, expires=3600.0)
    (due,) = await insert(store, expires=3600.0, run_after=datetime.now(UTC) + timedelta(hours=1))
    await pass_by(conn, lost.id, released.id, snoozed.id, due)
    await release(store, released)
    await release(store, snoozed, delay=3600.0)
    await conn.execute("UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE id = $1", due)
    assert len(await store.promote_due_jobs("default", 10)) == 1
    await expire(conn, me)
    assert len(await rescue(store)) == 1
    assert await claim(store, await worker(store)) == []
    jobs = await store.expire_jobs("default", EXPIRED, 10)
    assert sorted(job.id for job in jobs) == sorted([lost.id, released.id, snoozed.id, due])


async def test_a_row_that_another_holds_waits_by_itself(store: Store, conn: asyncpg.Connection) -> None:
    """So do nested errors, which aiotasks doesn't write."""
    first, second = await insert(store, 2, expires=3600.0)
    await pass_by(conn, first, second)
    await conn.execute(
        "UPDATE aiotasks_task SET errors = ARRAY[ARRAY['{}'::json], ARRAY['{}'::json]] WHERE id = $1", second
    )
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", first)
        (job,) = await store.expire_jobs("default", EXPIRED, 10)
        assert (job.id, job.errors) == (second, [EXPIRED])
    assert [job.id for job in await store.expire_jobs("default", EXPIRED, 10)] == [first]


async def test_a_task_is_expired_or_claimed_never_both(held: LoopResources, conn: asyncpg.Connection) -> None:
    """Sweeps and claims side by side, while the time passes."""
    ids = await insert(held.store, 400, expires=3600.0)
    await conn.execute(
        "UPDATE aiotasks_task SET expires_at = clock_timestamp() + random() * interval '0.3 s' "
        "WHERE id = ANY($1)",
        ids,
    )
    me = await worker(held.store)
    expired: list[UUID] = []
    started: list[UUID] = []

    async def sweep() -> None:
        while len(expired) + len(started) < len(ids):
            expired.extend(job.id for job in await held.store.expire_jobs("default", EXPIRED, 20))

    async def take() -> None:
        while len(expired) + len(started) < len(ids):
            started.extend(job.id for job in await claim(held.store, me, loop=lane(slots=2)))

    async with asyncio.timeout(30):
        await asyncio.gather(sweep(), sweep(), take(), take())
    assert sorted(expired + started) == sorted(ids)
    assert expired
    assert started
    late = await conn.fetchval(
        "SELECT count(*) FROM aiotasks_task WHERE status = 'RUNNING' AND last_attempted_at >= expires_at"
    )
    assert late == 0
