"""Names that spite SQL, NOTIFY and the log, and a schema that changes below open sessions."""

import logging
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

import aiotasks
from aiotasks.backend import MAX_QUEUE_NAME
from aiotasks.conf import Options
from aiotasks.models import MAX_NAMES
from aiotasks.store.loop import resources
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, until

HOSTILE_NAMES = [
    "x'; DROP TABLE aiotasks_task; --",
    'a"b',
    "a\\b",
    "%s %(p1)s $1",
    "{}",
    '["default"]',
    "ü€",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_a_queue_name_is_a_value(configure: Configure, ledger: Ledger, name: str) -> None:
    """Fault 48 of docs/faults.md: bound in every statement and payload, over both drivers."""
    configure(POLL_INTERVAL=60.0)  # so that only a NOTIFY that arrives as it was sent can wake
    async with aiotasks.Worker():
        result = await tasks.add.using(queue_name=name).aenqueue(1, 2)
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert ledger.value("SELECT queue_name FROM aiotasks_task") == name


async def test_a_stored_name_writes_no_line_of_the_log(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 50 of docs/faults.md: log injection."""
    result = await tasks.add.aenqueue(1, 2)
    ledger.connection.execute("UPDATE aiotasks_task SET task_path = E'no.such\nCRITICAL forged'")
    with caplog.at_level(logging.INFO, "aiotasks"):
        async with aiotasks.Worker():
            await until(lambda: ledger.task(result.id).status == "SCHEDULED")
    messages = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert messages
    assert not any("\n" in message for message in messages)


async def test_a_changed_table_breaks_no_open_session(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """Fault 23 of docs/faults.md: prepared statements outlive a migration of their table."""
    store = resources(Options()).store
    result = await tasks.add.aenqueue(1, 2)
    async with aiotasks.Worker():
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
        await result.arefresh()
        for change in ("ADD COLUMN later text", "ALTER COLUMN priority TYPE integer"):
            await conn.execute(f"ALTER TABLE aiotasks_task {change}")
        try:
            again = await tasks.add.aenqueue(3, 4)
            await until(lambda: ledger.task(again.id).status == "SUCCESSFUL")
            await again.arefresh()
            await result.arefresh()
        finally:
            await conn.execute("ALTER TABLE aiotasks_task DROP COLUMN later")
            await conn.execute("ALTER TABLE aiotasks_task ALTER COLUMN priority TYPE smallint")
    assert (again.return_value, result.return_value) == (7, 3)
    assert not await store.has_unfinished_jobs("default", None, ["loop", "thread"])


async def test_names_that_no_index_can_hold_are_kept_out(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """A scheduled row of such a name, written by hand, would keep all others from being promoted."""
    at_most = "\U0001f980" * MAX_QUEUE_NAME
    due = datetime.now(UTC) + timedelta(hours=1)
    await tasks.add.using(queue_name=at_most, run_after=due).aenqueue(1, 2)
    # A text that doesn't shrink by being compressed.
    rename = """
        UPDATE aiotasks_task SET run_after = now(), queue_name = left(
            (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 100) AS n),
            $1::integer - octet_length(backend) - octet_length(lane)
        )
    """
    with pytest.raises(asyncpg.CheckViolationError, match="aiotasks_task_keys_fit"):
        await conn.execute(rename, MAX_NAMES + 1)
    await conn.execute(rename, MAX_NAMES)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
