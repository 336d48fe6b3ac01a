"""``acancel()``: what waits ends at once, what runs is asked to, what is final stays."""

import asyncio
import logging
import pickle
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.tasks import Task, TaskResultStatus
from django.utils import timezone

import aiotasks
from aiotasks import PostgresTaskResult
from aiotasks.rows import AnyResult, AnyTask, Status
from aiotasks.store.outcomes import Finish
from tests import tasks
from tests.site import default_task_backend, postgres_result, running_store
from tests.store import rows
from tests.worker import tasks as worker_tasks
from tests.worker.harness import until

from .support import Api, Heard, finished, run_all, worker


@pytest.mark.parametrize("delay", [None, timedelta(hours=1)], ids=["ready", "scheduled"])
async def test_a_waiting_task_is_failed_at_once(
    database: str, api: Api, heard: list[Heard], delay: timedelta | None
) -> None:
    task = tasks.anoop.using(run_after=timezone.now() + delay) if delay else tasks.anoop
    result = await api.enqueue(task)
    assert await api.call(result, "cancel") is True
    await result.arefresh()
    assert result.status == TaskResultStatus.FAILED
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]
    assert result.finished_at is not None
    assert result.started_at is None
    assert result.worker_ids == []
    finished = [one for one in heard if one.signal == "task_finished"]
    assert [one.fields["status"] for one in finished] == [TaskResultStatus.FAILED]
    assert [type(one.error) for one in finished] == [aiotasks.TaskCancelled]
    assert await api.call(result, "cancel") is False
    await run_all()
    await result.arefresh()
    assert result.worker_ids == []


async def test_a_running_coroutine_is_cancelled_by_its_worker(database: str, api: Api) -> None:
    result = await api.enqueue(tasks.asleep, 60)
    async with worker():
        await begun(result)
        assert await api.call(result, "cancel") is True
        await finished(result)
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[-1].exception_class_path == "aiotasks.exceptions.TaskCancelled"
    assert result.attempts == 1


async def test_what_runs_in_a_thread_ends_as_it_ends(database: str) -> None:
    result = await tasks.sleep.aenqueue(0.5)
    async with worker():
        await begun(result)
        assert await result.acancel()
        await finished(result)
    assert result.status == TaskResultStatus.SUCCESSFUL


async def test_a_final_task_stays_as_it_is(database: str, api: Api) -> None:
    result = await tasks.aadd.aenqueue(1, 2)
    await run_all()
    assert await api.call(result, "cancel") is False
    await result.arefresh()
    assert result.return_value == 3


async def test_a_missing_task_can_not_be_cancelled(database: str, api: Api) -> None:
    result = await tasks.anoop.aenqueue()
    object.__setattr__(result, "id", str(uuid4()))
    assert await api.call(result, "cancel") is False


async def test_the_rescue_of_a_cancelled_task_fails_it(database: str, conn: asyncpg.Connection) -> None:
    result = await orphaned(conn)
    assert await result.acancel()
    rescued = await rows.rescue(running_store())
    assert [job.status for job in rescued] == ["FAILED"]
    await result.arefresh()
    assert result.errors[-1].exception_class_path == "aiotasks.exceptions.TaskCancelled"


def logged_seconds(caplog: pytest.LogCaptureFixture) -> float:
    """How long the one cancelled attempt has taken, by its line of the log."""
    (seconds,) = re.findall(r" was cancelled .* took=(\d+\.\d{3})\b", caplog.text)
    return float(seconds)


async def test_a_cancelled_task_is_not_given_back_at_a_shutdown(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = await tasks.asleep.aenqueue(60.0)
    async with worker(grace=0.0):
        await begun(result)
        begun_at = time.monotonic()
        # Behind the worker's back, so that the shutdown finds it before the worker has seen it.
        with_no_wake_up = await running_store().cancel_jobs(
            [result_uuid(result)], "default", '{"class":"","traceback":""}'
        )
        assert [job.status for job in with_no_wake_up] == ["RUNNING"]
        await asyncio.sleep(0.05)
        at_least = time.monotonic() - begun_at
    assert logged_seconds(caplog) >= round(at_least, 3)
    await result.arefresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[-1].exception_class_path == "aiotasks.exceptions.TaskCancelled"


@pytest.mark.parametrize("task", [worker_tasks.wait_in_thread, worker_tasks.swallow_cancellation_again])
async def test_a_cancelled_task_that_outlasts_a_shutdown_is_failed(
    database: str, heard: list[Heard], task: AnyTask, caplog: pytest.LogCaptureFixture
) -> None:
    """It isn't left RUNNING, to be rescued as a crash and called killed or hung."""
    worker_tasks.seen.clear()
    worker_tasks.released.clear()
    result = postgres_result(await task.aenqueue("outlasts"))
    try:
        async with worker(grace=0.0, own_process=True):
            await until(lambda: worker_tasks.seen == ["outlasts"])
            begun_at = time.monotonic()
            assert await result.acancel()
            await asyncio.sleep(0.05)
            at_least = time.monotonic() - begun_at
        assert logged_seconds(caplog) >= round(at_least, 3)
        await result.arefresh()
    finally:
        worker_tasks.released.set()
    assert result.status == TaskResultStatus.FAILED
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]
    assert [type(one.error) for one in heard if one.signal == "task_finished"] == [aiotasks.TaskCancelled]


async def test_what_is_given_back_unrun_is_failed_where_it_was_cancelled(database: str) -> None:
    """A claim whose reply came after the lease had ended, say."""
    async with worker(concurrency=0) as running:
        result = await tasks.anoop.aenqueue()
        worker_id = running.engine.lease.worker_id
        assert worker_id is not None
        (job,) = await rows.claim(running_store(), worker_id, loop=rows.lane(slots=1))
        assert await result.acancel()
        running.engine.ownership.give_back(job)
        await finished(result)
    assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskCancelled"]


async def test_a_late_finish_does_not_bring_a_cancelled_task_back(
    database: str, conn: asyncpg.Connection
) -> None:
    """Fault 54 of docs/faults.md: a late finish turns FAILED into SUCCESSFUL."""
    result = await orphaned(conn)
    claim_id = await conn.fetchval("SELECT claim_id FROM aiotasks_task")
    await result.acancel()
    await rows.rescue(running_store())
    late = await running_store().finish_jobs(
        [Finish(result_uuid(result), claim_id, Status.SUCCESSFUL, "1", None)]
    )
    assert late.at == {}
    await result.arefresh()
    assert result.status == TaskResultStatus.FAILED


@pytest.mark.skipif(not hasattr(Task, "_reconstruct"), reason="Django 6.0's Tasks don't pickle")
async def test_results_pickle(database: str) -> None:
    result = await tasks.aadd.aenqueue(1, 2)
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert await again.acancel() is True


def result_uuid(result: AnyResult) -> UUID:

    return UUID(result.id)


async def orphaned(conn: asyncpg.Connection) -> PostgresTaskResult:
    """A task that is RUNNING under a worker that isn't there."""
    result = await tasks.anoop.aenqueue()
    await conn.execute(
        "UPDATE aiotasks_task SET status = 'RUNNING', claim_id = $1, worker_id = $2::uuid, "
        "worker_ids = ARRAY[$2::uuid]",
        uuid4(),
        uuid4(),
    )
    return result


async def begun(result: AnyResult) -> None:
    """Refresh ``result`` until it is RUNNING."""

    async def is_running() -> bool:
        await result.arefresh()
        return result.status == TaskResultStatus.RUNNING

    await until(is_running)


# --- The log


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What a handler of the site gets of Django's log of tasks, as mail_admins does."""
    kept: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    logger, handler = logging.getLogger("django.tasks"), Handler()
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)


def finished_records(records: list[logging.LogRecord]) -> list[tuple[str, str, bool]]:
    found = [record for record in records if " state=FAILED" in record.getMessage()]
    return [(one.levelname, one.getMessage().partition(" error=")[2], one.exc_info is None) for one in found]


async def test_a_cancel_of_a_waiting_task_is_no_error(
    database: str, api: Api, records: list[logging.LogRecord]
) -> None:
    result = await api.enqueue(tasks.anoop)
    assert await api.call(result, "cancel")
    (record,) = [record for record in records if record.levelno > logging.DEBUG]
    assert record.getMessage() == (
        f"Task id={result.id} path=tests.tasks.anoop state=FAILED "
        "error='The task was cancelled before it ran.'"
    )
    assert (record.levelname, record.exc_info) == ("INFO", None)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
async def test_a_cancel_of_a_running_task_is_no_error(
    database: str, records: list[logging.LogRecord], caplog: pytest.LogCaptureFixture, level: int
) -> None:
    django_logger = logging.getLogger("django.tasks")
    before = django_logger.level
    django_logger.setLevel(level)
    try:
        result = await tasks.asleep.aenqueue(60.0)
        failing = await tasks.afail.aenqueue()
        async with worker():
            await begun(result)
            await result.acancel()
            await finished(result)
            await finished(failing)
            await until(lambda: len(finished_records(records)) == (2 if level == logging.INFO else 1))
    finally:
        django_logger.setLevel(before)
    cancelled = [("INFO", "'The task was cancelled while it ran.'", True)] if level == logging.INFO else []
    assert sorted(finished_records(records)) == [("ERROR", "", False), *cancelled]
    lines = [one for one in caplog.records if one.name == "aiotasks.tasks"]
    (line,) = [one for one in lines if " was cancelled " in one.getMessage()]
    assert line.levelname == "INFO"
    assert f" id={result.id} queue=default attempt=1 wait=" in line.getMessage()


async def test_a_cancel_is_not_mailed_to_admins(
    database: str, api: Api, records: list[logging.LogRecord]
) -> None:
    """Django's default LOGGING has a handler for ERRORs on ``django``, which mails them."""
    (handler,) = logging.getLogger("django.tasks").handlers
    handler.setLevel(logging.ERROR)
    logging.getLogger("django.tasks").removeHandler(handler)
    logging.getLogger("django").addHandler(handler)
    try:
        result = await api.enqueue(tasks.anoop)
        await api.call(result, "cancel")
        await api.call(default_task_backend, "cancel_many", [(await api.enqueue(tasks.anoop)).id])
        failing = await tasks.afail.aenqueue()
        await run_all()
        await until(lambda: bool(records))
    finally:
        logging.getLogger("django").removeHandler(handler)
    assert [record.getMessage() for record in records] == [
        f"Task id={failing.id} path=tests.tasks.afail state=FAILED"
    ]
