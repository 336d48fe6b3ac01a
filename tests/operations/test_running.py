"""operations.running: tasks that run, and what workers say of those that don't end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

import aiotasks
from aiotasks.operations.connection import reading
from aiotasks.operations.running import read_running
from aiotasks.store.store import Store
from aiotasks.worker.startup import backend_of
from tests.store import rows
from tests.worker import timeout_tasks
from tests.worker.harness import TIMEOUT, Configure, Ledger, until


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with reading(backend_of("default"), timeout=30.0) as store:
        yield store


async def test_tasks_that_run(store: Store, conn: asyncpg.Connection) -> None:
    path = timeout_tasks.waits.module_path
    worker_id, jobs = await rows.claimed(store, 3, task_path=path, queue_name="default")
    await conn.execute(
        "UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 hour', cancel_requested_at = now() "
        "WHERE id = $1",
        jobs[1].id,
    )
    await conn.execute(
        "UPDATE aiotasks_task SET task_path = 'no.such', worker_id = $2 WHERE id = $1",
        jobs[2].id,
        UUID(int=9),
    )
    await rows.insert(store)
    found = await read_running(store, "default")
    assert [row.id for row in found.tasks] == [jobs[1].id, *sorted((jobs[0].id, jobs[2].id))]
    assert not found.capped
    by_id = {row.id: row for row in found.tasks}
    late, early, unknown = by_id[jobs[1].id], by_id[jobs[0].id], by_id[jobs[2].id]
    timeout = timeout_tasks.waits.timeout
    assert (late.worker, late.worker_id, late.attempt, late.lost) == ("host:1", worker_id, 1, False)
    assert (late.timeout, late.known, late.cancel_requested) == (timeout, True, True)
    assert late.seconds is not None
    assert late.past is not None
    assert timeout is not None
    assert late.seconds >= 3600
    assert late.past == late.seconds - timeout
    assert (early.known, early.cancel_requested) == (True, False)
    assert (unknown.known, unknown.timeout, unknown.worker, unknown.lost) == (False, None, None, True)
    some = await read_running(store, "default", limit=2)
    assert (len(some.tasks), some.capped) == (2, True)


async def test_a_worker_without_a_lease_has_lost_its_tasks(store: Store, conn: asyncpg.Connection) -> None:
    await rows.claimed(store)
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s', report = '{}'")
    found = await read_running(store, "default")
    assert [row.lost for row in found.tasks] == [True]
    assert found.workers == []


async def test_a_thread_that_outlasts_its_time_is_named(
    configure: Configure, ledger: Ledger, store: Store
) -> None:
    timeout_tasks.seen.clear()
    timeout_tasks.released.clear()
    configure(LEASE_TIMEOUT=1.5)
    result = await timeout_tasks.waits.aenqueue()
    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):

        async def is_named() -> bool:
            return bool((await read_running(store, "default")).outlasting)

        await until(is_named)
        (one,) = (await read_running(store, "default")).outlasting
        timeout_tasks.released.set()
    assert (str(one.id), one.task_path, one.lane) == (result.id, timeout_tasks.waits.module_path, "thread")


@pytest.mark.parametrize(
    ("report", "seen"),
    [
        (
            {"blocked": {"seconds": 12.5, "task": "t"}, "lag": 3, "stalled": 40, "rss": 5},
            (12.5, "t", 3, 40, 5),
        ),
        ({"blocked": {"seconds": 1, "task": None}, "draining": True}, (1, None, None, None, None)),
        ({"blocked": 1, "outlasting": "x", "lag": "y", "rss": True}, (None,) * 5),
        ({"outlasting": [1, {"id": "z"}]}, (None,) * 5),
        ([], (None,) * 5),
    ],
)
async def test_reports(store: Store, conn: asyncpg.Connection, report: Any, seen: tuple[Any, ...]) -> None:
    """Also those of other releases, or written by hand."""
    await rows.worker(store)
    await conn.execute("UPDATE aiotasks_worker SET report = $1::text::json", json.dumps(report))
    found = await read_running(store, "default")
    (worker,) = found.workers
    assert (worker.blocked, worker.blocked_by, worker.lag, worker.stalled, worker.rss) == seen
    assert worker.draining is (isinstance(report, dict) and report.get("draining") is True)
    assert len(found.outlasting) == (isinstance(report, dict) and isinstance(report.get("outlasting"), list))
