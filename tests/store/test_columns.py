"""The columns that statements return, against the fields that take them."""

import uuid
from dataclasses import fields
from typing import Any

import asyncpg

from aiotasks import models
from aiotasks.policies.policy import COLUMNS
from aiotasks.rows import Job, Status, microseconds, time_of
from aiotasks.store.store import Store

from .rows import claim, insert, lane, row, worker

# Different in every column, where the table allows it.
FINISHED = """
    UPDATE aiotasks_task SET
        queue_name = 'q', task_path = 'path', lane = 'thread', priority = 7, status = 'FAILED', args = '[1]',
        kwargs = '{"a": 2}', return_value = '3', errors = ARRAY['{"e": 4}'::json],
        worker_ids = ARRAY[$2::uuid], enqueued_at = '2001-01-01Z', run_after = '2002-01-01Z',
        ready_at = '2003-01-01Z', started_at = '2004-01-01Z', last_attempted_at = '2005-01-01Z',
        finished_at = '2006-01-01Z', max_crashes = 8, keep_result = 9.5, claim_id = $3, failures = 10,
        expires_at = '2007-01-01Z', errors_omitted = 11, snoozes = 12, unique_key = 'k',
        awaited = 13, metadata = '{"m": "\\u0000"}', limit_key = 'l'
    WHERE id = $1
"""


def test_the_models_statuses_are_those_of_rows() -> None:
    assert models.Task.Status.values == list(Status)


def as_stored(job: Job) -> dict[str, Any]:
    """By column, as asyncpg reads the table."""
    values = {field.name: getattr(job, field.name) for field in fields(job) if field.name != "policy"}
    values |= {name: time_of(values[name]) for name in values if name.endswith("_at") or name == "run_after"}
    return values | job.policy._asdict() | {"worker_ids": [uuid.UUID(id) for id in job.worker_ids]}


async def test_every_column_reaches_its_field(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store)
    await conn.execute(FINISHED, id, uuid.uuid4(), uuid.uuid4())
    (found,) = await store.select_jobs([id], "default")
    stored = dict(await row(conn, id))
    assert len(set(map(str, as_stored(found).values()))) == len(fields(Job)) - 1 + len(COLUMNS)
    assert as_stored(found) == {name: stored[name] for name in as_stored(found)}


async def test_every_column_of_a_claim_reaches_its_field(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store)
    await conn.execute(FINISHED, id, uuid.uuid4(), uuid.uuid4())
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'READY', return_value = NULL, finished_at = NULL, "
        "expires_at = NULL, errors_omitted = NULL, snoozes = NULL, unique_key = NULL, limit_key = NULL "
        "WHERE id = $1",
        id,
    )
    (found,) = await claim(store, await worker(store), thread=lane(["q"]))
    stored = dict(await row(conn, id))
    assert as_stored(found) == {name: stored[name] for name in as_stored(found)}
    assert found.last_attempted_at is not None
    assert microseconds(found.last_attempted_at) - microseconds(found.enqueued_at) > 86_400_000_000


async def test_times_that_python_has_not_are_none(store: Store, conn: asyncpg.Connection) -> None:
    times = ("enqueued_at", "run_after", "ready_at", "started_at", "last_attempted_at", "finished_at")
    ids = await insert(store, 3)
    for id, time in zip(ids, ("infinity", "-infinity", "0044-03-15 BC"), strict=True):
        changes = ", ".join(f"{name} = '{time}'" for name in times)
        await conn.execute(f"UPDATE aiotasks_task SET {changes} WHERE id = $1", id)
    for found in await store.select_jobs(ids, "default"):
        assert [getattr(found, name) for name in times] == [None] * len(times)
