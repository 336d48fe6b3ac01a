"""What the database and the processes say, every few seconds."""

import re
from dataclasses import dataclass
from importlib.resources import files

import asyncpg
import psutil

from aiotasks.store.statements import load

__all__ = ["Sample", "Sampler", "shape"]

# Tasks that were finished so many seconds ago are counted: their transactions have committed.
SETTLED = 1.0

_TABLE = "aiotasks_task"

_STATE = """
    SELECT
        extract(epoch FROM clock_timestamp())::float8 AS at,
        (SELECT count(*) FROM aiotasks_task WHERE status = 'READY') AS ready,
        stats.n_tup_ins AS enqueued, stats.n_tup_del AS deleted,
        stats.n_live_tup AS live, stats.n_dead_tup AS dead, stats.autovacuum_count AS vacuums,
        pg_relation_size(stats.relid) AS table_bytes,
        pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 AS wal_bytes
    FROM pg_stat_user_tables AS stats
    WHERE stats.relname = 'aiotasks_task'
"""

_INDEXES = """
    SELECT indexrelname, pg_relation_size(indexrelid)
    FROM pg_stat_user_indexes
    WHERE relname = 'aiotasks_task'
    ORDER BY indexrelname
"""

_FINISHED = """
    SELECT
        count(*) AS number,
        coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY waited), 0)::float8 AS p50,
        coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY waited), 0)::float8 AS p99
    FROM (
        SELECT extract(epoch FROM started_at - ready_at) AS waited
        FROM aiotasks_task
        WHERE backend = 'default' AND status = 'SUCCESSFUL' AND keep_result IS NULL
          AND finished_at >= to_timestamp($1) AND finished_at < to_timestamp($2)
    ) AS finished
"""

# From where it was the last time: a scan from the start would mark the dead index entries there, which would
# then cost the pruner less than without us.
_OLDEST = """
    SELECT extract(epoch FROM min(finished_at))::float8
    FROM aiotasks_task
    WHERE backend = 'default' AND status = 'SUCCESSFUL' AND keep_result IS NULL
      AND finished_at >= to_timestamp($1)
"""

_STATEMENTS = """
    SELECT query, sum(calls)::float8 AS calls, sum(total_exec_time)::float8 AS ms
    FROM pg_stat_statements
    GROUP BY query
"""


@dataclass(frozen=True)
class Sample:
    """One look. Rates are per second since the look before, statements' times means since then."""

    seconds: float  # since the first look
    enqueued_per_s: float
    finished_per_s: float
    deleted_per_s: float
    ready: int
    overdue_s: float  # for how long the oldest row should have been deleted
    wait_p50_ms: float  # from ready to started, of the tasks finished since the look before
    wait_p99_ms: float
    table_mb: float
    indexes_mb: dict[str, float]
    live_rows: int
    dead_rows: int
    autovacuums: int
    wal_mb_per_s: float
    database_cpu: float  # cores
    worker_cpu: float
    worker_mb: float
    statements_ms: dict[str, float]
    calls_per_s: dict[str, float]


class Sampler:
    """Takes samples over a connection of its own, of a database, its server and a worker's processes."""

    def __init__(self, connection: asyncpg.Connection, *, server: int, worker: int, keep: float) -> None:
        self._connection = connection
        self._server, self._worker = psutil.Process(server), psutil.Process(worker)
        self._keep = keep
        self._names = {shape(load(name).sql): name for name in _statement_names()}
        self._first: float | None = None
        self._oldest = 0.0

    async def has_begun(self) -> bool:
        """Whether a task has been finished."""
        query = "SELECT EXISTS (SELECT FROM aiotasks_task WHERE finished_at IS NOT NULL)"
        return bool(await self._connection.fetchval(query))

    async def start(self) -> None:
        """Take the look that the first sample is compared with."""
        self._before = await self._connection.fetchrow(_STATE)
        self._first = self._before["at"]
        self._statements = await self._statement_times()
        self._cpu = self._cpu_times()

    async def sample(self) -> Sample:
        before, now = self._before, await self._connection.fetchrow(_STATE)
        since, until = before["at"] - SETTLED, now["at"] - SETTLED
        seconds = until - since
        finished = await self._connection.fetchrow(_FINISHED, since, until)
        oldest = await self._connection.fetchval(_OLDEST, self._oldest)
        self._oldest = oldest or self._oldest
        indexes = await self._connection.fetch(_INDEXES)
        statements, cpu = await self._statement_times(), self._cpu_times()
        calls = {
            name: (count - self._statements.get(name, (0, 0))[0], ms - self._statements.get(name, (0, 0))[1])
            for name, (count, ms) in statements.items()
        }
        sample = Sample(
            seconds=now["at"] - (self._first or 0.0),
            enqueued_per_s=(now["enqueued"] - before["enqueued"]) / seconds,
            finished_per_s=finished["number"] / seconds,
            deleted_per_s=(now["deleted"] - before["deleted"]) / seconds,
            ready=now["ready"],
            overdue_s=max(0.0, now["at"] - oldest - self._keep) if oldest else 0.0,
            wait_p50_ms=finished["p50"] * 1000,
            wait_p99_ms=finished["p99"] * 1000,
            table_mb=now["table_bytes"] / 10**6,
            indexes_mb={name: size / 10**6 for name, size in indexes},
            live_rows=now["live"],
            dead_rows=now["dead"],
            autovacuums=now["vacuums"],
            wal_mb_per_s=(now["wal_bytes"] - before["wal_bytes"]) / seconds / 10**6,
            database_cpu=(cpu[0] - self._cpu[0]) / seconds,
            worker_cpu=(cpu[1] - self._cpu[1]) / seconds,
            worker_mb=self._worker_bytes() / 10**6,
            statements_ms={name: ms / count for name, (count, ms) in calls.items() if count},
            calls_per_s={name: count / seconds for name, (count, _) in calls.items() if count},
        )
        self._before, self._statements, self._cpu = now, statements, cpu
        return sample

    async def _statement_times(self) -> dict[str, tuple[float, float]]:
        """Return calls and milliseconds by the statement's name, of those of the package."""
        rows = await self._connection.fetch(_STATEMENTS)
        return {
            name: (row["calls"], row["ms"])
            for row in rows
            if (name := self._names.get(shape(row["query"]))) is not None
        }

    def _cpu_times(self) -> tuple[float, float]:
        """Return the seconds of CPU time that the server's and the worker's processes have used."""
        return _cpu_seconds(self._server), _cpu_seconds(self._worker)

    def _worker_bytes(self) -> int:
        processes = [self._worker, *self._worker.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system  # of those that ended
    for child in process.children(recursive=True):
        try:
            of_child = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += of_child.user + of_child.system
    return seconds


def _statement_names() -> list[str]:
    queries = files("aiotasks.store") / "queries"
    return [file.name.removesuffix(".sql") for file in queries.iterdir() if file.name.endswith(".sql")]


def shape(query: str) -> str:
    """The query without what pg_stat_statements changes: constants, and lists of them."""
    shape = " ".join(re.sub(r"'[^']*'|\$\d+|\b(\d+(\.\d+)?|NULL|true|false)\b", "?", query).split())
    return re.sub(r"\?( /\*, \.\.\. \*/|(, \?)+)", "?", shape)
