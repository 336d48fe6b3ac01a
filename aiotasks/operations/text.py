"""A backend's status and limits for people: texts and tables."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil

from .limit_statuses import LimitStatus
from .pauses import Pause
from .schedule_states import ScheduleState
from .status import FleetUse, LaneUse, Queue, Running, Snapshot, Status, WorkerRow
from .tables import Column, Part, Table, printable, shortened

__all__ = ["age", "counted", "limit_parts", "schedule_troubles", "status_parts"]

# Characters of when a schedule ticks; longer words give way to its expression.
LONGEST_WORDS = 24

# How schedules and workers look that need somebody.
STYLES = {"failing": "red", "paused": "yellow", "stopped": "yellow"}


def status_parts(status: Status) -> list[Part]:
    """Return the queues, the workers with their totals, and the holder of the oldest snapshot."""
    parts: list[Part] = [f"Backend {status.backend!r}, DATABASES[{status.database!r}]"]
    if status.queues:
        parts.append(_queues(status.queues))
        if status.queues_capped:
            parts.append("There are more queues than these.")
    else:
        parts.append("No task is waiting or running.")
    if status.pauses:
        columns = [Column("paused"), Column("name"), _number("since"), Column("until"), Column("reason")]
        parts.append(Table(columns, [_pause(pause) for pause in status.pauses]))
    if status.standing:
        columns = [Column("limit"), _number("waiting"), _number("oldest"), Column("blocked")]
        parts.append(Table(columns, [_standing(limit) for limit in status.standing]))
    if status.schedules:
        parts.append(_schedules(status))
    parts += schedule_troubles(status.workers)
    parts.append(
        f"Failed: {status.failed_in_hour} in the last hour, {status.failed_in_day} in the last day\n"
        f"Oldest running task: {_running(status.oldest_running)}"
    )
    if status.workers:
        parts.append(f"Live workers: {_fleet(status.fleet)}")
        columns = [
            Column("worker", cut=2),
            Column("queues", cut=1),
            Column("lease", style=lambda cell: "red" if cell.startswith("expired") else None),
            _number("loop"),
            _number("threads"),
            Column("wake-ups"),
            Column("version"),
        ]
        parts.append(Table(columns, [_worker(worker) for worker in status.workers]))
    else:
        parts.append("No worker.")
    snapshot = f"Oldest snapshot: {_snapshot(status.oldest_snapshot)}"
    if not status.all_snapshots_seen:
        snapshot += ", as far as this role may see (members of pg_read_all_stats see all)"
    return [*parts, snapshot]


def _number(name: str) -> Column:
    return Column(name, right=True)


def _queues(queues: Sequence[Queue]) -> Table:
    names = ["ready", "oldest", "scheduled", "running", "workers"]
    rows = [
        [
            queue.name,
            str(queue.ready),
            "-" if queue.oldest_ready is None else age(queue.oldest_ready),
            str(queue.scheduled),
            str(queue.running),
            str(queue.workers),
        ]
        for queue in queues
    ]
    if any(queue.limited.number for queue in queues):
        names.insert(1, "limited")
        for row, queue in zip(rows, queues, strict=True):
            row.insert(2, str(queue.limited))
    return Table([Column("queue"), *map(_number, names)], rows)


def limit_parts(limits: Sequence[LimitStatus]) -> list[Part]:
    """Return what applies to limits and keys, and which of them start nothing now."""
    if not limits:
        return ["There are no limits."]
    columns = [
        Column("limit"),
        _number("waiting"),
        _number("oldest"),
        _number("running"),
        _number("concurrency"),
        Column("rate"),
        _number("burst"),
        _number("weight"),
        Column("blocked"),
    ]
    notes = ["* Set by an operator."] if any(limit.changed for limit in limits) else []
    return [Table(columns, [_limit(limit) for limit in limits], notes)]


def age(seconds: float) -> str:
    """Return seconds in the unit that suits them, rounded down: ``42 s``, ``3 min``, ``5 h``, ``12 d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{int(seconds)} s"


def _pause(pause: Pause) -> list[str]:
    until = "resumed" if pause.until is None else pause.until.isoformat(sep=" ", timespec="seconds")
    return [pause.kind, printable(pause.name), age(pause.age), until, printable(pause.reason)]


def _limit(limit: LimitStatus) -> list[str]:
    def number(name: str) -> str:
        value = getattr(limit, name)
        text = "-" if value is None else f"{value:,}" if isinstance(value, int) else value
        return f"{text}*" if name in limit.changed else text

    places = "in order" if limit.ordered else number("concurrency")
    return [
        _name(limit),
        str(limit.waiting),
        _oldest(limit),
        _running_of(limit),
        places,
        number("rate"),
        "-" if limit.rate is None and "burst" not in limit.changed else number("burst"),
        number("weight"),
        _why(limit),
    ]


def _standing(limit: LimitStatus) -> list[str]:
    return [_name(limit), str(limit.waiting), _oldest(limit), _why(limit)]


def _name(limit: LimitStatus) -> str:
    return limit.name if limit.key is None else f"{limit.name}:{printable(limit.key)}"


def _running_of(limit: LimitStatus) -> str:
    """A limit's own row doesn't count what its keys run, so a zero would read as if nothing ran."""
    return "-" if limit.key is None and not limit.running.number else str(limit.running)


def _oldest(limit: LimitStatus) -> str:
    return "-" if limit.oldest is None else age(limit.oldest)


def _why(limit: LimitStatus) -> str:
    match limit.stands:
        case None:
            return ""
        case "paused":
            return f"paused: {printable(limit.pause_reason)}" if limit.pause_reason else "paused"
        case "stopped":
            return f"stopped by FAILED task {limit.stopped_by}"
        case "retry":
            return "its next task waits for a retry"
        case "closed":
            return f"closed for {age(ceil(limit.opens or 0.0))}"
        case "full":
            return "at its limit"
        case "rate":
            return f"next start in {age(ceil(limit.opens or 0.0))}"
        case "unknown":
            return "not declared by the code here"


def _schedules(status: Status) -> Table:
    columns = [
        Column("schedule", cut=1),
        Column("when"),
        _number("next"),
        _number("last"),
        _number("skipped"),
        Column("state", style=STYLES.get),
    ]
    rows = [_schedule(schedule, status.now) for schedule in status.schedules]
    lines = []
    for schedule in status.schedules:
        if schedule.state == "failing":
            lines.append(f"{printable(schedule.name)} fails: {printable(schedule.error or '')}")
        if schedule.holder is not None and schedule.skipped_tick == schedule.last_tick is not None:
            lines.append(f"{printable(schedule.name)} leaves out ticks because of task {schedule.holder}.")
    if status.schedules_in_all > len(status.schedules):
        lines.append(f"{counted(status.schedules_in_all, 'schedule')} in all: `aiotasks schedules`.")
    return Table(columns, rows, lines)


def schedule_troubles(workers: Sequence[WorkerRow], *, told: str = "") -> list[str]:
    """Return what keeps live workers from declaring schedules of their code: a sentence for each reason.

    told: what people have been told already.
    """
    found: dict[str, list[str]] = {}
    for worker in workers:
        if worker.alive:
            for trouble in (each for each in worker.schedule_troubles if each not in told):
                found.setdefault(trouble, []).append(f"{worker.host}:{worker.pid}")
    return [
        f"Schedules aren't declared by {printable(names[0])}"
        f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {printable(trouble)}"
        for trouble, names in found.items()
    ]


def _schedule(schedule: ScheduleState, now: datetime) -> list[str]:
    when = schedule.words if len(schedule.words) <= LONGEST_WORDS else schedule.expression
    wait = (schedule.next[0] - now).total_seconds() if schedule.next else None
    passed = None if schedule.last_tick is None else (now - schedule.last_tick).total_seconds()
    return [
        printable(schedule.name),
        printable(shortened(when, LONGEST_WORDS)),
        "-" if wait is None else f"in {age(wait)}" if wait >= 0 else f"{age(-wait)} late",
        "-" if passed is None else f"{age(max(0.0, passed))} ago",
        f"{schedule.skipped:,}",
        schedule.state,
    ]


def _fleet(fleet: FleetUse) -> str:
    if not fleet.workers:
        return "none"
    wake_ups = {
        "LISTEN": fleet.listening,
        "LISTEN (all)": fleet.listening_to_all,
        "polling": fleet.polling,
        "unknown": fleet.unknown,
    }
    loop, thread = fleet.loop, fleet.thread
    parts = [
        f"{fleet.workers:,} on {counted(fleet.hosts, 'host')}",
        f"loop {loop.running}/{loop.slots:,}, threads {thread.running}/{thread.slots:,}"
        + _stuck(fleet.stuck_threads),
        f"wake-ups {_numbers(wake_ups)}",
    ]
    if len(fleet.versions) > 1:
        parts.append(f"versions {_numbers(fleet.versions)}")
    return "; ".join(parts)


def _numbers(of: Mapping[str, int]) -> str:
    return ", ".join(f"{printable(name)}: {number:,}" for name, number in of.items() if number)


def _worker(worker: WorkerRow) -> list[str]:
    return [
        printable(f"{worker.host}:{worker.pid}"),
        printable(", ".join(_queue(name, worker) for name in worker.queues)) or "any",
        f"{age(worker.lease)} left" if worker.alive else f"expired {age(-worker.lease)} ago",
        _lane(worker.loop),
        _lane(worker.thread) + _stuck(worker.stuck_threads),
        _wake_up(worker),
        printable(worker.version),
    ]


def _queue(name: str, worker: WorkerRow) -> str:
    """As ``--queue`` takes it."""
    if (limit := worker.queue_limits.get(name)) is not None:
        return f"{name}={limit}"
    return f"{name}=" if "=" in name else name


def _wake_up(worker: WorkerRow) -> str:
    match worker.listening:
        case True:
            return "LISTEN" if worker.has_channel else "LISTEN (all)"
        case False:
            return "polling"
    return "stopping" if worker.stops else "unknown"


def _lane(lane: LaneUse) -> str:
    return f"{lane.running:,}/{lane.slots:,}"


def _stuck(threads: int) -> str:
    return f" ({threads:,} stuck)" if threads else ""


def _running(task: Running | None) -> str:
    if task is None:
        return "none"
    where = "on a worker that has gone" if task.worker is None else f"on {printable(task.worker)}"
    return f"{printable(task.task_path)}, {age(task.seconds)}, {where} ({task.id})"


def _snapshot(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "none is held"
    since = "" if snapshot.seconds is None else f"{age(snapshot.seconds)}, "
    return (
        f"{since}{counted(snapshot.transactions, 'transaction')} ({snapshot.kind} {printable(snapshot.name)})"
    )


def counted(number: int, noun: str) -> str:
    """Return ``1 error``, ``2 errors``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
