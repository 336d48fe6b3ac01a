"""What somebody does to the tables that a worker needs: locks on the leases, tables that are missing."""

import logging

import asyncpg
import pytest

import aiotasks
from aiotasks.worker.maintenance.rescuer import Rescuer

from . import tasks
from .harness import Configure, until


async def test_a_lock_on_the_leases_ends_nothing_that_runs(
    configure: Configure, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """48: LOCK TABLE, for longer than a lease: no other worker can have one either."""
    configure(LEASE_TIMEOUT=6, POLL_INTERVAL=0.2)
    tasks.seen.clear()
    async with aiotasks.Worker(grace=0) as worker:
        first = worker.engine.lease.worker_id
        await tasks.wait_for_release.aenqueue("held")
        await until(lambda: tasks.seen == ["held"])
        async with conn.transaction():
            await conn.execute("LOCK TABLE aiotasks_worker")

            async def has_expired() -> bool:
                query = (
                    "SELECT max(lease_expires_at) < clock_timestamp() - interval '2 s' FROM aiotasks_worker"
                )
                return bool(await conn.fetchval(query))

            await until(has_expired)
            assert worker.engine.lease.remaining() > 0
        await until(lambda: worker.engine.lease.steady_since is not None)
        tasks.waiting["held"].set_result(None)

        async def is_done() -> bool:
            return bool(
                await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE finished_at IS NOT NULL")
            )

        await until(is_done)
        assert worker.engine.lease.worker_id == first
    assert tasks.seen == ["held"]
    (row,) = await conn.fetch("SELECT status, cardinality(worker_ids) FROM aiotasks_task")
    assert tuple(row) == ("SUCCESSFUL", 1)
    assert caplog.text.count("The table of workers is locked") == 1


async def test_missing_tables_are_logged_once(
    configure: Configure,
    conn: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """48: a line a sweep, with a traceback each, filled the log until somebody had run migrate."""
    configure(LEASE_TIMEOUT=1.2, POLL_INTERVAL=0.1)
    sweeps = 0
    run_once = Rescuer.run_once

    async def counted(self: Rescuer) -> object:
        nonlocal sweeps
        sweeps += 1
        return await run_once(self)

    monkeypatch.setattr(Rescuer, "run_once", counted)
    caplog.set_level(logging.INFO)
    async with aiotasks.Worker():
        await conn.execute("ALTER TABLE aiotasks_task RENAME TO elsewhere")
        try:
            before = sweeps
            await until(lambda: sweeps > before + 5)
        finally:
            await conn.execute("ALTER TABLE elsewhere RENAME TO aiotasks_task")
        await until(lambda: "Maintenance goes on part=rescuer" in caplog.text)
        result = await tasks.add.aenqueue(1, 2)

        async def is_done() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(is_done)
    assert caplog.text.count("Maintenance fails until this is fixed part=rescuer") == 1
    assert "Traceback" not in caplog.text
