"""The worker inside an ASGI server's lifespan, under uvicorn as a process, and inside any event loop."""

import asyncio
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished

import aiotasks
from aiotasks import models
from aiotasks.asgi import with_worker
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, Process, Start, until, wait_until

type Serve = Callable[..., tuple[Process, httpx.Client]]


@pytest.fixture
def serve(start: Start) -> Any:
    """Run one of site.py's applications under uvicorn; returns the process and a client for it."""
    clients = []

    def serve(application: str, *arguments: str, **keywords: Any) -> tuple[Process, httpx.Client]:
        process = start(
            "-m", "uvicorn", f"tests.worker.site:{application}", "--port", "0", *arguments, **keywords
        )
        log = process.wait_for("Uvicorn running on")
        url = re.search(r"running on (http://\S+)", log)
        assert url is not None
        client = httpx.Client(base_url=url[1], trust_env=False, timeout=30)
        clients.append(client)
        return process, client

    yield serve
    for client in clients:
        client.close()


def test_an_async_view_enqueues_awaits_and_answers(serve: Serve, ledger: Ledger) -> None:
    process, client = serve("application")
    assert client.get("/compute/?a=40").json() == {"sums": [42, 42], "pid": process.pid}
    (worker,) = ledger.rows("SELECT * FROM aiotasks_worker")
    assert (worker.pid, worker.concurrency, worker.threads) == (process.pid, 20, 4)
    (lost,) = client.get("/write/?abandon").json()["ids"]
    (kept,) = client.get("/write/").json()["ids"]
    wait_until(lambda: ledger.task(kept).status == "SUCCESSFUL")
    assert ledger.rows("SELECT 1 FROM aiotasks_task WHERE id = %s", lost) == []
    assert ledger.events("view") == 1
    # No signal handlers of ours: uvicorn's are still there.
    assert all("uvicorn" in handler.lower() for handler in client.get("/handlers/").json().values())
    short = client.get("/start/?task=work&seconds=0.5").json()["id"]
    long = client.get("/start/?task=work&seconds=600").json()["id"]
    wait_until(lambda: ledger.events("start") >= 2)
    process.send(signal.SIGTERM)
    process.wait()
    assert ledger.task(short).status == "SUCCESSFUL"
    assert (ledger.task(long).status, ledger.task(long).worker_ids) == ("READY", [])
    assert ledger.workers() == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("application", "said"),
    [
        ("wrong_alias", "aiotasks: TASKS has no backend 'nowhere'; it has 'default', 'dummy'."),
        ("wrong_queue", "aiotasks: Queue 'nowhere' isn't in TASKS['default']['QUEUES'] (default)."),
    ],
)
def test_a_mistake_in_the_settings_fails_the_start(
    start: Start, ledger: Ledger, application: str, said: str
) -> None:
    process = start("-m", "uvicorn", f"tests.worker.site:{application}", "--port", "0", queues=["default"])
    assert process.wait() == 3
    assert said in process.log
    assert "Traceback" not in process.log


def test_an_app_with_a_lifespan_of_its_own(serve: Serve, ledger: Ledger) -> None:
    process, client = serve("with_lifespan")
    assert client.get("/").status_code == 200  # its state came through
    assert ledger.workers() == 1
    process.stop()
    assert "the app's own lifespan.startup\n" in process.log
    assert "the app's own lifespan.shutdown\n" in process.log
    assert ledger.workers() == 0


def test_without_a_lifespan_the_first_request_says_so(serve: Serve, ledger: Ledger) -> None:
    process, client = serve("application", "--lifespan", "off")
    for _ in range(3):
        client.get("/handlers/")
    assert process.log.count("No worker runs here") == 1
    assert "--lifespan on" in process.log
    assert "python -m aiotasks.worker" in process.log
    assert ledger.workers() == 0
    process.stop()


def test_the_site_starts_without_its_database(serve: Serve, ledger: Ledger) -> None:
    """The worker goes on trying, and begins when the database has come."""
    ledger.connection.execute("ALTER TABLE aiotasks_task RENAME TO aiotasks_away")
    try:
        process, client = serve("application")
        process.wait_for("the worker waits for its database part='start'")
        process.wait_for("The tables of aiotasks are missing")
        assert client.get("/handlers/").status_code == 200
        assert ledger.workers() == 0
    finally:
        ledger.connection.execute("ALTER TABLE aiotasks_away RENAME TO aiotasks_task")
    assert client.get("/compute/?a=1").json()["sums"] == [3, 3]
    process.stop()
    assert ledger.workers() == 0


# --- In the loop of the test


async def test_a_worker_in_any_loop(configure: Configure, ledger: Ledger) -> None:
    tasks.seen.clear()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    result = await tasks.note.aenqueue("before")
    async with aiotasks.Worker(queues=["default"], concurrency=2, threads=1):
        assert {number: signal.getsignal(number) for number in before} == before
        assert ledger.workers() == 1
        await tasks.note.aenqueue("inside")
        await until(lambda: sorted(tasks.seen) == ["before", "inside"])
    assert ledger.workers() == 0
    await result.arefresh()
    assert result.status == TaskResultStatus.SUCCESSFUL


async def test_a_worker_runs_once(configure: Configure) -> None:
    async with aiotasks.Worker() as worker:
        pass
    with pytest.raises(RuntimeError, match="A Worker runs once"):
        await worker.__aenter__()


async def test_an_error_in_the_block_stops_it(configure: Configure, ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        async with aiotasks.Worker():
            raise ZeroDivisionError
    assert ledger.workers() == 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"backend": "nowhere"}, ImproperlyConfigured),
        ({"queues": "default"}, TypeError),
        ({"queues": []}, ValueError),
        ({"queues": [1]}, TypeError),
        ({"queues": ["elsewhere"]}, ValueError),
        ({"concurrency": -1}, ValueError),
        ({"concurrency": 1.5}, TypeError),
        ({"concurrency": True}, TypeError),
        ({"threads": None}, TypeError),
        ({"grace": -1}, ValueError),
        ({"grace": float("nan")}, ValueError),
        ({"grace": "soon"}, TypeError),
        ({"concurrency": 0, "threads": 0}, ValueError),
    ],
    ids=str,
)
async def test_wrong_arguments_are_refused(
    configure: Configure, wrong: dict[str, Any], error: type[Exception]
) -> None:
    configure(queues=["default"])
    with pytest.raises(error):
        aiotasks.Worker(**wrong)


async def test_threads_that_outlast_the_shutdown_keep_their_lease(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """30: embedded, a sync task that can't be stopped runs on, isn't run twice, and its result is stored."""
    configure(LEASE_TIMEOUT=3, POLL_INTERVAL=0.2)
    tasks.seen.clear()
    tasks.released.clear()
    try:
        async with aiotasks.Worker(grace=0) as worker:
            result = await tasks.wait_in_thread.aenqueue("outlasts")
            cancelled = await tasks.wait_for_release.aenqueue("cancelled")
            await until(lambda: len(tasks.seen) >= 2)
        assert "A task outlasted the shutdown" in caplog.text
        assert worker.stuck
        assert ledger.workers() == 1
        assert ledger.task(cancelled.id).status == "READY"
        first = ledger.value("SELECT lease_expires_at FROM aiotasks_worker")
        async with aiotasks.Worker(concurrency=0) as other:
            await until(lambda: other.engine.lease.may_rescue())
            assert (await other.engine.rescuer.run_once()).ready == 0
            await until(
                lambda: ledger.value("SELECT lease_expires_at FROM aiotasks_worker ORDER BY 1") > first
            )
            assert ledger.task(result.id).status == "RUNNING"
    finally:
        tasks.released.set()
    await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    await until(lambda: ledger.workers() == 0)
    await result.arefresh()
    assert (result.return_value, result.attempts) == ("outlasts", 1)


@pytest.mark.parametrize("way", ["nobody", "sync", "async", "atomic"])
async def test_no_thread_is_left_once_a_late_sync_task_has_ended(
    configure: Configure, ledger: Ledger, way: str
) -> None:
    """30: it is settled by the heartbeat's thread, where receivers of task_finished have ORM calls, too."""
    configure(LEASE_TIMEOUT=3, POLL_INTERVAL=0.2)
    tasks.seen.clear()
    tasks.released.clear()
    received: list[int] = []

    def receive(task_result: Any, **others: Any) -> None:
        received.append(models.Task.objects.count())

    async def areceive(task_result: Any, **others: Any) -> None:
        received.append(await models.Task.objects.acount())

    async def areceive_in_block(task_result: Any, **others: Any) -> None:
        async with aiotasks.atomic():
            received.append(await models.Task.objects.acount())

    receiver: Any = {"sync": receive, "async": areceive, "atomic": areceive_in_block}.get(way)
    before = set(threading.enumerate())
    if receiver is not None:
        task_finished.connect(receiver)
    try:
        async with aiotasks.Worker(grace=0):
            result = await tasks.wait_in_thread.aenqueue("late")
            await until(lambda: tasks.seen == ["late"])
        tasks.released.set()
        await until(lambda: ledger.workers() == 0)
    finally:
        tasks.released.set()
        task_finished.disconnect(receiver)
    assert ledger.task(result.id).status == "SUCCESSFUL"
    assert received == ([] if receiver is None else [1])
    await until(lambda: set(threading.enumerate()) <= before)


async def test_a_receiver_that_outlasts_the_worker_has_its_orm_thread(
    configure: Configure, database: str
) -> None:
    """Embedded, it goes on on the site's loop; its thread ends with it."""
    go, entered, received = asyncio.Event(), asyncio.Event(), []

    async def receive(task_result: Any, **others: Any) -> None:
        received.append(await models.Task.objects.acount())
        entered.set()
        await go.wait()
        received.append(await models.Task.objects.acount())

    before = set(threading.enumerate())
    task_finished.connect(receive)
    try:
        async with aiotasks.Worker(grace=0) as worker:
            await tasks.add.aenqueue(1, 2)
            await entered.wait()
        assert worker.stuck
        go.set()
        await until(lambda: received == [1, 1])
    finally:
        task_finished.disconnect(receive)
    await until(lambda: set(threading.enumerate()) <= before)


async def test_an_embedded_worker_goes_on_trying(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.connection.execute("ALTER TABLE aiotasks_task RENAME TO aiotasks_away")
    try:
        async with aiotasks.Worker():
            pass  # entered and left without a database
        async with aiotasks.Worker() as worker:
            empty = asyncio.ensure_future(worker.wait_until_empty())
            assert "the worker waits for its database" in caplog.text
            ledger.connection.execute("ALTER TABLE aiotasks_away RENAME TO aiotasks_task")
            await asyncio.wait_for(empty, 20)
            await until(lambda: ledger.workers() == 1)
    finally:
        if not ledger.value("SELECT to_regclass('aiotasks_task')"):
            ledger.connection.execute("ALTER TABLE aiotasks_away RENAME TO aiotasks_task")
    assert ledger.workers() == 0


async def test_waiting_for_empty_ends_with_the_worker(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiotasks.Worker(grace=0) as worker:
        result = await tasks.wait_for_release.aenqueue("never")
        await until(lambda: ledger.task(result.id).status == "RUNNING")
        empty = asyncio.ensure_future(worker.wait_until_empty())

        async def fail(*args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(worker.engine.claimer, "run_once", fail)
        worker.engine.claimer.wake()
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(empty, 20)
        assert raised.group_contains(ZeroDivisionError)
        await until(lambda: "this process runs no more tasks" in caplog.text)  # logged by a thread
    assert ledger.statuses() == {"READY": 1}
    assert ledger.workers() == 0


async def test_a_worker_with_a_database_timeout_gives_up(configure: Configure, ledger: Ledger) -> None:
    ledger.connection.execute("ALTER TABLE aiotasks_task RENAME TO aiotasks_away")
    try:
        with pytest.raises(aiotasks.DatabaseNotReady, match="The tables of aiotasks are missing"):
            async with aiotasks.Worker(database_timeout=30):
                pass
    finally:
        ledger.connection.execute("ALTER TABLE aiotasks_away RENAME TO aiotasks_task")


BEFORE_THE_START = """
import asyncio, sys, django
django.setup()
import aiotasks

async def main():
    worker = aiotasks.Worker()
    for call in (worker.stop, worker.wait, worker.wait_for_database, worker.wait_until_empty):
        try:
            await asyncio.wait_for(call(), 20)
        except RuntimeError as error:
            print(error)

asyncio.run(main())
"""


@pytest.mark.parametrize("options", [[], ["-O"]])
def test_calls_before_the_start_are_refused(worker_env: dict[str, str], options: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, *options, "-c", BEFORE_THE_START],
        env={**worker_env, "DJANGO_SETTINGS_MODULE": "tests.worker.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    refusal = "This Worker has not been started: use it by `async with`.\n"
    assert (run.returncode, run.stdout) == (0, 4 * refusal), run.stderr


# --- The lifespan protocol itself


async def talk(application: Any) -> tuple[list[Any], asyncio.Queue[Any], asyncio.Task[None]]:
    """Start a lifespan with ``application``; returns what it has sent, how to send, its task."""
    sent: list[Any] = []
    to_app: asyncio.Queue[Any] = asyncio.Queue()

    async def send(message: Any) -> None:
        sent.append(message)

    lifespan = asyncio.ensure_future(application({"type": "lifespan", "state": {}}, to_app.get, send))
    to_app.put_nowait({"type": "lifespan.startup"})
    await until(lambda: sent)
    return sent, to_app, lifespan


async def no_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise ValueError("no lifespan here")  # as Django's application does


async def test_the_lifespan_of_an_app_without_one(configure: Configure, ledger: Ledger) -> None:
    sent, to_app, lifespan = await talk(with_worker(no_lifespan))
    assert sent == [{"type": "lifespan.startup.complete"}]
    assert ledger.workers() == 1
    to_app.put_nowait({"type": "lifespan.shutdown"})
    await lifespan
    assert sent[1:] == [{"type": "lifespan.shutdown.complete"}]
    assert ledger.workers() == 0


async def test_a_start_that_the_app_fails_starts_no_worker(configure: Configure, ledger: Ledger) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the app's own mistake"})

    sent, _, lifespan = await talk(with_worker(app))
    await lifespan
    assert sent == [{"type": "lifespan.startup.failed", "message": "the app's own mistake"}]
    assert ledger.workers() == 0


async def test_an_app_whose_worker_can_not_start_is_shut_down(configure: Configure, ledger: Ledger) -> None:
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            message = await receive()
            asked.append(message["type"])
            await send({"type": f"{message['type']}.complete"})

    sent, _, lifespan = await talk(with_worker(app, backend="nowhere"))
    await lifespan
    assert asked == ["lifespan.startup", "lifespan.shutdown"]
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_an_app_that_fails_its_shutdown(configure: Configure, ledger: Ledger) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "no"})

    sent, to_app, lifespan = await talk(with_worker(app))
    to_app.put_nowait({"type": "lifespan.shutdown"})
    await lifespan
    assert sent[-1] == {"type": "lifespan.shutdown.failed", "message": "no"}
    assert ledger.workers() == 0


async def test_a_server_that_cancels_the_lifespan(configure: Configure, ledger: Ledger) -> None:
    _, _, lifespan = await talk(with_worker(no_lifespan, grace=0))
    lifespan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lifespan
    assert ledger.workers() == 0


async def test_other_scopes_are_forwarded(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    async def receive() -> dict[str, Any]:
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        raise AssertionError

    application = with_worker(app)
    with caplog.at_level(logging.ERROR, "aiotasks.asgi"):
        for kind in ("websocket", "http", "http"):
            await application({"type": kind}, receive, send)
    assert seen == [(kind, receive, send) for kind in ("websocket", "http", "http")]
    assert caplog.text.count("No worker runs here") == 1


async def test_connections_end_with_the_loop(configure: Configure, ledger: Ledger) -> None:
    """33: a worker in another thread's loop has connections of its own, and leaves none."""

    async def serve() -> None:
        async with aiotasks.Worker():
            await tasks.add.aenqueue(1, 2)

    def count() -> Any:
        return ledger.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiotasks'")

    before = count()
    await asyncio.to_thread(asyncio.run, serve())
    await until(lambda: count() <= before)
    assert default_task_backend.config.notify
    assert psycopg.__version__
