"""What holds up tasks of some keys of limits holds up no other tasks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

import aiotasks
from tests.site import default_task_backend, running_store

from . import limit_tasks as tasks
from . import tasks as plain
from .harness import Configure, Ledger, until

# No poll, no rescue and no end of a lease can help.
OPTIONS = {"POLL_INTERVAL": 3600, "LEASE_TIMEOUT": 300}


@pytest.fixture(autouse=True)
def _clean_slate(configure: Configure) -> None:
    configure(**OPTIONS)
    tasks.forget()
    plain.seen.clear()


async def many(task: Any, *calls: tuple[Any, ...], **kwargs: Any) -> list[Any]:
    return await default_task_backend.aenqueue_many(task, [(call, kwargs) for call in calls])


@asynccontextmanager
async def open_transaction(conn: asyncpg.Connection, statement: str) -> AsyncIterator[None]:
    """What an operator has written and not committed."""
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute(statement)
    yield
    await transaction.rollback()


async def test_a_transaction_that_has_made_the_row_of_a_key(ledger: Ledger, conn: asyncpg.Connection) -> None:
    """Tasks of other keys, of new ones too, run meanwhile, and so do those without a limit."""
    paused = (
        "INSERT INTO aiotasks_limit (backend, key, claimed_at, paused_at) "
        "VALUES ('default', 'worker.one:locked', now(), now())"
    )
    async with aiotasks.Worker(concurrency=10):
        await tasks.one.aenqueue("known", "known0")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
        async with open_transaction(conn, paused):
            await many(tasks.one, *[(key, f"{key}1") for key in ("known", "locked", "new", "newer")])
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 4, "READY": 1})
            await tasks.one.aenqueue("known", "known2")
            await tasks.one.aenqueue("newest", "newest1")
            await plain.note.aenqueue("plain")
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 7, "READY": 1})
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 8})
    assert set(tasks.most.values()) == {1}


async def test_rows_that_can_not_be_made(ledger: Ledger, conn: asyncpg.Connection) -> None:
    """Without the right, for one. What a claim has taken beside them runs, and they are tried again."""
    async with aiotasks.Worker(concurrency=10):
        await tasks.one.aenqueue("known", "known0")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
        await conn.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE insufficient_privilege; END $$"
        )
        try:
            await conn.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON aiotasks_limit EXECUTE FUNCTION refuse()"
            )
            await many(tasks.one, ("known", "known1"), ("new", "new1"), ("known", "known2"))
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 3, "READY": 1})
            await plain.note.aenqueue("plain")
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 4, "READY": 1})
        finally:
            await conn.execute("DROP FUNCTION refuse CASCADE")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 5})


async def test_suspects_that_can_not_run_hide_no_other(ledger: Ledger, conn: asyncpg.Connection) -> None:
    """Be they many of one key or of many; or one that has the slot of the claim, because it isn't the first
    of its line.
    """
    await many(tasks.fair, *[(str(number % 120), "paused") for number in range(260)])
    await running_store().pause_limit("default", "worker.fair", "")
    await tasks.in_line.using(queue_name="not served").aenqueue("a", "first of its line")
    await tasks.in_line.aenqueue("a", "behind")
    await conn.execute("UPDATE aiotasks_task SET crashes = 2, max_crashes = 9 WHERE queue_name = 'default'")
    await tasks.one.aenqueue("a", "suspect")
    await conn.execute(
        "UPDATE aiotasks_task SET crashes = 2, max_crashes = 9 WHERE limit_key = 'worker.one:a'"
    )
    async with aiotasks.Worker(queues=["default"], concurrency=10):
        await until(lambda: "suspect" in tasks.seen)
    assert tasks.seen == ["suspect"]


async def test_a_transaction_that_has_locked_a_key_to_be_closed(
    ledger: Ledger, conn: asyncpg.Connection
) -> None:
    """The task that has raised RateLimited waits for it, and the outcome of no other."""
    locked = "UPDATE aiotasks_limit SET weight = 2 WHERE key = 'worker.two:locked'"
    async with aiotasks.Worker(concurrency=10):
        await many(tasks.slows_down, ("locked", "locked"), ("free", "free"))
        await until(lambda: len(tasks.seen) == 2)
        async with open_transaction(conn, locked):
            for name in ("locked", "free"):
                tasks.let_go(name)
            for number in range(30):
                await plain.note.aenqueue(str(number))
            await until(lambda: ledger.statuses() == {"RUNNING": 1, "SCHEDULED": 1, "SUCCESSFUL": 30})
        await until(lambda: ledger.statuses() == {"SCHEDULED": 2, "SUCCESSFUL": 30})
    closed = ledger.rows("SELECT key FROM aiotasks_limit WHERE closed_until > now() ORDER BY key")
    assert [row.key for row in closed] == ["worker.two:free", "worker.two:locked"]


@pytest.mark.parametrize("priority", [0, 50])
@pytest.mark.parametrize(("floods", "slots"), [(3, 1), (20, 1), (200, 10), (130, 100)])
async def test_keys_with_backlogs_hold_up_no_other(
    floods: int, slots: int, priority: int, ledger: Ledger
) -> None:
    """A key that comes new has its turn, or is the next if its task is more urgent."""
    flood = [(f"flood{number % floods}", "flood", 0.002) for number in range(20 * max(floods, 50))]
    await many(tasks.fair, *flood)
    async with aiotasks.Worker(concurrency=slots, grace=0):
        await until(lambda: len(tasks.seen) > 50)
        before = len(tasks.seen)
        await tasks.fair.using(priority=priority).aenqueue("small", "small")
        await until(lambda: "small" in tasks.seen)
    assert tasks.seen.index("small") - before < len(flood) / 3
