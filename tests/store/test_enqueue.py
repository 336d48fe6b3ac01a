"""insert_jobs, select_jobs, promote_due_jobs, next_due, list_queues, has_unfinished_jobs, notify."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from django.db import utils

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.db.errors import constraint
from aiotasks.db.statement import Statement
from aiotasks.rows import Lane, time_of
from aiotasks.store.queues import START
from aiotasks.store.store import Store
from aiotasks.store.wakeups import CHANNEL

from .rows import claim, claimed, finish, insert, new_job, row, worker

HOUR = timedelta(hours=1)


def soon() -> datetime:
    return datetime.now(UTC) + HOUR


async def test_what_is_inserted_is_read_back(store: Store) -> None:
    job = new_job(
        priority=-7,
        lane="thread",
        queue_name='q "x"; --',
        run_after=soon(),
        max_crashes=0,
        metadata='{"b":-0.0,"a":"\\u0000"}',
    )
    await store.insert_jobs([job])
    (found,) = await store.select_jobs([UUID(job.id)], "default")
    assert str(found.id) == job.id
    assert (found.args, found.kwargs) == (job.args, job.kwargs)
    assert time_of(found.enqueued_at) == job.enqueued_at
    assert time_of(found.run_after) == job.template.run_after
    for name in set(type(job.template).__slots__) - {"run_after", "expires", "ordered"}:
        assert getattr(found, name) == getattr(job.template, name), name
    assert (found.status, found.claim_id, found.ready_at) == ("SCHEDULED", None, None)
    assert (found.return_value, found.errors, found.worker_ids) == (None, [], [])
    assert (found.started_at, found.last_attempted_at, found.finished_at) == (None, None, None)
    assert found.awaited is None


async def test_each_kind_of_task_has_its_own_metadata(store: Store) -> None:
    texts = ['{"a":1}', None, '{"a":2}', '{"a":1}']
    jobs = [new_job(metadata=text) for text in texts]
    await store.insert_jobs(jobs)
    found = {str(job.id): job for job in await store.select_jobs([UUID(job.id) for job in jobs], "default")}
    assert [found[job.id].metadata for job in jobs] == texts


@pytest.mark.parametrize(
    "value",
    [
        "\0",
        "\ud800",
        "é 😀 %s %(p1)s $1 ' \\",
        -0.0,
        10**4000,
        {"b": 1, "a": [1.5, None, True]},
        "x" * 100_000,
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_json_comes_back_as_it_went_in(store: Store, value: object) -> None:
    """Fault 40 of docs/faults.md: jsonb would lose or refuse most of these."""
    text = json.dumps([value], separators=(",", ":"))
    job = new_job(args=text, kwargs=json.dumps({"k": value}))
    await store.insert_jobs([job])
    (found,) = await store.select_jobs([UUID(job.id)], "default")
    assert found.args == text
    assert repr(json.loads(found.kwargs)["k"]) == repr(value)


@pytest.mark.parametrize("args", [["[1]", "[1]", "[1]"], ["[1]", "[2]", "[1]"]])
@pytest.mark.parametrize("kwargs", [["{}", "{}", "{}"], ["{}", "{}", '{"a":1}']])
async def test_arguments_reach_their_rows_also_where_all_share_them(
    store: Store, args: list[str], kwargs: list[str]
) -> None:
    jobs = [new_job(args=a, kwargs=k) for a, k in zip(args, kwargs, strict=True)]
    await store.insert_jobs(jobs)
    found = {str(job.id): job for job in await store.select_jobs([UUID(job.id) for job in jobs], "default")}
    assert [found[job.id].args for job in jobs] == args
    assert [found[job.id].kwargs for job in jobs] == kwargs


async def test_inserting_again_changes_nothing(store: Store, conn: asyncpg.Connection) -> None:
    """The reply was lost, so the statement is repeated: it says that it has been done."""
    for jobs in ([new_job()], [new_job(), new_job()]):
        await store.insert_jobs(jobs)
        before = [await row(conn, UUID(job.id)) for job in jobs]
        with pytest.raises(utils.IntegrityError) as caught:
            await store.insert_jobs(jobs)
        assert constraint(caught.value) == "aiotasks_task_pkey"
        assert [await row(conn, UUID(job.id)) for job in jobs] == before


async def test_one_refused_row_stores_none(store: Store) -> None:
    good, bad = new_job(), new_job(args="{")
    with pytest.raises(utils.DataError):
        await store.insert_jobs([good, bad])
    assert await store.select_jobs([UUID(good.id), UUID(bad.id)], "default") == []


async def test_ready_or_scheduled_by_the_databases_clock(store: Store, conn: asyncpg.Connection) -> None:
    past, future = (
        await insert(store, run_after=datetime.now(UTC) - HOUR),
        await insert(store, run_after=soon()),
    )
    due, later = await row(conn, past[0]), await row(conn, future[0])
    assert due["status"] == "READY"
    assert due["ready_at"] is not None
    assert (later["status"], later["ready_at"]) == ("SCHEDULED", None)


async def test_ready_at_is_when_the_statement_runs_not_when_its_transaction_began(
    conn: asyncpg.Connection, database: str
) -> None:
    """A transaction that stayed open must not jump the queue."""
    held = Store(ConnectionDriver(conn))
    async with conn.transaction():
        began = await conn.fetchval("SELECT now()")
        (id,) = await insert(held)
    assert (await row(conn, id))["ready_at"] > began


async def test_rows_belong_to_their_backend(store: Store) -> None:
    (id,) = await insert(store, backend="other")
    worker_id = await worker(store)
    assert await store.select_jobs([id], "default") == []
    assert [job.id for job in await store.select_jobs([id], "other")] == [id]
    assert await claim(store, worker_id) == []
    assert await store.list_queues("default") == []
    assert await store.has_unfinished_jobs("default", None, ["loop"]) is False
    await insert(store, backend="other", run_after=soon())
    assert await store.next_due("default") is None


async def test_selecting_unknown_ids_finds_nothing(store: Store) -> None:
    assert await store.select_jobs([uuid.uuid4()], "default") == []
    assert await store.select_jobs([], "default") == []


async def test_next_due_is_the_earliest(store: Store, conn: asyncpg.Connection) -> None:
    assert await store.next_due("default") is None
    await insert(store, run_after=soon() + HOUR)
    first = soon()
    await insert(store, run_after=first)
    await insert(store)  # READY rows are nobody's timer
    due = await store.next_due("default")
    assert due is not None
    assert due.at == first
    now = await conn.fetchval("SELECT clock_timestamp()")
    assert isinstance(due.seconds, float)
    assert due.seconds >= (first - now).total_seconds()
    assert due.seconds <= HOUR.total_seconds() + 60


async def test_next_due_tells_what_is_overdue_by_a_negative_number(
    store: Store, conn: asyncpg.Connection
) -> None:
    (id,) = await insert(store, run_after=soon())
    await conn.execute("UPDATE aiotasks_task SET run_after = now() - interval '5 s' WHERE id = $1", id)
    due = await store.next_due("default")
    assert due is not None
    assert due.seconds is not None
    assert due.seconds <= -5


async def test_promote_makes_due_tasks_ready_and_leaves_the_others(
    store: Store, conn: asyncpg.Connection
) -> None:
    ids = await insert(store, 3, run_after=soon())
    other = await insert(store, run_after=soon(), queue_name="emails")
    (later,) = await insert(store, run_after=soon())
    await conn.execute(
        "UPDATE aiotasks_task SET run_after = now() - interval '1 s' WHERE id = ANY($1)", ids + other
    )
    promoted_jobs = await store.promote_due_jobs("default", 100)
    assert sorted(name for name, *_ in promoted_jobs) == ["default"] * 3 + ["emails"]
    for id in ids + other:
        promoted = await row(conn, id)
        assert promoted["status"] == "READY"
        # Callers go on seeing what they asked for, and it is the task's place in the queue.
        assert promoted["ready_at"] == promoted["run_after"]
        assert promoted["ready_at"].timestamp() in [
            pytest.approx(due, abs=1e-3) for _, due, _ in promoted_jobs
        ]
    assert (await row(conn, later))["status"] == "SCHEDULED"
    assert await store.promote_due_jobs("default", 100) == []


async def test_promote_takes_the_longest_due_first_within_its_limit(
    store: Store, conn: asyncpg.Connection
) -> None:
    ids = await insert(store, 3, run_after=soon())
    for seconds, id in zip([1, 3, 2], ids, strict=True):
        await conn.execute(
            "UPDATE aiotasks_task SET run_after = now() - make_interval(secs => $2) WHERE id = $1",
            id,
            seconds,
        )
    assert len(await store.promote_due_jobs("default", 2)) == 2
    assert [(await row(conn, id))["status"] for id in ids] == ["SCHEDULED", "READY", "READY"]


async def test_promote_passes_over_rows_that_another_promotes(store: Store, conn: asyncpg.Connection) -> None:
    first, second = await insert(store, 2, run_after=soon())
    await conn.execute("UPDATE aiotasks_task SET run_after = now() - interval '1 s'")
    async with conn.transaction():
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", first)
        assert len(await store.promote_due_jobs("default", 10)) == 1
    assert (await row(conn, second))["status"] == "READY"


async def test_list_queues_names_those_with_ready_tasks(store: Store) -> None:
    assert await store.list_queues("default") == []
    for name in ("b", "a", "c", "Ä", "a b"):
        await insert(store, 2, queue_name=name)
        await insert(store, queue_name=name, lane="thread", priority=5)
    await insert(store, queue_name="d", lane="thread")
    await insert(store, queue_name="later", run_after=soon())
    await claimed(store)  # its queue is RUNNING only
    both = [(name, lane) for name in ("a", "b", "c", "Ä", "a b") for lane in ("loop", "thread")]
    listed = await store.list_queues("default")
    assert sorted(listed) == sorted([*both, ("d", "thread")])
    pieces = [START]
    while piece := await store.list_queues("default", pieces[-1], 4):
        assert len(piece) <= 4
        pieces += piece
    assert pieces[1:] == listed
    assert await store.list_queues("other") == []


async def test_has_unfinished_jobs(store: Store, conn: asyncpg.Connection) -> None:
    async def unfinished(
        queues: list[str] | None = None, lanes: tuple[Lane, ...] = ("loop", "thread")
    ) -> bool:
        return await store.has_unfinished_jobs("default", queues, lanes)

    assert await unfinished() is False
    await insert(store, run_after=soon())
    assert await unfinished() is False
    await conn.execute("UPDATE aiotasks_task SET run_after = now() - interval '1 s'")
    assert await unfinished() is True  # due
    await conn.execute("DELETE FROM aiotasks_task")
    _, (job,) = await claimed(store)
    assert await unfinished() is True  # RUNNING
    assert await unfinished(["default"], ("loop",)) is True
    assert await unfinished(["other"]) is False
    assert await unfinished([]) is False
    assert await unfinished(["default"], ("thread",)) is False
    assert job.claim_id is not None
    await finish(store, job)
    assert await unfinished() is False
    await insert(store, lane="thread")
    assert await unfinished(["default"], ("thread",)) is True  # READY
    assert await unfinished(["default"], ("loop",)) is False


async def test_notify_tells_listeners_each_payload(store: Store, conn: asyncpg.Connection) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    await conn.add_listener(CHANNEL, lambda *args: heard.put_nowait(args[-1]))
    await store.notify(CHANNEL, ["a", "it's", "ü"], alone=True)
    assert [await heard.get() for _ in range(3)] == ["a", "it's", "ü"]


async def test_a_notify_inside_a_transaction_leaves_its_commit_alone(
    conn: asyncpg.Connection,
) -> None:
    """The caller's own COMMIT is to wait for the disk."""
    before = await conn.fetchval("SHOW synchronous_commit")
    store = Store(ConnectionDriver(conn))
    async with conn.transaction():
        await store.notify(CHANNEL, ["a"], alone=False)
        assert await conn.fetchval("SHOW synchronous_commit") == before == "on"
    async with conn.transaction():  # and otherwise it is set, which ends with the transaction
        await store.notify(CHANNEL, ["a"], alone=True)
        assert await conn.fetchval("SHOW synchronous_commit") == "off"
    assert await conn.fetchval("SHOW synchronous_commit") == before


async def test_a_notify_on_its_own_leaves_the_session_as_it_was(store: Store) -> None:
    show = Statement(
        "show",
        *["SELECT pg_backend_pid(), current_setting('synchronous_commit')"] * 2,
    )
    before = await store.driver.fetch(show)
    await store.notify(CHANNEL, ["a", "b"], alone=True)
    assert [tuple(row) for row in await store.driver.fetch(show)] == [tuple(row) for row in before]
    assert before[0][1] == "on"
