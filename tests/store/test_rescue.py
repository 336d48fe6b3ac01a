"""rescue_jobs: by anti-join on the tasks, with the crashes counted."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from aiotasks.store.loop import LoopResources
from aiotasks.store.store import Store

from .rows import CANCELLED, WORKER_LOST, claim, claimed, expire, finish, insert, lane, rescue, row, worker


async def test_tasks_of_a_live_worker_are_left_alone(store: Store) -> None:
    await claimed(store)
    assert await rescue(store, 3, 10) == []


async def test_a_dead_workers_task_is_ready_again(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 6 of docs/faults.md: RUNNING forever after a crash."""
    worker_id, (job,) = await claimed(store)
    await expire(conn, worker_id)
    before = (await row(conn, job.id))["ready_at"]
    (rescued,) = await rescue(store, 3, 10)
    assert (rescued.id, rescued.status, rescued.errors) == (job.id, "READY", [WORKER_LOST])
    assert rescued.worker_ids == [str(worker_id)]  # it was an attempt
    found = await row(conn, job.id)
    assert (found["crashes"], found["claim_id"], found["worker_id"]) == (1, None, None)
    assert (found["finished_at"], found["unknown_since"]) == (None, None)
    assert found["ready_at"] > before  # behind newer work
    assert await rescue(store, 3, 10) == []


async def test_a_task_whose_workers_row_has_gone_is_rescued_too(store: Store) -> None:
    """Fault 52 of docs/faults.md: it was claimed while the row was being removed."""
    worker_id, (job,) = await claimed(store)
    await store.remove_worker(worker_id)
    assert [job.id for job in await rescue(store, 3, 10)] == [job.id]


@pytest.mark.parametrize("any_name", [False, True])
async def test_a_task_fails_after_so_many_crashes(
    store: Store, conn: asyncpg.Connection, any_name: bool
) -> None:
    """Fault 7 of docs/faults.md: a task that kills its process does so forever, or takes others with it."""
    await insert(store)
    statuses = []
    for crash in range(3):
        worker_id = await worker(store)
        if crash == 2:  # its last time, apart from all others
            assert await claim(store, worker_id) == []
            assert await store.claim_suspect(worker_id, uuid4(), "default", "thread", ["default"]) == []
            assert await store.claim_suspect(worker_id, uuid4(), "default", "loop", ["other"]) == []
            queues = None if any_name else ["default"]
            assert len(await store.claim_suspect(worker_id, uuid4(), "default", "loop", queues)) == 1
        else:
            assert len(await claim(store, worker_id)) == 1
        await expire(conn, worker_id)
        (job,) = await rescue(store, 3, 10)
        statuses.append(job.status)
    assert statuses == ["READY", "READY", "FAILED"]
    assert job.errors == [WORKER_LOST] * 3
    assert len(job.worker_ids) == 3
    assert job.finished_at is not None
    assert await claim(store, await worker(store)) == []


async def test_only_a_live_lease_rescues_and_never_its_own_tasks(
    store: Store, conn: asyncpg.Connection
) -> None:
    """Where the database's clock has stepped forward, all leases look expired until they are renewed."""

    async def rescued(rescuer: UUID) -> list[UUID]:
        return [job.id for job in await store.rescue_jobs("default", 3, WORKER_LOST, 10, CANCELLED, rescuer)]

    first, (job,) = await claimed(store)
    second, (other,) = await claimed(store, queue_name="default")
    for worker_id in (first, second):
        await expire(conn, worker_id)
    assert await rescued(first) == await rescued(second) == await rescued(uuid4()) == []
    await store.renew_lease(first, 60.0, even_expired=True)
    assert await rescued(first) == [other.id]
    assert (await row(conn, job.id))["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        (0, 3, ["FAILED"]),
        (1, 3, ["FAILED"]),
        (2, 1, ["READY", "FAILED"]),
        (None, 0, ["FAILED"]),
        (None, 2, ["READY", "FAILED"]),
    ],
)
async def test_a_tasks_own_max_crashes_comes_first(
    store: Store, conn: asyncpg.Connection, own: int | None, default: int, expected: list[str]
) -> None:
    (id,) = await insert(store, max_crashes=own)
    for status in expected:
        worker_id = await worker(store)
        await claim(store, worker_id)
        await expire(conn, worker_id)
        assert [job.status for job in await rescue(store, default, 10)] == [status]
    assert (await row(conn, id))["status"] == "FAILED"


async def test_only_the_backends_own_and_no_more_than_asked_for(
    store: Store, conn: asyncpg.Connection
) -> None:
    worker_id, jobs = await claimed(store, 5)
    elsewhere = await worker(store, backend="other")
    (theirs,) = await insert(store, backend="other")
    await claim(store, elsewhere, backend="other")
    await expire(conn, worker_id)
    await expire(conn, elsewhere)
    first = await rescue(store, 3, 3)
    rest = await rescue(store, 3, 3)
    assert (len(first), len(rest)) == (3, 2)
    assert {job.id for job in first + rest} == {job.id for job in jobs}
    assert (await row(conn, theirs))["status"] == "RUNNING"


async def test_times_that_python_has_not_hold_up_nobody(store: Store, conn: asyncpg.Connection) -> None:
    """The reply is of all: what can't be read of one would lose who is to be told of the others."""
    worker_id, (job, other) = await claimed(store, 2)
    times = "enqueued_at", "run_after", "ready_at", "started_at", "last_attempted_at"
    bad = ", ".join(f"{name} = '20000-01-01'" for name in times)
    await conn.execute(f"UPDATE aiotasks_task SET {bad}, max_crashes = 1 WHERE id = $1", job.id)
    await expire(conn, worker_id)
    rescued = {one.id: one for one in await rescue(store, 3, 10)}
    assert {one.status for one in rescued.values()} == {"FAILED", "READY"}
    assert rescued[job.id].ready_at is rescued[job.id].run_after is rescued[job.id].started_at is None
    assert rescued[other.id].ready_at is not None


async def test_rescue_leaves_finished_tasks_alone(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 2 of docs/faults.md: a rescue overwrites a finished task."""
    worker_id, (job,) = await claimed(store)
    assert job.claim_id is not None
    await finish(store, job)
    await expire(conn, worker_id)
    before = await row(conn, job.id)
    assert await rescue(store, 3, 10) == []
    assert await row(conn, job.id) == before


async def test_rescue_passes_over_a_task_that_is_being_finished(
    store: Store, conn: asyncpg.Connection
) -> None:
    """Fault 2 of docs/faults.md: it neither waits for the finish nor overwrites it."""
    worker_id, (job, other) = await claimed(store, 2)
    await expire(conn, worker_id)
    async with conn.transaction():
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = now() WHERE id = $1", job.id
        )
        assert [job.id for job in await rescue(store, 3, 10)] == [other.id]
    assert await rescue(store, 3, 10) == []


async def test_concurrent_rescues_count_a_crash_once(held: LoopResources, conn: asyncpg.Connection) -> None:
    await insert(held.store, 200)
    worker_id = await worker(held.store)
    await claim(held.store, worker_id, loop=lane(slots=200))
    await expire(conn, worker_id)
    sweeps = await asyncio.gather(*(rescue(held.store, 9, 200) for _ in range(8)))
    ids = [job.id for jobs in sweeps for job in jobs]
    assert len(ids) == len(set(ids)) == 200
    assert await conn.fetchval("SELECT max(crashes) FROM aiotasks_task") == 1


async def test_a_task_may_crash_very_often(store: Store, conn: asyncpg.Connection) -> None:
    """MAX_CRASHES goes up to 32,000, which a smallint just holds."""
    worker_id, (job,) = await claimed(store)
    await conn.execute("UPDATE aiotasks_task SET crashes = 31999")
    await expire(conn, worker_id)
    (rescued,) = await rescue(store, 32_000, 10)
    assert (rescued.id, rescued.status) == (job.id, "FAILED")
