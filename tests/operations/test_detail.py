"""operations.detail: one task, its attempts and what happened when."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

import aiotasks
from aiotasks.operations.connection import reading
from aiotasks.operations.detail import TaskDetail, attempts, key_holder, read_task, timeline
from aiotasks.rows import FINAL, Status
from aiotasks.store.store import Store
from aiotasks.worker.startup import backend_of
from tests.store import rows
from tests.worker import retry_tasks
from tests.worker.harness import TIMEOUT, Configure, until

HERE = f"{socket.gethostname()}:{os.getpid()}"
T0 = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with reading(backend_of("default"), timeout=30.0) as store:
        yield store


async def read(store: Store, id: UUID | str) -> TaskDetail:
    found = await read_task(store, "default", UUID(str(id)))
    assert found is not None
    return found


def detail(**values: Any) -> TaskDetail:
    fields = dict.fromkeys(TaskDetail.__dataclass_fields__)
    defaults: dict[str, Any] = {
        "id": UUID(int=1),
        "status": Status.FAILED,
        "errors": [],
        "errors_omitted": 0,
        "worker_ids": [],
        "workers": {},
        "enqueued_at": T0,
    }
    return TaskDetail(**{**fields, **defaults, **values})


def error(kind: str, **note: Any) -> str:
    return json.dumps({"class": kind, "traceback": f"Traceback\n{kind.rpartition('.')[2]}: no\n", **note})


async def test_attempts_of_a_worker(configure: Configure, store: Store, database: str) -> None:
    configure()
    result = await retry_tasks.flaky.aenqueue("Flaky", 2)

    async def ended() -> bool:
        await result.arefresh()
        return result.is_finished

    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):
        await until(ended)
        found = await read(store, result.id)
    rows = attempts(found)
    assert [(row.number, row.ended, row.worker) for row in rows] == [
        (1, "failed", HERE),
        (2, "failed", HERE),
        (3, "succeeded", HERE),
    ]
    assert [row.error for row in rows] == [
        "tests.worker.retry_tasks.Flaky: attempt 1",
        "tests.worker.retry_tasks.Flaky: attempt 2",
        None,
    ]
    assert all(row.began is not None and row.seconds is not None and row.seconds >= 0 for row in rows)
    assert "attempt 1" in str(rows[0].traceback)
    kinds = [event.kind for event in timeline(found)]
    assert kinds[0] == "enqueued"
    assert [kind for kind in kinds if kind not in ("enqueued", "ready", "due")] == [
        *["began", "failed"] * 2,
        *["began", "succeeded", "finished"],
    ]


async def test_all_that_the_row_knows(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await rows.insert(store, args="[123456789012345678901234567890, -0.0]", kwargs='{"a": "\\u0000"}')
    me = await rows.worker(store)
    await conn.execute(
        """
        UPDATE aiotasks_task SET worker_ids = ARRAY[$2::uuid, $3::uuid], unique_key = 'k', former_key = 'f',
            return_value = '1e400', metadata = '{"a": 1}', errors_omitted = 3, asked_run_after = 'epoch',
            run_after = '-infinity', expires_at = 'infinity', started_at = '0001-01-01'
        WHERE id = $1
        """,
        id,
        me,
        UUID(int=7),
    )
    found = await read(store, id)
    assert (found.args, found.kwargs) == ("[123456789012345678901234567890, -0.0]", '{"a": "\\u0000"}')
    assert (found.return_value, found.metadata, found.status) == ("1e400", '{"a": 1}', Status.READY)
    assert (found.worker_ids, found.workers) == ([me, UUID(int=7)], {me: "host:1"})
    assert (found.run_after, found.asked_run_after, found.expires_at, found.started_at) == (None,) * 4
    assert found.errors_omitted == 3
    holder = await key_holder(store, "default", "k")
    assert holder is not None
    assert holder.id == id
    assert await key_holder(store, "default", "f") is None
    assert await read_task(store, "default", uuid4()) is None
    assert await read_task(store, "other", id) is None


async def test_a_crash_and_a_cancel_before_a_start(store: Store, conn: asyncpg.Connection) -> None:
    dead, (job,) = await rows.claimed(store)
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s'")
    rescuer = await rows.worker(store)
    await store.rescue_jobs("default", 3, rows.WORKER_LOST, 10, rows.CANCELLED, rescuer, 1.0)
    await store.cancel_jobs([job.id], "default", rows.CANCELLED)
    found = attempts(await read(store, job.id))
    assert [(row.number, row.ended, row.worker) for row in found] == [
        (1, "lost", "host:1"),
        (None, "cancelled", None),
    ]
    assert found[0].began is not None
    assert (found[1].began, found[1].seconds) == (None, None)
    assert dead != rescuer


@pytest.mark.parametrize("kind", ["TaskCancelled", "TaskExpired"])
@pytest.mark.parametrize("status", [Status.RUNNING, Status.SUCCESSFUL, Status.READY, Status.FAILED])
def test_an_end_without_an_attempt_before_a_retry(kind: str, status: Status) -> None:
    later = T0 + timedelta(seconds=60)
    ended = {"finished_at": later + timedelta(seconds=1)} if status in FINAL else {}
    errors = [error(f"aiotasks.exceptions.{kind}")]
    if status in (Status.READY, Status.FAILED):  # lost, or FAILED by a crash
        errors.append(error("aiotasks.exceptions.WorkerLost"))
    found = detail(
        status=status,
        errors=errors,
        worker_ids=[UUID(int=1)],
        started_at=later,
        last_attempted_at=later,
        **ended,
    )
    first, second = attempts(found)
    assert (first.number, first.began, first.seconds, first.worker) == (None, None, None, None)
    assert (second.number, second.began, second.worker) == (1, later, str(UUID(int=1)))
    assert [event.kind for event in timeline(found)].count("began") == 1


def test_a_cancelled_attempt_whose_worker_has_died() -> None:
    (row,) = attempts(detail(errors=[error("aiotasks.exceptions.TaskCancelled")], worker_ids=[UUID(int=1)]))
    assert (row.number, row.ended) == (1, "cancelled")


def test_rows_of_older_releases() -> None:
    """Errors without notes: in their order; the times are those of the row's first and last attempt."""
    workers = [UUID(int=n) for n in range(1, 4)]
    found = attempts(
        detail(
            errors=[error("a.B")] * 3,
            worker_ids=workers,
            workers={workers[1]: "h:2"},
            started_at=T0,
            last_attempted_at=T0 + timedelta(seconds=60),
            finished_at=T0 + timedelta(seconds=61),
        )
    )
    assert [(row.number, row.began, row.seconds) for row in found] == [
        (1, T0, None),
        (2, None, None),
        (3, T0 + timedelta(seconds=60), 1.0),
    ]
    assert [row.worker for row in found] == [str(workers[0]), "h:2", str(workers[2])]


def test_attempts_that_were_left_out() -> None:
    note = {"began": T0.isoformat(), "seconds": 1.5, "worker": "h:1"}
    errors = [error("a.B")] * 20 + [error("a.B", attempt=n, **note) for n in range(26, 46)]
    found = attempts(detail(errors=errors, errors_omitted=5, worker_ids=[UUID(int=1)] * 45))
    assert [row.number for row in found] == [*range(1, 21), *range(26, 46)]
    unnoted = attempts(detail(errors=[error("a.B")] * 40, errors_omitted=5, worker_ids=[UUID(int=1)] * 45))
    assert [row.number for row in unnoted] == [*range(1, 21), *range(26, 46)]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        '{"class": 1, "traceback": 2}',
        '{"class": "a", "traceback": "b", "attempt": "x", "began": "y", "seconds": "z", "worker": 1}',
        '{"class": "a", "traceback": "b", "began": "2026-01-01"}',
        "[" * 100_000,
    ],
    ids=["array", "number", "other types", "other notes", "naive", "deep"],
)
def test_errors_that_others_have_written(text: str) -> None:
    (row,) = attempts(detail(errors=[text], worker_ids=[UUID(int=1)]))
    assert (row.number, row.ended, row.began, row.seconds) == (1, "failed", None, None)
    assert row.worker == str(UUID(int=1))
    assert isinstance(row.error, str)


def test_a_timeline_of_what_is_to_come() -> None:
    later = T0 + timedelta(hours=1)
    waits = detail(status=Status.SCHEDULED, run_after=later, asked_run_after=T0, expires_at=later)
    assert [(event.kind, event.at) for event in timeline(waits)] == [
        ("enqueued", T0),
        ("due", later),
        ("expires", later),
    ]


async def test_a_task_that_runs(store: Store) -> None:
    _, (job,) = await rows.claimed(store)
    found = await read(store, job.id)
    (row,) = attempts(found)
    assert (row.number, row.ended, row.seconds, row.worker) == (1, "running", None, "host:1")
    assert [event.kind for event in timeline(found)] == ["enqueued", "ready", "began"]
