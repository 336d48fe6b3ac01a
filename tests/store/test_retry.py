"""release_jobs for what has failed or snoozed: attempts, errors, times, and whoever else writes the row."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from aiotasks.rows import Job, time_of
from aiotasks.store.outcomes import Release
from aiotasks.store.store import Store

from . import rows
from .rows import (
    CANCELLED,
    claim,
    claim_of,
    claimed,
    expire,
    fail,
    finish,
    insert,
    lane,
    release,
    rescue,
    row,
    worker,
)


def error(name: str = "ValueError") -> str:
    return json.dumps({"class": f"builtins.{name}", "traceback": f"{name}: no\0\n"})


async def make_due(store: Store, conn: asyncpg.Connection, *ids: UUID) -> None:
    await conn.execute(
        "UPDATE aiotasks_task SET run_after = least(run_after, statement_timestamp()) WHERE id = ANY($1)", ids
    )
    await store.promote_due_jobs("default", 100)


async def test_a_failed_attempt_counts_and_the_task_waits(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store)
    assert job.failures is None
    assert await release(store, job, delay=60.0, error=error()) == {job.id: "default"}
    stored = await row(conn, job.id)
    assert (stored["status"], stored["failures"], stored["snoozes"]) == ("SCHEDULED", 1, None)
    assert (stored["ready_at"], stored["claim_id"], stored["worker_id"]) == (None, None, None)
    assert stored["worker_ids"] == [worker_id]
    assert stored["started_at"] == stored["last_attempted_at"] == time_of(job.started_at)
    assert stored["finished_at"] is None
    assert timedelta(seconds=55) < stored["run_after"] - datetime.now(UTC) < timedelta(seconds=65)
    await make_due(store, conn, job.id)
    (again,) = await claim(store, worker_id)
    assert (again.failures, again.errors, len(again.worker_ids)) == (1, [error()], 2)
    assert await fail(store, again, error=error("KeyError")) != {}
    (found,) = await store.select_jobs([job.id], "default")
    assert (found.status, found.errors) == ("FAILED", [error(), error("KeyError")])
    assert found.run_after is None  # as the caller asked


async def test_the_time_that_the_caller_asked_for_stays(store: Store, conn: asyncpg.Connection) -> None:
    asked = datetime.now(UTC) - timedelta(hours=2)
    (id,) = await insert(store, run_after=asked)
    await store.promote_due_jobs("default", 10)
    worker_id = await worker(store)
    for delay in (60.0, 5.0, 0.0):
        (job,) = await claim(store, worker_id)
        assert time_of(job.run_after) == asked
        await release(store, job, delay=delay, error=error())
        (found,) = await store.select_jobs([id], "default")
        assert time_of(found.run_after) == asked
        await make_due(store, conn, id)
    assert (await row(conn, id))["failures"] == 3


async def test_tried_again_at_once_is_at_the_end_of_its_priority(store: Store) -> None:
    worker_id, (job,) = await claimed(store, priority=5)
    others = await insert(store, 2, priority=5)
    (low,) = await insert(store, priority=0)
    await release(store, job, error=error())
    in_turn = [await claim(store, worker_id, loop=lane(slots=1)) for _ in range(4)]
    assert [one.id for (one,) in in_turn] == [*others, job.id, low]


async def test_given_back_without_an_error_keeps_its_place(store: Store) -> None:
    worker_id, (job,) = await claimed(store)
    (other,) = await insert(store)
    await release(store, job)
    in_turn = [await claim(store, worker_id, loop=lane(slots=1)) for _ in range(2)]
    assert [one.id for (one,) in in_turn] == [job.id, other]


async def test_a_snooze_spends_no_attempt_and_is_counted(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store)
    for number in (1, 2):
        await release(store, job, delay=5.0, snoozes=True)
        (found,) = await store.select_jobs([job.id], "default")
        assert (found.status, found.snoozes, found.failures) == ("SCHEDULED", number, None)
        assert (found.errors, found.worker_ids, found.started_at) == ([], [], None)
        await make_due(store, conn, job.id)
        (job,) = await claim(store, worker_id)
    await conn.execute("UPDATE aiotasks_task SET snoozes = 32767, failures = 32767 WHERE id = $1", job.id)
    await release(store, job, delay=5.0, snoozes=True)
    await make_due(store, conn, job.id)
    (job,) = await claim(store, worker_id)
    await release(store, job, delay=5.0, error=error())
    stored = await row(conn, job.id)
    assert (stored["snoozes"], stored["failures"]) == (32767, 32767)


async def test_a_snooze_without_a_delay_gets_the_last_place(store: Store) -> None:
    """Or a task that waits so for another would keep that one from running."""
    worker_id, (job,) = await claimed(store)
    (other,) = await insert(store)
    await release(store, job, delay=0.0, snoozes=True)
    assert [one.id for one in await claim(store, worker_id, loop=lane(slots=1))] == [other]


async def test_unknown_here_is_no_snooze_of_the_tasks(store: Store, conn: asyncpg.Connection) -> None:
    _, (job,) = await claimed(store)
    await release(store, job, delay=5.0, window=60.0)
    assert (await row(conn, job.id))["snoozes"] is None


async def test_errors_keep_the_first_and_the_last_twenty(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store)
    for number in range(50):
        await release(store, job, error=error(f"E{number}"))
        (job,) = await claim(store, worker_id)
    (found,) = await store.select_jobs([job.id], "default")
    assert found.errors == [error(f"E{number}") for number in (*range(20), *range(30, 50))]
    assert (found.errors_omitted, found.failures) == (10, 50)
    await expire(conn, worker_id)
    (rescued,) = await rescue(store, max_crashes=3)
    assert rescued.errors == [*found.errors[:20], *found.errors[21:], rows.WORKER_LOST]
    assert rescued.errors_omitted == 11


async def test_more_errors_than_are_kept_are_trimmed_at_the_next(
    store: Store, conn: asyncpg.Connection
) -> None:
    """An older release appends without limit."""
    _, (job,) = await claimed(store)
    many = [error(f"E{number}") for number in range(100)]
    await conn.execute("UPDATE aiotasks_task SET errors = $1::text[]::json[] WHERE id = $2", many, job.id)
    await release(store, job, error=error("last"))
    (found,) = await store.select_jobs([job.id], "default")
    assert found.errors == [*many[:20], *many[81:], error("last")]
    assert found.errors_omitted == 61


async def test_nested_errors_of_others_hold_up_nobody(store: Store, conn: asyncpg.Connection) -> None:
    _, (odd, job) = await claimed(store, 2)
    await conn.execute(
        "UPDATE aiotasks_task SET errors = ARRAY[ARRAY['{}'::json, '{}'::json]] WHERE id = $1", odd.id
    )
    assert len(await release(store, odd, job, error=error())) == 2
    for each in await store.select_jobs([odd.id, job.id], "default"):
        assert each.errors == [error()]


async def test_nothing_starts_after_it_has_expired(store: Store, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(store, 4, expires=60.0)
    late, snoozed, early, given_back = jobs
    assert await release(store, late, delay=120.0, error=error()) == {late.id: None}
    assert await release(store, snoozed, delay=120.0, snoozes=True) == {snoozed.id: None}
    assert await release(store, early, delay=5.0, error=error()) == {early.id: "default"}
    assert await release(store, given_back) == {given_back.id: "default"}
    assert [(await row(conn, job.id))["status"] for job in jobs] == [
        "RUNNING",
        "RUNNING",
        "SCHEDULED",
        "READY",
    ]
    assert (await row(conn, late.id))["failures"] is None


async def test_an_immediate_retry_of_an_expired_task_is_refused(
    store: Store, conn: asyncpg.Connection
) -> None:
    _, (job,) = await claimed(store, expires=60.0)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp() WHERE id = $1", job.id)
    assert await release(store, job, error=error()) == {job.id: None}


async def test_a_task_to_be_cancelled_is_not_tried_again(store: Store) -> None:
    _, (failed, snoozed) = await claimed(store, 2)
    await store.cancel_jobs([failed.id, snoozed.id], "default", CANCELLED)
    released = await store.release_jobs(
        [
            Release(*claim_of(failed), 5.0, error=error()),
            Release(*claim_of(snoozed), 5.0, snoozes=True),
        ]
    )
    assert {id: tuple(each) for id, each in released.items()} == {
        failed.id: (None, True, False),
        snoozed.id: (None, True, False),
    }
    assert (await fail(store, failed, error=error())).keys() == {failed.id}


async def test_a_retry_that_is_repeated_changes_nothing(store: Store, conn: asyncpg.Connection) -> None:
    """Its reply was lost: the row has no claim id any more."""
    _, (job,) = await claimed(store)
    await release(store, job, delay=60.0, error=error())
    before = await row(conn, job.id)
    assert await release(store, job, delay=60.0, error=error()) == {}
    assert await store.select_finished_jobs([job.id], [claim_of(job)[1]]) == {}
    assert await row(conn, job.id) == before


async def test_a_rescued_task_is_not_put_off_by_its_former_owner(
    store: Store, conn: asyncpg.Connection
) -> None:
    worker_id, (job,) = await claimed(store)
    await expire(conn, worker_id)
    await rescue(store)
    before = await row(conn, job.id)
    assert await release(store, job, delay=60.0, error=error()) == {}
    (again,) = await claim(store, await worker(store))
    assert await release(store, job, delay=60.0, error=error()) == {}
    stored = await row(conn, job.id)
    assert (stored["claim_id"], stored["failures"]) == (again.claim_id, None)
    assert before["errors"] == stored["errors"]


async def test_a_locked_row_holds_up_no_other(store: Store, conn: asyncpg.Connection, database: str) -> None:
    _, (locked, free) = await claimed(store, 2)
    other = await asyncpg.connect(database)
    try:
        async with other.transaction():
            await other.execute("UPDATE aiotasks_task SET priority = 1 WHERE id = $1", locked.id)
            async with asyncio.timeout(5):
                released = await release(store, locked, free, delay=5.0, error=error())
            assert released == {free.id: "default"}
            asked = [locked.id], [claim_of(locked)[1]]
            assert await store.select_finished_jobs(*asked) == {locked.id: None}
        assert await release(store, locked, delay=5.0, error=error()) == {locked.id: "default"}
    finally:
        await other.close()
    assert (await row(conn, locked.id))["failures"] == 1


@pytest.mark.parametrize("delay", [0.0, 5.0])
async def test_many_in_one_statement_each_with_its_own(
    store: Store, conn: asyncpg.Connection, delay: float
) -> None:
    _, jobs = await claimed(store, 6)
    errors = [error(f"E{number}") for number in range(3)]
    releases = [Release(*claim_of(job), delay, error=errors[n]) for n, job in enumerate(jobs[:3])]
    releases += [Release(*claim_of(jobs[3]), 7.0, snoozes=True)]
    releases += [Release(*claim_of(jobs[4]), 7.0, 60.0), Release(*claim_of(jobs[5]), 0.0)]
    assert len(await store.release_jobs(releases)) == 6
    stored = [await row(conn, job.id) for job in jobs]
    assert [one["errors"] for one in stored] == [*([text] for text in errors), [], [], []]
    assert [one["failures"] for one in stored] == [1, 1, 1, None, None, None]
    assert [one["snoozes"] for one in stored] == [None, None, None, 1, None, None]
    assert [one["status"] for one in stored[3:]] == ["SCHEDULED", "SCHEDULED", "READY"]


async def test_a_finish_after_a_retry_is_fenced(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (old,) = await claimed(store)
    await release(store, old, error=error())
    assert await finish(store, old) == {}
    (new,) = await claim(store, worker_id)
    assert await finish(store, old) == {}
    assert (await finish(store, new)).keys() == {new.id}
    (found,) = await store.select_jobs([new.id], "default")
    assert (found.status, found.errors, found.failures) == ("SUCCESSFUL", [error()], 1)


async def test_a_look_up_shows_what_was_counted(store: Store) -> None:
    worker_id, (job,) = await claimed(store)
    await release(store, job, error=error())
    found: Job
    (found,) = await store.select_jobs([job.id], "default")
    assert (found.failures, found.snoozes, found.errors_omitted) == (1, None, None)
    assert uuid.UUID(found.worker_ids[0]) == worker_id
    assert await claim(store, worker_id, loop=lane(slots=1)) != []
