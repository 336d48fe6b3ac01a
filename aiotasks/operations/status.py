"""The state of a backend: its queues, its workers, and the session that delays vacuum."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from ..backend import PostgresBackend
from ..queue_figures import read_queue_figures
from ..rows import StoredLane
from ..store.inspection import OldestRunning, RunningCount
from ..store.schedules import ScheduleRow
from ..store.store import Store
from .connection import operator_connection
from .counts import COUNT_LIMIT, Count
from .limit_listing import select_statuses
from .limit_statuses import LimitStatus
from .pauses import Pause, pause_of
from .schedule_states import ScheduleState, select_holders, state_of

__all__ = [
    "Count",
    "FleetUse",
    "LaneTotal",
    "LaneUse",
    "Queue",
    "Running",
    "Snapshot",
    "Status",
    "WorkerRow",
    "read_status",
    "select_workers",
]

# A worker says with its first renewals whether NOTIFY wakes it. Chosen: they come within a sixth of
# LEASE_TIMEOUT.
NEW_FOR = timedelta(minutes=1)

# What fails, then what ticks next; `aiotasks schedules` shows all.
SCHEDULE_LIMIT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Ages are in seconds, None where nothing is READY. ``limited``: READY tasks that have a limit by key.
    ``workers``: how many live ones serve it."""

    name: str
    ready: Count
    oldest_ready: float | None
    scheduled: Count
    running: Count
    limited: Count
    workers: int


@dataclass(frozen=True, slots=True)
class LaneUse:
    """How many tasks a worker has claimed for a lane, and how many may run there at a time."""

    running: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """``queues``: empty for any. ``queue_limits``: how many tasks at a time of those that have a limit.
    ``lease``: the seconds that are left, negative once it has expired. ``listening``: whether NOTIFY wakes
    it; None: not known yet. ``has_channel``: whether NOTIFY can wake it by itself. ``stuck_threads``: those
    that don't come back from tasks whose time is over. ``claims_keyed``: it runs tasks with limits by key.
    ``schedule_troubles``: what keeps it from declaring schedules of its code, in sentences."""

    id: UUID
    host: str
    pid: int
    queues: list[str]
    queue_limits: dict[str, int]
    lease: float
    loop: LaneUse
    thread: LaneUse
    listening: bool | None
    has_channel: bool
    stuck_threads: int
    version: str
    started_at: datetime
    claims_keyed: bool
    schedule_troubles: list[str]

    @property
    def alive(self) -> bool:
        return self.lease > 0

    @property
    def stops(self) -> bool:
        """Whether it claims no more, and waits for what it runs: it renews its lease, and doesn't say whether
        NOTIFY wakes it. (Nor do new ones, and those of releases that never say so.)"""
        is_new = datetime.now(UTC) - self.started_at < NEW_FOR
        return self.claims_keyed and self.listening is None and not is_new

    def serves(self, queue: str) -> bool:
        """Return whether it claims the tasks of a queue."""
        return not self.stops and (not self.queues or queue in self.queues)

    def slots_for(self, lane: StoredLane) -> int:
        """Return its slots for a lane: those for tasks with limits are no others."""
        return (self.loop if lane.startswith("loop") else self.thread).slots


@dataclass(frozen=True, slots=True)
class LaneTotal:
    """How many tasks all live workers have claimed for a lane, and how many may run there at a time."""

    running: Count
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetUse:
    """The live workers of a backend together. ``listening``: NOTIFY wakes each by itself;
    ``listening_to_all``: only all at once, because they are of the release before; ``polling``: NOTIFY
    doesn't wake them; ``unknown``: not known yet. ``stuck_threads``: see WorkerRow.
    ``versions``: how many have each."""

    workers: int
    hosts: int
    loop: LaneTotal
    thread: LaneTotal
    listening: int
    listening_to_all: int
    polling: int
    unknown: int
    stuck_threads: int
    versions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Who holds the oldest snapshot, and its age in transactions and, where it is known, in seconds."""

    kind: str
    name: str
    transactions: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Running:
    """A task that has run for so many seconds. ``worker``: its host and process; None: it has no row."""

    id: UUID
    task_path: str
    seconds: float
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """``now``: when the schedules were read, by the database's clock. ``queues_capped``: there are more than
    these. ``standing``: limits and keys that stand still until somebody acts, a time comes, or a retry.
    ``schedules``: up to 20 of ``schedules_in_all``, those that fail first, then those that tick next; stopped
    ones don't count. ``failed_in_…``: tasks FAILED since then. ``all_snapshots_seen``: unless the role may
    not."""

    backend: str
    database: str
    now: datetime
    queues: list[Queue]
    queues_capped: bool
    pauses: list[Pause]
    standing: list[LimitStatus]
    schedules: list[ScheduleState]
    schedules_in_all: int
    failed_in_hour: Count
    failed_in_day: Count
    oldest_running: Running | None
    fleet: FleetUse
    workers: list[WorkerRow]
    oldest_snapshot: Snapshot | None
    all_snapshots_seen: bool


async def read_status(backend: PostgresBackend, *, imports: bool = False) -> Status:
    """Read the state without writing anything. Raises a ``django.db`` error where the database doesn't
    answer.

    imports: whether limits that the code doesn't declare are among ``standing``. For this it imports the
    modules of tasks that have limits which this process doesn't know, so it blocks.
    """
    options, alias = backend.config, backend.alias
    async with operator_connection(options.database, timeout=options.command_timeout) as connection:
        store = Store(connection)
        found = await read_queue_figures(store, alias, backend.queues, COUNT_LIMIT)
        workers = await select_workers(store, alias, found.running)
        pauses = [pause_of(one) for one in await store.select_pauses(alias)]
        limited = await store.count_limited_jobs(alias, found.listed, found.limit)
        learns = options.moved_tasks if imports else None
        standing = await select_statuses(store, alias, standing=True, learns=learns)
        now, stored = await store.select_schedules(alias)
        # One that no code declares any more stays in the table, and is nothing to act on.
        schedules = sorted((row for row in stored if row.stopped_at is None), key=_urgency)
        shown = schedules[:SCHEDULE_LIMIT]
        holders = await select_holders(store, alias, shown)
        failed = await store.count_failed_jobs(alias, COUNT_LIMIT)
        oldest = await store.oldest_running_job(alias, COUNT_LIMIT)
        snapshot = await store.oldest_snapshot()

    queues = [
        Queue(
            name=one.name,
            ready=Count(one.ready, one.ready >= found.limit),
            oldest_ready=one.oldest_ready,
            scheduled=Count(one.scheduled, not found.all_scheduled),
            running=Count(one.running, not found.all_running),
            limited=Count(limited.get(one.name, 0), limited.get(one.name, 0) >= found.limit),
            workers=sum(worker.alive and worker.serves(one.name) for worker in workers),
        )
        for one in found.queues
    ]
    return Status(
        backend=alias,
        database=options.database,
        now=now,
        queues=queues,
        queues_capped=found.has_more,
        pauses=pauses,
        standing=standing,
        schedules=[state_of(row, holders.get(row.schedule.name)) for row in shown],
        schedules_in_all=len(schedules),
        failed_in_hour=Count(failed.in_hour, failed.in_hour >= COUNT_LIMIT or not failed.complete),
        failed_in_day=Count(failed.in_day, failed.in_day >= COUNT_LIMIT or not failed.complete),
        oldest_running=None if oldest is None else _running(oldest, workers),
        fleet=_fleet([one for one in workers if one.alive], running_capped=not found.all_running),
        workers=workers,
        oldest_snapshot=None if snapshot.holder is None else Snapshot(*snapshot.holder),
        all_snapshots_seen=snapshot.all_seen,
    )


def _urgency(row: ScheduleRow) -> tuple[bool, float]:
    return not row.failures, math.inf if row.next_at is None else row.next_at.timestamp()


def _fleet(alive: list[WorkerRow], *, running_capped: bool) -> FleetUse:
    def total(lanes: list[LaneUse]) -> LaneTotal:
        running = Count(sum(lane.running for lane in lanes), running_capped)
        return LaneTotal(running, sum(lane.slots for lane in lanes))

    ways = Counter((one.listening, one.listening is True and one.has_channel) for one in alive)
    return FleetUse(
        workers=len(alive),
        hosts=len({one.host for one in alive}),
        loop=total([one.loop for one in alive]),
        thread=total([one.thread for one in alive]),
        listening=ways[True, True],
        listening_to_all=ways[True, False],
        polling=ways[False, False],
        unknown=ways[None, False],
        stuck_threads=sum(one.stuck_threads for one in alive),
        versions=dict(sorted(Counter(one.version for one in alive).items())),
    )


def _running(task: OldestRunning, workers: list[WorkerRow]) -> Running:
    names = {worker.id: f"{worker.host}:{worker.pid}" for worker in workers}
    worker = None if task.worker_id is None else names.get(task.worker_id)
    return Running(task.id, task.task_path, max(0.0, task.seconds), worker)


async def select_workers(store: Store, backend: str, running: Iterable[RunningCount] = ()) -> list[WorkerRow]:
    """The workers of a backend; without ``running`` their lanes look idle."""
    running_on: Counter[tuple[UUID | None, str]] = Counter()
    for count in running:
        running_on[count.worker_id, count.lane] += count.number
    return [
        WorkerRow(
            id=row.id,
            host=row.host,
            pid=row.pid,
            queues=list(row.queues),
            queue_limits={
                name: limit
                for name, limit in zip(row.queues, row.queue_limits, strict=True)
                if limit is not None
            },
            loop=LaneUse(running_on[row.id, "loop"], row.concurrency),
            thread=LaneUse(running_on[row.id, "thread"], row.threads),
            listening=row.listening,
            has_channel=row.has_channel,
            stuck_threads=row.stuck_threads,
            version=row.version,
            started_at=row.started_at,
            lease=row.lease,
            claims_keyed=row.claims_keyed,
            schedule_troubles=list(row.schedule_troubles),
        )
        for row in await store.select_workers(backend)
    ]
