"""Worker processes, a ledger that their tasks write, and waiting for conditions instead of sleeping."""

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.rows import namedtuple_row

from . import tasks

# Generous: what should take milliseconds may take long on a machine that is busy with other things.
TIMEOUT = 30.0

LEDGER = """
    CREATE TABLE IF NOT EXISTS ledger (
        number bigserial, task_id uuid, event text, claim_id uuid, pid integer,
        at timestamptz DEFAULT clock_timestamp()
    )
"""


# Called without arguments; a lambda in a loop binds what it uses by defaults.
type Condition[Value] = Callable[..., Value]


def wait_until[Value](condition: Condition[Value], timeout: float = TIMEOUT) -> Value:
    """Poll ``condition`` until it is true; returns its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {inspect.getsource(condition).strip()}"
        time.sleep(0.02)
    return value


async def until(condition: Condition[Any], timeout: float = TIMEOUT) -> Any:
    """The same on a loop; ``condition`` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {inspect.getsource(condition).strip()}"
        await anyio.sleep(0.01)


class Process:
    """A process that a test started; what it says goes to a file."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self.pid = self.popen.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, timeout: float = TIMEOUT) -> str:
        """Wait until it has said ``text``; returns all that it has said."""

        def said() -> bool:
            assert text in self.log or self.popen.poll() is None, f"ended without {text!r}:\n{self.log}"
            return text in self.log

        wait_until(said, timeout)
        return self.log

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for its end; returns the exit code."""
        return self.popen.wait(timeout)

    def stop(self, number: int = signal.SIGTERM, timeout: float = TIMEOUT) -> int:
        self.send(number)
        return self.wait(timeout)

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        if self.is_alive():
            self.popen.kill()  # also ends one that SIGSTOP holds
        self.popen.wait()


type Start = Callable[..., Process]


@pytest.fixture
def start(worker_env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start ``python ARGUMENTS``; killed at the end of the test if it still runs."""
    started: list[Process] = []

    def start(
        *arguments: str,
        options: dict[str, Any] | None = None,
        queues: list[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> Process:
        process = Process(
            [sys.executable, *arguments],
            {
                **worker_env,
                "DJANGO_SETTINGS_MODULE": "tests.worker.settings",
                "TEST_OPTIONS": json.dumps(options or {}),
                "TEST_QUEUES": json.dumps(queues or []),
                **(env or {}),
            },
            tmp_path / f"process{len(started)}.log",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        print(f"--- {process.popen.args!r} pid {process.pid} exit {process.popen.returncode}\n{process.log}")  # noqa: T201


@pytest.fixture
def start_worker(start: Start) -> Start:
    """Start ``python -m aiotasks.worker ARGUMENTS`` and return when it serves."""

    def start_worker(*arguments: str, ready: bool = True, **keywords: Any) -> Process:
        process = start("-m", "aiotasks.worker", *arguments, **keywords)
        if ready:
            process.wait_for("connections: at most")
        return process

    return start_worker


class Ledger:
    """What the tasks have written of themselves, and what the tables say."""

    def __init__(self, dsn: str) -> None:
        # Nothing prepared: tests alter the tables, and `SELECT *` has another result then.
        self.connection = psycopg.connect(
            dsn, autocommit=True, row_factory=namedtuple_row, prepare_threshold=None
        )
        self.connection.execute(LEDGER)
        self.connection.execute("TRUNCATE ledger")

    def rows(self, query: str, *args: Any) -> list[Any]:
        return self.connection.execute(query, args).fetchall()

    def value(self, query: str, *args: Any) -> Any:
        rows = self.rows(query, *args)
        return rows[0][0] if rows else None

    def events(self, event: str, task_id: str | None = None) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM ledger WHERE event = %s AND (%s::uuid IS NULL OR task_id = %s::uuid)",
                event,
                task_id,
                task_id,
            )
        )

    def statuses(self) -> dict[str, int]:
        return dict(self.rows("SELECT status, count(*) FROM aiotasks_task GROUP BY status"))

    def task(self, id: str) -> Any:
        return self.rows("SELECT * FROM aiotasks_task WHERE id = %s", id)[0]

    def workers(self) -> int:
        return int(self.value("SELECT count(*) FROM aiotasks_worker"))


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    ledger = Ledger(database)
    yield ledger
    ledger.connection.close()
    tasks.close_ledger()


type Configure = Callable[..., None]


@pytest.fixture
def configure(database: str, settings: Any) -> Configure:
    """Have the backend of this process, and so its workers, other OPTIONS and QUEUES."""

    def configure(queues: list[str] | None = None, **options: Any) -> None:
        settings.TASKS = {
            "default": {
                "BACKEND": "aiotasks.backend.PostgresBackend",
                "QUEUES": queues or [],
                "OPTIONS": options,
            }
        }

    return configure
