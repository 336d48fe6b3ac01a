"""The floor: the same rows by the bare SQL, over asyncpg. No queue, no lease, no fence, no signals."""

import asyncio
import multiprocessing
import sys
import time
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID

import asyncpg

from .common import REFRESH_WAVES, MeasurementFailed, dsn, latencies, run, ticks
from .site import insert_rows, migrate, set_up

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

__all__ = ["REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["asyncpg", "Django", "psycopg"]

# Tasks that are claimed and finished by one statement.
BATCH = 100

INSERT_COLUMNS = (
    *("id", "backend", "queue_name", "task_path", "lane", "priority", "status", "args", "kwargs", "errors"),
    *("worker_ids", "crashes", "enqueued_at", "ready_at"),
)
INSERT = f"""
    INSERT INTO aiotasks_task ({", ".join(INSERT_COLUMNS)})
    VALUES ({{}})
"""
CLAIM = """
    UPDATE aiotasks_task
    SET status = 'RUNNING', started_at = now(), last_attempted_at = now()
    WHERE ctid = ANY(ARRAY(
        SELECT ctid
        FROM aiotasks_task
        WHERE status = 'READY' AND backend = 'default' AND queue_name = 'default' AND lane = 'loop'
        ORDER BY priority DESC, ready_at, id
        LIMIT $1
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, task_path, args::text, kwargs::text
"""
FINISH = """
    UPDATE aiotasks_task AS task
    SET status = outcome.status, return_value = outcome.return_value::json, finished_at = now()
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS outcome (id, status, return_value)
    WHERE task.id = outcome.id
"""
SELECT = """
    SELECT
        id, claim_id, backend, queue_name, task_path, lane, priority, status,
        args::text, kwargs::text, return_value::text, errors::text[], worker_ids::text[],
        enqueued_at, run_after, ready_at, started_at, last_attempted_at, finished_at, max_crashes
    FROM aiotasks_task
    WHERE id = $1
"""


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("asyncpg", "Django", "psycopg", "uvloop")}


prepare = migrate


def _row() -> tuple[Any, ...]:
    now = datetime.now(UTC)
    return (
        *(uuid7(), "default", "default", "benchmarks.tasks.noop", "loop", 0, "READY", "[]", "{}", []),
        *([], 0, now, now),
    )


def _numbered(statement: str) -> str:
    return statement.format(", ".join(f"${number + 1}" for number in range(len(INSERT_COLUMNS))))


# --- Drain ------------------------------------------------------------------------------------------


def _drain(count: int) -> dict[str, float]:
    """Claim and finish in batches, on one connection, until nothing is left."""

    async def measured() -> float:
        connection = await asyncpg.connect(dsn())
        await insert_rows(connection, count)
        claim, finish = await connection.prepare(CLAIM), await connection.prepare(FINISH)
        started = time.perf_counter()
        while rows := await claim.fetch(BATCH):
            await finish.fetch([row["id"] for row in rows], ["SUCCESSFUL"] * len(rows), ["null"] * len(rows))
        seconds = time.perf_counter() - started
        await _expect(connection, count, status="SUCCESSFUL")
        await connection.close()
        return seconds

    return _rate(count, run(measured()))


# --- Enqueues and look-ups --------------------------------------------------------------------------


def _pool(connections: int) -> asyncpg.Pool:
    """asyncpg's pool as it comes: it resets what comes back, without which it is 1.4 times as fast."""
    return asyncpg.create_pool(dsn(), min_size=connections, max_size=connections)


def _enqueue_concurrently(count: int, *, callers: int, connections: int) -> dict[str, float]:
    """Single INSERTs by ``callers`` coroutines over a pool."""
    insert = _numbered(INSERT)

    async def measured() -> float:
        async with _pool(connections) as pool:

            async def caller(calls: int) -> None:
                for _ in range(calls):
                    await pool.execute(insert, *_row())

            await asyncio.gather(*(caller(1) for _ in range(callers)))
            started = time.perf_counter()
            await asyncio.gather(*(caller(count // callers) for _ in range(callers)))
            seconds = time.perf_counter() - started
            async with pool.acquire() as connection:
                await _expect(connection, count // callers * callers + callers)
        return seconds

    return _rate(count // callers * callers, run(measured()))


def _enqueue_alone(count: int) -> dict[str, float]:
    """Single prepared INSERTs on one connection."""

    async def measured() -> float:
        connection = await asyncpg.connect(dsn())
        insert = await connection.prepare(_numbered(INSERT))
        await insert.fetch(*_row())
        started = time.perf_counter()
        for _ in range(count):
            await insert.fetch(*_row())
        seconds = time.perf_counter() - started
        await _expect(connection, count + 1)
        await connection.close()
        return seconds

    return _rate(count, run(measured()))


def _enqueue_sync(count: int) -> dict[str, float]:
    """Single INSERTs on Django's connection, by one cursor."""
    set_up()
    from django.db import connection

    insert = INSERT.format(", ".join(["%s"] * len(INSERT_COLUMNS)))
    with connection.cursor() as cursor:
        cursor.execute(insert, _row())
        started = time.perf_counter()
        for _ in range(count):
            cursor.execute(insert, _row())
        seconds = time.perf_counter() - started
        cursor.execute("SELECT count(*) FROM aiotasks_task")
        (rows,) = cursor.fetchone()
    if rows != count + 1:
        raise MeasurementFailed(f"{rows:,} rows of {count + 1:,} are there.")
    return _rate(count, seconds)


def _bulk(count: int) -> dict[str, float]:
    """COPY of rows that are there already."""

    async def measured() -> float:
        connection = await asyncpg.connect(dsn())
        rows = [_row() for _ in range(count)]
        started = time.perf_counter()
        await connection.copy_records_to_table("aiotasks_task", records=rows, columns=INSERT_COLUMNS)
        seconds = time.perf_counter() - started
        await _expect(connection, count)
        await connection.close()
        return seconds

    return _rate(count, run(measured()))


def _refresh(count: int) -> dict[str, float]:
    """A SELECT for each task, all at once over a pool of 10."""

    async def measured() -> float:
        async with _pool(10) as pool:
            async with pool.acquire() as connection:
                await insert_rows(connection, count, status="SUCCESSFUL")
                ids = [row["id"] for row in await connection.fetch("SELECT id FROM aiotasks_task")]
            await asyncio.gather(*(pool.fetchrow(SELECT, id) for id in ids[:100]))
            started = time.perf_counter()
            for _ in range(REFRESH_WAVES):
                rows = await asyncio.gather(*(pool.fetchrow(SELECT, id) for id in ids))
            seconds = time.perf_counter() - started
        if any(row["status"] != "SUCCESSFUL" for row in rows):
            raise MeasurementFailed("A row that was looked up isn't the one that was meant.")
        return seconds

    return _rate(REFRESH_WAVES * count, run(measured()))


# --- Latency ----------------------------------------------------------------------------------------


def _latency(count: int) -> dict[str, float]:
    """One process commits an INSERT, then notifies; the other claims on the notification."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_claim_on_notification, args=(theirs, count), daemon=True)
    worker.start()
    if not ours.poll(60):
        raise MeasurementFailed("The process that listens has not come up.")
    ours.recv()

    async def measured() -> dict[UUID, float]:
        connection = await asyncpg.connect(dsn())
        insert = await connection.prepare(_numbered(INSERT))
        started: dict[UUID, float] = {}
        async for _ in ticks(count, 0.02):
            row = _row()
            started[row[0]] = time.time()
            await insert.fetch(*row)
            await connection.execute("SELECT pg_notify('floor', '')")
        await connection.close()
        return started

    started = run(measured())
    if not ours.poll(60):
        raise MeasurementFailed("Not all rows were claimed.")
    claimed: dict[UUID, float] = ours.recv()
    worker.join()
    return latencies([claimed[id] - at for id, at in started.items()])


def _claim_on_notification(pipe: Connection, count: int) -> None:
    """Claim ``count`` rows, one a notification, and send the times at which they were here."""

    async def work() -> dict[UUID, float]:
        listener, connection = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
        claim = await connection.prepare(CLAIM)
        notified = asyncio.Semaphore(0)
        await listener.add_listener("floor", lambda *args: notified.release())
        await claim.fetch(1)
        pipe.send("listening")
        claimed: dict[UUID, float] = {}
        while len(claimed) < count:
            await notified.acquire()
            for row in await claim.fetch(1):
                claimed[row["id"]] = time.time()
        await listener.close()
        await connection.close()
        return claimed

    pipe.send(run(work()))


# --- Joins ------------------------------------------------------------------------------------------


def _join(count: int) -> dict[str, float]:
    """A bare NOTIFY, from just before it is sent to where it arrives: two connections of one process."""

    async def measured() -> list[float]:
        listener, connection = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
        heard: asyncio.Queue[float] = asyncio.Queue()
        await listener.add_listener("floor", lambda *args: heard.put_nowait(time.perf_counter()))
        found = []
        async for _ in ticks(count, 0.005):
            sent = time.perf_counter()
            await connection.execute("SELECT pg_notify('floor', '')")
            found.append(await heard.get() - sent)
        await listener.close()
        await connection.close()
        return found

    return latencies(run(measured()))


# --- Figures ----------------------------------------------------------------------------------------


async def _expect(connection: asyncpg.Connection, count: int, *, status: str = "READY") -> None:
    rows = await connection.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = $1", status)
    if rows != count:
        raise MeasurementFailed(f"{rows:,} rows of {count:,} are {status}.")


def _rate(count: int, seconds: float) -> dict[str, float]:
    return {"per_s": count / seconds, "seconds": seconds}


WORKLOADS = {
    "drain": _drain,
    "enqueue-50": partial(_enqueue_concurrently, callers=50, connections=20),
    "enqueue-1": _enqueue_alone,
    "enqueue-sync": _enqueue_sync,
    "bulk": _bulk,
    "refresh": _refresh,
    "latency": _latency,
    "join": _join,
}
