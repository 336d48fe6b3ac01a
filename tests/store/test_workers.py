"""register_worker, renew_lease, remove_worker, remove_dead_workers."""

import time
import uuid
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.store.store import Store
from aiotasks.store.workers import Place, Renewal

from .rows import claim, claimed, expire, finish, insert, worker


async def is_renewed(store: Store, worker_id: UUID, *, even_expired: bool = False) -> bool | None:
    renewal = await store.renew_lease(worker_id, 60.0, even_expired=even_expired)
    return None if renewal is None else renewal.renewed


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
    assert await is_renewed(store, worker_id) is False  # whoever renews it learns of it first
    assert await claim(store, worker_id) == []
    assert await is_renewed(store, worker_id, even_expired=True) is True
    assert len(await claim(store, worker_id)) == 1
    assert await is_renewed(store, worker_id) is True


async def test_a_lease_whose_row_has_gone_stays_lost(store: Store, conn: asyncpg.Connection) -> None:
    worker_id = await worker(store)
    await store.remove_worker(worker_id)
    assert await store.renew_lease(worker_id, 60.0) is None
    assert await store.renew_lease(worker_id, 60.0, even_expired=True) is None
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 0


async def enter(store: Store, *, listening: bool | None = True, **columns: Any) -> UUID:
    """Register a worker, and renew its lease once."""
    values: dict[str, Any] = {"backend": "default", "queues": [], "concurrency": 10, "threads": 10}
    values |= columns
    id = uuid.uuid4()
    slots = values["concurrency"], values["threads"]
    await store.register_worker(id, values["backend"], "host", 1, values["queues"], *slots, "0", 60.0)
    await store.renew_lease(id, 60.0, listening)
    return id


async def renew(store: Store, worker_id: UUID, *, listening: bool = True) -> Renewal:
    renewal = await store.renew_lease(worker_id, 60.0, listening)
    assert renewal is not None
    assert renewal.renewed
    return renewal


async def test_a_renewal_counts_the_workers(store: Store, conn: asyncpg.Connection) -> None:
    ids = sorted([await enter(store) for _ in range(5)])
    for rank, id in enumerate(ids):
        renewal = await renew(store, id)
        assert renewal.workers == renewal.peers == Place(5, rank)
        assert not renewal.has_dead
        assert renewal.clock == pytest.approx(time.time(), abs=60)
    await store.remove_worker(ids[0])
    await expire(conn, ids[1])
    renewal = await renew(store, ids[3])
    assert renewal.workers == renewal.peers == Place(3, 1)
    assert renewal.has_dead
    await store.remove_dead_workers("default")
    assert not (await renew(store, ids[3])).has_dead
    renewed = await store.renew_lease(ids[3], 60.0, True, remaining=3600.0)
    assert renewed is not None
    assert not renewed.renewed


async def test_rows_of_others_are_not_counted(store: Store, conn: asyncpg.Connection) -> None:
    """Those of other backends, even if dead, and those that were never renewed: of drain(), or just begun."""
    id = await enter(store)
    await expire(conn, await enter(store, backend="other"))
    await enter(store, backend="other")
    await worker(store)
    renewal = await renew(store, id)
    assert renewal.workers == renewal.peers == Place(1, 0)
    assert not renewal.has_dead


@pytest.mark.parametrize(
    ("mine", "others", "peers"),
    [
        ({}, {"listening": False}, 1),
        ({"listening": False}, {}, 1),
        ({}, {"queues": ["a"]}, 1),
        ({"queues": ["a"]}, {}, 2),
        ({"queues": ["a"]}, {"queues": ["b", "a"]}, 2),
        ({"queues": ["a", "b"]}, {"queues": ["b", "a"]}, 2),
        ({"queues": ["a", "b"]}, {"queues": ["b", "c"]}, 1),
        ({}, {"threads": 0}, 1),
        ({"threads": 0}, {}, 2),
        ({"threads": 0}, {"concurrency": 0}, 1),
        ({"concurrency": 0}, {"concurrency": 1, "threads": 1}, 2),
    ],
)
async def test_peers_find_whatever_this_worker_could(
    store: Store, mine: dict[str, Any], others: dict[str, Any], peers: int
) -> None:
    id = await enter(store, **mine)
    await enter(store, **others)
    renewal = await renew(store, id, listening=mine.get("listening", True))
    assert (renewal.workers.number, renewal.peers.number) == (2, peers)


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
