"""PostgreSQL's queue of notifications is full: tasks are stored all the same, and polls find them."""

import asyncio
from collections.abc import Iterator

import asyncpg
import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

import aiotasks
from aiotasks.demo.postgres import PostgresServer
from tests import tasks
from tests.conftest import BIN_DIR
from tests.site import default_task_backend

from .away import connected, migrate

COUNT = "SELECT count(*) FROM aiotasks_task"
FULL = "too many notifications"
LEFT_OUT = "NOTIFY was left out of a transaction"


async def fill_with(filler: asyncpg.Connection, payload: str) -> None:
    while True:
        await filler.execute(f"SELECT pg_notify('filler', {payload}) FROM generate_series(1, 8) n")


async def fill(dsn: str) -> asyncpg.Connection:
    """Notify until the queue is full; returns the connection that holds it up."""
    holder = await asyncpg.connect(dsn)
    await holder.execute("LISTEN other")
    await holder.execute("BEGIN; SELECT txid_current()")
    filler = await asyncpg.connect(dsn)
    for payload in ("n || repeat('x', 7900)", "n::text"):  # the last page, too
        with pytest.raises(asyncpg.ProgramLimitExceededError, match=FULL):
            await fill_with(filler, payload)
    await filler.close()
    return holder


@pytest.fixture(scope="module")
def server_with_a_short_queue(pg: PostgresServer) -> Iterator[PostgresServer]:
    with psycopg.connect(pg.dsn()) as observer:
        if observer.info.server_version < 170000:
            pytest.skip("its queue takes 8 GB")
    with PostgresServer(bin_dir=BIN_DIR, settings={"max_notify_queue_pages": "64"}) as server:
        migrate(server)
        yield server


@pytest.fixture
def server(database: str, server_with_a_short_queue: PostgresServer) -> Iterator[PostgresServer]:
    """What this process' connections go to."""
    with psycopg.connect(server_with_a_short_queue.dsn(), autocommit=True) as cleaner:
        cleaner.execute("TRUNCATE aiotasks_task")
    with connected(server_with_a_short_queue):
        yield server_with_a_short_queue


async def test_every_enqueue_goes_on_without_its_wakeup(
    server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    holder = await fill(server.dsn())
    mine = await asyncpg.connect(server.dsn())
    stored = 0

    async def is_one_more(logged: str | None = None) -> None:
        nonlocal stored
        stored += 1
        assert await mine.fetchval(COUNT) == stored
        if logged:
            assert logged in caplog.text
        caplog.clear()

    # Over the pool, whose wake-up nobody waits for.
    await tasks.echo.aenqueue(1)
    await is_one_more()
    async with aiotasks.transaction():
        await tasks.echo.aenqueue(2)
    await is_one_more()
    # Over the caller's connection: after our commit, and in the caller's transaction.
    async with aiotasks.transaction(connection=mine):
        await tasks.echo.aenqueue(3)
    await is_one_more(FULL)
    async with mine.transaction(), aiotasks.transaction(connection=mine):
        await tasks.echo.aenqueue(4)
    await is_one_more(LEFT_OUT)

    def over_django() -> None:
        tasks.echo.enqueue(5)

    def in_atomic() -> None:
        with transaction.atomic():
            tasks.echo.enqueue(6)

    def without_autocommit() -> None:
        transaction.set_autocommit(False)
        try:
            tasks.echo.enqueue(7)
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

    for enqueue, logged in [(over_django, FULL), (in_atomic, FULL), (without_autocommit, LEFT_OUT)]:
        await asyncio.sleep(0.006)  # the same wake-up is sent once in 5 ms
        await sync_to_async(enqueue)()
        await is_one_more(logged)
    # Where there is room again, the caller's commit wakes the workers.
    await holder.close()
    heard = asyncio.Event()
    listener = await asyncpg.connect(server.dsn())
    await listener.add_listener("aiotasks", lambda *args: heard.set())
    async with mine.transaction(), aiotasks.transaction(connection=mine):
        await default_task_backend.aenqueue_many(tasks.echo, [((8,), {})])
    async with asyncio.timeout(30):
        await heard.wait()
    await is_one_more()
    await mine.close()
    await listener.close()
    await sync_to_async(connections.close_all)()
