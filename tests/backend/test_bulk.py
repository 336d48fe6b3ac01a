"""cancel_many, retry_many, delete_many: by ids and by filters, over all three ways to the database."""

import asyncio
import importlib
import itertools
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.db import transaction as django_transaction
from django.db import utils
from django.utils import timezone
from psycopg import connect

import aiotasks
from aiotasks import BulkCounts, TaskFilter, bulk, bulk_actions
from aiotasks.operations.actions import acount_meant, akey_holders, aperform
from aiotasks.rows import Status
from aiotasks.store.bulk import BulkStatements, Leg, Place, ReadyLeg, Step
from aiotasks.store.changes import Teller
from aiotasks.store.notifier import Notifier
from aiotasks.store.wakeups import ANY_QUEUE, Wakeup
from tests import tasks
from tests.examples import example
from tests.site import default_task_backend as backend
from tests.site import running_store
from tests.store import rows
from tests.worker.harness import until

from .support import Api, Heard, run_all, worker

HOUR = timedelta(hours=1)


async def put(conn: asyncpg.Connection, status: str, number: int = 1, **values: Any) -> list[UUID]:
    """Rows of a status, as if workers had made them so."""
    ids = await rows.insert(running_store(), number, task_path="tests.tasks.anoop", **values)
    finished = status in ("SUCCESSFUL", "FAILED")
    await conn.execute(
        """
        UPDATE aiotasks_task SET status = $2, finished_at = CASE WHEN $3 THEN statement_timestamp() END,
            run_after = CASE WHEN $2 = 'SCHEDULED' THEN now() + interval '1 hour' ELSE run_after END,
            ready_at = CASE WHEN $2 <> 'SCHEDULED' THEN now() END,
            started_at = CASE WHEN $2 NOT IN ('SCHEDULED', 'READY') THEN now() END,
            claim_id = CASE WHEN $2 = 'RUNNING' THEN gen_random_uuid() END,
            worker_id = CASE WHEN $2 = 'RUNNING' THEN $4::uuid END,
            worker_ids = CASE WHEN $2 NOT IN ('SCHEDULED', 'READY') THEN ARRAY[$4::uuid] ELSE '{}' END
        WHERE id = ANY($1)
        """,
        ids,
        status,
        finished,
        uuid4(),
    )
    return ids


async def one_of_each(conn: asyncpg.Connection, **values: Any) -> dict[str, UUID]:
    return {status: (await put(conn, status, **values))[0] for status in Status}


async def statuses(conn: asyncpg.Connection) -> dict[UUID, str]:
    return dict(await conn.fetch("SELECT id, status FROM aiotasks_task"))


# --- What each action does with each status


async def test_cancel(database: str, conn: asyncpg.Connection, api: Api, heard: list[Heard]) -> None:
    ids = await one_of_each(conn)
    counts = await api.call(backend, "cancel_many", [*ids.values(), uuid4(), "no id"])
    assert counts == BulkCounts(cancelled=2, requested=1, refused=2, missing=2)
    assert str(counts) == "2 cancelled, 1 requested, 2 refused, 2 missing"
    after = await statuses(conn)
    assert [after[ids[status]] for status in ("SCHEDULED", "READY", "RUNNING", "SUCCESSFUL")] == [
        "FAILED",
        "FAILED",
        "RUNNING",
        "SUCCESSFUL",
    ]
    for status in ("SCHEDULED", "READY"):
        result = await backend.aget_result(str(ids[status]))
        assert result.errors[-1].exception_class is aiotasks.TaskCancelled
        assert result.finished_at is not None
    assert (await rows.row(conn, ids["RUNNING"]))["cancel_requested_at"] is not None
    assert {one.fields["id"] for one in heard} == {str(ids["SCHEDULED"]), str(ids["READY"])}
    assert {(one.signal, one.fields["status"], type(one.error)) for one in heard} == {
        ("task_finished", "FAILED", aiotasks.TaskCancelled)
    }
    again = await api.call(backend, "cancel_many", list(ids.values()))
    assert again == BulkCounts(requested=1, refused=4)


async def test_retry(database: str, conn: asyncpg.Connection, api: Api) -> None:
    ids = await one_of_each(conn)
    await conn.execute(
        """
        UPDATE aiotasks_task SET failures = 3, crashes = 2, unknown_since = now(), expires_at = now(),
            cancel_requested_at = now(), return_value = '1', snoozes = 2, errors = ARRAY[$2::json, $2::json],
            asked_run_after = 'epoch', run_after = now()
        WHERE id = $1
        """,
        ids["FAILED"],
        '{"class": "builtins.OSError", "traceback": "OSError"}',
    )
    before = await rows.row(conn, ids["FAILED"])
    counts = await api.call(backend, "retry_many", ids.values())
    assert counts == BulkCounts(retried=1, refused=4)
    after = await rows.row(conn, ids["FAILED"])
    assert after["status"] == "READY"
    assert after["ready_at"] > before["finished_at"]
    for name in ("errors", "worker_ids", "started_at", "enqueued_at", "snoozes"):
        assert after[name] == before[name], name
    for name in (
        *("failures", "unknown_since", "cancel_requested_at", "return_value", "expires_at", "finished_at"),
        *("run_after", "asked_run_after", "claim_id", "worker_id"),
    ):
        assert after[name] is None, name
    assert after["crashes"] == 0
    await conn.execute("DELETE FROM aiotasks_task WHERE id <> $1", ids["FAILED"])
    await run_all()
    result = await backend.aget_result(str(ids["FAILED"]))
    assert (result.status, result.attempts, len(result.errors)) == ("SUCCESSFUL", 2, 2)


async def test_a_retry_waits_for_the_time_that_was_asked_for(
    database: str, conn: asyncpg.Connection, api: Api
) -> None:
    task = tasks.anoop.using(run_after=timezone.now() + HOUR)
    result = await task.aenqueue()
    late = await tasks.anoop.using(run_after=timezone.now() - HOUR).aenqueue()
    assert (await api.call(backend, "cancel_many", [result, late])).cancelled == 2
    assert (await api.call(backend, "retry_many", [result, late])).retried == 2
    assert await statuses(conn) == {UUID(result.id): "SCHEDULED", UUID(late.id): "READY"}
    await result.arefresh()
    assert (result.status, result.task.run_after, result.finished_at) == ("READY", task.run_after, None)


async def test_run_now(database: str, conn: asyncpg.Connection, api: Api, heard: list[Heard]) -> None:
    ids = await one_of_each(conn)
    asked = timezone.now() + HOUR
    result = await tasks.anoop.using(run_after=asked).aenqueue()
    counts = await api.call(backend, "run_many_now", [*ids.values(), result, uuid4()])
    assert counts == BulkCounts(due_now=2, refused=4, missing=1)
    assert str(counts) == "4 refused, 1 missing, 2 due now"
    after = await statuses(conn)
    assert after.pop(UUID(result.id)) == "READY"
    assert after == {id: "READY" if status == "SCHEDULED" else status for status, id in ids.items()}
    await result.arefresh()
    assert result.task.run_after == asked
    await conn.execute("DELETE FROM aiotasks_task WHERE id <> $1", UUID(result.id))
    await run_all()
    await result.arefresh()
    assert result.status == "SUCCESSFUL"
    assert {one.signal for one in heard} == {"task_enqueued", "task_started", "task_finished"}


async def test_delete(database: str, conn: asyncpg.Connection, api: Api, heard: list[Heard]) -> None:
    ids = await one_of_each(conn)
    counts = await api.call(backend, "delete_many", ids.values())
    assert counts == BulkCounts(deleted=4, refused=1)
    assert await statuses(conn) == {ids["RUNNING"]: "RUNNING"}
    assert heard == []


# --- Filters


async def test_an_empty_filter_is_for_all(database: str, conn: asyncpg.Connection, api: Api) -> None:
    ids = await one_of_each(conn)
    kept = await put(conn, "FAILED", keep_result=60.0)
    others = await rows.insert(running_store(), backend="other")
    assert await api.call(backend, "cancel_many", TaskFilter(), everything=True) == BulkCounts(
        cancelled=2, requested=1
    )
    counts = await api.call(backend, "retry_many", TaskFilter())
    assert counts == BulkCounts(retried=4)  # two of them were cancelled
    after = await statuses(conn)
    assert [after[id] for id in kept] == ["READY"]
    assert await api.call(backend, "delete_many", TaskFilter(), everything=True) == BulkCounts(deleted=5)
    assert await statuses(conn) == {ids["RUNNING"]: "RUNNING", others[0]: "READY"}


@pytest.mark.parametrize("keep_result", [None, 3600.0])
async def test_each_field_of_a_filter(
    database: str, conn: asyncpg.Connection, keep_result: float | None
) -> None:
    """Of every status there is one row that the filter is for, and one for each way not to be it."""
    now = timezone.now()
    right = {"queue_name": "a", "task_path": "tests.tasks.anoop", "enqueued_at": now - HOUR}
    wrong: list[dict[str, Any]] = [{"queue_name": "b"}, {"task_path": "tests.tasks.noop"}]
    wrong += [{"enqueued_at": now - 2 * HOUR}, {"enqueued_at": now}]
    chosen = TaskFilter(
        queue_name="a",
        task_path="tests.tasks.anoop",
        enqueued_after=now - timedelta(minutes=90),
        enqueued_before=now - timedelta(minutes=30),
    )
    for status in Status:
        await conn.execute("TRUNCATE aiotasks_task")
        found: list[UUID] = []
        for values in [right, *({**right, **one} for one in wrong)]:
            path = values.pop("task_path")
            ids = await put(conn, status, keep_result=keep_result, **values)
            await conn.execute("UPDATE aiotasks_task SET task_path = $2 WHERE id = ANY($1)", ids, path)
            found = found or ids
            values["task_path"] = path
        before = await statuses(conn)
        counts = await backend.adelete_many(chosen)
        if status is Status.RUNNING:
            assert counts == BulkCounts()
            assert await backend.acancel_many(chosen) == BulkCounts(requested=1)
            assert (await rows.row(conn, found[0]))["cancel_requested_at"] is not None
        else:
            assert counts == BulkCounts(deleted=1)
            assert before.keys() - (await statuses(conn)).keys() == set(found)


async def test_by_the_time_of_the_end(database: str, conn: asyncpg.Connection) -> None:
    ids = await put(conn, "FAILED", 3) + await put(conn, "FAILED", 3, keep_result=3600.0)
    await put(conn, "READY")
    now = timezone.now()
    for id, hours in zip(ids, itertools.cycle([3, 2, 1])):
        await conn.execute("UPDATE aiotasks_task SET finished_at = $2 WHERE id = $1", id, now - hours * HOUR)
    chosen = TaskFilter(finished_after=now - 2.5 * HOUR, finished_before=now - 1.5 * HOUR)
    assert await backend.adelete_many(chosen) == BulkCounts(deleted=2)
    assert {ids[1], ids[4]}.isdisjoint(await statuses(conn))
    exactly = TaskFilter(finished_after=now - 3 * HOUR, finished_before=now - HOUR)
    assert await backend.adelete_many(exactly) == BulkCounts(deleted=2)
    assert await backend.adelete_many(TaskFilter(finished_after=now - HOUR)) == BulkCounts(deleted=2)


async def test_by_status_and_unique_key(database: str, conn: asyncpg.Connection, api: Api) -> None:
    ids = await one_of_each(conn)
    waiting = TaskFilter(status=["SCHEDULED", "READY"])
    assert await api.call(backend, "cancel_many", waiting) == BulkCounts(cancelled=2)
    assert await api.call(backend, "retry_many", TaskFilter(status="SUCCESSFUL")) == BulkCounts()
    assert await api.call(backend, "delete_many", TaskFilter(status="SUCCESSFUL")) == BulkCounts(deleted=1)
    await conn.execute("UPDATE aiotasks_task SET unique_key = 'k' WHERE id = $1", ids["FAILED"])
    assert await api.call(backend, "cancel_many", TaskFilter(unique_key="k")) == BulkCounts()
    keyed = TaskFilter(unique_key="k", queue_name="default")
    assert await api.call(backend, "retry_many", keyed) == BulkCounts(retried=1)
    assert (await statuses(conn))[ids["FAILED"]] == "READY"
    assert await api.call(backend, "delete_many", TaskFilter(unique_key="k", queue_name="x")) == BulkCounts()


@pytest.mark.parametrize("keep_result", [None, 3600.0])
async def test_by_the_last_error(database: str, conn: asyncpg.Connection, keep_result: float | None) -> None:
    """Its class, as a whole name from its end on, whatever else the text holds."""
    classes = ["builtins.ValueError", "shop.ValueError", "shop.MyValueError", "shop.Érreur", None]
    for kind in classes:
        ids = await put(conn, "FAILED", keep_result=keep_result)
        other = json.dumps({"class": "builtins.OSError", "traceback": "x"})
        text = json.dumps({"class": kind, "traceback": "\0 \ud800 ValueError"})
        errors = [] if kind is None else [other, text]
        await conn.execute("UPDATE aiotasks_task SET errors = $2::json[] WHERE id = ANY($1)", ids, errors)
    for status in ("SCHEDULED", "READY", "RUNNING", "SUCCESSFUL"):
        await put(conn, status)
    await conn.execute(
        "UPDATE aiotasks_task SET errors = ARRAY[$1::json] WHERE status <> 'FAILED'",
        json.dumps({"class": "builtins.ValueError", "traceback": "x"}),
    )
    for name in ("OSError", "Error", "builtins", "%"):
        assert await backend.adelete_many(TaskFilter(error=name)) == BulkCounts(), name
    assert await backend.adelete_many(TaskFilter(error="shop.ValueError")) == BulkCounts(deleted=1)
    assert await backend.aretry_many(TaskFilter(error="ValueError")) == BulkCounts(retried=1)
    assert await backend.adelete_many(TaskFilter(error="Érreur")) == BulkCounts(deleted=1)
    assert await backend.adelete_many(TaskFilter(status="READY", error="ValueError")) == BulkCounts()
    assert await backend.adelete_many(TaskFilter(status="FAILED")) == BulkCounts(deleted=2)


async def test_by_the_worker_of_the_last_execution(database: str, conn: asyncpg.Connection) -> None:
    one, other = uuid4(), uuid4()
    for status in Status:
        for workers in ([], [one], [one, other], [other, one]):
            ids = await put(conn, status)
            await conn.execute(
                "UPDATE aiotasks_task SET worker_ids = $2::uuid[] WHERE id = ANY($1)", ids, workers
            )
    chosen = TaskFilter(worker=one)
    assert await backend.aretry_many(chosen) == BulkCounts(retried=2)
    assert await backend.acancel_many(chosen) == BulkCounts(cancelled=6, requested=2)
    assert await backend.adelete_many(chosen) == BulkCounts(deleted=8)
    assert await backend.adelete_many(TaskFilter(worker=uuid4())) == BulkCounts()


async def test_a_look_at_errors_is_short(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have to be decompressed, so the walk takes many steps."""
    monkeypatch.setattr(bulk, "LOOK_AT_ERRORS", 2)
    ids = await put(conn, "FAILED", 9)
    error = json.dumps({"class": "builtins.ValueError", "traceback": "x"})
    await conn.execute("UPDATE aiotasks_task SET errors = ARRAY[$2::json] WHERE id = ANY($1)", ids, error)
    seen: list[int] = []
    walk = BulkStatements.walk_jobs

    async def spy(self: BulkStatements, *args: Any) -> Step:
        step = await walk(self, *args)
        seen.append(step.looked_at)
        return step

    monkeypatch.setattr(BulkStatements, "walk_jobs", spy)
    assert await backend.adelete_many(TaskFilter(error="ValueError")) == BulkCounts(deleted=9)
    assert seen == [2, 2, 2, 2, 1, 0]  # the last one of what is kept


def test_bad_filters() -> None:
    with pytest.raises(ValueError, match=r"status must be one of SCHEDULED, .*, not 'DONE'"):
        TaskFilter(status="DONE")
    with pytest.raises(ValueError, match="enqueued_after must be an aware datetime"):
        TaskFilter(enqueued_after=timezone.now().replace(tzinfo=None))
    with pytest.raises(TypeError, match="finished_before must be a datetime"):
        TaskFilter(finished_before="now")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="worker must be a UUID, not 'x'"):
        TaskFilter(worker="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="queue_name must be a string"):
        TaskFilter(queue_name=1)  # type: ignore[arg-type]
    for wrong in ("a\0b", "\ud800"):
        for name in ("queue_name", "task_path", "unique_key", "error"):
            with pytest.raises(ValueError, match=f"{name} can't hold NUL or a lone surrogate"):
                TaskFilter(**{name: wrong})  # type: ignore[arg-type]  # by name
    assert hash(TaskFilter(status=["READY"])) == hash(TaskFilter(status="READY"))


async def test_all_tasks_must_be_meant(database: str, conn: asyncpg.Connection, api: Api) -> None:
    """A filter whose variables happen to be None isn't to end a site's whole work."""
    (id,) = await put(conn, "READY")
    for name in ("cancel_many", "delete_many", "run_many_now"):
        for chosen in (TaskFilter(), TaskFilter(queue_name=None)):
            with pytest.raises(ValueError, match=r"for every task of the backend.* pass everything=True"):
                await api.call(backend, name, chosen)
        assert await api.call(backend, name, TaskFilter(status=[])) == BulkCounts()
    assert await statuses(conn) == {id: "READY"}
    assert await api.call(backend, "retry_many", TaskFilter()) == BulkCounts()
    assert await api.call(backend, "cancel_many", [id], everything=True) == BulkCounts(cancelled=1)


@pytest.mark.parametrize("wrong", ["an id", b"x", 5, None])
async def test_bad_ids(database: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match="A TaskFilter, or a list of ids or results, is wanted"):
        await backend.acancel_many(wrong)


# --- Batches


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH", 3)
    monkeypatch.setattr(bulk, "LOOK_AT", 4)
    monkeypatch.setattr(bulk, "LOCKED_FOR", 0.2)


async def test_batches_and_their_progress(
    database: str, conn: asyncpg.Connection, api: Api, small: None
) -> None:
    for priority, queue in itertools.product((5, 0, -5), "ab"):
        await rows.insert(running_store(), 6, priority=priority, queue_name=queue)
    await put(conn, "SCHEDULED", 10)
    await put(conn, "RUNNING", 10)
    await put(conn, "FAILED", 10)
    await put(conn, "SUCCESSFUL", 5, keep_result=9.0)
    seen: list[BulkCounts] = []
    counts = await api.call(backend, "cancel_many", TaskFilter(), everything=True, progress=seen.append)
    assert counts == BulkCounts(cancelled=46, requested=10)
    assert seen[-1] == counts
    assert seen == sorted(seen)
    assert all(1 <= sum(after) - sum(before) <= 3 for before, after in itertools.pairwise(seen))
    assert await api.call(backend, "retry_many", TaskFilter()) == BulkCounts(retried=56)
    assert await api.call(backend, "delete_many", TaskFilter(), everything=True) == BulkCounts(deleted=61)


async def test_what_is_locked_is_left_and_come_back_to(
    database: str, conn: asyncpg.Connection, api: Api, small: None
) -> None:
    ids = await put(conn, "READY", 8)
    lock = conn.transaction()
    await lock.start()
    await conn.execute("SELECT FROM aiotasks_task WHERE id = ANY($1) FOR UPDATE", [ids[0], ids[7]])
    counts = await api.call(backend, "cancel_many", ids)
    assert counts == BulkCounts(cancelled=6, locked=2)
    released: list[BulkCounts] = []

    def progress(counts: BulkCounts) -> None:
        released.append(counts)

    again = asyncio.create_task(
        api.call(backend, "cancel_many", TaskFilter(), everything=True, progress=progress)
    )
    await until(lambda: bool(released))
    assert released[0] == BulkCounts(locked=2)
    await lock.rollback()
    assert await again == BulkCounts(cancelled=2)


async def test_an_action_that_is_stopped_keeps_what_it_has_done(
    database: str, conn: asyncpg.Connection, api: Api, small: None
) -> None:
    await put(conn, "READY", 10)

    def stop(counts: BulkCounts) -> None:
        if counts.cancelled >= 4:
            raise InterruptedError(counts.cancelled)

    with pytest.raises(InterruptedError) as caught:
        await api.call(backend, "cancel_many", TaskFilter(), everything=True, progress=stop)
    done = list((await statuses(conn)).values()).count("FAILED")
    assert 4 <= done < 10
    assert caught.value.args == (done,)
    assert (await api.call(backend, "cancel_many", TaskFilter(), everything=True)).cancelled == 10 - done


async def test_an_action_that_is_stopped_has_announced_what_it_has_done(
    database: str, conn: asyncpg.Connection, api: Api, small: None, heard: list[Heard]
) -> None:
    await put(conn, "READY", 10)

    def stop(counts: BulkCounts) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await api.call(backend, "cancel_many", TaskFilter(), everything=True, progress=stop)
    assert len(heard) == list((await statuses(conn)).values()).count("FAILED") == 3


async def test_an_action_whose_look_up_fails_has_announced_what_it_has_done(
    database: str, conn: asyncpg.Connection, heard: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await put(conn, "READY", 2)

    async def fail(*args: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(BulkStatements, "select_left_jobs", fail)
    with pytest.raises(InterruptedError):
        await backend.acancel_many([*ids, uuid4()])
    assert {each.fields["id"] for each in heard} == {str(id) for id in ids}


# --- Tasks that change their status while the walk goes on


type Before = Callable[[str, Callable[[], Awaitable[Any]]], None]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Before:
    """Calls something once, before a statement of the walk: list_ready's, or that of a leg by its name."""

    def call_before(name: str, change: Callable[[], Awaitable[Any]]) -> None:
        changes = [change]
        walk, ready = BulkStatements.walk_jobs, BulkStatements.list_ready

        async def walk_jobs(store: BulkStatements, backend: str, leg: Leg, *args: Any) -> Step:
            if leg.branch == name and changes:
                await changes.pop()()
            return await walk(store, backend, leg, *args)

        async def list_ready(*args: Any) -> list[ReadyLeg]:
            if name == "list_ready" and changes:
                await changes.pop()()
            return await ready(*args)

        monkeypatch.setattr(BulkStatements, "walk_jobs", walk_jobs)
        monkeypatch.setattr(BulkStatements, "list_ready", list_ready)

    return call_before


async def test_a_locked_task_that_a_later_leg_meets_is_counted_once(
    database: str, conn: asyncpg.Connection, before: Before
) -> None:
    """A claim that is under way while READY tasks are cancelled: its task is RUNNING when these are."""
    (ready,) = await put(conn, "READY")
    await put(conn, "RUNNING")
    claim = conn.transaction()
    await claim.start()
    await conn.execute("UPDATE aiotasks_task SET status = 'RUNNING' WHERE id = $1", ready)
    before("running", claim.commit)
    assert await backend.acancel_many(TaskFilter(), everything=True) == BulkCounts(requested=2)


async def test_a_locked_task_that_a_later_leg_deletes_is_counted_once(
    database: str, conn: asyncpg.Connection, before: Before
) -> None:
    (scheduled,) = await put(conn, "SCHEDULED")
    promote = conn.transaction()
    await promote.start()
    await conn.execute("UPDATE aiotasks_task SET status = 'READY', ready_at = now() WHERE id = $1", scheduled)
    before("list_ready", promote.commit)
    assert await backend.adelete_many(TaskFilter(), everything=True) == BulkCounts(deleted=1)
    assert await statuses(conn) == {}


async def test_a_retry_that_goes_back_to_waiting_is_met(
    database: str, conn: asyncpg.Connection, before: Before
) -> None:
    """Of tasks that run, those that have failed meanwhile and wait for their next attempt."""
    (running,) = await put(conn, "RUNNING")

    async def put_off() -> None:
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'SCHEDULED', run_after = now() + interval '1 hour', "
            "ready_at = NULL, claim_id = NULL, worker_id = NULL WHERE id = $1",
            running,
        )

    before("running", put_off)
    assert await backend.acancel_many(TaskFilter(), everything=True) == BulkCounts(cancelled=1)
    assert await statuses(conn) == {running: "FAILED"}


async def test_a_task_that_was_asked_to_end_and_waits_again_is_counted_once(
    database: str, conn: asyncpg.Connection, small: None
) -> None:
    (running,) = await put(conn, "RUNNING")

    def put_off(counts: BulkCounts) -> None:
        with connect(database, autocommit=True) as other:
            other.execute(
                "UPDATE aiotasks_task SET status = 'SCHEDULED', run_after = now() + interval '1 hour', "
                "ready_at = NULL, claim_id = NULL, worker_id = NULL WHERE status = 'RUNNING'"
            )

    assert await backend.acancel_many(TaskFilter(), everything=True, progress=put_off) == BulkCounts(
        cancelled=1
    )
    assert await statuses(conn) == {running: "FAILED"}


# What may happen to a task that a walk has found before the action comes to it.
FINISHED_AGAIN = "finished_at = clock_timestamp()"
WAITS = "status = 'READY', ready_at = clock_timestamp(), finished_at = NULL"
FINISHED_EARLIER = "finished_at = finished_at - interval '1 day'"
KEY_TAKEN = "former_key = unique_key, unique_key = NULL"

type After = Callable[[str, UUID, str], None]


@pytest.fixture
def after(database: str, monkeypatch: pytest.MonkeyPatch) -> After:
    """Changes a row once, after an action's statement of that name has found it."""

    def change_after(name: str, id: UUID, change: str) -> None:
        statement = getattr(BulkStatements, name)
        changes = [change]

        async def changed(*args: Any) -> Any:
            found = await statement(*args)
            if changes and id in (found.ids if isinstance(found, Step) else found):
                with connect(database, autocommit=True) as other:
                    other.execute(f"UPDATE aiotasks_task SET {changes.pop()} WHERE id = %s", (id,))
            return found

        monkeypatch.setattr(BulkStatements, name, changed)

    return change_after


@pytest.mark.parametrize("way", ["retried", "deleted"])
@pytest.mark.parametrize(
    ("times", "change"),
    [
        (["finished_before"], FINISHED_AGAIN),
        (["finished_before"], WAITS),
        (["finished_after"], FINISHED_EARLIER),
        (["finished_after"], WAITS),
        ([], FINISHED_AGAIN),
    ],
)
async def test_what_the_filter_is_not_for_any_more_is_left_alone(
    database: str, conn: asyncpg.Connection, after: After, way: str, times: list[str], change: str
) -> None:
    """It isn't waited for as if it were locked."""
    changed, other = await put(conn, "FAILED", 2)
    now = timezone.now()
    await conn.execute("UPDATE aiotasks_task SET finished_at = $1", now - 2 * HOUR)
    bounds = {"finished_before": now - HOUR, "finished_after": now - 3 * HOUR}
    chosen = TaskFilter(**{name: bounds[name] for name in times})  # type: ignore[arg-type]  # by name
    after("walk_jobs", changed, change)
    if way == "retried":
        assert await backend.aretry_many(chosen) == BulkCounts(retried=1, refused=1)
    else:
        counts = await backend.adelete_many(chosen, everything=True)
        assert counts == BulkCounts(deleted=1, refused=1)
    found = await statuses(conn)
    assert found.pop(changed) == ("READY" if change is WAITS else "FAILED")
    assert found == ({other: "READY"} if way == "retried" else {})


@pytest.mark.parametrize("statement", ["walk_jobs", "select_left_jobs"])
async def test_a_task_that_has_failed_again_does_not_take_its_key_back(
    database: str, conn: asyncpg.Connection, after: After, small: None, statement: str
) -> None:
    """It may hold the key once more: by its own retry, which this action isn't for."""
    (id,) = await lost(conn, "a")
    after(statement, id, FINISHED_AGAIN)
    assert await backend.aretry_many(TaskFilter(status="FAILED")) == BulkCounts(refused=1)
    assert await statuses(conn) == {id: "FAILED"}


@pytest.mark.parametrize("name", ["cancel_many", "retry_many", "delete_many"])
async def test_a_task_whose_key_has_been_taken_is_left_alone(
    database: str, conn: asyncpg.Connection, after: After, name: str
) -> None:
    status = "READY" if name == "cancel_many" else "FAILED"
    id = await holds(conn, status, "a")
    after("walk_jobs", id, KEY_TAKEN)
    assert await getattr(backend, f"a{name}")(TaskFilter(unique_key="a")) == BulkCounts(refused=1)
    assert await statuses(conn) == {id: status}


async def test_the_task_of_a_key_is_met_whenever_it_has_finished(
    database: str, conn: asyncpg.Connection, after: After
) -> None:
    id = await holds(conn, "FAILED", "a")
    after("walk_jobs", id, FINISHED_AGAIN)
    assert await backend.aretry_many(TaskFilter(unique_key="a")) == BulkCounts(retried=1)


async def test_cancelling_the_action_itself(database: str, conn: asyncpg.Connection, small: None) -> None:
    await put(conn, "READY", 200)
    seen: list[BulkCounts] = []
    action = asyncio.create_task(backend.acancel_many(TaskFilter(), everything=True, progress=seen.append))
    await until(lambda: len(seen) > 3)
    action.cancel()
    with pytest.raises(asyncio.CancelledError):
        await action
    # The statement under way may have gone through, or not.
    done = list((await statuses(conn)).values()).count("FAILED")
    assert seen[-1].cancelled <= done <= seen[-1].cancelled + 3
    assert (await backend.acancel_many(TaskFilter(), everything=True)).cancelled == 200 - done


async def test_a_coroutine_can_not_be_told_of_progress(database: str) -> None:
    async def progress(counts: BulkCounts) -> None:
        pass

    with pytest.raises(TypeError, match="progress must be an ordinary function"):
        await backend.acancel_many([], progress=progress)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="report must be an ordinary function"):
        await aperform("cancel", [], report=progress)  # type: ignore[arg-type]


# --- Reports and dry runs


async def test_a_report_has_the_outcome_of_each_task(
    database: str, conn: asyncpg.Connection, small: None
) -> None:
    waiting, finished = await put(conn, "READY", 7), await put(conn, "FAILED", 1)
    lock = conn.transaction()
    await lock.start()
    await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", waiting[0])
    outcomes: dict[UUID, list[str]] = defaultdict(list)
    nowhere = uuid4()

    def report(batch: Mapping[UUID, str]) -> None:
        assert len(batch) <= 3
        for id, outcome in batch.items():
            outcomes[id].append(outcome)

    acting = asyncio.create_task(aperform("cancel", [*waiting, *finished, nowhere], report=report))
    await until(lambda: len(outcomes[waiting[0]]) > 1)
    await lock.rollback()
    assert await acting == BulkCounts(cancelled=7, refused=1, missing=1)
    assert set(outcomes.pop(waiting[0])[:-1]) == {"locked"}
    assert outcomes == {
        **{id: ["cancelled"] for id in waiting[1:]},
        finished[0]: ["refused"],
        nowhere: ["missing"],
    }


async def test_a_dry_run_counts_and_changes_nothing(
    database: str, conn: asyncpg.Connection, api: Api, small: None, heard: list[Heard]
) -> None:
    ids = await one_of_each(conn)
    (lost_one,) = await lost(conn, "a")
    await holds(conn, "RUNNING", "a")
    (lost_two,) = await lost(conn, "b")
    await holds(conn, "SUCCESSFUL", "b")
    before = await conn.fetch("SELECT * FROM aiotasks_task ORDER BY id")
    actions = importlib.import_module("aiotasks.operations.actions")
    dry = {"everything": True, "dry_run": True}
    for action, number in [("cancel", 4), ("delete", 7), ("run_now", 1)]:
        counts = await api.call(actions, "perform", action, TaskFilter(), **dry)
        assert counts == BulkCounts(would_change=number), action
    assert str(counts) == "1 would change"
    counts = await api.call(actions, "perform", "retry", TaskFilter(), dry_run=True)
    assert counts == BulkCounts(would_change=2, key_taken=1)
    counts = await api.call(actions, "perform", "retry", [*ids.values(), lost_one, lost_two], dry_run=True)
    assert counts == BulkCounts(would_change=2, key_taken=1, refused=4)
    assert await conn.fetch("SELECT * FROM aiotasks_task ORDER BY id") == before
    assert heard == []
    with pytest.raises(ValueError, match="pass everything=True"):
        await api.call(actions, "perform", "delete", TaskFilter(), dry_run=True)
    # It has counted as the action does.
    assert await backend.aretry_many(TaskFilter()) == BulkCounts(retried=2, key_taken=1)


async def test_tasks_are_counted_before_an_action(
    database: str, conn: asyncpg.Connection, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(conn, "FAILED", 10)
    await put(conn, "READY", 2)
    assert str(await acount_meant("retry", TaskFilter())) == "10"
    assert str(await acount_meant("retry", TaskFilter(), most=10)) == "10+"
    assert str(await acount_meant("retry", TaskFilter(), most=4)) == "4+"
    assert str(await acount_meant("delete", TaskFilter(status="SUCCESSFUL"))) == "0"
    walk = BulkStatements.walk_jobs

    async def hang_after_the_first(self: BulkStatements, *args: Any) -> Step:
        if args[2] != Place():
            await asyncio.Event().wait()
        return await walk(self, *args)

    monkeypatch.setattr(BulkStatements, "walk_jobs", hang_after_the_first)
    assert str(await acount_meant("retry", TaskFilter(), within=0.5)) == "4+"


async def test_who_has_a_key(database: str, conn: asyncpg.Connection) -> None:
    first, second = await lost(conn, "a"), await lost(conn, "b")
    holder = await holds(conn, "READY", "a")
    await holds(conn, "SUCCESSFUL", "b")
    assert await akey_holders([*first, *second, holder, uuid4()]) == {first[0]: holder}


# --- Transactions


async def test_batches_join_the_transaction_around_them(
    database: str, conn: asyncpg.Connection, small: None
) -> None:
    ids = await put(conn, "READY", 8)
    async with aiotasks.transaction() as inside:
        assert await backend.acancel_many(ids) == BulkCounts(cancelled=8)
        assert set((await statuses(conn)).values()) == {"READY"}
        assert set((await statuses(inside)).values()) == {"FAILED"}
        # Others see what a batch has done at the commit, so a batch that meets its own work finds it done.
        assert await backend.acancel_many(ids) == BulkCounts(refused=8)
    assert set((await statuses(conn)).values()) == {"FAILED"}
    async with aiotasks.atomic():
        assert await backend.aretry_many(TaskFilter()) == BulkCounts(retried=8)
        assert set((await statuses(conn)).values()) == {"FAILED"}
    assert set((await statuses(conn)).values()) == {"READY"}
    async with aiotasks.transaction():
        assert await backend.adelete_many(TaskFilter(), everything=True) == BulkCounts(deleted=8)
    assert await statuses(conn) == {}


def test_sync_batches_join_atomic(database: str, observer: Any, small: None) -> None:
    for _ in range(5):
        tasks.noop.enqueue()
    with django_transaction.atomic():
        assert backend.delete_many(TaskFilter(), everything=True) == BulkCounts(deleted=5)
        django_transaction.set_rollback(True)
    assert observer.execute("SELECT count(*) FROM aiotasks_task").fetchone() == (5,)
    with django_transaction.atomic():
        assert backend.cancel_many(TaskFilter(), everything=True) == BulkCounts(cancelled=5)
    assert backend.retry_many(TaskFilter(status="FAILED")) == BulkCounts(retried=5)


@pytest.mark.parametrize("one", [True, False])
async def test_receivers_hear_of_a_cancel_after_the_commit(
    database: str, conn: asyncpg.Connection, heard: list[Heard], aheard: list[Heard], one: bool
) -> None:
    """What is rolled back isn't announced, and its tasks run."""
    blocks: list[tuple[Any, bool]] = [
        (block, is_kept) for block in (aiotasks.transaction, aiotasks.atomic) for is_kept in (False, True)
    ]
    for block, is_kept in blocks:
        result = await tasks.anoop.aenqueue()
        heard.clear()
        with suppress(LookupError):
            async with block():
                async with block():
                    assert await result.acancel() if one else (await backend.acancel_many([result])).cancelled
                await result.arefresh()
                assert (result.status, heard) == ("FAILED", [])
                if not is_kept:
                    raise LookupError
        await result.arefresh()
        expected = [("task_finished", result.id)] if is_kept else []
        assert result.status == ("FAILED" if is_kept else "READY")
        for log in (heard, aheard):
            assert [
                (each.signal, each.fields["id"]) for each in log if each.signal != "task_enqueued"
            ] == expected
            log.clear()
        await conn.execute("TRUNCATE aiotasks_task")


async def test_a_savepoint_that_is_rolled_back_announces_nothing(database: str, heard: list[Heard]) -> None:
    blocks: tuple[Any, ...] = (aiotasks.transaction, aiotasks.atomic)
    for block in blocks:
        first, second = await tasks.anoop.aenqueue(), await tasks.anoop.aenqueue()
        heard.clear()
        async with block():
            assert await backend.acancel_many([first]) == BulkCounts(cancelled=1)
            with suppress(LookupError):
                async with block():
                    assert await backend.acancel_many([second]) == BulkCounts(cancelled=1)
                    raise LookupError
        assert [each.fields["id"] for each in heard] == [first.id]


def test_sync_receivers_hear_of_a_cancel_after_the_commit(database: str, heard: list[Heard]) -> None:
    first, second = tasks.noop.enqueue(), tasks.noop.enqueue()
    heard.clear()
    with django_transaction.atomic():
        assert backend.cancel_many([first]) == BulkCounts(cancelled=1)
        assert backend.cancel(second)
        assert heard == []
    assert [each.fields["id"] for each in heard] == [first.id, second.id]


async def test_in_a_transaction_of_the_callers_own_receivers_hear_at_once(
    database: str, conn: asyncpg.Connection, heard: list[Heard]
) -> None:
    """aiotasks doesn't know of its commit."""
    result = await tasks.anoop.aenqueue()
    heard.clear()
    async with conn.transaction():
        async with aiotasks.transaction(connection=conn):
            assert (await backend.acancel_many([result])).cancelled == 1
            assert heard == []
        assert [each.fields["id"] for each in heard] == [result.id]


async def test_a_failed_announcement_is_no_error_of_the_transaction(
    database: str,
    conn: asyncpg.Connection,
    heard: list[Heard],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = await put(conn, "READY", 2)

    async def fail(*args: Any) -> Any:
        raise OSError("no connection")

    monkeypatch.setattr(bulk_actions.Cancel, "_send_finished", fail)
    blocks: tuple[Any, ...] = (aiotasks.transaction, aiotasks.atomic)
    for id, block in zip(ids, blocks, strict=True):
        async with block():
            assert (await backend.acancel_many([id])).cancelled == 1
    assert set((await statuses(conn)).values()) == {"FAILED"}
    assert caplog.text.count("task_finished was not sent for all tasks") == 2


# --- With workers


async def test_running_tasks_are_cancelled_by_their_workers(database: str, either: Api) -> None:
    results = [await tasks.asleep.aenqueue(60.0) for _ in range(5)]
    async with worker():

        async def all_run() -> bool:
            for result in results:
                await result.arefresh()
            return all(result.status == "RUNNING" for result in results)

        await until(all_run)
        assert await either.call(backend, "cancel_many", TaskFilter(), everything=True) == BulkCounts(
            requested=5
        )

        async def all_ended() -> bool:
            for result in results:
                await result.arefresh()
            return all(result.is_finished for result in results)

        await until(all_ended)
    assert {result.errors[-1].exception_class for result in results} == {aiotasks.TaskCancelled}


async def test_a_retry_wakes_the_workers_once_a_queue_and_batch(
    database: str, conn: asyncpg.Connection, notified: list[str], api: Api
) -> None:
    await put(conn, "FAILED", 50)
    await put(conn, "FAILED", 50, queue_name="b")
    assert await api.call(backend, "retry_many", TaskFilter()) == BulkCounts(retried=100)
    await until(lambda: len(notified) >= 2)
    await conn.execute("SELECT 1")
    assert sorted(notified) == ['["default", "b", null]', '["default", "default", null]']


async def test_actions_beside_workers_lose_and_double_nothing(
    database: str, conn: asyncpg.Connection
) -> None:
    """Every task that was cancelled never ran; every other ran once; a cancelled one that is retried runs."""
    results = await backend.aenqueue_many(tasks.anoop, [((), {})] * 1500)
    async with worker(concurrency=50) as running:
        counts = await backend.acancel_many(TaskFilter(), everything=True)
        done = await backend.acancel_many([result.id for result in results])
        assert done.cancelled == 0
        await running.wait_until_empty()
        found = await conn.fetch("SELECT status, cardinality(worker_ids) AS runs FROM aiotasks_task")
        assert len(found) == 1500
        never = [row for row in found if row["status"] == "FAILED" and row["runs"] == 0]
        assert counts.cancelled <= len(never) <= counts.cancelled + counts.requested
        assert all(row["runs"] == 1 for row in found if row["status"] == "SUCCESSFUL")
        retried = await backend.aretry_many(TaskFilter(status="FAILED"))
        await running.wait_until_empty()
    assert {row[0] for row in await conn.fetch("SELECT status FROM aiotasks_task")} == {"SUCCESSFUL"}
    assert retried.retried >= counts.cancelled


async def test_an_action_ends_beside_tasks_that_fail_again(
    database: str, conn: asyncpg.Connection, small: None
) -> None:
    """As fast as they are retried: each is retried once, in a walk of many steps."""
    await put(conn, "FAILED", 30)
    await put(conn, "FAILED", 30, keep_result=3600.0)

    def fail_again(counts: BulkCounts) -> None:
        with connect(database, autocommit=True) as other:
            other.execute(
                "UPDATE aiotasks_task SET status = 'FAILED', finished_at = clock_timestamp() "
                "WHERE status = 'READY'"
            )

    assert await backend.aretry_many(TaskFilter(), progress=fail_again) == BulkCounts(retried=60)
    # Tasks that become READY meanwhile are left out, too.
    await conn.execute("UPDATE aiotasks_task SET status = 'READY', ready_at = now(), finished_at = NULL")

    def enqueue(counts: BulkCounts) -> None:
        with connect(database, autocommit=True) as other:
            other.execute(
                "UPDATE aiotasks_task SET status = 'READY', ready_at = clock_timestamp(), finished_at = NULL "
                "WHERE status = 'FAILED'"
            )

    assert await backend.acancel_many(TaskFilter(), everything=True, progress=enqueue) == BulkCounts(
        cancelled=60
    )


# --- Unique keys


async def lost(conn: asyncpg.Connection, key: str, number: int = 1, **values: Any) -> list[UUID]:
    """FAILED tasks whose key another task has taken."""
    ids = await put(conn, "FAILED", number, **values)
    await conn.execute("UPDATE aiotasks_task SET former_key = $2 WHERE id = ANY($1)", ids, key)
    return ids


async def holds(conn: asyncpg.Connection, status: str, key: str) -> UUID:
    """A task of that status that has the key."""
    (id,) = await put(conn, status)
    await conn.execute("UPDATE aiotasks_task SET unique_key = $2 WHERE id = $1", id, key)
    return id


async def holds_in(conn: asyncpg.Connection, key: str) -> UUID:
    """A new READY task that has the key, in the transaction that is open."""
    id: UUID = await conn.fetchval(
        """
        INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, args, kwargs,
            errors, worker_ids, crashes, enqueued_at, ready_at, unique_key)
        VALUES (gen_random_uuid(), 'default', 'default', 'tests.tasks.anoop', 'loop', 0, 'READY', '[]', '{}',
            '{}', '{}', 0, now(), now(), $1)
        RETURNING id
        """,
        key,
    )
    return id


async def keys(conn: asyncpg.Connection) -> dict[UUID, tuple[str | None, str | None]]:
    found = await conn.fetch("SELECT id, unique_key, former_key FROM aiotasks_task")
    return {row[0]: (row[1], row[2]) for row in found}


async def test_a_retried_task_has_its_unique_key_again(
    database: str, conn: asyncpg.Connection, api: Api
) -> None:
    first, second = await lost(conn, "a", 2)
    (third,) = await lost(conn, "b")
    done = await holds(conn, "SUCCESSFUL", "b")  # which holds it no longer
    own = await holds(conn, "FAILED", "c")  # nobody has taken it
    counts = await api.call(backend, "retry_many", [first, second, third, own])
    assert counts == BulkCounts(retried=3, key_taken=1)
    found = await keys(conn)
    assert {found[first], found[second]} == {("a", None), (None, "a")}
    assert (found[third], found[done], found[own]) == (("b", None), (None, "b"), ("c", None))
    after = await statuses(conn)
    assert sorted([after[first], after[second]]) == ["FAILED", "READY"]
    assert (after[third], after[own]) == ("READY", "READY")


@pytest.mark.parametrize("status", ["SCHEDULED", "READY", "RUNNING"])
async def test_a_key_that_another_task_holds_is_taken(
    database: str, conn: asyncpg.Connection, api: Api, status: str
) -> None:
    ids = await lost(conn, "a", 3)
    holder = await holds(conn, status, "a")
    free = await put(conn, "FAILED")
    before = await keys(conn)
    assert await api.call(backend, "retry_many", TaskFilter()) == BulkCounts(retried=1, key_taken=3)
    assert await keys(conn) == before
    after = await statuses(conn)
    assert [after[id] for id in ids] == ["FAILED"] * 3
    assert (after[holder], after[free[0]]) == (status, "READY")


@pytest.mark.parametrize("way", ["loop", "transaction", "atomic"])
async def test_a_race_for_a_key(
    database: str, conn: asyncpg.Connection, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session takes it after the statement has looked: one says key_taken, and the batch goes on."""
    monkeypatch.setattr(bulk_actions, "LOCK_TIMEOUT", 30.0)
    await lost(conn, "a")
    await put(conn, "FAILED", 2)
    other = conn.transaction()
    await other.start()
    holder = await holds_in(conn, "a")

    async def retry() -> BulkCounts:
        if way == "loop":
            return await backend.aretry_many(TaskFilter())
        block = aiotasks.transaction if way == "transaction" else aiotasks.atomic
        async with block():
            counts = await backend.aretry_many(TaskFilter())
            assert await backend.aretry_many([holder]) in (BulkCounts(refused=1), BulkCounts(missing=1))
        return counts

    retrying = asyncio.create_task(retry())
    observer = await asyncpg.connect(database)

    async def waits() -> Any:
        return await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )

    await until(waits)
    await observer.close()
    await other.commit()
    assert await retrying == BulkCounts(retried=2, key_taken=1)
    assert sorted((await statuses(conn)).values()) == ["FAILED", "READY", "READY", "READY"]


async def test_a_key_of_an_open_transaction_is_not_waited_for_long(
    database: str, conn: asyncpg.Connection, api: Api, small: None
) -> None:
    (id,) = await lost(conn, "a")
    other = conn.transaction()
    await other.start()
    await holds_in(conn, "a")
    assert await api.call(backend, "retry_many", [id]) == BulkCounts(locked=1)
    await other.rollback()
    assert await api.call(backend, "retry_many", [id]) == BulkCounts(retried=1)


# --- Replies that are lost


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException | None], asyncio.Event]:
    """Has the first call of a statement lose its reply: it raises an error, or never returns. The event says
    that it is written."""

    def lose(name: str, error: BaseException | None) -> asyncio.Event:
        statement = getattr(BulkStatements, name)
        is_written = asyncio.Event()

        async def once(*args: Any, **kwargs: Any) -> Any:
            reply = await statement(*args, **kwargs)
            if is_written.is_set():
                return reply
            is_written.set()
            if error is None:
                await asyncio.Event().wait()
            raise error or AssertionError

        monkeypatch.setattr(BulkStatements, name, once)
        return is_written

    return lose


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Wakeup], list[UUID]]:
    """What workers and those that await tasks are sent: wake-ups, and ids."""
    woken: list[Wakeup] = []
    told: list[UUID] = []
    monkeypatch.setattr(Notifier, "notify", lambda self, wakeups: woken.extend(wakeups))
    monkeypatch.setattr(Teller, "tell", lambda self, ids: told.extend(ids))
    return woken, told


BROKEN = utils.OperationalError("connection was closed in the middle of operation")


@pytest.mark.parametrize("error", [BROKEN, None])
@pytest.mark.parametrize(
    ("action", "statement", "status", "after"),
    [
        ("acancel_many", "cancel_free_jobs", "READY", "FAILED"),
        ("aretry_many", "retry_jobs", "FAILED", "READY"),
        ("arun_many_now", "run_jobs_now", "SCHEDULED", "READY"),
        ("adelete_many", "delete_jobs", "FAILED", None),
    ],
)
async def test_what_a_try_has_done_whose_reply_was_lost_is_told_of(
    database: str,
    conn: asyncpg.Connection,
    losing: Any,
    sent: tuple[list[Wakeup], list[UUID]],
    action: str,
    statement: str,
    status: str,
    after: str | None,
    error: BaseException | None,
) -> None:
    """The next try finds nothing to do, and a caller that is cancelled makes none."""
    ids = await put(conn, status, 2)
    is_written = losing(statement, error)
    acting = asyncio.create_task(getattr(backend, action)(ids))
    await is_written.wait()
    if error is None:
        acting.cancel()
    with suppress(asyncio.CancelledError):
        await acting
    assert set((await statuses(conn)).values()) == ({after} if after else set())
    woken, told = sent
    assert set(told) == (set() if after == "READY" else set(ids))
    if action == "adelete_many":
        assert woken == []
    else:
        (wakeup,) = woken
        assert (wakeup.queue_name, wakeup.cancel) == (ANY_QUEUE, action == "acancel_many")
        assert (wakeup.due is not None) is (action == "aretry_many")  # for the claimer and the promoter


@pytest.mark.parametrize("error", [BROKEN, None])
async def test_a_retry_with_its_key_whose_reply_was_lost_is_told_of(
    database: str,
    conn: asyncpg.Connection,
    losing: Any,
    sent: tuple[list[Wakeup], list[UUID]],
    error: BaseException | None,
) -> None:
    await lost(conn, "a")
    is_written = losing("retry_unique_job", error)
    acting = asyncio.create_task(backend.aretry_many(TaskFilter()))
    await is_written.wait()
    if error is None:
        acting.cancel()
    with pytest.raises(asyncio.CancelledError if error is None else utils.OperationalError):
        await acting
    assert list((await statuses(conn)).values()) == ["READY"]
    assert [wakeup.queue_name for wakeup in sent[0]] == [ANY_QUEUE]


async def test_an_action_that_loses_no_reply_wakes_for_its_own_tasks_alone(
    database: str, conn: asyncpg.Connection, sent: tuple[list[Wakeup], list[UUID]]
) -> None:
    ids = [*await put(conn, "READY"), *await lost(conn, "a", 2)]  # of which one is refused its key
    assert await backend.aretry_many(ids) == BulkCounts(retried=1, key_taken=1, refused=1)
    assert await backend.acancel_many(ids) == BulkCounts(cancelled=2, refused=1)
    assert await backend.adelete_many(ids) == BulkCounts(deleted=3)
    assert [(wakeup.queue_name, wakeup.lane) for wakeup in sent[0]] == [("default", "loop")]
    assert sent[1] == []


async def test_the_examples_of_the_guide(
    database: str, conn: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    with example("howto/bulk.md") as page:
        waiting = await put(conn, "READY", 2, queue_name="emails")
        failed = await put(conn, "FAILED", 3)
        await conn.execute("UPDATE aiotasks_task SET task_path = 'shop.tasks.charge' WHERE status = 'FAILED'")
        await page.run()
        after = await statuses(conn)
        assert [after[id] for id in waiting + failed] == ["FAILED"] * 2 + ["READY"] * 3
        assert page.counts == BulkCounts()  # nothing has failed so long ago
        result, other_result = [await backend.aget_result(str(id)) for id in waiting]
        await page.run(result=result, other_result=other_result)
        assert page.counts == BulkCounts(retried=2)
        await page.run()
        assert page.counts == BulkCounts(cancelled=2)
        await conn.execute("UPDATE aiotasks_task SET status = 'FAILED', finished_at = now()")
        await page.run()
        assert page.blocks == []
    assert capsys.readouterr().out == "2 cancelled\n3 retried\n"
