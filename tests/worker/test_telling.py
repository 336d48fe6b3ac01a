"""Whoever changes a task that somebody awaits tells of it, after the commit; and of no other task."""

import json
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

import aiotasks
from aiotasks.rows import AnyResult
from aiotasks.store.changes import AWAITED, CHANNEL, WATCHED
from tests.site import default_task_backend as backend
from tests.site import running_store
from tests.store.rows import worker

from . import retry_tasks, tasks
from .harness import Configure, Ledger, until


class Told:
    """What the channel has said so far."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn
        self.ids: list[UUID] = []

    def hear(self, conn: Any, pid: int, channel: str, payload: str) -> None:
        self.ids += map(UUID, json.loads(payload))

    async def exactly(self, ids: Collection[UUID]) -> bool:
        """Wait for these, and for all that was sent before another NOTIFY comes."""
        await until(lambda: set(self.ids) >= {*ids})
        last = uuid4()
        await self._conn.execute("SELECT pg_notify($1, $2)", CHANNEL, json.dumps([str(last)]))
        await until(lambda: last in self.ids)
        self.ids.remove(last)
        found, self.ids = self.ids, []
        return sorted(found) == sorted(ids)


@pytest.fixture
async def told(database: str) -> AsyncIterator[Told]:
    conn = await asyncpg.connect(database)
    told = Told(conn)
    await conn.add_listener(CHANNEL, told.hear)
    yield told
    await conn.close()


async def mark(conn: asyncpg.Connection, results: Collection[AnyResult], level: int) -> list[UUID]:
    ids = [UUID(result.id) for result in results]
    await conn.execute("UPDATE aiotasks_task SET awaited = $2 WHERE id = ANY($1)", ids, level)
    return ids


async def test_a_finish_tells_of_awaited_tasks_alone(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    good = [await tasks.add.aenqueue(n, 1) for n in range(3)]
    bad = [await tasks.fail.aenqueue("ValueError") for _ in range(3)]
    ids = await mark(conn, [*good[:2], *bad[:2]], AWAITED)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 3, "FAILED": 3})
        assert await told.exactly(ids)


async def test_a_watched_task_is_told_of_at_its_start_and_its_retry(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    configure(MAX_ATTEMPTS=2, BACKOFF=retry_tasks.SOON)
    results = [await tasks.fail.aenqueue("ValueError") for _ in range(2)]
    (watched,) = await mark(conn, results[:1], WATCHED)
    (awaited,) = await mark(conn, results[1:], AWAITED)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"FAILED": 2})
        # Two starts, a retry and an end; some of these may be told together.
        await until(lambda: {watched, awaited} <= set(told.ids))
    assert told.ids.count(awaited) == 1
    assert told.ids.count(watched) > 1


@pytest.mark.parametrize("how", ["one", "bulk"])
async def test_a_cancel_tells(database: str, conn: asyncpg.Connection, told: Told, how: str) -> None:
    results = [await tasks.add.aenqueue(n, 1) for n in range(3)]
    ids = await mark(conn, results[:2], AWAITED)
    if how == "one":
        for result in results:
            assert await result.acancel()
    else:
        assert (await backend.acancel_many(results)).cancelled == 3
    assert await told.exactly(ids)


async def test_asking_a_running_task_to_end_tells_nothing_yet(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    result = await tasks.work.aenqueue(60.0)
    ids = await mark(conn, [result], AWAITED)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"RUNNING": 1})
        assert await told.exactly([])
        assert (await backend.acancel_many([result])).requested == 1
        await until(lambda: ledger.statuses() == {"FAILED": 1})
        assert await told.exactly(ids)


@pytest.mark.parametrize("how", ["one", "bulk", "delete"])
@pytest.mark.parametrize("kind", ["atomic", "aiotasks.atomic", "transaction", "own"])
async def test_in_a_transaction_it_is_told_after_the_commit(
    database: str, conn: asyncpg.Connection, told: Told, kind: str, how: str
) -> None:
    result = await tasks.add.aenqueue(1, 1)
    ids = await mark(conn, [result], AWAITED)

    async def change() -> None:
        if how == "one":
            assert await result.acancel()
        elif how == "bulk":
            assert (await backend.acancel_many([result])).cancelled == 1
        else:
            assert (await backend.adelete_many([result])).deleted == 1
        assert await told.exactly([])

    if kind == "atomic":

        def change_in_atomic() -> None:
            with transaction.atomic():
                if how == "one":
                    assert result.cancel()
                elif how == "bulk":
                    assert backend.cancel_many([result]).cancelled == 1
                else:
                    assert backend.delete_many([result]).deleted == 1
                assert told.ids == []

        await sync_to_async(change_in_atomic)()
    elif kind == "aiotasks.atomic":
        async with aiotasks.atomic():
            await change()
    elif kind == "transaction":
        async with aiotasks.transaction():
            await change()
    else:
        own = await asyncpg.connect(database)
        async with own.transaction(), aiotasks.transaction(connection=own):
            await change()
        await own.close()
    assert await told.exactly(ids)


async def test_a_rollback_tells_nothing(database: str, conn: asyncpg.Connection, told: Told) -> None:
    result = await tasks.add.aenqueue(1, 1)
    await mark(conn, [result], AWAITED)
    for block in (aiotasks.atomic, aiotasks.transaction):
        with suppress(LookupError):
            async with block():
                assert await result.acancel()
                raise LookupError
    assert await told.exactly([])


async def test_a_delete_tells_of_unfinished_tasks(
    database: str, conn: asyncpg.Connection, told: Told
) -> None:
    """Whoever awaited a finished one has been told of its end."""
    results = [await tasks.add.aenqueue(n, 1) for n in range(3)]
    ids = await mark(conn, results[:2], AWAITED)
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'FAILED', finished_at = now() WHERE id = $1", ids[0]
    )
    assert (await backend.adelete_many(results)).deleted == 3
    assert await told.exactly(ids[1:])


async def test_an_expiry_tells(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    results = [await tasks.add.using(expires=0.001).aenqueue(n, 1) for n in range(2)]
    ids = await mark(conn, results[:1], AWAITED)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"FAILED": 2})
        assert await told.exactly(ids)


async def test_a_rescue_tells_of_a_task_at_its_last_crash(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    """And of one that is watched, as it is to run again; not of one whose end alone is awaited."""
    configure(queues=["default", "none"], MAX_CRASHES=3)
    dead = await worker(running_store(), lease=-60.0)
    results = [await tasks.add.using(queue_name="none").aenqueue(n, 1) for n in range(3)]
    (failed, watched) = await mark(conn, results[:2], WATCHED)
    await mark(conn, results[2:], AWAITED)
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'RUNNING', worker_id = $1, worker_ids = ARRAY[$1::uuid], "
        "claim_id = $2, crashes = CASE WHEN id = $3 THEN 2 ELSE 0 END",
        dead,
        uuid4(),
        failed,
    )
    async with aiotasks.Worker(queues=["default"]):
        await until(lambda: ledger.statuses() == {"FAILED": 1, "READY": 2})
        assert await told.exactly([failed, watched])


async def test_nothing_is_told_without_notify(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, told: Told
) -> None:
    configure(NOTIFY=False, POLL_INTERVAL=0.1)
    results = [await tasks.add.aenqueue(n, 1) for n in range(2)]
    await mark(conn, results, AWAITED)
    assert await results[0].acancel()
    async with aiotasks.atomic():
        assert await results[0].acancel() is False
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1, "FAILED": 1})
    assert await told.exactly([])
