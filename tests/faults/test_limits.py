"""Limits: what waits is bounded, and a database that is slow or stopped makes callers wait (FAULTS 38)."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from aiotasks.demo.postgres import PostgresServer
from tests.worker.harness import Ledger

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
    assert pg._server is not None
    pid = pg._server.pid
    yield pid
    server = psutil.Process(pid)
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
