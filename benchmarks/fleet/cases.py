"""What is measured. Each case returns its figures by the name of their column."""

import json
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from ..contenders.common import percentile
from .enqueuer import Order
from .processes import Enqueuers, Fleet, FleetWorker, wait_until
from .server import ENQUEUERS, WORKERS, MeasuredServer, Usage

__all__ = ["burst", "drain", "fault", "fill", "idle", "killed", "stopped", "trickle"]

# Seconds after the last task within which workers still claim because of it.
SETTLE = 1.2

# Seconds for all tasks of a case to end.
TIMEOUT = 120.0

# Tasks of a burst, as many at a time as 20 workers have slots three times over.
BURST = 600
BURST_SLEEP = 0.2
BURST_TIMES = 3

# Seconds between two faults, and for which a worker is stopped.
FAULT_INTERVAL = 1.5
STOP_TIME = 1.0

# Seconds for which the workers' costs without a task are measured, before a drain.
REST = 4.0

# A task that outlasts every case.
LONG = 3600.0

# Any worker that serves the queue claims on this.
BROADCAST = ("aiotasks", json.dumps(["default", "default", None]))

type Figures = Mapping[str, float | str]


def idle(server: MeasuredServer, fleet: Fleet, seconds: float) -> Figures:
    """What workers cost that have nothing to do, a second."""
    before, workers = server.usage(), fleet.cpu()
    time.sleep(seconds)
    usage = server.usage().since(before)
    by_kind = [f"{kind} {number / seconds:.1f}" for (_, kind), number in usage.calls.most_common(6)]
    return {
        "statements/s": usage.calls.total() / seconds,
        "database CPU ms/s": usage.cpu / seconds * 1000,
        "workers' CPU ms/s": (fleet.cpu() - workers) / seconds * 1000,
        "most of them": ", ".join(by_kind),
    }


def trickle(
    server: MeasuredServer,
    fleet: Fleet,
    enqueuers: Enqueuers,
    *,
    rate: float,
    processes: int,
    seconds: float,
    task: str = "now",
) -> Figures:
    """Tasks that come one by one."""
    before, workers = server.usage(), fleet.cpu()
    enqueuers.at_rate(rate, seconds, processes=processes, task=task)
    called = enqueuers.answer()
    waits = list(_waits(server, called).values())
    time.sleep(SETTLE)
    return {
        **_latencies(waits),
        **_costs(server.usage().since(before), len(called)),
        "workers' CPU s/1,000": (fleet.cpu() - workers) / len(called) * 1000,
    }


def burst(server: MeasuredServer, enqueuers: Enqueuers, *, sleep: float) -> Figures:
    """BURST tasks at once from one process, each of which sleeps for so long; medians of several bursts."""
    makespans, p99s, usages = [], [], []
    for _ in range(BURST_TIMES):
        before = server.usage()
        enqueuers.order([Order("started", (sleep,), BURST)])
        called = enqueuers.answer()
        waits = _waits(server, called)
        began = min(called.values())
        makespans.append(max(called[id] + wait for id, wait in waits.items()) + sleep - began)
        p99s.append(percentile(list(waits.values()), 99))
        time.sleep(SETTLE)
        usages.append(server.usage().since(before))
    return {
        "makespan ms": statistics.median(makespans) * 1000,
        "p99 ms": statistics.median(p99s) * 1000,
        "claims/task": statistics.median(usage.claims() for usage in usages) / BURST,
        "database CPU s/1,000": statistics.median(usage.cpu for usage in usages) / BURST * 1000,
    }


def fault(
    server: MeasuredServer,
    enqueuers: Enqueuers,
    *,
    rate: float,
    seconds: float,
    happen: Callable[[], None] | None = None,
    task: str = "now",
) -> Figures:
    """Tasks that come one by one, while ``happen`` is called every FAULT_INTERVAL seconds.

    The longest waits until a worker has claimed the task, by the database's clock: what happens to the task
    in a worker that was stopped or killed afterwards isn't the matter here.
    """
    before = server.usage()
    enqueuers.at_rate(rate, seconds, processes=1, task=task)
    end = time.monotonic() + seconds
    while happen is not None and time.monotonic() < end - FAULT_INTERVAL:
        time.sleep(FAULT_INTERVAL)
        happen()
    called = enqueuers.answer()
    usage = server.usage().since(before)
    ids = [UUID(id) for id in called]

    def are_claimed() -> bool:
        return not _number(
            server, "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s) AND started_at IS NULL", ids
        )

    wait_until(are_claimed, TIMEOUT)
    rows = server.connection.execute(
        "SELECT extract(epoch FROM started_at - ready_at)::float8 FROM aiotasks_task WHERE id = ANY(%s)",
        [ids],
    ).fetchall()
    waits = sorted((seconds for (seconds,) in rows), reverse=True)
    return {
        "p50 ms": percentile(waits, 50) * 1000,
        "p99 ms": percentile(waits, 99) * 1000,
        "longest ms": waits[0] * 1000,
        "five longest ms": ", ".join(f"{wait * 1000:.0f}" for wait in waits[:5]),
        **_costs(usage, len(called)),
    }


def killed(fleet: Fleet, chosen: random.Random) -> None:
    """SIGKILL a worker; another is started in its place."""
    worker = chosen.choice(fleet.workers)
    fleet.workers.remove(worker)
    worker.kill()
    fleet.start()


def stopped(fleet: Fleet, chosen: random.Random) -> None:
    """Stop a worker for a while."""
    worker = chosen.choice(fleet.workers)
    worker.send(signal.SIGSTOP)
    time.sleep(STOP_TIME)
    worker.send(signal.SIGCONT)


def fill(
    server: MeasuredServer,
    enqueuers: Enqueuers,
    workers: Sequence[FleetWorker],
    others: Sequence[FleetWorker],
) -> None:
    """Fill ten slots of each of ``workers`` with long tasks; ``others`` are stopped meanwhile."""
    for worker in others:
        worker.send(signal.SIGSTOP)
    count = 10 * len(workers)
    enqueuers.order([Order("sleep", (LONG,), count)])
    ids = [UUID(id) for id in enqueuers.answer()]

    def are_running() -> bool:
        server.connection.execute("SELECT pg_notify(%s, %s)", BROADCAST)
        running = _number(
            server, "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s) AND status = 'RUNNING'", ids
        )
        return running == count

    wait_until(are_running, TIMEOUT)
    for worker in others:
        worker.send(signal.SIGCONT)


def drain(server: MeasuredServer, fleet: Fleet, count: int) -> Figures:
    """No-ops that all become visible at once.

    A drain before it isn't measured, because after TRUNCATE all sessions plan their statements again.
    ``idle`` is what the workers would have cost in that time without a task.
    """
    server.connection.execute("TRUNCATE aiotasks_task")
    _insert(server, count // 4)
    _wait_until_finished(server)
    resting = server.usage().cpu
    time.sleep(REST)
    resting = (server.usage().cpu - resting) / REST
    with server.connection.transaction():
        _insert(server, count)
        server.connection.execute("CHECKPOINT")
        before, workers = server.usage(), fleet.cpu()
    began = time.monotonic()
    _wait_until_finished(server)
    seconds = time.monotonic() - began
    usage = server.usage().since(before)
    if _number(server, "SELECT max(cardinality(worker_ids)) FROM aiotasks_task") != 1:
        raise RuntimeError("Tasks were run more than once.")

    def microseconds(kind: str) -> float:
        return usage.seconds[WORKERS, kind] / count * 1e6

    return {
        "database CPU µs/task": usage.cpu / count * 1e6,
        "idle": resting * seconds / count * 1e6,
        "workers' CPU µs/task": (fleet.cpu() - workers) / count * 1e6,
        "tasks/s": count / seconds,
        "tasks/claim": usage.rows[WORKERS, "claim_jobs"] / max(1, usage.claims()),
        "tasks/finish": count / max(1, usage.calls[WORKERS, "finish_jobs"]),
        "claiming µs/task": microseconds("claim_jobs"),
        "finishing µs/task": microseconds("finish_jobs"),
    }


def _insert(server: MeasuredServer, count: int) -> None:
    """Add no-ops, and wake all workers."""
    server.connection.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at
        )
        SELECT
            uuidv7(), 'default', 'default', 'benchmarks.tasks.noop', 'loop', 0, 'READY', '[]', '{}', '{}',
            '{}', 0, now(), clock_timestamp()
        FROM generate_series(1, %s)
        """,
        [count],
    )
    server.connection.execute("SELECT pg_notify(%s, %s)", BROADCAST)


def _wait_until_finished(server: MeasuredServer) -> None:
    wait_until(lambda: _unfinished(server) == 0, TIMEOUT)


def _unfinished(server: MeasuredServer) -> int:
    """Return how many tasks aren't finished, by a scan of the table, because index entries are dead here."""
    return _number(
        server, "SELECT count(*) FROM aiotasks_task WHERE finished_at IS NULL AND run_after IS NULL"
    )


def _number(server: MeasuredServer, sql: str, *arguments: object) -> int:
    (number,) = server.connection.execute(sql, list(arguments)).fetchone() or (0,)
    return int(number)


def _waits(server: MeasuredServer, called: Mapping[str, float]) -> dict[str, float]:
    """Wait until all these tasks have ended; returns the seconds from the call to the body, by task id."""
    ids = [UUID(id) for id in called]
    done = (
        "SELECT id::text, return_value::text FROM aiotasks_task WHERE id = ANY(%s) AND status = 'SUCCESSFUL'"
    )

    def have_ended() -> bool:
        return (
            _number(
                server, "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s) AND finished_at IS NULL", ids
            )
            == 0
        )

    wait_until(have_ended, TIMEOUT)
    rows = server.connection.execute(done, [ids]).fetchall()
    if len(rows) != len(called):
        raise RuntimeError(f"{len(rows)} of {len(called)} tasks have succeeded.")
    return {id: float(value) - called[id] for id, value in rows}


def _latencies(waits: Sequence[float]) -> dict[str, float]:
    return {
        "p50 ms": percentile(waits, 50) * 1000,
        "p99 ms": percentile(waits, 99) * 1000,
        "longest ms": max(waits, default=math.nan) * 1000,
    }


def _costs(usage: Usage, count: int) -> dict[str, float]:
    """What a task has cost, and which statements."""
    return {
        "claims/task": usage.claims() / count,
        "NOTIFYs/task": usage.notified[ENQUEUERS] / count,
        "database CPU s/1,000": usage.cpu / count * 1000,
        "statements/task": usage.calls.total() / count,
        "finishes/task": usage.calls[WORKERS, "finish_jobs"] / count,
        "inserts/task": sum(
            number for (role, kind), number in usage.calls.items() if role == ENQUEUERS and "insert" in kind
        )
        / count,
        "workers' NOTIFYs/task": usage.notified[WORKERS] / count,
    }
