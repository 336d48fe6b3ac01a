"""Limits (docs/faults.md, 38): buffers are bounded; callers wait for a database that is slow or stopped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from django.db import utils

import aiotasks
from aiotasks import codec, enqueueing, registry
from aiotasks.demo.postgres import PostgresServer
from aiotasks.store import batcher
from aiotasks.store.batcher import FLUSH_SIZE
from aiotasks.store.store import Store
from aiotasks.worker.running import failures, imports
from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, until

# Arguments: how many callers, seconds until each gives up, bytes of its argument, the server's pid.
FLOOD = """
import asyncio, json, signal, sys
import django
import psutil
django.setup()
from tests.worker import tasks

callers, seconds, size, pid = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
argument = "x" * size  # one object: whatever there is for each caller is aiotasks'
outcomes = {}

def tell_server(number):
    server = psutil.Process(pid)
    for process in [server, *server.children()]:
        process.send_signal(number)

async def enqueue():
    try:
        async with asyncio.timeout(seconds):
            await tasks.note.aenqueue(argument)
        outcome = "stored"
    except Exception as error:
        outcome = type(error).__name__
    outcomes[outcome] = outcomes.get(outcome, 0) + 1

def grown():
    return psutil.Process().memory_info().rss - before

async def main():
    global before
    await tasks.note.aenqueue("first")
    tell_server(signal.SIGSTOP)
    try:
        await enqueue()  # alone
        before = psutil.Process().memory_info().rss
        flood = [asyncio.ensure_future(enqueue()) for _ in range(callers)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        told["grown"] = grown()
        await asyncio.gather(*flood)
        told["stopped"] = dict(outcomes)
    finally:
        tell_server(signal.SIGCONT)
    outcomes.clear()
    await asyncio.gather(*(enqueue() for _ in range(100)))
    told["back"] = dict(outcomes)

told = {}
asyncio.run(main())
print(json.dumps(told))
"""


@pytest.fixture
def server_pid(pg: object) -> Iterator[int]:
    """The pid of the run's PostgreSQL, for a test that stops it; it goes on afterwards."""
    if not isinstance(pg, PostgresServer):
        pytest.skip("the server isn't this run's own")
    yield pg.pid
    server = psutil.Process(pg.pid)
    for process in [server, *server.children()]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("callers", "seconds"),
    [(4_000, 3.0), pytest.param(100_000, 60.0, marks=pytest.mark.battery)],
)
def test_a_stopped_database_makes_callers_wait_and_not_the_process_grow(
    worker_env: dict[str, str], ledger: Ledger, server_pid: int, callers: int, seconds: float
) -> None:
    env = {
        **worker_env,
        "DJANGO_SETTINGS_MODULE": "tests.worker.settings",
        # Nobody but the callers' own time-outs may end the waiting.
        "TEST_OPTIONS": json.dumps({"COMMAND_TIMEOUT": 600}),
    }
    size = 50_000
    run = subprocess.run(
        [sys.executable, "-c", FLOOD, str(callers), str(seconds), str(size), str(server_pid)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30 + 3 * seconds,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    print(told)  # noqa: T201
    assert told["stopped"] == {"TimeoutError": callers + 1}
    assert told["back"] == {"stored": 100}
    # 32 MiB of arguments may wait; of the others there is a coroutine each, and their asyncio tasks.
    assert told["grown"] < 48 * 1024**2 + callers * 12_000
    assert callers * size > 2 * (48 * 1024**2 + callers * 12_000)  # so that it would show


async def test_results_are_written_in_statements_of_bounded_size(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 500 results of 1 MB would outlast COMMAND_TIMEOUT at every repetition."""
    sizes = []
    finish_jobs = Store.finish_jobs

    async def measured(self: Store, finishes: Any) -> Any:
        sizes.append(sum(len(row[3] or "") for row in finishes))
        return await finish_jobs(self, finishes)

    monkeypatch.setattr(Store, "finish_jobs", measured)
    await default_task_backend.aenqueue_many(tasks.note, [(("x" * 1_000_000,), {})] * 15)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 15})
    tasks.seen.clear()
    assert 1_000_000 < max(sizes) <= FLUSH_SIZE


async def test_look_ups_read_statements_of_bounded_size(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 1,000 rows of 1 MB took 1 GB here, and over a slow line outlasted COMMAND_TIMEOUT for good."""
    sizes = []
    select_jobs = Store.select_jobs

    async def measured(self: Store, ids: Any, backend: str) -> Any:
        sizes.append(len(ids))
        return await select_jobs(self, ids, backend)

    monkeypatch.setattr(Store, "select_jobs", measured)
    enqueued = await default_task_backend.aenqueue_many(tasks.note, [((n,), {}) for n in range(1000)])
    found = await asyncio.gather(*(default_task_backend.aget_result(one.id) for one in enqueued))
    assert [one.args for one in found] == [one.args for one in enqueued]
    assert max(sizes) * default_task_backend.config.max_argument_size <= 128 * 1024**2


async def test_a_worker_whose_results_can_not_be_written_claims_no_more(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "MOST_BYTES", 10_000)
    finish_jobs = Store.finish_jobs
    away = True

    async def finish(self: Store, finishes: Any) -> Any:
        if away:
            raise utils.OperationalError("the database is away")
        return await finish_jobs(self, finishes)

    async with aiotasks.Worker(concurrency=10) as worker:
        monkeypatch.setattr(Store, "finish_jobs", finish)
        await default_task_backend.aenqueue_many(tasks.note, [(("x" * 2000,), {})] * 40)
        await until(lambda: worker.engine.finisher.crowded)
        assert not worker.engine.claimer.budget.is_open()
        away = False
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 40})
    tasks.seen.clear()


async def test_a_flood_of_one_unknown_task_is_looked_at_once(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    written: list[BaseException] = []

    def resolve(task_path: str, *aliases: Any) -> Any:
        looked.append(task_path)
        return registry.resolve(task_path, *aliases)

    def dump_error(error: BaseException, **keywords: Any) -> str:
        written.append(error)
        return codec.dump_error(error, **keywords)

    monkeypatch.setattr(imports, "resolve", resolve)
    monkeypatch.setattr(failures, "dump_error", dump_error)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 300)
    ledger.connection.execute("UPDATE aiotasks_task SET task_path = 'no.such.task'")
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SCHEDULED": 300})
    assert looked == ["no.such.task"]
    assert len(written) == 1


async def test_one_enqueue_of_many_is_bounded(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueueing, "MAX_MANY_SIZE", 10_000)
    with pytest.raises(ValueError, match="The arguments of 5 calls take more than 10000 bytes"):
        await default_task_backend.aenqueue_many(tasks.note, [(("x" * 2400,), {})] * 5)
    assert ledger.statuses() == {}
    await default_task_backend.aenqueue_many(tasks.note, [(("x" * 2400,), {})] * 4)
    await tasks.note.aenqueue("x" * 20_000)  # MAX_ARGUMENT_SIZE's affair
