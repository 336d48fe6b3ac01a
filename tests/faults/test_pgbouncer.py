"""Fault 19 of docs/faults.md: everything works through PgBouncer in transaction mode, and nothing is lost
when it goes away.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils import timezone

import aiotasks
from aiotasks.conf import Options
from aiotasks.db import listener as listener_module
from aiotasks.db.connect import connect
from aiotasks.demo.postgres import PostgresServer
from aiotasks.store.loop import close_pools, resources
from tests.faults.away import Away, environment
from tests.pgbouncer import PgBouncer, program
from tests.site import default_task_backend, postgres_result
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until

pytestmark = pytest.mark.skipif(
    program() is None and not os.environ.get("CI"), reason="pgbouncer isn't installed"
)

# The options of docs/howto/pgbouncer.md.
POOLED = {"STATEMENT_CACHE_SIZE": 0}
DEAF = "NOTIFY is not delivered"


@pytest.fixture
def bouncer(pg: Any, database: str) -> Iterator[PgBouncer]:
    """Before the test's database; this process' connections that are opened from now on go through it."""
    params = connections["default"].settings_dict
    host, port = params["HOST"], params["PORT"]
    with PgBouncer(pg) as bouncer:
        params.update(HOST=bouncer.host, PORT=str(bouncer.port))
        yield bouncer
        connections.close_all()
        params.update(HOST=host, PORT=port)


@pytest.fixture
def env(bouncer: PgBouncer, pg: Any, database: str) -> dict[str, str]:
    return {
        "AIOTASKS_DB_HOST": bouncer.host,
        "AIOTASKS_DB_PORT": str(bouncer.port),
        "TEST_DIRECT_PORT": str(pg.port),
        "LEDGER_DSN": database,
    }


class Undo(Exception):
    """Ends a transaction."""


def enqueue_from_sync_code() -> int:
    """Some by themselves, some in atomic() blocks; how many are committed."""
    for _ in range(10):
        tasks.work.enqueue()
        with transaction.atomic():
            tasks.work_sync.enqueue()
    with suppress(Undo), transaction.atomic():
        tasks.work.enqueue()
        raise Undo
    connections.close_all()
    return 20


async def enqueue_from_async_code() -> int:
    await asyncio.gather(*(tasks.work.aenqueue() for _ in range(100)))
    await default_task_backend.aenqueue_many(tasks.work_sync, [((), {})] * 50)
    for _ in range(10):
        async with aiotasks.transaction() as connection:
            await tasks.work.aenqueue()
            assert await connection.fetchval("SELECT count(*) FROM aiotasks_task") > 0
        with suppress(Undo):
            async with aiotasks.transaction():
                await tasks.work.aenqueue()
                raise Undo
    return 160


@pytest.mark.parametrize("listen", ["direct", pytest.param(None, marks=pytest.mark.battery)])
async def test_everything_works_through_it(
    listen: str | None, start_worker: Start, env: dict[str, str], configure: Configure, ledger: Ledger
) -> None:
    """Woken by the direct line, or by polls alone; each task runs once."""
    options = {**POOLED, "LISTEN_DATABASE": listen, "POLL_INTERVAL": 3600 if listen else 0.5}
    configure(**options)
    workers = [start_worker("--threads", "4", options=options, env=env, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_for("connections: at most")
    many = await enqueue_from_async_code() + await sync_to_async(enqueue_from_sync_code)()
    in_an_hour = timezone.now() + timedelta(hours=1)
    later = await tasks.work.using(run_after=in_an_hour).aenqueue()
    assert await postgres_result(later).acancel()
    running = postgres_result(await tasks.work.aenqueue(60.0))
    await until(lambda: ledger.events("start", running.id) >= 1)
    assert await running.acancel()
    await until(lambda: ledger.statuses() == {"SUCCESSFUL": many, "FAILED": 2})
    await running.arefresh()
    assert running.errors[0].exception_class_path.endswith("TaskCancelled")
    assert ledger.events("start") == many + 1
    for worker in workers if listen is None else ():
        worker.wait_for(DEAF)
    assert [worker.stop() for worker in workers] == [0, 0]
    for worker in workers:
        assert worker.log.count(DEAF) == (0 if listen else 1)
        assert f"wake-ups: {'LISTEN' if listen else 'none'}" in worker.log
        assert "Traceback" not in worker.log


async def test_the_listener_finds_that_nothing_arrives(
    bouncer: PgBouncer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A notification that came back on its own session would say that all is well."""
    monkeypatch.setattr(listener_module, "PROBE_TIMEOUT", 0.5)
    monkeypatch.setattr(listener_module, "DEAF_PAUSE", 0.05)
    tries = 0

    async def count(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        return await connect(*args, **options)

    monkeypatch.setattr(listener_module, "connect", count)
    held = resources(Options(statement_cache_size=0))
    with held.wakeups.subscribed(lambda wakeup: None):
        await until(lambda: tries >= 3)
        assert not held.wakeups.listening.is_set()
    await close_pools()
    assert caplog.text.count(DEAF) == 1


@pytest.mark.battery
def test_without_a_direct_line_it_polls(
    start_worker: Start, env: dict[str, str], configure: Configure, ledger: Ledger
) -> None:
    """The listener finds by itself that nothing arrives, and says so once."""
    options = {**POOLED, "POLL_INTERVAL": 0.5}
    configure(**options)
    worker = start_worker("--threads", "4", options=options, env=env)
    many = enqueue_from_sync_code()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": many})
    worker.wait_for(DEAF)
    assert worker.stop() == 0
    assert "wake-ups: none" in worker.log
    assert worker.log.count(DEAF) == 1
    assert "Traceback" not in worker.log


async def test_it_is_killed_and_comes_back(
    start_worker: Start, bouncer: PgBouncer, env: dict[str, str], configure: Configure, ledger: Ledger
) -> None:
    """Callers wait, workers go on, and each task has one result."""
    options = {**POOLED, "LISTEN_DATABASE": "direct", "POLL_INTERVAL": 1}
    configure(**options)
    worker = start_worker("--concurrency", "10", options=options, env=env)
    await default_task_backend.aenqueue_many(tasks.work, [((0.02,), {})] * 100)
    for _ in range(2):
        ended = ledger.events("end")
        await until(lambda ended=ended: ledger.events("end") > ended + 10)
        bouncer.kill()
        callers = asyncio.gather(*(tasks.work.aenqueue() for _ in range(10)))
        worker.wait_for("claims wait for the database")
        bouncer.start()
        await callers
    await until(lambda: ledger.statuses() == {"SUCCESSFUL": 120})
    assert ledger.value("SELECT count(DISTINCT task_id) FROM ledger WHERE event = 'end'") == 120
    assert worker.stop() == 0
    assert "Traceback" not in worker.log


@pytest.mark.battery
def test_an_outage_behind_it_is_nobodys_crash(start_worker: Start, own_server: PostgresServer) -> None:
    """53: PgBouncer is there and its server isn't, for two leases: no task runs twice, none is cancelled."""
    away = Away(own_server)
    with PgBouncer(own_server) as bouncer:
        env = {
            **environment(own_server),
            "AIOTASKS_DB_PORT": str(bouncer.port),
            "LEDGER_DSN": own_server.dsn(),
        }
        options = {**POOLED, "LEASE_TIMEOUT": 2, "POLL_INTERVAL": 0.5, "COMMAND_TIMEOUT": 1}
        workers = [start_worker("--threads", "5", options=options, env=env, ready=False) for _ in range(2)]
        for worker in workers:
            worker.wait_for("connections: at most")
        away.enqueue("work", 5.0, count=8)
        away.enqueue("work_sync", 5.0, count=8, lane="thread")
        wait_until(lambda: away.value("SELECT count(*) FROM ledger WHERE event = 'start'") >= 16)
        own_server.stop("fast")
        for worker in workers:
            worker.wait_for("cannot be renewed")
        time.sleep(4.0)  # load: an outage of two leases
        own_server.start()
        wait_until(lambda: away.statuses() == {"SUCCESSFUL": 16})
        assert away.value("SELECT count(*) FROM ledger WHERE event = 'start'") == 16
        assert away.value("SELECT max(cardinality(worker_ids)) FROM aiotasks_task") == 1
        away.close()
        assert [worker.stop() for worker in workers] == [0, 0]
    for worker in workers:
        assert "Rescued" not in worker.log
        assert "fenced" not in worker.log
        assert "Traceback" not in worker.log


@pytest.mark.parametrize("way", ["loop", "transaction", "atomic"])
async def test_bulk_actions(bouncer: PgBouncer, configure: Configure, way: str) -> None:
    """Each batch may have a server process of its own, or all share the block's."""
    configure(**POOLED)
    await default_task_backend.aenqueue_many(tasks.work, [((), {})] * 1200)
    every_task = aiotasks.TaskFilter()
    blocks: dict[str, Any] = {"transaction": aiotasks.transaction, "atomic": aiotasks.atomic}
    async with blocks.get(way, nullcontext)():
        assert (await default_task_backend.acancel_many(every_task, everything=True)).cancelled == 1200
        assert (await default_task_backend.aretry_many(every_task)).retried == 1200
        assert (await default_task_backend.adelete_many(every_task, everything=True)).deleted == 1200
    assert await default_task_backend.adelete_many(every_task, everything=True) == aiotasks.BulkCounts()
    await close_pools()


def test_ticks_of_schedules(env: dict[str, str], start_worker: Start, ledger: Ledger) -> None:
    """Whose transactions several workers have at a time, over few server processes."""
    options = {**POOLED, "SCHEDULES": ["tests.worker.scheduled_tasks"], "POLL_INTERVAL": 1}
    workers = [start_worker(options=options, env=env) for _ in range(2)]
    wait_until(lambda: ledger.statuses().get("SUCCESSFUL", 0) >= 4)
    assert [worker.stop() for worker in workers] == [0, 0]
    query = "SELECT metadata->>'_schedule' AS name, metadata->>'_scheduled_for' AS at FROM aiotasks_task"
    ticks = ledger.rows(query)
    assert len(set(ticks)) == len(ticks)
    assert not any(word in worker.log for worker in workers for word in ("Outage", "Traceback", "failed"))
