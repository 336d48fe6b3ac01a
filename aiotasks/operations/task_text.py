"""Tasks for people: lists, one task, and what runs."""

from collections.abc import Sequence
from datetime import datetime

from django.utils import timezone

from ..rows import FINAL, Status
from .detail import AttemptRow, TaskDetail, attempts, timeline
from .running import Running, RunningRow, WorkerReport
from .tables import Column, Part, Table
from .tasks import Page, TaskRow
from .text import age

__all__ = ["detail_parts", "page_parts", "running_parts"]

# Seconds of a loop that is late or blocked from which on people are told.
LATE = 1.0

# Tasks that were looked at for a page from which on people are told how many.
WORTH_SAYING = 1000

STYLES = {"FAILED": "red", "RUNNING": "green", "SUCCESSFUL": "dim"}


def page_parts(page: Page, now: datetime) -> list[Part]:
    """Return the tasks of a page, and where it goes on."""
    if page.rows:
        columns = [
            Column("id"),
            Column("status", style=STYLES.get),
            Column("task", cut=2),
            Column("queue", cut=3),
            Column("when"),
            Column("attempts", right=True),
            Column("error", cut=1, keep_end=False),
        ]
        parts: list[Part] = [Table(columns, [_task(row, now) for row in page.rows])]
    else:
        parts = ["There is no such task." if page.next is None else "No such task so far."]
    notes = []
    if page.next is not None:
        looked = f"Looked at {page.looked_at:,} tasks. " if page.looked_at >= WORTH_SAYING else ""
        notes.append(f"{looked}Go on with --after {page.next}")
    if not page.complete:
        notes.append("More tasks have a keep_result than are sorted here, so some may be missing.")
    return [*parts, "\n".join(notes)] if notes else parts


def _task(row: TaskRow, now: datetime) -> list[str]:
    error = row.error or ""
    return [
        str(row.id),
        row.status,
        row.task_path,
        row.queue_name,
        _when(row, now),
        str(row.attempts),
        error.removeprefix("builtins."),
    ]


def _when(row: TaskRow, now: datetime) -> str:
    """When a task has reached its status, or is due."""
    if row.status is Status.SCHEDULED:
        return _ago(row.run_after, now)
    if row.status in FINAL:
        return _ago(row.finished_at, now)
    return _ago(row.last_attempted_at if row.status is Status.RUNNING else row.enqueued_at, now)


def _ago(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "-"
    seconds = (now - at).total_seconds()
    return f"{age(seconds)} ago" if seconds >= 0 else f"in {age(-seconds)}"


def detail_parts(detail: TaskDetail, *, arguments: bool, all_tracebacks: bool) -> list[Part]:
    """Return all that is known of a task. ``arguments``: with its arguments, result and metadata.
    ``all_tracebacks``: with that of each attempt, and not of the last one alone."""
    found = attempts(detail)
    parts: list[Part] = [Table([Column(""), Column("", cut=1, keep_end=False)], _facts(detail, arguments))]
    if found:
        columns = [
            Column("attempt", right=True),
            Column("ended", style=lambda cell: None if cell in ("succeeded", "running") else "red"),
            Column("began"),
            Column("took", right=True),
            Column("worker", cut=2),
            Column("error", cut=1, keep_end=False),
        ]
        notes = []
        if detail.errors_omitted:
            notes.append(f"{detail.errors_omitted:,} errors between the first and the last 20 were left out.")
        parts.append(Table(columns, [_attempt(row) for row in found], notes))
    events = [
        [_time(event.at), event.kind.replace("_", " "), str(event.attempt or ""), event.text]
        for event in timeline(detail)
    ]
    names = [Column("time"), Column("event"), Column("attempt", right=True)]
    parts.append(Table([*names, Column("", cut=1, keep_end=False)], events))
    with_text = [row for row in found if row.traceback]
    for row in with_text if all_tracebacks else with_text[-1:]:
        which = "Not started" if row.number is None else f"Attempt {row.number}"
        parts.append(f"{which}:\n{str(row.traceback).rstrip()}")
    return parts


def _facts(detail: TaskDetail, arguments: bool) -> list[list[str]]:
    values: dict[str, object] = {
        "id": detail.id,
        "task": detail.task_path,
        "status": detail.status,
        "queue": detail.queue_name,
        "priority": detail.priority,
        "lane": detail.lane,
        "attempts": len(detail.worker_ids),
        "crashes": detail.crashes or None,
        "snoozes": detail.snoozes or None,
        "unique key": detail.unique_key,
        "former key": detail.former_key,
        "limit": detail.limit_key,
        "keep result": None if detail.keep_result is None else age(detail.keep_result),
    }
    for name in ("args", "kwargs", "return_value", "metadata"):
        if (text := getattr(detail, name)) is not None:
            shown = text if arguments else f"{len(text.encode()):,} bytes (--arguments shows them)"
            values[name.replace("_", " ")] = shown
    return [[name, str(value)] for name, value in values.items() if value is not None]


def _attempt(row: AttemptRow) -> list[str]:
    return [
        "-" if row.number is None else str(row.number),
        row.ended,
        "-" if row.began is None else _time(row.began),
        "-" if row.seconds is None else f"{row.seconds:.3f} s",
        row.worker or "-",
        (row.error or "").removeprefix("builtins."),
    ]


def _time(at: datetime) -> str:
    return timezone.localtime(at).isoformat(sep=" ", timespec="milliseconds")


def running_parts(running: Running) -> list[Part]:
    """Return the tasks that run, those that outlast their time, and the workers that need a look."""
    parts: list[Part] = ["No task is running."]
    if running.tasks:
        columns = [
            Column("id"),
            Column("task", cut=1),
            Column("queue", cut=3),
            Column("worker", cut=2),
            Column("for", right=True),
            Column("limit", right=True),
            Column("", style=lambda cell: "red" if cell else None),
        ]
        notes = [f"There are more than these {len(running.tasks):,}."] if running.capped else []
        parts = [Table(columns, [_running(row) for row in running.tasks], notes)]
    if running.outlasting:
        columns = [
            Column("outlasts its time"),
            Column("task", cut=1),
            Column("lane"),
            Column("worker", cut=2),
            Column("since", right=True),
        ]
        rows = [
            [str(one.id or "-"), one.task_path, one.lane, one.worker, age(one.seconds)]
            for one in running.outlasting
        ]
        parts.append(Table(columns, rows))
    if troubles := [line for each in running.workers for line in _troubles(each)]:
        parts.append("\n".join(troubles))
    return parts


def _running(row: RunningRow) -> list[str]:
    said = [
        "its worker has no lease" if row.lost else "",
        "" if row.past is None else f"over its time by {age(row.past)}",
        "asked to end" if row.cancel_requested else "",
        "" if row.known else "cannot be imported here",
    ]
    return [
        str(row.id),
        row.task_path,
        row.queue_name,
        row.worker or "-",
        "-" if row.seconds is None else age(row.seconds),
        "-" if row.timeout is None else age(row.timeout),
        ", ".join(filter(None, said)),
    ]


def _troubles(worker: WorkerReport) -> Sequence[str]:
    loop, said = f"The event loop of worker {worker.worker!r}", []
    if worker.blocked is not None:
        by = "" if worker.blocked_by is None else f" by {worker.blocked_by!r}"
        said.append(f"{loop} has been blocked for {age(worker.blocked)}{by}.")
    elif worker.lag is not None and worker.lag >= LATE:
        said.append(f"{loop} was {worker.lag:.1f} s late within the last minute.")
    if worker.stalled is not None:
        waited = age(worker.stalled)
        said.append(f"Worker {worker.worker!r} has claimed nothing for {waited}, though tasks wait for it.")
    return said
