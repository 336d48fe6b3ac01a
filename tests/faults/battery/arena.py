"""Where the runs take place: the servers, the workers, and the verdict of ledger and table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import psutil
from django.db import connection, connections

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import BIN_DIR
from tests.faults.away import Away, environment, migrate
from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Condition, Ledger, Process, wait_until

__all__ = ["Arena", "Judged", "Recoveries"]

# Generous, as the tests' own: what is judged by time is measured.
TIMEOUT = 120.0

# A final state stays: whatever changes one is written down, by whom doesn't matter.
_AUDIT = """
    CREATE TABLE overwritten (task_id uuid, old text, new text, at timestamptz DEFAULT clock_timestamp());
    CREATE FUNCTION note_overwrite() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO overwritten VALUES (OLD.id, OLD.status, NEW.status);
        RETURN NULL;
    END $$;
    CREATE TRIGGER final_state_stays AFTER UPDATE ON aiotasks_task FOR EACH ROW
    WHEN (
        OLD.status IN ('SUCCESSFUL', 'FAILED')
        -- The next task of a unique key takes it from the row.
        AND (OLD.status, OLD.claim_id, OLD.finished_at, OLD.return_value::text)
            IS DISTINCT FROM (NEW.status, NEW.claim_id, NEW.finished_at, NEW.return_value::text)
    ) EXECUTE FUNCTION note_overwrite();
"""


@dataclass(frozen=True)
class Judged:
    """What ledger and table say of a run's tasks.

    lost: without an own final result, or SUCCESSFUL though no run of theirs has come to its end.
    repeats: runs beyond the first of each task, told apart by their claims.
    overwrites: final states that changed, and results that aren't of the run whose claim the row carries.
    late: runs that came to their end under a claim that the row no longer had; none was accepted, or
        it is an overwrite.
    crashes: that the table counts.
    """

    lost: int
    repeats: int
    overwrites: int
    late: int
    crashes: int


class Arena:
    """The servers and tables, for all runs; ``clean()`` between two of them.

    The tasks' server has fsync on, as what was committed must outlast its restarts. The ledger's is
    never touched.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._stack = ExitStack()
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        with self._stack:
            settings = {"max_connections": "200"}
            self.server = self._stack.enter_context(PostgresServer(bin_dir=BIN_DIR, settings=settings))
            self._ledger_server = self._stack.enter_context(
                PostgresServer(bin_dir=BIN_DIR, settings={**settings, "fsync": "off"})
            )
            migrate(self.server)
            # Django's connection in this process, which enqueues.
            connection.settings_dict.update(
                HOST=self.server.host, PORT=str(self.server.port), USER="postgres"
            )
            connection.settings_dict["NAME"] = "postgres"
            self.database = Away(self.server)
            self._stack.callback(self.database.close)
            self.database.rows(_AUDIT)
            self.ledger = Ledger(self._ledger_server.dsn())
            self._stack.callback(self.ledger.connection.close)
            self._stack.callback(connections.close_all)
            self._stack.callback(self.kill_all)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def clean(self) -> None:
        """Begin anew: no workers, empty tables."""
        self.kill_all()
        self._started.clear()
        connections.close_all()
        tables = ["task", "worker", "pause", "schedule", "limit"]
        named = ", ".join(f"aiotasks_{table}" for table in tables)
        self.database.rows(f"TRUNCATE {named}, overwritten")
        self.ledger.connection.execute("TRUNCATE ledger")

    def restart(self) -> None:
        """``pg_ctl restart -m immediate``: the server recovers as from a crash."""
        self.server.restart("immediate")
        connections.close_all()

    # --- Workers ------------------------------------------------------------------------------

    def start(
        self, *arguments: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> Process:
        """Start ``python -m aiotasks.worker ARGUMENTS``; it may not serve yet."""
        return self.run("aiotasks.worker", *arguments, options=options, env=env)

    def file(self, name: str) -> Path:
        """A file of that name, beside the logs; an older one is deleted."""
        path = self._logs / name
        path.unlink(missing_ok=True)
        return path

    def run(
        self, *arguments: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> Process:
        """Start ``python -m ARGUMENTS`` with the settings of the workers."""
        process = Process(
            [sys.executable, "-m", *arguments],
            {
                **os.environ,
                **environment(self.server),
                "LEDGER_DSN": self._ledger_server.dsn(),
                "TEST_OPTIONS": json.dumps(dict(options)),
                "TEST_QUEUES": json.dumps(["default"]),
                **(env or {}),
            },
            self._logs / f"worker{len(list(self._logs.iterdir()))}.log",
        )
        self._started.append(process)
        return process

    def fleet(self, number: int, *arguments: str, **keywords: Any) -> list[Process]:
        """Start so many workers and return when all serve."""
        workers = [self.start(*arguments, **keywords) for _ in range(number)]
        for worker in workers:
            worker.wait_for("connections: at most", TIMEOUT)
        return workers

    def kill_all(self) -> None:
        for process in self._started:
            process.kill()

    def kill(self, worker: Process) -> None:
        """SIGKILL, and wait until the server has ended what the worker had under way."""
        ports = set()
        with suppress(psutil.Error):
            ports = {
                one.laddr.port
                for one in psutil.Process(worker.pid).net_connections("tcp")
                # Beside one to the ledger's server, somebody else's may have the same port.
                if one.raddr and one.raddr.port == self.server.port
            }
        worker.kill()
        self.wait_for_no_backends(ports)

    def wait_for_no_backends(self, ports: Iterable[int]) -> None:
        """Wait until nobody is connected to the tasks' server from these ports."""
        left = "SELECT count(*) FROM pg_stat_activity WHERE client_port = ANY(%s)"
        wait_until(lambda: self.database.value(left, list(ports)) == 0)

    def worker_ids(self, worker: Process) -> set[UUID]:
        rows = self.database.rows("SELECT id FROM aiotasks_worker WHERE pid = %s", worker.pid)
        return {row.id for row in rows}

    def running(self, worker_ids: Iterable[UUID]) -> int:
        """How many tasks are RUNNING under these ids."""
        query = "SELECT count(*) FROM aiotasks_task WHERE status = 'RUNNING' AND worker_id = ANY(%s)"
        return int(self.database.value(query, list(worker_ids)))

    def said(self, text: str) -> int:
        """How often any worker of this run has logged ``text``."""
        return sum(process.log.count(text) for process in self._started)

    def stop(self, workers: Sequence[Process], *, within: float = 30.0) -> list[int | None]:
        """SIGTERM; the exit codes, None for who hasn't left in time."""
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.send(signal.SIGTERM)
        end = time.monotonic() + within
        codes: list[int | None] = []
        for worker in workers:
            try:
                codes.append(worker.wait(max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes

    # --- Tasks --------------------------------------------------------------------------------

    def enqueue(self, task: Any, calls: Sequence[Sequence[Any]]) -> list[str]:
        """Enqueue ``task`` once for each tuple of arguments, by Django's own connection; their ids."""
        ids: list[str] = []
        for first in range(0, len(calls), 1000):
            batch: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
                (tuple(args), {}) for args in calls[first : first + 1000]
            ]
            ids += [result.id for result in default_task_backend.enqueue_many(task, batch)]
        return ids

    def enqueue_work(self, rng: Random, count: int, seconds: tuple[float, float]) -> list[str]:
        """Enqueue tasks that write start and end, and sleep for so long in between; one in five is sync."""
        calls = [(rng.random() < 0.2, [round(rng.uniform(*seconds), 3)]) for _ in range(count)]
        return [
            *self.enqueue(tasks.work, [args for is_sync, args in calls if not is_sync]),
            *self.enqueue(tasks.work_sync, [args for is_sync, args in calls if is_sync]),
        ]

    def finished(self) -> int:
        query = "SELECT count(*) FROM aiotasks_task WHERE status IN ('SUCCESSFUL', 'FAILED')"
        return int(self.database.value(query))

    def wait_until_finished(self, count: int) -> bool:
        """Wait until so many tasks are finished; False once none has been for TIMEOUT.

        To count many tasks takes long: at most a fifth of the time goes into that.
        """
        most = -1
        since = time.monotonic()
        while True:
            began = time.monotonic()
            finished = self.finished()
            now = time.monotonic()
            if finished >= count:
                return True
            if finished > most:
                most, since = finished, now
            if now - since > TIMEOUT:
                return False
            time.sleep(max(0.02, 4 * (now - began)))

    def judge(self, ids: Sequence[str]) -> Judged:
        """Hold the ledger against the table, for tasks that return their process' id."""
        rows = {
            row.id: row
            for row in self.database.rows(
                "SELECT id, status, claim_id, return_value::text AS value, crashes FROM aiotasks_task"
            )
        }
        runs: dict[str, defaultdict[UUID, set[tuple[UUID, int]]]] = {
            "start": defaultdict(set),
            "end": defaultdict(set),
        }
        for entry in self.ledger.rows("SELECT * FROM ledger WHERE event IN ('start', 'end')"):
            runs[entry.event][entry.task_id].add((entry.claim_id, entry.pid))
        lost = overwrites = 0
        for id in map(UUID, ids):
            row = rows.get(id)
            if row is None or row.status != "SUCCESSFUL" or not runs["end"][id]:
                lost += 1
            elif (row.claim_id, int(row.value)) not in runs["end"][id]:
                overwrites += 1
        return Judged(
            lost=lost,
            repeats=sum(len(claims) - 1 for claims in runs["start"].values()),
            overwrites=overwrites + int(self.database.value("SELECT count(*) FROM overwritten")),
            late=sum(
                claim_id != rows[id].claim_id
                for id, claims in runs["end"].items()
                for claim_id, _ in claims
                if id in rows
            ),
            crashes=sum(row.crashes for row in rows.values()),
        )


class Recoveries:
    """How long the tasks of lost workers stay RUNNING in their name."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._waiting: dict[UUID, float] = {}
        self.seconds: list[float] = []

    def lost(self, worker_ids: Iterable[UUID]) -> None:
        """These have just died."""
        self._waiting |= dict.fromkeys(worker_ids, time.monotonic())

    def look(self) -> None:
        """To be called often: note whose tasks have been recovered."""
        if not self._waiting:
            return
        query = (
            "SELECT DISTINCT worker_id FROM aiotasks_task WHERE status = 'RUNNING' AND worker_id = ANY(%s)"
        )
        left = {row.worker_id for row in self._arena.database.rows(query, list(self._waiting))}
        for id in set(self._waiting) - left:
            self.seconds.append(time.monotonic() - self._waiting.pop(id))

    def watch(self, condition: Condition[bool], timeout: float = TIMEOUT) -> bool:
        """Look until ``condition`` is true; False if that takes too long."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                return False
            self.look()
            time.sleep(0.02)
        return True

    @property
    def longest(self) -> float:
        return max(self.seconds, default=0.0)

    def all_over(self) -> bool:
        return not self._waiting
