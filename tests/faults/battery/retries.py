"""Runs of tasks that fail and are tried again."""

from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

from tests.worker import retry_tasks as bodies

from .arena import Arena
from .report import Report

__all__ = ["retry"]

LEASE = 2.0
WORKER_LOST = "aiotasks.exceptions.WorkerLost"


def retry(arena: Arena, rng: Random, report: Report, *, tasks: int, kills: int, restarts: int) -> None:
    """Tasks that fail at random, while workers are killed and the server restarts; three workers."""
    report.load = f"{tasks} tasks that fail at random, 3 workers, {kills} kills, {restarts} restarts"
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 100}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    threads = tasks // 5
    ids = arena.enqueue(bodies.fails_at_random, [(rng.random(),) for _ in range(tasks - threads)])
    ids += arena.enqueue(bodies.fails_at_random_sync, [(rng.random(),) for _ in range(threads)])
    points = sorted(rng.sample(range(tasks * 9 // 10), kills + restarts))
    restarts_at = set(rng.sample(points, restarts))
    for point in points:
        if not arena.wait_until_finished(point):
            break  # what is missing is counted as lost
        if point in restarts_at:
            arena.restart()
            continue
        victim = rng.choice(workers)
        arena.kill(victim)
        workers[workers.index(victim)] = arena.start(*arguments, options=options)
    arena.wait_until_finished(tasks)
    found = _judge(arena, ids)
    report.figure(**found)
    for wrong in ("lost", "overwrites", "uncounted", "beyond_their_attempts", "without_a_run"):
        report.expect(found[wrong] == 0, f"{found[wrong]} {wrong.replace('_', ' ')}")
    report.expect(found["retries"] > tasks / 2, f"only {found['retries']} retries")
    report.expect(all(worker.is_alive() for worker in workers), "a worker has ended")


def _judge(arena: Arena, ids: Sequence[str]) -> dict[str, Any]:
    """Hold the rows against themselves and the ledger.

    uncounted: rows whose attempts aren't their failures, crashes and success. without_a_run: rows with more
    failures than runs that have failed, or a success that no run has had.
    """
    rows = {
        row.id: row
        for row in arena.database.rows(
            "SELECT id, status, claim_id, cardinality(worker_ids) AS attempts, crashes, failures,"
            " ARRAY(SELECT error->>'class' FROM unnest(errors) AS error) AS errors FROM aiotasks_task"
        )
    }
    failed: dict[UUID, set[UUID]] = {}
    ended: dict[UUID, set[UUID]] = {}
    for entry in arena.ledger.rows("SELECT * FROM ledger WHERE event IN ('fail', 'end')"):
        runs = failed if entry.event == "fail" else ended
        runs.setdefault(entry.task_id, set()).add(entry.claim_id)
    lost = uncounted = beyond = without = retries = crashes = 0
    for id in map(UUID, ids):
        row = rows.get(id)
        if row is None or row.status not in ("SUCCESSFUL", "FAILED"):
            lost += 1
            continue
        failures = len(row.errors) - row.errors.count(WORKER_LOST)
        succeeded = row.status == "SUCCESSFUL"
        retried = failures - (not succeeded)
        retries += retried
        crashes += row.crashes
        uncounted += (
            row.attempts != len(row.errors) + succeeded
            or row.crashes != row.errors.count(WORKER_LOST)
            or (row.failures or 0) != retried
        )
        beyond += failures > bodies.RANDOM_ATTEMPTS or (not succeeded and failures != bodies.RANDOM_ATTEMPTS)
        without += failures > len(failed.get(id, ())) or (succeeded and row.claim_id not in ended.get(id, ()))
    return {
        "tasks": len(ids),
        "lost": lost,
        "retries": retries,
        "crashes": crashes,
        "failed_for_good": sum(row.status == "FAILED" for row in rows.values()),
        "uncounted": uncounted,
        "beyond_their_attempts": beyond,
        "without_a_run": without,
        "overwrites": int(arena.database.value("SELECT count(*) FROM overwritten")),
    }
