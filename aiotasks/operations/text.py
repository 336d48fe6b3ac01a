"""Status and findings for people: plain text in columns, for any terminal."""

from collections.abc import Sequence

from .findings import Finding
from .status import LaneUse, Running, Snapshot, Status, WorkerRow

__all__ = ["age", "findings_as_text", "status_as_text"]


def status_as_text(status: Status) -> str:
    """A table of the queues, one of the workers, and who holds the oldest snapshot."""
    parts = [f"Backend {status.backend!r}, DATABASES[{status.database!r}]"]
    if status.queues:
        rows = [
            [
                _shown(queue.name),
                str(queue.ready),
                "-" if queue.oldest_ready is None else age(queue.oldest_ready),
                str(queue.scheduled),
                str(queue.running),
                str(queue.workers),
            ]
            for queue in status.queues
        ]
        parts.append(_table(["queue", ">ready", ">oldest", ">scheduled", ">running", ">workers"], rows))
        if status.queues_capped:
            parts.append("There are more queues than these.")
    else:
        parts.append("No task is waiting or running.")
    parts.append(
        f"Failed: {status.failed_in_hour} in the last hour, {status.failed_in_day} in the last day\n"
        f"Oldest running task: {_running(status.oldest_running)}"
    )
    if status.workers:
        header = ["worker", "queues", "lease", ">loop", ">threads", "wake-ups", "version", "id"]
        parts.append(_table(header, [_worker(worker) for worker in status.workers]))
    else:
        parts.append("No worker.")
    parts.append(f"Oldest snapshot: {_snapshot(status.oldest_snapshot)}")
    if not status.all_snapshots_seen:
        parts[-1] += ", as far as this role may see (members of pg_read_all_stats see all)"
    return "\n\n".join(parts)


def findings_as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, its remedy below it, and the sum at the end."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<11}  {finding.name:<11}  {_shown(finding.message)}")
        if finding.remedy:
            lines.append(f"{'':<26}-> {_shown(finding.remedy)}")
    verdicts = [finding.verdict for finding in findings]
    lines += [
        "",
        f"{_number(verdicts.count('error'), 'error')}, {_number(verdicts.count('warning'), 'warning')}.",
    ]
    return "\n".join(lines)


def age(seconds: float) -> str:
    """Seconds in the unit that suits them, rounded down: ``42 s``, ``3 min``, ``5 h``, ``12 d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{int(seconds)} s"


def _worker(worker: WorkerRow) -> list[str]:
    return [
        _shown(f"{worker.host}:{worker.pid}"),
        _shown(", ".join(worker.queues)) or "any",
        f"{age(worker.lease)} left" if worker.alive else f"expired {age(-worker.lease)} ago",
        _lane(worker.loop),
        _lane(worker.thread),
        {True: "LISTEN", False: "polling", None: "unknown"}[worker.listening],
        _shown(worker.version),
        str(worker.id),
    ]


def _lane(lane: LaneUse) -> str:
    return f"{lane.running:,}/{lane.slots:,}"


def _running(task: Running | None) -> str:
    if task is None:
        return "none"
    where = "on a worker that has gone" if task.worker is None else f"on {_shown(task.worker)}"
    return f"{_shown(task.task_path)}, {age(task.seconds)}, {where} ({task.id})"


def _snapshot(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "none is held"
    since = "" if snapshot.seconds is None else f"{age(snapshot.seconds)}, "
    return f"{since}{_number(snapshot.transactions, 'transaction')} ({snapshot.kind} {_shown(snapshot.name)})"


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(text: str) -> str:
    """Text from the table or the server, which may have been put there to play tricks on a terminal."""
    return text if text.isprintable() else repr(text)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a heading that begins with ``>`` is of numbers."""
    names = [name.removeprefix(">") for name in header]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = []
    for row in [names, *rows]:
        cells = (
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
