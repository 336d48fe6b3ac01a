"""Pauses: what claims leave out, and what goes on."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from aiotasks.store.pauses import Kind
from aiotasks.store.store import Store

from .rows import claim, claimed, finish, insert, lane, worker


async def pause(store: Store, kind: Kind, name: str, **values: Any) -> Any:
    values = {"backend": "default", "reason": "why", "until": None, "seconds": None, **values}
    return await store.insert_pause(
        values["backend"], kind, name, values["reason"], values["until"], values["seconds"]
    )


async def end_pauses(conn: asyncpg.Connection) -> None:
    await conn.execute("UPDATE aiotasks_pause SET until = clock_timestamp()")


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_paused_queue_is_not_claimed_from(store: Store, kind: str) -> None:
    (held,) = await insert(store, queue_name="paused", lane=kind)
    (free,) = await insert(store, queue_name="free", lane=kind)
    await pause(store, "queue", "paused")
    lanes: dict[str, Any] = {kind: lane(["paused", "free"])}
    me = await worker(store)
    assert [job.id for job in await claim(store, me, **lanes)] == [free]
    assert await store.delete_pause("default", "queue", "paused")
    assert [job.id for job in await claim(store, me, **lanes)] == [held]


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_paused_task_is_passed_over(store: Store, kind: str) -> None:
    """Those behind it in its queue aren't, and take its place."""
    held = await insert(store, 20, task_path="site.paused", lane=kind)
    free = await insert(store, 2, task_path="site.other", lane=kind)
    await pause(store, "task", "site.paused")
    lanes: dict[str, Any] = {kind: lane(slots=2)}
    me = await worker(store)
    assert [job.id for job in await claim(store, me, **lanes)] == free
    assert await claim(store, me, **lanes) == []
    await store.delete_pause("default", "task", "site.paused")
    assert [job.id for job in await claim(store, me, **lanes)] == held[:2]


async def test_names_of_the_other_kind_and_of_other_backends_are_not_meant(store: Store) -> None:
    ids = await insert(store, queue_name="site.task", task_path="site.task")
    await pause(store, "queue", "site.tas")
    await pause(store, "task", "site.tas")
    await pause(store, "queue", "site.task", backend="other")
    await pause(store, "task", "site.task", backend="other")
    (other,) = await insert(store, queue_name="site.path", task_path="site.queue")
    await pause(store, "queue", "site.queue")
    await pause(store, "task", "site.path")
    jobs = await claim(store, await worker(store), loop=lane(["site.task", "site.path"]))
    assert sorted(job.id for job in jobs) == sorted([*ids, other])


@pytest.mark.parametrize("paused", [("queue", "default"), ("task", "site.task")])
async def test_suspects_are_paused_too(store: Store, conn: asyncpg.Connection, paused: Any) -> None:
    await insert(store, task_path="site.task")
    await conn.execute("UPDATE aiotasks_task SET crashes = 2, max_crashes = 5")
    await pause(store, *paused)
    me = await worker(store)
    assert await store.claim_suspect(me, uuid4(), "default", "loop", None) == []
    await end_pauses(conn)
    assert len(await store.claim_suspect(me, uuid4(), "default", "loop", ["default"])) == 1


async def test_a_pause_ends_by_itself(store: Store, conn: asyncpg.Connection) -> None:
    await insert(store, 2)
    later = datetime.now(UTC) + timedelta(hours=1)
    by_time = await pause(store, "queue", "default", until=later)
    assert by_time.until == pytest.approx(later.timestamp(), abs=1e-3)
    by_seconds = await pause(store, "queue", "default", seconds=3600.0)
    assert by_seconds.until > later.timestamp() - 60
    me = await worker(store)
    assert await claim(store, me) == []
    due = await store.next_due("default")
    assert due is not None
    assert due.at is not None
    assert due.seconds is not None
    assert 3000 < due.seconds < 3601
    assert due.at == due.pause_end
    assert due.at.timestamp() == pytest.approx(by_seconds.until, abs=1e-3)
    await end_pauses(conn)
    assert await store.next_due("default") is None
    assert await store.select_pauses("default") == []
    assert not await store.delete_pause("default", "queue", "default")
    assert len(await claim(store, me)) == 2


async def test_the_next_due_is_a_task_or_the_end_of_a_pause(store: Store) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    await pause(store, "task", "x", seconds=3600.0)
    await pause(store, "queue", "y")
    await insert(store, run_after=soon)
    due = await store.next_due("default")
    assert due is not None
    assert due.at == soon
    assert due.pause_end is not None
    assert due.pause_end > soon
    assert await store.next_due("other") is None


async def test_a_second_pause_changes_the_first(store: Store, conn: asyncpg.Connection) -> None:
    """It counts on from the first, unless that has ended."""
    await pause(store, "queue", "default", reason="one")
    await conn.execute("UPDATE aiotasks_pause SET paused_at = paused_at - interval '1 h'")
    again = await pause(store, "queue", "default", reason="two", seconds=60.0)
    assert (again.kind, again.name, again.reason) == ("queue", "default", "two")
    assert again.age > 3500
    (stored,) = await store.select_pauses("default")
    assert stored[:3] == again[:3]
    await end_pauses(conn)
    assert (await pause(store, "queue", "default")).age < 60


async def test_what_runs_and_what_is_enqueued_goes_on(store: Store, conn: asyncpg.Connection) -> None:
    _, (job,) = await claimed(store)
    await pause(store, "queue", "default")
    await insert(store, run_after=datetime.now(UTC) + timedelta(hours=1))
    (enqueued,) = await insert(store)
    assert (await finish(store, job)).keys() == {job.id}
    await conn.execute("UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE status = 'SCHEDULED'")
    assert len(await store.promote_due_jobs("default", 10)) == 1
    me = await worker(store)
    assert await claim(store, me) == []
    await store.delete_pause("default", "queue", "default")
    assert enqueued in [job.id for job in await claim(store, me)]


@pytest.mark.parametrize("paused", [("queue", "default"), ("task", "site.task")])
async def test_what_is_paused_is_nothing_to_wait_for(
    store: Store, conn: asyncpg.Connection, paused: Any
) -> None:
    async def waits() -> bool:
        return await store.has_unfinished_jobs("default", None, ["loop"])

    await insert(store, task_path="site.task")
    await insert(store, task_path="site.task", run_after=datetime.now(UTC) + timedelta(hours=1))
    await conn.execute("UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE status = 'SCHEDULED'")
    assert await waits()
    await pause(store, *paused)
    assert not await waits()
    await insert(store, queue_name="other", task_path="site.other")
    assert await waits()
    jobs = await claim(store, await worker(store), loop=lane(["other"]))
    assert await waits()
    await pause(store, "queue", "other")
    assert await waits()  # what runs will end
    await finish(store, *jobs)
    assert not await waits()


async def test_a_claim_for_an_id_without_a_lease_takes_nothing(store: Store) -> None:
    await insert(store)
    await pause(store, "queue", "other")
    assert await claim(store, UUID(int=7)) == []
