"""What ticks cost: how late an idle worker starts one, a thousand at once, and schedules that don't tick."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from aiotasks.db.connect import SESSION
from aiotasks.demo.postgres import PostgresServer
from aiotasks.rows import Schedule
from aiotasks.store.schedules import DeclaredSchedule
from aiotasks.store.statements import load
from aiotasks.store.store import Store
from aiotasks.sync import drive
from tests.conftest import BIN_DIR
from tests.store.rows import new_schedule

from .away import environment, migrate

__all__ = ["Psycopg", "measure"]

TASK = "tests.worker.tasks.add"
IDLE = 60  # seconds

# The statements of the worker in the server's log; those of sessions that begin aren't its own.
_STATEMENT = re.compile(r"execute [^:]*: (?:--[^\n]*)?\s*(.*)")


class Psycopg:
    """A driver for a statement or two."""

    def __init__(self, server: PostgresServer) -> None:
        self._dsn = server.dsn()

    async def fetch(self, statement: Any, *args: Any, timeout: float | None = None) -> Any:
        names = {f"p{number}": value for number, value in enumerate(args, 1)}
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(statement.django_sql, names).fetchall()


def measure() -> list[str]:
    """Return a line for each figure."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server may have a user of its own
        directory = Path(folder) / "cluster"
        settings = {"log_statement": "all", "log_line_prefix": "%m ", "fsync": "off"}
        with PostgresServer(bin_dir=BIN_DIR, settings=settings, directory=directory) as server:
            migrate(server)
            with psycopg.connect(server.dsn(), autocommit=True) as sql:
                lines = [*_latency(server, sql), *_many(server, sql)]
                log = next(directory.rglob("server.log"))
                return [*lines, *_idle(server, sql, log)]


@contextmanager
def _worker(server: PostgresServer) -> Iterator[None]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "aiotasks.worker"],
            env={**os.environ, **environment(server), "TEST_OPTIONS": json.dumps({})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            time.sleep(5.0)  # until it is idle
            yield
        finally:
            process.terminate()
            process.wait()


def _declare(server: PostgresServer, schedules: list[Schedule], next_at: datetime) -> None:
    written = [DeclaredSchedule(each, None, next_at) for each in schedules]
    drive(Store(Psycopg(server)).declare_schedules("default", written, from_code=False))


def _clean(sql: psycopg.Connection[Any]) -> None:
    sql.execute("TRUNCATE aiotasks_task, aiotasks_schedule")


def _schedule(name: str, **values: Any) -> Schedule:
    return new_schedule(name, task_path=TASK, args="[1, 2]", timezone="UTC", **values)


def _latency(server: PostgresServer, sql: psycopg.Connection[Any]) -> Iterator[str]:
    """Of a schedule that ticks every other second."""
    every_other = _schedule("s", expression="*/2 * * * * *")
    _declare(server, [every_other], datetime.now(UTC).replace(microsecond=0))
    with _worker(server):
        time.sleep(60.0)
    late = "extract(epoch FROM {} - (metadata->>'_scheduled_for')::timestamptz) * 1000"
    for what, column in (("stored", "ready_at"), ("started", "started_at")):
        rows = sql.execute(
            f"SELECT ({late.format(column)})::float FROM aiotasks_task WHERE {column} IS NOT NULL ORDER BY id"
        ).fetchall()
        values = [row[0] for row in rows][5:]  # the first ones are of the worker's start
        yield (
            f"an idle worker, {len(values)} ticks, ms until the task is {what}: "
            f"p50 {statistics.median(values):.1f}, max {max(values):.1f}"
        )
    _clean(sql)


def _many(server: PostgresServer, sql: psycopg.Connection[Any]) -> Iterator[str]:
    for overlap in ("allow", "skip"):
        for what in ("none was before", "the tasks of an earlier tick are finished"):
            due = (datetime.now(UTC) + timedelta(seconds=10)).replace(microsecond=0)
            if what == "none was before":
                _clean(sql)
                many = [
                    _schedule(f"{number}", expression="0 0 1 1 *", overlap=overlap) for number in range(1000)
                ]
                _declare(server, many, due)
            else:
                sql.execute("UPDATE aiotasks_schedule SET next_at = %s", [due])
            before = _value(sql, "SELECT count(*) FROM aiotasks_task")
            with _worker(server):
                while _value(sql, "SELECT count(*) FROM aiotasks_schedule WHERE next_at <= now()") or (
                    datetime.now(UTC) < due + timedelta(seconds=1)
                ):
                    time.sleep(0.1)
                while _value(sql, "SELECT count(*) FROM aiotasks_task WHERE finished_at IS NULL"):
                    time.sleep(0.1)
            stored, started, number = sql.execute(
                "SELECT extract(epoch FROM max(ready_at) - %s)::float, "
                "extract(epoch FROM max(started_at) - %s)::float, count(*) FROM aiotasks_task "
                "WHERE ready_at >= %s",
                [due, due, due],
            ).fetchall()[0]
            assert _value(sql, "SELECT count(*) FROM aiotasks_task") - before == number == 1000
            yield (
                f"1,000 due at once, overlap {overlap}, {what}: the last is stored after {stored:.2f} s, "
                f"started after {started:.2f} s"
            )


def _idle(server: PostgresServer, sql: psycopg.Connection[Any], log: Path) -> Iterator[str]:
    for number in (0, 10_000):
        _clean(sql)
        if number:
            later = datetime.now(UTC) + timedelta(hours=1)
            many = [_schedule(f"{each}", expression="0 0 1 1 *") for each in range(number)]
            _declare(server, many, later)
        with _worker(server):
            start = log.stat().st_size
            time.sleep(IDLE)
            with log.open(encoding="utf-8", errors="replace") as lines:
                lines.seek(start)
                found = Counter(match[1][:50] for match in _STATEMENT.finditer(lines.read()))
        arguments = {"next_due": "'default', '{}'", "select_declared": "'default'"}
        costs = {name: _cost(server, name, values) for name, values in arguments.items()}
        yield (
            f"{number} schedules, none due: {found.total()} statements of a worker in {IDLE} s; µs on the "
            f"server for each: {', '.join(f'{name} {cost:.0f}' for name, cost in costs.items())}"
        )
        yield from (f"    {count:4}  {statement}" for statement, count in found.most_common())


def _cost(server: PostgresServer, name: str, values: str) -> float:
    """Microseconds of a statement on the server, prepared as in a worker's session."""
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(SESSION)
        session.execute(f"PREPARE it AS {load(name).sql}")
        times = []
        for _ in range(100):
            ((plan,),) = session.execute(
                f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE it({values})"
            ).fetchall()
            times.append(float(plan[0]["Execution Time"]) * 1000)
        return statistics.median(times)


def _value(sql: psycopg.Connection[Any], query: str) -> int:
    ((value,),) = sql.execute(query).fetchall()
    return int(value)
