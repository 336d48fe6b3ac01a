"""One task: all that its row knows, its attempts, and what happened to it when."""

import json
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from ..filters import TaskFilter
from ..rows import FINAL, Status
from ..store.listing import Detail
from ..store.store import Store
from .tasks import TaskRow, list_tasks, one_line

__all__ = ["AttemptRow", "Event", "TaskDetail", "attempts", "key_holder", "read_task", "timeline"]

# How an execution has ended, or that it hasn't. lost: its worker has died.
type Ended = Literal["failed", "lost", "cancelled", "expired", "succeeded", "running"]

_BY_CLASS: dict[str, Ended] = {
    "aiotasks.exceptions.WorkerLost": "lost",
    "aiotasks.exceptions.TaskCancelled": "cancelled",
    "aiotasks.exceptions.TaskExpired": "expired",
}

# Of a row's errors the first so many and as many of the last stay.
KEPT_ERRORS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDetail:
    """A task. ``args``, ``kwargs``, ``return_value``, ``metadata`` and each of ``errors``: the JSON text as
    it is stored, so that no number loses digits.

    ``run_after``: when it is due, or was; ``asked_run_after``: what its caller asked for. ``errors_omitted``:
    how many were left out between the first and the last 20. ``worker_ids``: one for each execution.
    ``workers``: ``host:pid`` by id, of those that still have a row. ``former_key``: a unique key that another
    task has taken. The other fields: see docs/reference/tables.md.
    """

    id: UUID
    status: Status
    task_path: str
    queue_name: str
    lane: str
    priority: int
    args: str
    kwargs: str
    return_value: str | None
    metadata: str | None
    errors: list[str]
    errors_omitted: int
    worker_ids: list[UUID]
    workers: dict[UUID, str]
    failures: int
    crashes: int
    max_crashes: int | None
    snoozes: int
    keep_result: float | None
    unique_key: str | None
    unique_until: datetime | None
    unique_waiting: bool | None
    former_key: str | None
    limit_key: str | None
    limit_held: str | None
    limit_place: datetime | None
    ordered: str | None
    enqueued_at: datetime | None
    run_after: datetime | None
    asked_run_after: datetime | None
    ready_at: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    unknown_since: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An execution, or an end without one. ``number``: counted from 1; None: it ended before it was started.
    ``began``, ``seconds``: None where the row doesn't say. ``worker``: ``host:pid``, or its id where its row
    is gone. ``error``: class and message, in a line. ``traceback``: as it is stored."""

    number: int | None
    ended: Ended
    began: datetime | None
    seconds: float | None
    worker: str | None
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task, or will. ``kind``: enqueued, due, ready, began, cancel_requested,
    finished, expires, or how an attempt has ended. ``attempt``: its number, where it is about one."""

    at: datetime
    kind: str
    attempt: int | None = None
    text: str = ""


async def read_task(store: Store, backend: str, id: UUID) -> TaskDetail | None:
    """Return a task of the backend; None: there is none of that id."""
    found = await store.select_detail(id, backend)
    return None if found is None else _detail(found)


def _detail(found: Detail) -> TaskDetail:
    names = {field.name for field in fields(TaskDetail)}
    values = {name: value for name, value in found._asdict().items() if name in names}
    asked = None if found.asked_for_none else found.asked_run_after or found.run_after
    values |= {
        "errors": list(found.errors),
        "errors_omitted": found.errors_omitted or 0,
        "worker_ids": [UUID(id) for id in found.worker_ids if id is not None],
        "workers": {UUID(id): name for id, _, name in (each.partition(" ") for each in found.workers)},
        "failures": found.failures or 0,
        "snoozes": found.snoozes or 0,
        "asked_run_after": asked,
    }
    return TaskDetail(**values)


async def key_holder(store: Store, backend: str, key: str) -> TaskRow | None:
    """Return the task that has a unique key; None: none has."""
    page = await list_tasks(store, backend, TaskFilter(unique_key=key), limit=1)
    return page.rows[0] if page.rows else None


def attempts(detail: TaskDetail) -> list[AttemptRow]:
    """Return a task's executions, as far as its row knows them, and its ends without one, in their order.

    Errors say when and where their attempt ran since aiotasks notes that; of those before, and of crashes,
    the times of the first and the last attempt alone are known.
    """
    rows = []
    number = 0
    # The last end of a FAILED task may be that of a worker that died, so that nobody noted the attempt.
    last_end = len(detail.errors) - (detail.status is Status.FAILED)
    for index, text in enumerate(detail.errors):
        stored = _stored(text)
        if index == KEPT_ERRORS:
            number += detail.errors_omitted
        noted = stored.get("attempt")
        if noted is None and index < last_end and _ended(stored) in ("cancelled", "expired"):
            # It ended while it waited, and was retried: workers note the attempts that they end.
            rows.append(_failed(detail, None, text, stored))
            continue
        number = noted if isinstance(noted, int) and noted > 0 else number + 1
        rows.append(_failed(detail, number if number <= len(detail.worker_ids) else None, text, stored))
    last = len(detail.worker_ids)
    if detail.status in (Status.RUNNING, Status.SUCCESSFUL) and last:
        end = detail.finished_at if detail.status in FINAL else None
        rows.append(
            AttemptRow(
                number=last,
                ended="succeeded" if detail.status is Status.SUCCESSFUL else "running",
                began=detail.last_attempted_at,
                seconds=_between(detail.last_attempted_at, end),
                worker=_worker(detail, last),
                error=None,
                traceback=None,
            )
        )
    return rows


def _failed(detail: TaskDetail, number: int | None, text: str, stored: dict[str, Any]) -> AttemptRow:
    began = _time(stored.get("began"))
    seconds = stored.get("seconds")
    is_last = number == len(detail.worker_ids)
    if began is None and number is not None:
        began = detail.last_attempted_at if is_last else detail.started_at if number == 1 else None
        if is_last:
            seconds = _between(began, detail.finished_at)
    worker, traceback = stored.get("worker"), stored.get("traceback")
    return AttemptRow(
        number=number,
        ended=_ended(stored),
        began=began,
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        worker=worker if isinstance(worker, str) else _worker(detail, number),
        error=one_line(text),
        traceback=traceback if isinstance(traceback, str) else None,
    )


def _ended(stored: dict[str, Any]) -> Ended:
    kind = stored.get("class")
    return _BY_CLASS.get(kind, "failed") if isinstance(kind, str) else "failed"


def timeline(detail: TaskDetail) -> list[Event]:
    """Return what happened to a task, and what will, in its order."""
    moments = [
        ("enqueued", detail.enqueued_at),
        ("due", detail.run_after if detail.status is Status.SCHEDULED else detail.asked_run_after),
        ("ready", detail.ready_at),
        ("cancel_requested", detail.cancel_requested_at),
        ("expires", None if detail.status in FINAL else detail.expires_at),
        ("finished", detail.finished_at),
    ]
    events = [Event(at, kind) for kind, at in moments if at is not None]
    for row in attempts(detail):
        if row.began is None:
            continue
        events.append(Event(row.began, "began", row.number, row.worker or ""))
        if row.seconds is not None and row.ended != "running":
            end = row.began + timedelta(seconds=row.seconds)
            events.append(Event(end, row.ended, row.number, row.error or ""))
    # What began and ended at once began first, and a task is finished after its last attempt.
    order = {"enqueued": -2, "ready": -1, "began": 0, "finished": 2}
    return sorted(events, key=lambda event: (event.at, order.get(event.kind, 1)))


def _stored(text: str) -> dict[str, Any]:
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):  # PostgreSQL accepts longer integers and deeper nesting
        return {}
    return stored if isinstance(stored, dict) else {}


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None


def _between(began: datetime | None, ended: datetime | None) -> float | None:
    return None if began is None or ended is None else max(0.0, (ended - began).total_seconds())


def _worker(detail: TaskDetail, number: int | None) -> str | None:
    if number is None:
        return None
    id = detail.worker_ids[number - 1]
    return detail.workers.get(id, str(id))
