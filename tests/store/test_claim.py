"""claim_jobs: who may, what, in which order. (What it costs: test_plans.py.)"""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.rows import microseconds
from aiotasks.store.loop import LoopResources
from aiotasks.store.store import Store
from aiotasks.worker.claiming.watermarks import ANY_PRIORITY

from .rows import EVER, claim, claimed, expire, fail, finish, insert, lane, rescue, row, worker


async def test_a_claim_makes_rows_running(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store)
    worker_id, claim_id = await worker(store), uuid.uuid4()
    (job,) = await claim(store, worker_id, claim_id)
    assert (job.id, job.claim_id, job.status, job.worker_ids) == (id, claim_id, "RUNNING", [str(worker_id)])
    assert job.started_at is not None
    assert job.started_at == job.last_attempted_at
    assert job.finished_at is None
    stored = await row(conn, id)
    assert (stored["status"], stored["claim_id"], stored["worker_id"]) == ("RUNNING", claim_id, worker_id)
    assert await claim(store, worker_id) == []


async def test_a_second_attempt_adds_to_the_first(store: Store) -> None:
    _, (first,) = await claimed(store)
    assert first.claim_id is not None
    other = await worker(store)
    (rescued,) = await _rescue_all(store, first.worker_ids[0])
    assert rescued.id == first.id
    (second,) = await claim(store, other)
    assert second.worker_ids == [first.worker_ids[0], str(other)]
    assert second.started_at == first.started_at
    assert first.last_attempted_at is not None
    assert microseconds(second.last_attempted_at) > microseconds(first.last_attempted_at)
    assert second.claim_id != first.claim_id


async def _rescue_all(store: Store, worker_id: str) -> list[Any]:
    await store.remove_worker(uuid.UUID(worker_id))
    return await rescue(store)


async def test_only_a_live_lease_claims(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 5 of docs/faults.md: neither a worker thought dead nor one that never registered."""
    await insert(store)
    worker_id = await worker(store)
    await expire(conn, worker_id)
    assert await claim(store, worker_id) == []
    assert await claim(store, uuid.uuid4()) == []
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'") == 1
    await store.renew_lease(worker_id, 60.0, even_expired=True)
    assert len(await claim(store, worker_id)) == 1


async def test_the_order_is_priority_then_ready_at_then_id(store: Store, conn: asyncpg.Connection) -> None:
    a, b = await insert(store, 2)
    low, high = (await insert(store, priority=-5))[0], (await insert(store, priority=5))[0]
    (oldest,) = await insert(store)
    await conn.execute("UPDATE aiotasks_task SET ready_at = '2026-01-01' WHERE id = ANY($1)", [a, b, high])
    await conn.execute("UPDATE aiotasks_task SET ready_at = '2025-01-01' WHERE id = $1", oldest)
    worker_id = await worker(store)
    order = []
    while jobs := await claim(store, worker_id, loop=lane(slots=1)):
        order += [job.id for job in jobs]
    assert order == [high, oldest, a, b, low]


async def test_slots_are_counted_by_lane(store: Store) -> None:
    await insert(store, 5)
    await insert(store, 5, lane="thread")
    worker_id = await worker(store)
    jobs = await claim(store, worker_id, loop=lane(slots=3), thread=lane(slots=1))
    assert sorted(job.lane for job in jobs) == ["loop"] * 3 + ["thread"]
    assert [job.lane for job in await claim(store, worker_id, thread=lane(slots=10))] == ["thread"] * 4
    assert [job.lane for job in await claim(store, worker_id, loop=lane(slots=10))] == ["loop"] * 2
    assert await claim(store, worker_id, loop=lane(slots=0), thread=lane(slots=0)) == []


async def test_only_the_queues_asked_for_in_the_order_given(store: Store) -> None:
    for name in ("a", "b", "c"):
        await insert(store, 2, queue_name=name)
    worker_id = await worker(store)

    async def names(queues: list[str], slots: int) -> list[str]:
        return sorted(job.queue_name for job in await claim(store, worker_id, loop=lane(queues, slots)))

    assert await names(["b", "a"], 3) == ["a", "b", "b"]  # over all queues together
    assert await names([], 3) == []
    assert await names(["d"], 3) == []
    assert await names(["a", "c"], 10) == ["a", "c", "c"]


async def test_a_watermark_hides_what_became_ready_before_it(store: Store, conn: asyncpg.Connection) -> None:
    (old,) = await insert(store)
    (new,) = await insert(store)
    await conn.execute("UPDATE aiotasks_task SET ready_at = ready_at - interval '1 h' WHERE id = $1", old)
    since = (await row(conn, new))["ready_at"]
    worker_id = await worker(store)
    assert [job.id for job in await claim(store, worker_id, loop=lane(since=since))] == [new]
    assert [job.id for job in await claim(store, worker_id, loop=lane(since=EVER))] == [old]


async def test_scheduled_and_finished_rows_are_not_claimed(store: Store, conn: asyncpg.Connection) -> None:
    _, (job,) = await claimed(store)
    assert job.claim_id is not None
    await fail(store, job)
    (id,) = await insert(store)
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'SCHEDULED', run_after = now(), ready_at = NULL WHERE id = $1", id
    )
    assert await claim(store, await worker(store)) == []


async def test_a_claim_passes_over_rows_that_another_holds(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await insert(store, 2)
    worker_id = await worker(store)
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", first)
        assert [job.id for job in await claim(store, worker_id)] == [second]
    assert [job.id for job in await claim(store, worker_id)] == [first]


async def test_a_claim_does_not_wait_for_the_disk_and_the_rest_does(conn: asyncpg.Connection) -> None:
    store = Store(ConnectionDriver(conn))
    await insert(store)
    worker_id = await worker(store)
    async with conn.transaction():
        (job,) = await claim(store, worker_id)
        assert await conn.fetchval("SHOW synchronous_commit") == "off"
    assert job.claim_id is not None
    async with conn.transaction():
        await finish(store, job)
        assert await conn.fetchval("SHOW synchronous_commit") == "on"


async def test_concurrent_claims_never_share_a_row(held: LoopResources) -> None:
    """Ten workers at once over ten connections, until nothing is left."""
    ids = [id for name in ("a", "b") for id in await insert(held.store, 300, queue_name=name)]
    ids += await insert(held.store, 100, queue_name="b", lane="thread")
    workers = [await worker(held.store) for _ in range(10)]

    async def work(number: int) -> list[tuple[uuid.UUID, uuid.UUID | None]]:
        mine = []
        queues = ["a", "b"] if number % 2 else ["b", "a"]
        # A head that another has just touched may come back short: empty twice is empty.
        empty = 0
        while empty < 2:
            jobs = await claim(
                held.store, workers[number], loop=lane(queues, 7), thread=lane(queues, 3 - number % 3)
            )
            assert len(jobs) <= 10
            mine += [(job.id, job.claim_id) for job in jobs]
            empty = 0 if jobs else empty + 1
        return mine

    got = [pair for mine in await asyncio.gather(*map(work, range(10))) for pair in mine]
    assert len({id for id, _ in got}) == len(got)
    got += await work(0)
    assert sorted(id for id, _ in got) == sorted(ids)
    async with held.pool.acquire() as conn:
        stored = await conn.fetch("SELECT id, claim_id FROM aiotasks_task WHERE status = 'RUNNING'")
    assert sorted(map(tuple, stored)) == sorted(got)


async def test_a_long_transaction_does_not_push_in(store: Store, conn: asyncpg.Connection) -> None:
    held = Store(ConnectionDriver(conn))
    transaction = conn.transaction()
    await transaction.start()
    await conn.fetchval("SELECT now()")
    (quick,) = await insert(store)
    (slow,) = await insert(held)
    await transaction.commit()
    assert [job.id for job in await claim(store, await worker(store), loop=lane(slots=1))] == [quick]
    assert [job.id for job in await claim(store, await worker(store), loop=lane(slots=1))] == [slow]


async def test_the_lease_that_a_claim_demands_is_read_when_it_runs(
    conn: asyncpg.Connection, store: Store
) -> None:
    """Not when its transaction began: a claim inside an open one sees a lease end."""
    held = Store(ConnectionDriver(conn))
    await insert(store)
    worker_id = await worker(store)
    async with conn.transaction():
        began = await conn.fetchval("SELECT now()")
        await conn.execute(
            "UPDATE aiotasks_worker SET lease_expires_at = $1", began + timedelta(microseconds=1)
        )
        assert await claim(held, worker_id) == []


async def test_of_each_queue_the_lowest_priority_to_take_may_be_given(store: Store) -> None:
    """The mark of a queue says so; of the others all are taken."""
    for name in ("a", "b"):
        for priority in (1, 5, 9):
            await insert(store, queue_name=name, priority=priority)
    request = replace(lane(["a", "b"]), lowest=[5, ANY_PRIORITY])
    jobs = await claim(store, await worker(store), loop=request)
    assert sorted((job.queue_name, job.priority) for job in jobs) == [
        *(("a", 5), ("a", 9)),
        *(("b", 1), ("b", 5), ("b", 9)),
    ]
