"""register_worker, renew_lease, remove_worker, remove_dead_workers."""

import uuid
from datetime import timedelta

import asyncpg

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.store.store import Store

from .rows import claim, claimed, expire, finish, insert, worker


async def test_a_worker_is_entered_with_what_it_says_of_itself(
    store: Store, conn: asyncpg.Connection
) -> None:
    id = uuid.uuid4()
    await store.register_worker(id, "default", "host", 42, ["a", "b"], 7, 3, "0.1", 30.0)
    await store.register_worker(id, "default", "twice", 1, [], 1, 1, "0", 1.0)  # the reply was lost
    (found,) = await conn.fetch("SELECT *, lease_expires_at - started_at AS lease FROM aiotasks_worker")
    assert (found["id"], found["backend"], found["host"], found["pid"]) == (id, "default", "host", 42)
    assert (found["queues"], found["concurrency"], found["threads"]) == (["a", "b"], 7, 3)
    assert found["lease"] == timedelta(seconds=30)


async def test_a_lease_is_renewed_while_its_row_stands(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 53 of docs/faults.md: also one that has expired, as nobody has missed the worker yet."""
    worker_id = await worker(store)
    await expire(conn, worker_id)
    await insert(store)
    assert await claim(store, worker_id) == []
    assert await store.renew_lease(worker_id, 60.0) is False  # whoever renews it learns of it first
    assert await claim(store, worker_id) == []
    assert await store.renew_lease(worker_id, 60.0, even_expired=True) is True
    assert len(await claim(store, worker_id)) == 1
    assert await store.renew_lease(worker_id, 60.0) is True


async def test_a_lease_whose_row_has_gone_stays_lost(store: Store, conn: asyncpg.Connection) -> None:
    worker_id = await worker(store)
    await store.remove_worker(worker_id)
    assert await store.renew_lease(worker_id, 60.0) is None
    assert await store.renew_lease(worker_id, 60.0, even_expired=True) is None
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 0


async def test_renewing_is_a_hot_update(conn: asyncpg.Connection) -> None:
    """One row per worker is written every few seconds for ever: the indexes mustn't grow by it."""
    store = Store(ConnectionDriver(conn))
    worker_id = await worker(store)
    async with conn.transaction():
        for _ in range(5):
            await store.renew_lease(worker_id, 60.0)
        updated, hot = await conn.fetchrow(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'aiotasks_worker'"
        )
    assert (updated, hot) == (5, 5)


async def test_dead_workers_are_removed_once_no_task_names_them(
    store: Store, conn: asyncpg.Connection
) -> None:
    alive, idle = await worker(store), await worker(store)
    busy, (job,) = await claimed(store)
    elsewhere = await worker(store, backend="other")
    for id in (idle, busy, elsewhere):
        await expire(conn, id)
    assert await store.remove_dead_workers("default", busy) == []  # its own lease has run out, too
    assert await store.remove_dead_workers("default", alive) == [idle]
    assert await store.remove_dead_workers("default") == []
    assert job.claim_id is not None
    await finish(store, job)
    assert await store.remove_dead_workers("default") == [busy]
    left = await conn.fetch("SELECT id FROM aiotasks_worker ORDER BY id")
    assert [id for (id,) in left] == sorted([alive, elsewhere])


async def test_removing_dead_workers_waits_for_nobody(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await worker(store), await worker(store)
    await expire(conn, first)
    await expire(conn, second)
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_worker WHERE id = $1 FOR UPDATE", first)
        assert await store.remove_dead_workers("default") == [second]


async def test_a_worker_says_good_bye(store: Store, conn: asyncpg.Connection) -> None:
    gone, stays = await worker(store), await worker(store)
    await store.remove_worker(gone)
    await store.remove_worker(gone)
    assert [id for (id,) in await conn.fetch("SELECT id FROM aiotasks_worker")] == [stays]
