"""The PostgreSQL server that is measured: its CPU time, and its statements by kind."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

import psutil
import psycopg

from aiotasks.demo.postgres import PostgresServer
from aiotasks.store import statements

from ..run import SERVER_SETTINGS

__all__ = ["ENQUEUERS", "WORKERS", "MeasuredServer", "Usage", "cpu_of"]

# The roles that workers and enqueuing processes connect as, by which statements are told apart.
WORKERS, ENQUEUERS = "worker", "enqueuer"

DATABASE = "fleet"

SETTINGS = {
    **SERVER_SETTINGS,
    "max_connections": "600",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.save": "off",
    "pg_stat_statements.max": "1000",
}

# The share of their words that two texts of one statement have in common: casts may be lost with a constant.
SAME = 0.85


@dataclass(frozen=True)
class Usage:
    """What the server has done so far, or between two looks.

    cpu: seconds of CPU time of all its processes. calls, rows, seconds: by role and kind of statement
    (the name of its file, or "other"); ``seconds`` is the time of execution, waits included. notified: how
    many notifications each role has sent.
    """

    cpu: float
    calls: Counter[tuple[str, str]]
    rows: Counter[tuple[str, str]]
    seconds: Counter[tuple[str, str]]
    notified: Counter[str]

    def since(self, before: Self) -> "Usage":
        """Return what was done after ``before``."""
        return Usage(
            self.cpu - before.cpu,
            _difference(self.calls, before.calls),
            _difference(self.rows, before.rows),
            _difference(self.seconds, before.seconds),
            self.notified - before.notified,
        )

    def claims(self) -> int:
        return self.calls[WORKERS, "claim_jobs"]


class MeasuredServer:
    """A server with pg_stat_statements, and a database with the tables in it."""

    def __init__(self) -> None:
        self._server = PostgresServer(settings=SETTINGS)
        names = [file.name.removesuffix(".sql") for file in _queries()]
        self._words = {name: _words(statements.load(name).sql) for name in names}
        self._kinds: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._server.__enter__()
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
            for role in (WORKERS, ENQUEUERS):
                connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        self.connection = psycopg.connect(self._server.dsn(DATABASE), autocommit=True)
        self.connection.execute("CREATE EXTENSION pg_stat_statements")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connection.close()
        self._server.__exit__(None, None, None)

    def dsn(self, role: str) -> str:
        return self._server.dsn(DATABASE).replace("postgres@", f"{role}@")

    def usage(self) -> Usage:
        """Return what was done so far, without what this object's own connection does."""
        usage = Usage(self._cpu(), Counter(), Counter(), Counter(), Counter())
        found = self.connection.execute(
            """
            SELECT rolname, query, calls, rows, total_exec_time / 1000
            FROM pg_stat_statements JOIN pg_roles ON pg_roles.oid = userid
            WHERE rolname = ANY(%s)
            """,
            [[WORKERS, ENQUEUERS]],
        )
        for role, query, calls, rows, seconds in found:
            key = (role, self._kind(query))
            usage.calls[key] += calls
            usage.rows[key] += rows
            usage.seconds[key] += seconds
            usage.notified[role] += rows if "pg_notify" in query else 0
        return usage

    def _kind(self, query: str) -> str:
        """Return the name of the statement that has about the same words."""
        if query not in self._kinds:
            words = _words(query)

            def likeness(name: str) -> float:
                return len(words & self._words[name]) / len(words | self._words[name])

            best = max(self._words, key=likeness)
            self._kinds[query] = best if likeness(best) > SAME else "other"
        return self._kinds[query]

    def _cpu(self) -> float:
        """Return the seconds of CPU time of all processes of the server, those included that have ended."""
        server, own = psutil.Process(self._server.pid), self.connection.info.backend_pid
        times = server.cpu_times()
        ended = times.children_user + times.children_system
        running = (_precise_cpu(child.pid) for child in server.children() if child.pid != own)
        return ended + times.user + times.system + sum(running)


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU time of a process, all threads together."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _precise_cpu(pid: int) -> float:
    """Return the seconds of CPU time of a process of one thread, to the microsecond: ticks are too coarse for
    a hundred processes that do little."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _queries() -> list[Path]:
    return [
        Path(str(file))
        for file in (files("aiotasks.store") / "queries").iterdir()
        if file.name.endswith(".sql")
    ]


def _words(sql: str) -> frozenset[str]:
    """Return the words of a statement without its constants, which pg_stat_statements shows as parameters."""
    sql = re.sub(r"/\*.*?\*/|'[^']*'|\b(true|false|null)\b", " ", sql, flags=re.DOTALL | re.IGNORECASE)
    return frozenset(re.findall(r"[a-z_]{2,}", sql.lower()))


def _difference(
    after: Mapping[tuple[str, str], float], before: Mapping[tuple[str, str], float]
) -> Counter[tuple[str, str]]:
    return Counter(
        {key: number - before.get(key, 0) for key, number in after.items() if number > before.get(key, 0)}
    )
