"""Django's three signals: who sends them, when, and what is told. Monitoring lives on them alone."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from django.dispatch import Signal
from django.tasks import TaskResultStatus
from django.tasks.signals import task_enqueued, task_finished, task_started

from aiotasks import UnknownTask
from aiotasks.backend import PostgresBackend
from aiotasks.rows import AnyTask
from tests import tasks
from tests.site import default_task_backend
from tests.worker.harness import until

from .support import Api, Heard, finished, run_all, worker

READY, RUNNING, FAILED, SUCCESSFUL = (
    TaskResultStatus.READY,
    TaskResultStatus.RUNNING,
    TaskResultStatus.FAILED,
    TaskResultStatus.SUCCESSFUL,
)
ADDS = pytest.mark.parametrize("add", [tasks.add, tasks.aadd], ids=["sync task", "coroutine task"])
FAILS = pytest.mark.parametrize("fail", [tasks.fail, tasks.afail], ids=["sync task", "coroutine task"])


@pytest.fixture(params=["sync receivers", "async receivers"])
def log(request: pytest.FixtureRequest) -> list[Heard]:
    """Each test once with sync and once with async receivers."""
    name = "heard" if request.param == "sync receivers" else "aheard"
    heard: list[Heard] = request.getfixturevalue(name)
    return heard


type Connect = Callable[[Signal, Callable[..., Any]], None]


@pytest.fixture
def connected() -> Iterator[Connect]:
    """Returns a function that connects a receiver for the rest of the test."""
    made: list[tuple[Signal, Callable[..., Any]]] = []

    def connect(signal: Signal, receiver: Callable[..., Any]) -> None:
        signal.connect(receiver)
        made.append((signal, receiver))

    yield connect
    for signal, receiver in made:
        signal.disconnect(receiver)


@ADDS
async def test_the_three_of_a_success(database: str, either: Api, log: list[Heard], add: AnyTask) -> None:
    result = await either.enqueue(add, 1, 2)
    assert [one.signal for one in log] == ["task_enqueued"]
    await run_all()
    enqueued, started, done = log
    assert [enqueued.signal, started.signal, done.signal] == [
        "task_enqueued",
        "task_started",
        "task_finished",
    ]
    assert [one.sender for one in log] == [PostgresBackend] * 3  # the class, never an instance
    assert [one.error for one in log] == [None] * 3
    assert [one.fields["id"] for one in log] == [result.id] * 3

    assert enqueued.fields["status"] is READY
    assert enqueued.fields["worker_ids"] == []

    stored = await default_task_backend.aget_result(result.id)
    assert started.fields["status"] is RUNNING
    assert started.fields["worker_ids"] == stored.worker_ids != []
    assert started.fields["started_at"] == started.fields["last_attempted_at"] == stored.started_at
    assert started.fields["finished_at"] is None

    assert done.fields == {**done.fields, **{name: getattr(stored, name) for name in done.fields}}
    assert done.fields["status"] is SUCCESSFUL
    assert done.fields["_return_value"] == 3


# Django runs async receivers in asyncio tasks of their own, where there is no exc_info, whoever sends.
@FAILS
async def test_a_failure_is_told_with_its_exception(
    database: str, either: Api, heard: list[Heard], fail: AnyTask
) -> None:
    result = await either.enqueue(fail, "out of paper")
    await run_all()
    done = heard[-1]
    assert (done.signal, done.sender, done.fields["id"]) == ("task_finished", PostgresBackend, result.id)
    assert isinstance(done.error, ValueError)  # sys.exc_info()
    assert str(done.error) == "out of paper"
    stored = await default_task_backend.aget_result(result.id)
    assert done.fields["status"] is FAILED
    assert done.fields["errors"] == stored.errors
    assert done.fields["finished_at"] == stored.finished_at


@pytest.mark.parametrize("exits", [tasks.exit_now, tasks.aexit_now], ids=["sync task", "coroutine task"])
async def test_system_exit_is_told_like_any_other(database: str, heard: list[Heard], exits: AnyTask) -> None:
    await exits.aenqueue()
    await run_all()
    assert heard[-1].fields["status"] is FAILED
    assert isinstance(heard[-1].error, SystemExit)


@pytest.mark.parametrize("bad", [tasks.return_bad, tasks.areturn_bad], ids=["sync task", "coroutine task"])
async def test_a_bad_return_value_is_told_with_its_error(
    database: str, heard: list[Heard], bad: AnyTask
) -> None:
    await bad.aenqueue("set")
    await run_all()
    assert heard[-1].fields["status"] is FAILED
    assert isinstance(heard[-1].error, TypeError)


async def test_the_result_is_stored_when_it_is_told(database: str, connected: Connect) -> None:
    """A receiver that looks the task up finds it final; and the row is there at task_enqueued."""
    seen: list[Any] = []

    async def look(sender: Any, task_result: Any, **kwargs: Any) -> None:
        seen.append((await default_task_backend.aget_result(task_result.id)).status)

    for signal in (task_enqueued, task_started, task_finished):
        connected(signal, look)
    await tasks.aadd.aenqueue(1, 2)
    await run_all()
    assert seen == [READY, RUNNING, SUCCESSFUL]


async def test_sync_receivers_may_use_the_orm(database: str, either: Api, connected: Connect) -> None:
    """On threads where Django's connections are allowed: never on the loop."""
    seen: list[Any] = []

    def look(sender: Any, task_result: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT status FROM aiotasks_task WHERE id = %s", [task_result.id])
            seen.append(cursor.fetchone()[0])
        seen.append(threading.current_thread() is threading.main_thread())

    for signal in (task_enqueued, task_started, task_finished):
        connected(signal, look)
    for task in (tasks.add, tasks.aadd):
        result = await either.enqueue(task, 1, 2)
        async with worker():
            await finished(result)
        assert seen == ["READY", False, "RUNNING", False, "SUCCESSFUL", False]
        seen.clear()


async def test_task_enqueued_within_a_transaction_sees_its_row(
    database: str, sync_api: Api, connected: Connect
) -> None:
    from django.db import transaction

    seen: list[Any] = []

    def look(sender: Any, task_result: Any, **kwargs: Any) -> None:
        seen.append(connection.in_atomic_block)
        task_result.refresh()

    connected(task_enqueued, look)

    def in_thread() -> None:
        with transaction.atomic():
            sync_api.call_sync(tasks.add, "enqueue", 1, 2)

    await sync_to_async(in_thread)()
    assert seen == [True]


class Complaint(Exception):
    pass


def _complain(sender: Any, **kwargs: Any) -> None:
    raise Complaint("from a receiver")


async def _acomplain(sender: Any, **kwargs: Any) -> None:
    raise Complaint("from a receiver")


COMPLAINERS = pytest.mark.parametrize("complain", [_complain, _acomplain], ids=["sync", "async"])


@COMPLAINERS
async def test_a_receiver_of_task_enqueued_that_raises_is_the_callers(
    database: str, api: Api, conn: asyncpg.Connection, connected: Connect, complain: Callable[..., Any]
) -> None:
    """As in Django's own backends. The row stays: the error says nothing of it."""
    connected(task_enqueued, complain)
    with pytest.raises(Complaint):
        await api.enqueue(tasks.add, 1, 2)
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 1


@COMPLAINERS
@ADDS
async def test_receivers_that_raise_do_the_task_no_harm(
    database: str,
    heard: list[Heard],
    connected: Connect,
    caplog: pytest.LogCaptureFixture,
    complain: Callable[..., Any],
    add: AnyTask,
) -> None:
    connected(task_started, complain)
    connected(task_finished, complain)
    with caplog.at_level(logging.ERROR, "django"):
        result = await add.aenqueue(1, 2)
        failing = await tasks.afail.aenqueue()
        await run_all()
    await result.arefresh()
    await failing.arefresh()
    assert (result.status, failing.status) == (SUCCESSFUL, FAILED)
    assert result.errors == []
    assert sorted(one.signal for one in heard if one.fields["id"] == result.id) == [
        "task_enqueued",
        "task_finished",
        "task_started",
    ]
    complaints = [record for record in caplog.records if record.exc_info and record.exc_info[0] is Complaint]
    assert len(complaints) == 4  # told, not swallowed


async def test_receivers_connected_to_the_class_hear_it(database: str, connected: Connect) -> None:
    mine: list[Any] = []
    others: list[Any] = []

    def receive(sender: Any, task_result: Any, **kwargs: Any) -> None:
        mine.append(sender)

    def ignore(sender: Any, task_result: Any, **kwargs: Any) -> None:
        others.append(sender)

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive, sender=PostgresBackend)
        signal.connect(ignore, sender=Complaint)
    try:
        await tasks.aadd.aenqueue(1, 2)
        await run_all()
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(receive, sender=PostgresBackend)
            signal.disconnect(ignore, sender=Complaint)
    assert (mine, others) == ([PostgresBackend] * 3, [])


async def test_each_of_many_is_told(database: str, either: Api, log: list[Heard]) -> None:
    results = await either.call(
        default_task_backend, "enqueue_many", tasks.aadd, [((1, n), {}) for n in range(20)]
    )
    await run_all()
    for name in ("task_enqueued", "task_started", "task_finished"):
        ids = [one.fields["id"] for one in log if one.signal == name]
        assert sorted(ids) == sorted(result.id for result in results)


# --- Django's own receivers: the log -------------------------------------------------------------


@FAILS
async def test_djangos_log_has_all_three(
    database: str, caplog: pytest.LogCaptureFixture, fail: AnyTask
) -> None:
    with caplog.at_level(logging.DEBUG, "django.tasks"):
        result = await tasks.aadd.aenqueue(1, 2)
        failing = await fail.aenqueue("out of paper")
        await run_all()
    records = [record for record in caplog.records if record.name == "django.tasks"]
    mine = [record.getMessage() for record in records if result.id in record.getMessage()]
    assert mine == [
        f"Task id={result.id} path=tests.tasks.aadd enqueued backend=default",
        f"Task id={result.id} path=tests.tasks.aadd state=RUNNING",
        f"Task id={result.id} path=tests.tasks.aadd state=SUCCESSFUL",
    ]
    (error,) = [record for record in records if record.levelno == logging.ERROR]
    assert error.getMessage() == f"Task id={failing.id} path={fail.module_path} state=FAILED"
    assert error.exc_info is not None
    assert isinstance(error.exc_info[1], ValueError)


class _NotOnTheLoop(logging.Handler):
    """What AdminEmailHandler does on the loop's thread would block it: it must not be called there."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.on_loop: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.on_loop.append(False)
        else:
            self.on_loop.append(True)


@FAILS
async def test_a_failures_log_record_is_never_handled_on_the_loop(database: str, fail: AnyTask) -> None:
    handler = _NotOnTheLoop()
    logger = logging.getLogger("django")
    logger.addHandler(handler)
    try:
        result = await fail.aenqueue("x")
        await run_all()
        await result.arefresh()
    finally:
        logger.removeHandler(handler)
    assert handler.on_loop == [False]


async def test_a_slow_receiver_delays_nobody_elses_task(database: str, connected: Connect) -> None:
    """An async receiver that waits holds up its own task's signals, not the loop."""
    go = asyncio.Event()
    told: list[str] = []

    async def wait(sender: Any, task_result: Any, **kwargs: Any) -> None:
        if task_result.task is tasks.anoop:
            await go.wait()
        told.append(task_result.id)

    connected(task_finished, wait)
    slow = await tasks.anoop.aenqueue()
    async with worker():
        await finished(slow)
        quick = await tasks.aadd.aenqueue(1, 2)
        await until(lambda: told == [quick.id])
        go.set()
    assert told == [quick.id, slow.id]


async def test_an_unknown_task_fails_without_a_signal_for_want_of_a_task(
    database: str, conn: asyncpg.Connection, heard: list[Heard]
) -> None:
    """There is no Task to show to receivers; the row says it all."""
    result = await tasks.aadd.aenqueue(1, 2)
    await conn.execute(
        """
        UPDATE aiotasks_task
        SET task_path = 'tests.tasks.gone', unknown_since = now() - interval '2 hours'
        """
    )
    await run_all()
    row = await conn.fetchrow("SELECT status, errors::text FROM aiotasks_task")
    assert row["status"] == "FAILED"
    assert "UnknownTask" in row["errors"]
    assert [one.signal for one in heard] == ["task_enqueued"]
    with pytest.raises(UnknownTask):
        await result.arefresh()
