"""finish_jobs and its fence, select_finished_jobs, release_jobs, release_lost_claims."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from django.db import utils

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.db.errors import is_transient, sqlstate
from aiotasks.rows import Job, Status, time_of
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.store import Store

from . import rows
from .rows import claim, claim_of, claimed, expire, fail, finish, insert, lane, release, row, worker

ERROR = json.dumps({"class": "builtins.ValueError", "traceback": "…\0\ud800"})


async def rescue(store: Store, conn: asyncpg.Connection, worker_id: UUID, max_crashes: int = 3) -> list[Job]:
    await expire(conn, worker_id)
    return await rows.rescue(store, max_crashes, error=ERROR)


async def test_a_success_is_stored(store: Store, conn: asyncpg.Connection) -> None:
    _, (job,) = await claimed(store)
    finished = await finish(store, job, value='{"b":-0.0,"a":"\\u0000"}')
    (found,) = await store.select_jobs([job.id], "default")
    assert finished == {job.id: time_of(found.finished_at)}
    assert (found.status, found.return_value, found.errors) == ("SUCCESSFUL", '{"b":-0.0,"a":"\\u0000"}', [])
    assert (found.started_at, found.worker_ids) == (job.started_at, job.worker_ids)
    assert (await row(conn, job.id))["worker_id"] is None


async def test_a_failure_adds_its_error_to_the_earlier_ones(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, _ = await claimed(store)
    await rescue(store, conn, worker_id)
    (job,) = await claim(store, await worker(store))
    last = json.dumps({"class": "last", "traceback": 'quote " and \\ { , }'})
    await fail(store, job, error=last)
    (found,) = await store.select_jobs([job.id], "default")
    assert (found.status, found.return_value, found.errors) == ("FAILED", None, [ERROR, last])


async def test_many_finish_at_once_each_with_its_own(store: Store) -> None:
    _, jobs = await claimed(store, 50)
    outcomes = [Finish(*claim_of(job), Status.SUCCESSFUL, str(n), None) for n, job in enumerate(jobs)]
    assert (await store.finish_jobs(outcomes)).at.keys() == {job.id for job in jobs}
    found = {job.id: job for job in await store.select_jobs([job.id for job in jobs], "default")}
    assert [found[job.id].return_value for job in jobs] == [str(n) for n in range(50)]


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_values_that_all_outcomes_share_reach_every_row(store: Store, number: int) -> None:
    """They are sent once, so a value must not be taken for a row's own, nor a NULL for a shared value."""
    _, jobs = await claimed(store, 2 * number)
    alike = [Finish(*claim_of(job), Status.SUCCESSFUL, "null", None) for job in jobs[:number]]
    assert (await store.finish_jobs(alike)).at.keys() == {job.id for job in jobs[:number]}
    failed = [Finish(*claim_of(job), Status.FAILED, None, ERROR) for job in jobs[number:]]
    assert (await store.finish_jobs(failed)).at.keys() == {job.id for job in jobs[number:]}
    found = await store.select_jobs([job.id for job in jobs], "default")
    assert sorted((job.status, job.return_value, *job.errors) for job in found) == (
        [("FAILED", None, ERROR)] * number + [("SUCCESSFUL", "null")] * number
    )


async def test_outcomes_of_several_claims_and_kinds_in_one_statement(store: Store) -> None:
    worker_id, (first,) = await claimed(store)
    await insert(store, 2)
    second, third = await claim(store, worker_id)
    outcomes = [
        Finish(*claim_of(first), Status.SUCCESSFUL, "1", None),
        Finish(*claim_of(second), Status.FAILED, None, ERROR),
        Finish(*claim_of(third), Status.SUCCESSFUL, "1", None),
    ]
    assert first.claim_id != second.claim_id
    assert (await store.finish_jobs(outcomes)).at.keys() == {first.id, second.id, third.id}
    found = {job.id: job for job in await store.select_jobs([first.id, second.id, third.id], "default")}
    assert [(found[job.id].return_value, found[job.id].errors) for job in (first, second, third)] == [
        ("1", []),
        (None, [ERROR]),
        ("1", []),
    ]


async def test_a_zombie_cannot_finish_what_was_claimed_again(store: Store, conn: asyncpg.Connection) -> None:
    """Faults 1 and 8 of docs/faults.md: the claim id is the fence, not the worker and not the attempt."""
    worker_id, (old,) = await claimed(store)
    await rescue(store, conn, worker_id)
    await store.renew_lease(worker_id, 60.0, even_expired=True)
    (new,) = await claim(store, worker_id)  # even by the very same worker
    assert await finish(store, old, value='"late"') == {}
    assert (await row(conn, old.id))["status"] == "RUNNING"
    assert (await finish(store, new, value='"mine"')).keys() == {new.id}
    (found,) = await store.select_jobs([old.id], "default")
    assert found.return_value == '"mine"'


async def test_a_late_finish_changes_nothing_of_a_rescued_task(
    store: Store, conn: asyncpg.Connection
) -> None:
    """Fault 54 of docs/faults.md: neither READY again nor FAILED becomes SUCCESSFUL."""
    worker_id, jobs = await claimed(store, 2)
    await conn.execute("UPDATE aiotasks_task SET max_crashes = 0 WHERE id = $1", jobs[1].id)
    await rescue(store, conn, worker_id)
    before = [await row(conn, job.id) for job in jobs]
    assert [stored["status"] for stored in before] == ["READY", "FAILED"]
    assert await finish(store, *jobs) == {}
    assert [await row(conn, job.id) for job in jobs] == before


async def test_the_first_of_two_finishes_stands(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 54 of docs/faults.md: the status fences, though the claim id is still the row's."""
    _, (job,) = await claimed(store)
    await fail(store, job, error=ERROR)
    before = await row(conn, job.id)
    assert before["claim_id"] == job.claim_id
    assert await finish(store, job) == {}
    assert await release(store, job) == {}
    assert await row(conn, job.id) == before


async def test_nobody_finishes_with_a_foreign_claim_id(store: Store, conn: asyncpg.Connection) -> None:
    _, (first, second) = await claimed(store, 2)
    await conn.execute("UPDATE aiotasks_task SET claim_id = $1 WHERE id = $2", uuid.uuid4(), second.id)
    wrong = [
        Finish(*claim_of(first), Status.SUCCESSFUL, "1", None),
        Finish(*claim_of(second), Status.SUCCESSFUL, "2", None),
    ]
    assert (await store.finish_jobs(wrong)).at.keys() == {first.id}
    assert (await row(conn, second.id))["status"] == "RUNNING"


async def test_a_repeated_finish_is_recognised_as_ones_own(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 9 of docs/faults.md: the finish committed, its reply was lost."""
    worker_id, (mine, failed, running) = await claimed(store, 3)
    outcomes = [
        Finish(*claim_of(mine), Status.SUCCESSFUL, "1", None),
        Finish(*claim_of(failed), Status.FAILED, None, ERROR),
    ]
    finished = (await store.finish_jobs(outcomes)).at
    asked = [claim_of(job) for job in (mine, failed, running)]
    found = await store.select_finished_jobs(*zip(*asked, strict=True))
    assert found == {**finished, running.id: None}  # RUNNING still: locked, or yet to be finished
    await rescue(store, conn, worker_id, max_crashes=1)
    assert (await row(conn, running.id))["status"] == "FAILED"  # but not by its owner's finish
    assert await store.select_finished_jobs(*zip(*asked, strict=True)) == finished
    assert await store.select_finished_jobs([mine.id], [uuid.uuid4()]) == {}


async def test_a_finish_says_which_tasks_somebody_awaits(store: Store, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(store, 4)
    outcomes = [Finish(*claim_of(job), Status.SUCCESSFUL, "1", None) for job in jobs]
    assert (await store.finish_jobs(outcomes[:1])).awaited == ()
    await conn.execute(
        "UPDATE aiotasks_task SET awaited = 1 WHERE id = ANY($1)", [job.id for job in jobs[:2]]
    )
    await conn.execute("UPDATE aiotasks_task SET awaited = 2 WHERE id = $1", jobs[2].id)
    finished = await store.finish_jobs(outcomes)
    assert set(finished.at) == {job.id for job in jobs[1:]}
    assert set(finished.awaited) == {jobs[1].id, jobs[2].id}


async def test_a_release_says_which_tasks_somebody_watches(store: Store, conn: asyncpg.Connection) -> None:
    """Who awaits the end alone needn't know of another attempt."""
    _, jobs = await claimed(store, 3)
    for level, job in enumerate(jobs):
        await conn.execute("UPDATE aiotasks_task SET awaited = nullif($2, 0) WHERE id = $1", job.id, level)
    released = await store.release_jobs(Release(*claim_of(job), 0.0) for job in jobs)
    assert [released[job.id].watched for job in jobs] == [False, False, True]


async def test_outcomes_leave_metadata(store: Store, conn: asyncpg.Connection) -> None:
    """It is saved before them, merged with what others have written: with them it would overwrite that."""
    text = '{"b":-0.0,"a":"\\u0000"}'
    _, jobs = await claimed(store, 3, metadata=text)
    assert [job.metadata for job in jobs] == [text] * 3
    await finish(store, jobs[0])
    await fail(store, jobs[1])
    await release(store, jobs[2])
    assert [job.metadata for job in await store.select_jobs([job.id for job in jobs], "default")] == [
        text
    ] * 3


async def test_one_refused_value_finishes_none(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 13 of docs/faults.md starts from this: the Batcher halves the batch then."""
    _, (good, bad) = await claimed(store, 2)
    with pytest.raises(utils.DataError):
        await store.finish_jobs(
            [
                Finish(*claim_of(good), Status.SUCCESSFUL, "1", None),
                Finish(*claim_of(bad), Status.SUCCESSFUL, "{", None),
            ]
        )
    assert {(await row(conn, job.id))["status"] for job in (good, bad)} == {"RUNNING"}


async def test_a_deadlock_is_told_as_transient(database: str, conn: asyncpg.Connection, store: Store) -> None:
    """Fault 22 of docs/faults.md: two transactions lock in opposite orders; the loser may be repeated."""
    _, jobs = await claimed(store, 2)
    first, second = sorted(claim_of(job) for job in jobs)
    other = await asyncpg.connect(database)
    mine, theirs = conn.transaction(), other.transaction()
    try:
        await mine.start()
        await theirs.start()
        for one in (conn, other):
            await one.execute("SET LOCAL deadlock_timeout = '10 ms'")
        await conn.execute("UPDATE aiotasks_task SET priority = 1 WHERE id = $1", first[0])
        await other.execute("UPDATE aiotasks_task SET priority = 1 WHERE id = $1", second[0])
        stores = Store(ConnectionDriver(conn)), Store(ConnectionDriver(other))
        results = await asyncio.gather(
            stores[0].cancel_jobs([second[0]], "default", ERROR),
            stores[1].cancel_jobs([first[0]], "default", ERROR),
            return_exceptions=True,
        )
    finally:
        await mine.rollback()
        await theirs.rollback()
        await other.close()
    (error,) = (result for result in results if isinstance(result, BaseException))
    assert isinstance(error, utils.OperationalError)
    assert sqlstate(error) == "40P01"
    assert is_transient(error)


async def test_a_locked_row_holds_no_other_up(store: Store, conn: asyncpg.Connection) -> None:
    _, (locked, free) = await claimed(store, 2)
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", locked.id)
        assert (await finish(store, locked, free)).keys() == {free.id}
        claims = zip(*(claim_of(job) for job in (locked, free)), strict=True)
        assert (await store.select_finished_jobs(*claims))[locked.id] is None
    assert (await finish(store, locked, free)).keys() == {locked.id}


async def test_a_locked_row_holds_no_other_release_up(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (locked, free, lost) = await claimed(store, 3)
    await conn.execute("UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 min'")
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", locked.id)
        assert await release(store, locked, free) == {free.id: "default"}
        claims = zip(*(claim_of(job) for job in (locked, free)), strict=True)
        assert await store.select_finished_jobs(*claims) == {locked.id: None}
        (released,) = await store.release_lost_claims(worker_id, [], 10.0, rows.CANCELLED)
        assert released.id == lost.id
    assert await release(store, locked, free) == {locked.id: "default"}


async def test_a_release_spends_no_attempt(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store, queue_name="default")
    before = (await row(conn, job.id))["ready_at"]
    assert await release(store, job) == {job.id: "default"}
    found = await row(conn, job.id)
    assert (found["status"], found["worker_ids"], found["crashes"], found["errors"]) == ("READY", [], 0, [])
    assert (found["claim_id"], found["worker_id"]) == (None, None)
    assert (found["started_at"], found["last_attempted_at"]) == (None, None)
    assert found["ready_at"] == before  # it keeps its place
    assert [job.id for job in await claim(store, worker_id)] == [job.id]


async def test_a_release_keeps_what_earlier_attempts_left(store: Store, conn: asyncpg.Connection) -> None:
    dead, (first,) = await claimed(store)
    await rescue(store, conn, dead)
    worker_id = await worker(store)
    (second,) = await claim(store, worker_id)
    await release(store, second)
    found = await row(conn, first.id)
    assert found["worker_ids"] == [dead]
    assert found["started_at"] == time_of(first.started_at)
    assert found["crashes"] == 1
    assert len(found["errors"]) == 1


async def test_a_release_is_fenced(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (old,) = await claimed(store)
    await rescue(store, conn, worker_id)
    await store.renew_lease(worker_id, 60.0, even_expired=True)
    before = await row(conn, old.id)
    assert await release(store, old) == {}
    assert await row(conn, old.id) == before
    await claim(store, worker_id)
    before = await row(conn, old.id)
    assert await release(store, old) == {}
    assert await row(conn, old.id) == before


async def test_a_release_with_a_delay_waits(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 43 of docs/faults.md: an unknown task is snoozed; how long it has been unknown is kept."""
    _, (job,) = await claimed(store)
    assert await release(store, job, delay=60.0, window=3600.0) == {job.id: "default"}
    found = await row(conn, job.id)
    assert (found["status"], found["ready_at"], found["worker_ids"]) == ("SCHEDULED", None, [])
    assert found["run_after"] > datetime.now(UTC) + timedelta(seconds=30)
    since = found["unknown_since"]
    assert since is not None
    (again,) = await _reclaim(store, conn)
    assert await release(store, again, delay=60.0, window=3600.0) == {job.id: "default"}
    assert (await row(conn, job.id))["unknown_since"] == since


async def test_a_task_unknown_for_its_window_is_not_released(store: Store, conn: asyncpg.Connection) -> None:
    _, (job, other) = await claimed(store, 2)
    await conn.execute(
        "UPDATE aiotasks_task SET unknown_since = now() - interval '1 h' WHERE id = $1", job.id
    )
    before = await row(conn, job.id)
    assert await release(store, job, other, delay=60.0, window=1800.0) == {other.id: "default", job.id: None}
    assert await row(conn, job.id) == before
    assert await release(store, job) == {job.id: "default"}  # a shutdown
    assert (await row(conn, job.id))["unknown_since"] is None


async def _reclaim(store: Store, conn: asyncpg.Connection) -> list[Job]:
    await conn.execute("UPDATE aiotasks_task SET run_after = now()")
    await store.promote_due_jobs("default", 10)
    return await claim(store, await worker(store))


async def test_lost_claims_go_back_and_those_held_stay(store: Store, conn: asyncpg.Connection) -> None:
    """Fault 51 of docs/faults.md: the claim committed, its reply was lost."""
    worker_id, (held,) = await claimed(store)
    lost_ids = await insert(store, 2)
    await claim(store, worker_id)
    other, (theirs,) = await claimed(store, queue_name="default")
    assert other != worker_id
    await conn.execute("UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 min'")
    (fresh,) = await insert(store)
    await claim(store, worker_id)
    assert held.claim_id is not None
    await store.cancel_jobs([lost_ids[1]], "default", rows.CANCELLED)
    released = await store.release_lost_claims(worker_id, [held.claim_id], 10.0, rows.CANCELLED)
    assert {job.id: job.status for job in released} == dict(zip(lost_ids, ["READY", "FAILED"], strict=True))
    assert {job.queue_name for job in released} == {"default"}
    cancelled = await row(conn, lost_ids[1])
    assert (cancelled["errors"], cancelled["worker_ids"]) == ([rows.CANCELLED], [])
    assert cancelled["finished_at"] is not None
    for id in lost_ids:
        found = await row(conn, id)
        assert (found["status"] == "READY") is (id == lost_ids[0])
        assert (found["worker_ids"], found["crashes"]) == ([], 0)
        assert (found["claim_id"], found["worker_id"], found["started_at"]) == (None, None, None)
    for id in (held.id, theirs.id, fresh):  # its reply may still be on its way
        assert (await row(conn, id))["status"] == "RUNNING"
    assert [job.id for job in await claim(store, worker_id, loop=lane())] == lost_ids[:1]


async def test_a_worker_that_holds_nothing_gives_everything_back(
    store: Store, conn: asyncpg.Connection
) -> None:
    worker_id, jobs = await claimed(store, 3)
    await conn.execute("UPDATE aiotasks_task SET last_attempted_at = now() - interval '1 min'")
    released = await store.release_lost_claims(worker_id, [], 10.0, rows.CANCELLED)
    assert {job.id for job in released} == {job.id for job in jobs}
