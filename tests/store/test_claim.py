"""claim_jobs: who may, what, in which order, and that it stays cheap."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from aiotasks.store.drivers import ConnectionDriver
from aiotasks.store.pools import LoopResources
from aiotasks.store.statement import load
from aiotasks.store.store import Store

from .rows import EVER, claim, claimed, expire, insert, lane, row, worker


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
    assert second.last_attempted_at is not None
    assert first.last_attempted_at is not None
    assert second.last_attempted_at > first.last_attempted_at
    assert second.claim_id != first.claim_id


async def _rescue_all(store: Store, worker_id: str) -> list[Any]:
    await store.remove_worker(uuid.UUID(worker_id))
    return await store.rescue_jobs("default", 10, '{"class": "x", "traceback": ""}', 10)


async def test_only_a_live_lease_claims(store: Store, conn: asyncpg.Connection) -> None:
    """FAULTS 5: neither a worker thought dead nor one that never registered."""
    await insert(store)
    worker_id = await worker(store)
    await expire(conn, worker_id)
    assert await claim(store, worker_id) == []
    assert await claim(store, uuid.uuid4()) == []
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'") == 1
    await store.renew_lease(worker_id, 60.0)
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
    await store.finish_jobs([(job.id, job.claim_id, "FAILED", None, "{}")])
    (id,) = await insert(store)
    await conn.execute("UPDATE aiotasks_task SET status = 'SCHEDULED', ready_at = NULL WHERE id = $1", id)
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
        await store.finish_jobs([(job.id, job.claim_id, "SUCCESSFUL", "1", None)])
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


class Plan:
    """What EXPLAIN says of a statement, run and rolled back."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._walk(plan)
        self.buffers = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.rows = plan["Actual Rows"]

    def _walk(self, node: dict[str, Any]) -> None:
        self.nodes.append(node)
        for child in node.get("Plans", []):
            self._walk(child)

    def kinds(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes}

    def scans_of(self, table: str) -> list[dict[str, Any]]:
        return [
            node for node in self.nodes if node.get("Relation Name") == table and "Scan" in node["Node Type"]
        ]

    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}


async def explain(conn: asyncpg.Connection, name: str, *args: Any) -> Plan:
    """The plan that prepared statements end up with, too: generic, after a few runs."""
    import json

    transaction = conn.transaction()
    await transaction.start()
    try:
        text = await conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {load(name).sql}", *args)
    finally:
        await transaction.rollback()
    return Plan(json.loads(text)[0]["Plan"])


async def fill(
    conn: asyncpg.Connection, status: str, number: int, queues: tuple[str, ...] = ("default",)
) -> None:
    await conn.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at, run_after, finished_at, claim_id, worker_id
        )
        SELECT uuidv, 'default', ($3::text[])[1 + n % cardinality($3::text[])], 'tests.store.tasks.nothing',
            CASE WHEN n % 3 = 0 THEN 'thread' ELSE 'loop' END, n % 5, $1, '[]', '{}', '{}', '{}', 0, now(),
            CASE WHEN $1 <> 'SCHEDULED' THEN now() + n * interval '1 us' END,
            CASE WHEN $1 = 'SCHEDULED' THEN now() + interval '1 day' END,
            CASE WHEN $1 IN ('SUCCESSFUL', 'FAILED') THEN now() END,
            CASE WHEN $1 NOT IN ('READY', 'SCHEDULED') THEN gen_random_uuid() END,
            CASE WHEN $1 = 'RUNNING' THEN gen_random_uuid() END
        FROM (SELECT n, gen_random_uuid() AS uuidv FROM generate_series(1, $2::integer) AS n) AS made
        """,
        status,
        number,
        list(queues),
    )


CLAIM_SLOTS = 10
# For every row: the index entry's page, the row's page, its new version, four indexes' entries.
BUFFERS_A_CLAIM = 1000


def check_claim(plan: Plan, claimed: int) -> None:
    assert plan.rows == claimed
    assert "Sort" not in plan.kinds()
    assert "Incremental Sort" not in plan.kinds()
    assert plan.indexes() <= {"aiotasks_task_ready", "aiotasks_worker_pkey"}
    kinds = {node["Node Type"] for node in plan.scans_of("aiotasks_task")}
    assert kinds <= {"Index Scan", "Index Only Scan", "Tid Scan"}, kinds
    assert plan.buffers < BUFFERS_A_CLAIM, plan.buffers


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "statistics of an empty table"])
async def test_the_cost_of_a_claim_does_not_grow_with_the_backlog(
    conn: asyncpg.Connection, analyzed: bool
) -> None:
    """FAULTS 21: at 0 and at 100,000 READY rows, and with as many scheduled and finished beside them."""
    worker_id = await worker(Store(ConnectionDriver(conn)))
    many = tuple(f"q{number}" for number in range(8))

    async def plan(queues: tuple[str, ...]) -> Plan:
        if analyzed:
            await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
        both = (list(queues), [EVER] * len(queues), CLAIM_SLOTS) * 2
        return await explain(conn, "claim_jobs", worker_id, uuid.uuid4(), "default", *both)

    await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
    check_claim(await plan(("default",)), 0)
    check_claim(await plan(many), 0)
    await fill(conn, "READY", 50_000)
    check_claim(await plan(("default",)), 2 * CLAIM_SLOTS)
    await fill(conn, "READY", 50_000, many)
    check_claim(await plan(("default", *many)), 2 * CLAIM_SLOTS)
    check_claim(await plan(("none", "nor this")), 0)
    for status in ("SCHEDULED", "SUCCESSFUL"):
        await fill(conn, status, 100_000)
    check_claim(await plan(("default", *many)), 2 * CLAIM_SLOTS)


async def test_a_generic_plan_claims_by_the_index_too(conn: asyncpg.Connection) -> None:
    """asyncpg and psycopg prepare; after five runs PostgreSQL may stop looking at the arguments."""
    await fill(conn, "READY", 20_000)
    await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
    await conn.execute("SET plan_cache_mode = force_generic_plan")
    worker_id = await worker(Store(ConnectionDriver(conn)))
    both = (["default"], [EVER], CLAIM_SLOTS) * 2
    check_claim(await explain(conn, "claim_jobs", worker_id, uuid.uuid4(), "default", *both), 2 * CLAIM_SLOTS)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_finish_goes_by_the_primary_key(conn: asyncpg.Connection, mode: str) -> None:
    """Also beside many RUNNING rows (a dead host's), and with none when it was planned."""
    await conn.execute(f"SET plan_cache_mode = {mode}")
    await conn.execute("ANALYZE aiotasks_task")
    columns = [uuid.uuid4()], [uuid.uuid4()], ["SUCCESSFUL"], ["1"], [None]
    await explain(conn, "finish_jobs", *columns)
    await fill(conn, "RUNNING", 30_000)
    await conn.execute("ANALYZE aiotasks_task")
    rows = await conn.fetch("SELECT id, claim_id FROM aiotasks_task LIMIT 100")
    many = ([r[0] for r in rows], [r[1] for r in rows], ["SUCCESSFUL"] * 100, ["1"] * 100, [None] * 100)
    plan = await explain(conn, "finish_jobs", *many)
    assert plan.rows == 100
    assert plan.indexes() == {"aiotasks_task_pkey"}
    assert {node["Node Type"] for node in plan.scans_of("aiotasks_task")} <= {
        "Index Scan",
        "Bitmap Heap Scan",
    }
    assert plan.buffers < 100 * 40


async def test_looking_up_and_releasing_go_by_the_primary_key(conn: asyncpg.Connection) -> None:
    await fill(conn, "RUNNING", 30_000)
    await conn.execute("ANALYZE aiotasks_task")
    rows = await conn.fetch("SELECT id, claim_id FROM aiotasks_task LIMIT 100")
    ids, claim_ids = [r[0] for r in rows], [r[1] for r in rows]
    for name, args in {
        "select_jobs": (ids, "default"),
        "select_finished_jobs": (ids, claim_ids),
        "release_jobs": (ids, claim_ids, [0.0] * 100, [None] * 100),
    }.items():
        plan = await explain(conn, name, *args)
        assert plan.indexes() == {"aiotasks_task_pkey"}, name
        assert plan.buffers < 100 * 40, name


async def test_maintenance_does_not_read_the_table(conn: asyncpg.Connection) -> None:
    """Every worker asks these every few seconds."""
    store = Store(ConnectionDriver(conn))
    alive = await worker(store)
    await fill(conn, "READY", 30_000, ("a", "b", "c"))
    await fill(conn, "SCHEDULED", 30_000)
    await fill(conn, "SUCCESSFUL", 30_000)
    await conn.execute("ANALYZE aiotasks_task, aiotasks_worker")
    for name, args in {
        "list_queues": ("default",),
        "next_due": ("default",),
        "promote_due_jobs": ("default", 500),
        "rescue_jobs": ("default", 3, "{}", 500),
        "release_lost_claims": (alive, [uuid.uuid4()], 10.0),
        "remove_dead_workers": ("default",),
        "has_unfinished_jobs": ("default", None, ["loop", "thread"]),
        "renew_lease": (alive, 30.0),
    }.items():
        plan = await explain(conn, name, *args)
        assert plan.buffers < 200, (name, plan.buffers)


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
