"""The run of tasks that expire."""

import signal
import time
from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

from tests.worker import tasks as bodies
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["expiry"]

LEASE = 2.0
EXPIRED = "aiotasks.exceptions.TaskExpired"
WORKER_LOST = "aiotasks.exceptions.WorkerLost"

# Each claim that comes too late, also of a task that goes back: by the time of the claim's statement.
_AUDIT = """
    CREATE TABLE started_late (task_id uuid, seconds double precision);
    CREATE FUNCTION note_late_start() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO started_late
        VALUES (NEW.id, extract(epoch FROM statement_timestamp() - NEW.expires_at));
        RETURN NULL;
    END $$;
    CREATE TRIGGER starts_in_time AFTER UPDATE ON aiotasks_task FOR EACH ROW
    WHEN (
        OLD.status <> 'RUNNING' AND NEW.status = 'RUNNING' AND NEW.expires_at <= statement_timestamp()
    ) EXECUTE FUNCTION note_late_start();
"""
_NO_AUDIT = "DROP TABLE started_late; DROP FUNCTION note_late_start CASCADE"


def expiry(
    arena: Arena, rng: Random, report: Report, *, tasks: int, kills: int, pauses: int, restarts: int
) -> None:
    """Tasks that expire before the workers start, while they are killed, held or without their server, or
    hours later."""
    report.load = (
        f"{tasks} tasks that expire, 3 workers, {kills} kills, {pauses} SIGSTOPs of about a lease, "
        f"{restarts} restarts"
    )
    arena.database.rows(_AUDIT)
    try:
        _expiry(arena, rng, report, tasks, ["kill"] * kills + ["pause"] * pauses + ["restart"] * restarts)
    finally:
        arena.database.rows(_NO_AUDIT)


def _expiry(arena: Arena, rng: Random, report: Report, tasks: int, faults: list[str]) -> None:
    rng.shuffle(faults)
    wave = tasks // (len(faults) + 2)
    too_late = _enqueue(arena, rng, wave, (0.001, 0.1))
    in_time = _enqueue(arena, rng, wave, (3600, 7200))
    ids = too_late + in_time
    waiting = (
        "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s::uuid[]) AND expires_at > clock_timestamp()"
    )
    wait_until(lambda: arena.database.value(waiting, too_late) == 0, TIMEOUT)
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 1000}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    for fault in faults:
        before = len(ids)
        ids += _enqueue(arena, rng, wave, (0.001, 3.0))
        if not arena.wait_until_finished(before + rng.randrange(wave)):
            break  # what is missing is counted as lost
        victim = rng.choice(workers)
        match fault:
            case "kill":
                arena.kill(victim)
                workers[workers.index(victim)] = arena.start(*arguments, options=options)
            case "pause":
                victim.send(signal.SIGSTOP)
                time.sleep(rng.uniform(0.5, 1.5) * LEASE)  # shorter and longer than the lease
                victim.send(signal.SIGCONT)
            case "restart":
                arena.restart()
    arena.wait_until_finished(len(ids))
    alive = sum(worker.is_alive() for worker in workers)
    found = _judge(arena, ids, too_late, in_time)
    report.figure(tasks=len(ids), **found, workers_alive=alive)
    for wrong in ("lost", "otherwise_failed", "overwrites", "started_late", "wrongly_run", "wrongly_expired"):
        report.expect(found[wrong] == 0, f"{found[wrong]} {wrong.replace('_', ' ')}")
    report.expect(alive == 3, "a worker has ended")


def _enqueue(arena: Arena, rng: Random, count: int, expires: tuple[float, float]) -> list[str]:
    """Tasks of both lanes, in groups with an ``expires`` between these; one in five is sync."""
    ids: list[str] = []
    while len(ids) < count:
        task = bodies.work_sync if rng.random() < 0.2 else bodies.work
        calls = [(round(rng.uniform(0.0, 0.05), 3),) for _ in range(min(count - len(ids), 20))]
        ids += arena.enqueue(task.using(expires=round(rng.uniform(*expires), 3)), calls)
    return ids


def _judge(
    arena: Arena, ids: Sequence[str], too_late: Sequence[str], in_time: Sequence[str]
) -> dict[str, Any]:
    """Hold rows and ledger against each other.

    lost: neither SUCCESSFUL by a run that has come to its end, nor FAILED. otherwise_failed: FAILED by other
    errors than one TaskExpired after crashes. wrongly_run, wrongly_expired: of those whose fate was certain.
    """
    rows = {
        row.id: row
        for row in arena.database.rows(
            "SELECT id, status, crashes, last_attempted_at > expires_at AS is_late,"
            " ARRAY(SELECT error->>'class' FROM unnest(errors) AS error) AS errors FROM aiotasks_task"
        )
    }
    failed = {id for id in ids if UUID(id) in rows and rows[UUID(id)].status == "FAILED"}
    judged = arena.judge([id for id in ids if id not in failed])
    ended = {row.task_id for row in arena.ledger.rows("SELECT task_id FROM ledger WHERE event = 'end'")}
    started = {row.task_id for row in arena.ledger.rows("SELECT task_id FROM ledger WHERE event = 'start'")}
    return {
        "succeeded": len(ids) - len(failed) - judged.lost,
        "expired": len(failed),
        "after_a_crash": sum(rows[UUID(id)].crashes > 0 for id in failed),
        "though_run": sum(UUID(id) in ended for id in failed),
        "lost": judged.lost,
        "otherwise_failed": sum(
            rows[UUID(id)].errors != [*[WORKER_LOST] * rows[UUID(id)].crashes, EXPIRED] for id in failed
        ),
        "overwrites": judged.overwrites,
        "started_late": int(arena.database.value("SELECT count(*) FROM started_late"))
        + sum(bool(row.is_late) for row in rows.values()),
        "wrongly_run": sum(UUID(id) in started for id in too_late),
        "wrongly_expired": len(failed & set(in_time)),
    }
