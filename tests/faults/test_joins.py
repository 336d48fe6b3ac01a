"""Joins over what happens to a database: all of them end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

import aiotasks
from aiotasks.db import listener as listener_module
from aiotasks.demo.postgres import PostgresServer
from aiotasks.store import joins
from aiotasks.store.loop import close_pools, resources
from tests.faults.away import Away, connected, environment
from tests.faults.releases import RELEASES, Release
from tests.faults.test_failover import OPTIONS, env, pair
from tests.faults.test_pgbouncer import DEAF, bouncer
from tests.pgbouncer import PgBouncer, program
from tests.site import default_task_backend as backend
from tests.site import postgres_result
from tests.standby import Pair
from tests.worker import tasks
from tests.worker.harness import Configure, Start, until

__all__ = ["bouncer", "env", "pair"]

QUICK = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1, "COMMAND_TIMEOUT": 2}


@asynccontextmanager
async def joined(number: int) -> AsyncIterator[list[Any]]:
    """So many joins, which wait when the block begins and have ended at its end."""
    calls: list[Any] = [((n, 1), {}) for n in range(number)]
    results = [postgres_result(each) for each in await backend.aenqueue_many(tasks.add, calls)]
    changes = resources(backend.config).changes
    async with asyncio.timeout(100):
        async with asyncio.TaskGroup() as group:
            for result in results:
                group.create_task(result.ajoin())
            await until(lambda: changes.number == number)
            yield results
    assert [result.return_value for result in results] == [n + 1 for n in range(number)]
    assert changes.number == 0
    await close_pools()


@pytest.fixture
def away(own_server: PostgresServer, database: str) -> Iterator[Away]:
    """A server of the test's own, which this process' connections go to."""
    away = Away(own_server)
    away.rows("TRUNCATE aiotasks_task, aiotasks_worker")
    with connected(own_server):
        yield away
    away.close()


async def test_immediate_restarts(away: Away, start_worker: Start, configure: Configure) -> None:
    """1,000 joins, while the server is killed three times, and a worker finishes their tasks."""
    configure(**QUICK)
    env = environment(away.server)
    async with joined(1000):
        worker = await asyncio.to_thread(
            start_worker, "--concurrency", "2", options=QUICK, env=env, ready=False
        )
        for _ in range(3):
            await asyncio.to_thread(away.server.restart, "immediate")
        await until(lambda: away.statuses() == {"SUCCESSFUL": 1000}, 60)
        assert worker.is_alive()


async def test_a_failover(start_worker: Start, pair: Pair, env: dict[str, str], configure: Configure) -> None:
    """The marks that the standby has got too late are made again."""
    configure(**OPTIONS)
    async with joined(300):
        await asyncio.to_thread(pair.kill_primary)
        await asyncio.to_thread(pair.promote)
        worker = await asyncio.to_thread(start_worker, options=OPTIONS, env=env, ready=False)
    assert await asyncio.to_thread(worker.stop) == 0


@pytest.mark.skipif(program() is None, reason="PgBouncer isn't installed")
async def test_a_pooler_without_a_direct_connection(
    bouncer: PgBouncer,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    conn: asyncpg.Connection,
) -> None:
    """They poll, and mark nothing."""
    monkeypatch.setattr(listener_module, "PROBE_TIMEOUT", 0.2)
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.1)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.2)
    configure(STATEMENT_CACHE_SIZE=0)
    async with joined(50):
        await until(lambda: DEAF in caplog.text)
        async with aiotasks.Worker() as worker:
            await worker.wait_until_empty()
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE awaited IS NOT NULL") == 0


@RELEASES
async def test_a_worker_of_an_older_release(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, kind: type[Release]
) -> None:
    """It tells nobody of a task's end."""
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.1)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.2)
    older = kind(conn)
    await older.register()
    result = await tasks.add.aenqueue(1, 2)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = group.create_task(result.ajoin())
        await until(lambda: resources(backend.config).changes.is_listening)
        assert await older.finish(await older.claim()) == 1
        assert (await waiting).return_value == 3
    await close_pools()
