"""A row of the table, before and after it is claimed. No I/O."""

from collections.abc import Buffer, Callable
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, Literal
from uuid import UUID

from django.tasks import Task, TaskResult

from .policies.limits import AfterFailure
from .policies.policy import Policy
from .policies.unique import UniqueRule

__all__ = [
    "FINAL",
    "LANES",
    "STORED_LANES",
    "AnyResult",
    "AnyTask",
    "Job",
    "JobTemplate",
    "Lane",
    "LaneRequest",
    "Missed",
    "Moment",
    "NewJob",
    "Overlap",
    "Schedule",
    "Status",
    "StoredLane",
    "UniqueJob",
    "keyed_lane",
    "lane_of",
    "makes_generators",
    "microseconds",
    "plain_lane",
    "time_of",
]


# django.tasks' types take parameters only in their stubs.
type AnyTask = Task[..., Any]
type AnyResult = TaskResult[..., Any]


class Status(StrEnum):
    """A row's status: Django's four, and SCHEDULED, which a TaskResult shows as READY."""

    SCHEDULED = "SCHEDULED"
    READY = "READY"
    RUNNING = "RUNNING"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"


FINAL = frozenset((Status.SUCCESSFUL, Status.FAILED))

# A time as PostgreSQL sends it. ``time_of()`` reads it. Of most tasks no code asks for the times, and asyncpg
# takes 0.65 µs to make a datetime, which is a tenth of a no-op's time for the four that a claim returns.
type Moment = Buffer

Lane = Literal["loop", "thread"]
LANES: tuple[Lane, Lane] = ("loop", "thread")

# The lane of a row. Tasks with a limit are in lanes of their own, which only keyed claims know: the claims of
# an older release leave them alone, while its rescues, promotions, cancels and look-ups do what they should.
StoredLane = Literal["loop", "thread", "loop+", "thread+"]
_KEYED: dict[Lane, StoredLane] = {"loop": "loop+", "thread": "thread+"}
STORED_LANES: tuple[StoredLane, ...] = (*LANES, *_KEYED.values())


def keyed_lane(lane: Lane) -> StoredLane:
    """Return the lane in which rows with a limit are stored."""
    return _KEYED[lane]


def plain_lane(lane: str) -> Lane:
    """Return the lane in which rows of a stored lane run."""
    return "thread" if lane.startswith("thread") else "loop"


@lru_cache(maxsize=1024)  # inspect takes 1 µs, in every enqueue and every run
def lane_of(function: Callable[..., Any]) -> Lane:
    """Return where a task's function runs: a coroutine function on the loop, any other in a thread."""
    return "loop" if iscoroutinefunction(function) else "thread"


@lru_cache(maxsize=1024)
def makes_generators(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function only makes a generator, so that nothing of its body runs."""
    return isgeneratorfunction(function) or isasyncgenfunction(function)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTemplate:
    """The values that all rows share that one Task object enqueues."""

    backend: str
    queue_name: str
    task_path: str
    lane: Lane
    priority: int
    run_after: datetime | None
    expires: float | None  # seconds from when it is due until it may not be started any more
    metadata: str | None  # the JSON text of an object; None: empty
    policy: Policy
    ordered: AfterFailure | None = None  # of rows with a limit_key: what a failure does to its line


@dataclass(slots=True)  # not frozen: that makes a million of them cost a second more
class NewJob:
    """A row to insert. ``args`` and ``kwargs`` are JSON text. ``limit_key``: name and key of its limit; None:
    the call isn't limited."""

    id: str
    template: JobTemplate
    args: str
    kwargs: str
    enqueued_at: datetime
    limit_key: str | None = field(default=None, kw_only=True)


@dataclass(slots=True)
class UniqueJob(NewJob):
    """A row to insert unless another one holds its key. ``key`` is as it is stored."""

    key: str
    rule: UniqueRule


# What is done with the ticks that no worker was there for: the latest is enqueued, none, or all.
type Missed = Literal["last", "skip", "all"]

# What a tick does while the task of an earlier one is unfinished: it is left out, it waits (one at most), or
# it is enqueued beside it.
type Overlap = Literal["skip", "queue", "allow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as the code declares it or an operator has added it, with all that a row of its task needs:
    a worker enqueues tasks that it can't import.

    The columns of the statements follow these fields: see ``store/columns.py``. ``missed_within``: for how
    many seconds a tick is made up for; None: as long as ``missed`` says. ``overlap``: None for a task whose
    own key decides, which is ``unique_key``, as it is stored; it is held for ``unique_period`` seconds, or as
    long as the task is unfinished (``unique_waiting``: waits). ``jitter``: by how many seconds at most a task
    is due after its tick. ``limit_key``, ``ordered``: as of a NewJob and a JobTemplate.
    """

    name: str
    expression: str
    timezone: str
    missed: Missed
    missed_within: float | None
    overlap: Overlap | None
    jitter: float | None
    task_path: str
    queue_name: str
    lane: Lane
    priority: int
    args: str
    kwargs: str
    expires: float | None
    metadata: str | None
    unique_key: str | None
    unique_period: float | None
    unique_waiting: bool | None
    limit_key: str | None = None
    ordered: AfterFailure | None = None
    policy: Policy

    def digest(self) -> str:
        """Return a text that another schedule hasn't, for workers to compare what they declare."""
        return sha256(repr(astuple(self)).encode()).hexdigest()


@dataclass(slots=True)
class Job:
    """A row as claims and look-ups return it. The columns of the statements follow these fields: see
    ``store/columns.py``.

    A worker may finish it only under the ``claim_id`` that it claimed it with.
    """

    id: UUID
    queue_name: str
    task_path: str
    lane: Lane
    priority: int
    args: str
    kwargs: str
    errors: list[str]
    worker_ids: list[str]
    enqueued_at: Moment
    run_after: Moment | None
    ready_at: Moment | None
    started_at: Moment | None
    last_attempted_at: Moment | None
    failures: int | None  # failed executions that count towards max_attempts; None: none
    awaited: int | None  # 1: its end is notified; 2: each change is; None: nobody waits
    metadata: str | None  # the JSON text of an object; None: empty
    policy: Policy
    # The worker that claims knows these already.
    claim_id: UUID | None
    backend: str
    status: str
    return_value: str | None
    finished_at: Moment | None
    # These it doesn't need, so that a claim leaves them None.
    expires_at: Moment | None = None
    errors_omitted: int | None = None
    snoozes: int | None = None
    unique_key: str | None = None
    limit_key: str | None = None  # the name of the task's limit, or ``name:key``; keyed claims return it, too


@dataclass(frozen=True, slots=True)
class LaneRequest:
    """The jobs that a claim may take for a lane: at most ``limit``, from these queues in this order.

    ``robust_only`` leaves out tasks that a crash of the worker before their start would harm. ``most``: how
    many jobs of each queue at most; empty where only ``limit`` counts. ``lowest``: of each queue, the lowest
    priority to take; empty for any.
    """

    queues: list[str]
    since: list[datetime]  # per queue: where to begin in its index, by ready_at
    limit: int
    robust_only: bool = False
    most: list[int] = field(default_factory=list)
    lowest: list[int] = field(default_factory=list)


_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)


def microseconds(moment: Moment | None) -> int:
    """Return the microseconds since the beginning of 2000 (UTC); 0 for None."""
    return int.from_bytes(moment or b"", signed=True)


def time_of(moment: Moment | None) -> datetime | None:
    """Return the moment as an aware datetime."""
    if moment is None:
        return None
    # By position, and without microseconds(), which halves the time: every refresh reads four of them.
    return _ORIGIN + timedelta(0, 0, int.from_bytes(moment, signed=True))
