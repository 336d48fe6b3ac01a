"""States that nobody can end, written by hand: the table refuses them, and says what is missing."""

import asyncpg
import pytest
from django.core.management import call_command
from django.db import connection

from aiotasks.store.store import Store

from .rows import claim, claimed, insert, release, rescue, row, worker


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("status = 'READY'", "aiotasks_task_ready_needs_ready_at"),
        ("status = 'READY', ready_at = NULL", "aiotasks_task_ready_needs_ready_at"),
        ("run_after = NULL", "aiotasks_task_scheduled_needs_run_after"),
        ("status = 'SUCCESSFUL'", "aiotasks_task_finished_needs_finished_at"),
        ("status = 'FAILED'", "aiotasks_task_finished_needs_finished_at"),
    ],
)
async def test_a_status_without_its_time_is_refused(
    store: Store, conn: asyncpg.Connection, change: str, says: str
) -> None:
    (id,) = await insert(store)
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'SCHEDULED', run_after = now() + interval '1 d', ready_at = NULL"
    )
    with pytest.raises(asyncpg.CheckViolationError, match=says):
        await conn.execute(f"UPDATE aiotasks_task SET {change}")
    # As people may do it by hand.
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'READY', ready_at = now() WHERE status = 'SCHEDULED'"
    )
    assert [job.id for job in await claim(store, await worker(store))] == [id]


async def test_a_running_row_without_an_owner_is_rescued(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store)
    await conn.execute("UPDATE aiotasks_task SET status = 'RUNNING', ready_at = NULL")
    await rescue(store, 3, 10)
    assert (await row(conn, id))["status"] == "READY"


async def test_a_release_of_a_row_without_ready_at_holds_up_no_other(
    store: Store, conn: asyncpg.Connection
) -> None:
    _, jobs = await claimed(store, 2)
    await conn.execute("UPDATE aiotasks_task SET ready_at = NULL WHERE id = $1", jobs[0].id)
    released = await release(store, *jobs)
    assert set(released) == {job.id for job in jobs}


def test_rows_that_are_there_already_are_set_right(database: str) -> None:
    """By the migration, which then refuses new ones."""
    call_command("migrate", "aiotasks", "0005", verbosity=0)
    statuses = ["READY", "SCHEDULED", "SUCCESSFUL", "FAILED", "RUNNING"]
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, args,
                    kwargs, errors, worker_ids, crashes, enqueued_at)
                SELECT gen_random_uuid(), 'default', 'default', 'x', 'loop', 0, status, '[]',
                    '{}', '{}', '{}', 0, now()
                FROM unnest(%s::text[]) AS status
                """,
                [statuses],
            )
    finally:
        call_command("migrate", "aiotasks", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT status, ready_at IS NOT NULL, run_after IS NOT NULL, finished_at IS NOT NULL
            FROM aiotasks_task
            """
        )
        found = {status: times for status, *times in cursor.fetchall()}
    assert found == {
        "READY": [True, False, False],
        "SCHEDULED": [False, True, False],
        "SUCCESSFUL": [False, False, True],
        "FAILED": [False, False, True],
        "RUNNING": [False, False, False],
    }
