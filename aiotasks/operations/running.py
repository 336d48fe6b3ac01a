"""The tasks that run, for how long, and what workers say of those that don't end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ..exceptions import UnknownTask
from ..registry import resolve
from ..store.listing import Reported, RunningJob
from ..store.store import Store

__all__ = ["Outlasting", "Running", "RunningRow", "WorkerReport", "read_running"]

# Rows of RUNNING tasks that are read; the workers' slots are about as many.
LOOK_AT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRow:
    """A task that runs. ``worker``: ``host:pid``; None: it has no row. ``lost``: the worker has no live
    lease, so another one will take the task over. ``seconds``: since its start. ``timeout``: for how many it
    may run; None: forever, or the task can't be imported here (``known`` is False). ``past``: by how many it
    has."""

    id: UUID
    task_path: str
    queue_name: str
    priority: int
    attempt: int
    worker: str | None
    worker_id: UUID | None
    lost: bool
    seconds: float | None
    timeout: float | None
    past: float | None
    known: bool
    cancel_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlasting:
    """A task whose outcome is stored and whose code goes on in a worker. ``seconds``: since its time was
    over. ``lane``: thread (it can't be stopped) or loop."""

    id: UUID | None
    task_path: str
    lane: str
    seconds: float
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What a live worker says of itself. Times are in seconds. ``lag``: by how much its loop was late within
    the last minute. ``blocked``: for how long it is blocked now, and ``blocked_by``: by which task, where
    that is known. ``stalled``: since when it claims nothing though tasks wait. ``rss``: bytes of memory.
    None: it doesn't say."""

    worker: str
    worker_id: UUID
    lag: float | None
    blocked: float | None
    blocked_by: str | None
    stalled: float | None
    rss: int | None
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """``tasks``: that have run for longest first. ``capped``: there are more. ``outlasting``: those whose
    time is over and whose code goes on. ``workers``: all that report."""

    tasks: list[RunningRow]
    capped: bool
    outlasting: list[Outlasting]
    workers: list[WorkerReport]


async def read_running(
    store: Store, backend: str, *, moved_tasks: Mapping[str, str] | None = None, limit: int = 1000
) -> Running:
    """Return the tasks that run, ``limit`` at most, and what workers report. Imports the modules of the
    tasks, because their time limits are in the code. ``moved_tasks``: the backend's MOVED_TASKS."""
    found = await store.select_running(backend, limit + 1, LOOK_AT)
    reports = [(each, _read(each.report)) for each in await store.select_reports(backend)]
    return Running(
        tasks=[_row(each, moved_tasks or {}) for each in found[:limit]],
        capped=len(found) > limit,
        outlasting=sorted(
            (one for each, report in reports for one in _outlasting(each, report)),
            key=lambda one: -one.seconds,
        ),
        workers=[_reported(each, report) for each, report in reports],
    )


def _row(found: RunningJob, moved_tasks: Mapping[str, str]) -> RunningRow:
    timeout, known = None, True
    try:
        timeout = getattr(resolve(found.task_path, moved_tasks), "timeout", None)
    except UnknownTask:
        known = False
    past = None
    if timeout is not None and found.seconds is not None and found.seconds > timeout:
        past = found.seconds - timeout
    return RunningRow(
        id=found.id,
        task_path=found.task_path,
        queue_name=found.queue_name,
        priority=found.priority,
        attempt=found.attempts,
        worker=None if found.host is None else f"{found.host}:{found.pid}",
        worker_id=found.worker_id,
        lost=found.lease is None or found.lease <= 0,
        seconds=None if found.seconds is None else max(0.0, found.seconds),
        timeout=timeout,
        past=past,
        known=known,
        cancel_requested=found.is_cancelled,
    )


def _read(report: str) -> dict[str, Any]:
    try:
        read = json.loads(report)
    except (ValueError, RecursionError):  # by hand
        return {}
    return read if isinstance(read, dict) else {}


def _outlasting(worker: Reported, report: dict[str, Any]) -> list[Outlasting]:
    listed = report.get("outlasting")
    return [
        Outlasting(
            id=_id(one.get("id")),
            task_path=str(one.get("path")),
            lane=str(one.get("lane")),
            seconds=_number(one.get("seconds")) or 0.0,
            worker=f"{worker.host}:{worker.pid}",
        )
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict)
    ]


def _reported(worker: Reported, report: dict[str, Any]) -> WorkerReport:
    blocked = report.get("blocked")
    if not isinstance(blocked, dict):
        blocked = {}
    rss, task = _number(report.get("rss")), blocked.get("task")
    return WorkerReport(
        worker=f"{worker.host}:{worker.pid}",
        worker_id=worker.id,
        lag=_number(report.get("lag")),
        blocked=_number(blocked.get("seconds")),
        blocked_by=None if task is None else str(task),
        stalled=_number(report.get("stalled")),
        rss=None if rss is None else int(rss),
        draining=report.get("draining") is True,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _id(value: object) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None
