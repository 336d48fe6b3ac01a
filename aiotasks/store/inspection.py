"""Statements that `status` and `check` read: tasks, workers, the server, and the session itself."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..rows import Lane, StoredLane
from .row_security import Restriction
from .statement_group import StatementGroup

__all__ = [
    "FailedCounts",
    "InspectionStatements",
    "LiveWorkers",
    "NotifyQueue",
    "OldestRunning",
    "OldestSnapshot",
    "ReadyCount",
    "Rights",
    "RunningCount",
    "Server",
    "Session",
    "SnapshotHolder",
    "StoredWorker",
    "WaitingLane",
]


class WaitingLane(NamedTuple):
    """A lane of a queue, as it is stored, that has READY tasks."""

    backend: str
    queue_name: str
    lane: StoredLane


class ReadyCount(NamedTuple):
    """The READY tasks of a queue: their number, and the age of the oldest in seconds (None: no task)."""

    number: int
    oldest: float | None


class RunningCount(NamedTuple):
    """How many tasks of a queue and lane a worker has RUNNING."""

    queue_name: str
    worker_id: UUID | None
    lane: Lane
    number: int


class FailedCounts(NamedTuple):
    """How many tasks FAILED in the last hour and the last day. ``complete``: all tasks with a ``keep_result``
    were counted."""

    in_hour: int
    in_day: int
    complete: bool


class OldestRunning(NamedTuple):
    """The task that has been RUNNING for the longest time, in seconds."""

    id: UUID
    task_path: str
    worker_id: UUID | None
    seconds: float


class NotifyQueue(NamedTuple):
    """How full NOTIFY's queue is, from 0 to 1; and the session with the oldest transaction: its process, its
    name, and the transaction's age in seconds (None: there is none)."""

    usage: float
    pid: int | None
    name: str | None
    seconds: float | None


class LiveWorkers(NamedTuple):
    """How many workers with a live lease are alike. ``has_channel``: each can be woken by itself."""

    backend: str
    concurrency: int
    threads: int
    listening: bool | None
    has_channel: bool
    number: int


class StoredWorker(NamedTuple):
    """A worker's row. ``lease``: the seconds left, negative once it has expired. ``has_channel``: it can be
    woken by itself. ``stuck_threads``: those that don't come back from tasks whose time is over.
    ``queue_limits``: one for each of ``queues``. ``claims_keyed``: it runs tasks with limits by key.
    ``schedule_troubles``: what keeps it from declaring schedules, in sentences."""

    id: UUID
    host: str
    pid: int
    queues: Sequence[str]
    concurrency: int
    threads: int
    listening: bool | None
    has_channel: bool
    version: str
    stuck_threads: int
    queue_limits: Sequence[int | None]
    started_at: datetime
    lease: float
    claims_keyed: bool
    schedule_troubles: Sequence[str]


class SnapshotHolder(NamedTuple):
    """Who holds a snapshot, and its age in transactions and, where that is known, in seconds."""

    kind: str
    name: str
    transactions: int
    seconds: float | None


class OldestSnapshot(NamedTuple):
    """``all_seen``: this role may see every session. ``holder``: None if no session holds a snapshot."""

    all_seen: bool
    holder: SnapshotHolder | None


class Server(NamedTuple):
    """What the server is and allows. ``allowed``: connections that this role may have to this database;
    ``slots``: that all roles may have; ``open``: that there are."""

    version: int
    read_only: bool
    vacuums: bool
    allowed: int
    slots: int
    open: int


class Session(NamedTuple):
    """The identity of a session. ``server_since`` distinguishes servers, whatever their address."""

    session_user: str
    current_user: str
    search_path: str
    database: str
    server_since: datetime
    address: str
    ssl: bool
    task_table: int | None
    worker_table: int | None

    @property
    def finds_tables(self) -> bool:
        return self.task_table is not None and self.worker_table is not None


class Rights(NamedTuple):
    """A role, as an SQL identifier; its privileges, each as ``SELECT ON aiotasks_task`` (None: it finds no
    tables); and the schemas that have the tables, whether the role finds them there or not."""

    role: str
    granted: set[str] | None
    schemas: list[str]


class InspectionStatements(StatementGroup):
    """Read only: counts, ages, settings and privileges."""

    async def list_waiting(self, limit: int) -> list[WaitingLane]:
        return [WaitingLane(*row) for row in await self._fetch("list_waiting", limit)]

    async def count_ready_jobs(
        self, backend: str, queues: Sequence[str], limit: int
    ) -> dict[str, ReadyCount]:
        """By queue name. Each is counted up to ``limit``."""
        rows = await self._fetch("count_ready_jobs", backend, list(queues), limit)
        return {name: ReadyCount(number, oldest) for name, number, oldest in rows}

    async def count_limited_jobs(self, backend: str, queues: Sequence[str], limit: int) -> dict[str, int]:
        """READY tasks with a limit by queue, of those that have any. Each is counted up to ``limit``."""
        rows = await self._fetch("count_limited_jobs", backend, list(queues), limit)
        return {row[0]: row[1] for row in rows}

    async def count_keyed_jobs(self, backend: str, keys: Sequence[str], limit: int) -> dict[str, ReadyCount]:
        """READY tasks by key of a limit, of those that have any. Each is counted up to ``limit``."""
        rows = await self._fetch("count_keyed_jobs", backend, list(keys), limit)
        return {key: ReadyCount(number, oldest) for key, number, oldest in rows}

    async def count_scheduled_jobs(self, backend: str, limit: int) -> Counter[str]:
        rows = await self._fetch("count_scheduled_jobs", backend, limit)
        return Counter({row[0]: row[1] for row in rows})

    async def count_running_jobs(self, backend: str, limit: int) -> list[RunningCount]:
        return [RunningCount(*row) for row in await self._fetch("count_running_jobs", backend, limit)]

    async def count_failed_jobs(self, backend: str, limit: int) -> FailedCounts:
        """Counted up to ``limit``."""
        (row,) = await self._fetch("count_failed_jobs", backend, limit)
        return FailedCounts(*row)

    async def oldest_running_job(self, backend: str, limit: int) -> OldestRunning | None:
        """Of the first ``limit`` tasks that are RUNNING."""
        rows = await self._fetch("oldest_running_job", backend, limit)
        return OldestRunning(*rows[0]) if rows else None

    async def notify_queue(self) -> NotifyQueue:
        (row,) = await self._fetch("notify_queue")
        return NotifyQueue(*row)

    async def select_workers(self, backend: str) -> list[StoredWorker]:
        return [StoredWorker(*row) for row in await self._fetch("select_workers", backend)]

    async def count_live_workers(self) -> list[LiveWorkers]:
        """Of all backends that share the database."""
        return [LiveWorkers(*row) for row in await self._fetch("count_live_workers")]

    async def oldest_snapshot(self) -> OldestSnapshot:
        ((all_seen, kind, *holder),) = await self._fetch("oldest_snapshot")
        return OldestSnapshot(all_seen, None if kind is None else SnapshotHolder(kind, *holder))

    async def inspect_server(self) -> Server:
        (row,) = await self._fetch("inspect_server")
        return Server(*row)

    async def describe_session(self) -> Session:
        (row,) = await self._fetch("describe_session")
        return Session(*row)

    async def select_migrations(self) -> set[str]:
        """The names of aiotasks' migrations that have been applied."""
        return {row[0] for row in await self._fetch("select_migrations")}

    async def select_indexes(self) -> set[str]:
        """The names of the valid indexes of the tasks' table."""
        return {row[0] for row in await self._fetch("select_indexes")}

    async def select_rights(self) -> Rights:
        ((role, granted, schemas),) = await self._fetch("select_rights")
        return Rights(role, None if granted is None else set(granted), list(schemas))

    async def select_row_security(self) -> list[Restriction]:
        """What row-level security doesn't let this role do with every row."""
        return [Restriction(*row) for row in await self._fetch("select_row_security")]

    async def select_storage(self) -> dict[str, list[str]]:
        """By table: its storage parameters, each as ``name=value``."""
        return {row[0]: row[1] for row in await self._fetch("select_storage")}

    async def read_clock(self) -> datetime:
        (row,) = await self._fetch("read_clock")
        return row[0]  # type: ignore[no-any-return]  # rows are of Any

    async def backend_pid(self) -> int:
        (row,) = await self._fetch("backend_pid")
        return int(row[0])

    async def wait_for_standbys(self, *, timeout: float | None = None) -> None:
        await self._fetch("wait_for_standbys", timeout=timeout)
