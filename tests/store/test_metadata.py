"""save_metadata, with its fence and its compare-and-swap, and replace_metadata."""

import uuid
from uuid import UUID

import asyncpg
import pytest

from aiotasks.rows import Job, Status
from aiotasks.store.metadata import MetadataAnswer, MetadataWrite
from aiotasks.store.store import Store

from .rows import claim, claim_of, claimed, expire, finish, insert, release, rescue, row, worker

TEXT = '{"b":-0.0,"a":"\\u0000\\ud800"}'
WRITTEN = MetadataAnswer(written=True, changed=False, there=None, awaited=None)
LOCKED = MetadataAnswer(written=False, changed=False, there=None, awaited=None)


async def save(
    store: Store, *jobs: Job, text: str | None = TEXT, seen: str | None = None
) -> dict[UUID, MetadataAnswer]:
    return await store.save_metadata([MetadataWrite(*claim_of(job), text, seen) for job in jobs])


async def stored(conn: asyncpg.Connection, id: UUID) -> str | None:
    text: str | None = await conn.fetchval("SELECT metadata::text FROM aiotasks_task WHERE id = $1", id)
    return text


async def test_each_row_gets_its_own(store: Store, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(store, 3)
    before = [await row(conn, job.id) for job in jobs]
    writes = [
        MetadataWrite(*claim_of(job), text, None) for job, text in zip(jobs, (TEXT, "{}", None), strict=True)
    ]
    assert await store.save_metadata(writes) == {job.id: WRITTEN for job in jobs}
    assert [await stored(conn, job.id) for job in jobs] == [TEXT, "{}", None]
    for job, old in zip(jobs, before, strict=True):  # and nothing else
        new = await row(conn, job.id)
        assert dict(new) | {"metadata": None} == dict(old)


async def test_what_others_have_written_is_returned_and_stays(store: Store, conn: asyncpg.Connection) -> None:
    _, (mine, other) = await claimed(store, 2)
    await conn.execute("UPDATE aiotasks_task SET metadata = $2 WHERE id = $1", other.id, '{"o": 1}')
    answers = await save(store, mine, other)
    assert answers[mine.id] == WRITTEN
    assert answers[other.id] == MetadataAnswer(written=False, changed=True, there='{"o": 1}', awaited=None)
    assert await stored(conn, other.id) == '{"o": 1}'
    assert (await save(store, other, seen='{"o": 1}'))[other.id] == WRITTEN
    await conn.execute("UPDATE aiotasks_task SET metadata = NULL WHERE id = $1", other.id)
    assert (await save(store, other, seen=TEXT))[other.id] == MetadataAnswer(
        written=False, changed=True, there=None, awaited=None
    )


async def test_only_the_claim_that_runs_writes(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (finished, released, rescued) = await claimed(store, 3)
    await finish(store, finished)
    await release(store, released)
    await expire(conn, worker_id)
    assert [job.id for job in await rescue(store, 3)] == [rescued.id]
    again = await claim(store, await worker(store))
    assert {job.id for job in again} == {released.id, rescued.id}
    assert await save(store, finished, released, rescued) == {}
    assert [await stored(conn, job.id) for job in (finished, released, rescued)] == [None] * 3
    strange = [
        MetadataWrite(released.id, uuid.uuid4(), TEXT, None),
        MetadataWrite(rescued.id, None, TEXT, None),
    ]
    assert await store.save_metadata([*strange, MetadataWrite(uuid.uuid4(), uuid.uuid4(), TEXT, None)]) == {}
    assert await save(store, *again) == {job.id: WRITTEN for job in again}


async def test_a_lock_on_one_row_holds_up_no_other(store: Store, conn: asyncpg.Connection) -> None:
    _, (one, other) = await claimed(store, 2)
    async with conn.transaction():
        await conn.execute("UPDATE aiotasks_task SET cancel_requested_at = now() WHERE id = $1", one.id)
        assert await save(store, one, other) == {one.id: LOCKED, other.id: WRITTEN}
    assert await save(store, one) == {one.id: WRITTEN}


async def test_it_tells_whether_changes_are_awaited(store: Store, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(store, 3)
    for job, awaited in zip(jobs, (None, 1, 2), strict=True):
        await conn.execute("UPDATE aiotasks_task SET awaited = $2 WHERE id = $1", job.id, awaited)
    assert [(await save(store, job))[job.id].awaited for job in jobs] == [None, 1, 2]
    assert await store.replace_metadata(jobs[2].id, "default", "{}", TEXT) == (True, 2)


@pytest.mark.parametrize("status", list(Status))
async def test_anybody_replaces_it_in_any_state(
    store: Store, conn: asyncpg.Connection, status: Status
) -> None:
    (id,) = await insert(store, metadata='{"a":1}')
    await conn.execute(
        "UPDATE aiotasks_task SET status = $2, run_after = now(), ready_at = now(), finished_at = now() "
        "WHERE id = $1",
        id,
        status,
    )
    assert await store.replace_metadata(id, "default", TEXT, None) == (False, None)
    assert await store.replace_metadata(id, "other", TEXT, '{"a":1}') == (False, None)
    assert await stored(conn, id) == '{"a":1}'
    assert await store.replace_metadata(id, "default", TEXT, '{"a":1}') == (True, None)
    assert await stored(conn, id) == TEXT
    assert await store.replace_metadata(id, "default", None, TEXT) == (True, None)
    assert await stored(conn, id) is None
    assert await store.replace_metadata(uuid.uuid4(), "default", TEXT, None) == (False, None)
