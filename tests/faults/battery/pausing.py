"""Runs in which a queue or a task is paused and resumed under load."""

import time
from random import Random
from typing import Any

from aiotasks.operations.pauses import pause, resume
from tests.worker import tasks as bodies
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["pausing"]

LEASE = 2.0

# Tasks of each lane that are enqueued during each pause.
MEANWHILE = 10

# Of the queue, or of one task.
_MEANT = "(%s::text IS NULL OR task_path = %s)"


def pausing(arena: Arena, rng: Random, report: Report, *, tasks: int, pauses: int) -> None:
    """Tasks of both lanes; the queue or one of the two tasks is paused at random, and workers are killed.

    A pause is judged by the database's clock: nothing may be claimed between its commit and its end. Tasks
    that are enqueued meanwhile wait in any case, however fast the workers are.
    """
    report.load = f"{tasks} tasks, 3 workers, {pauses} pauses, a kill during every third"
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 100}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    ids = arena.enqueue_work(rng, tasks, (0.0, 0.05))
    paths = [bodies.work.module_path, bodies.work_sync.module_path]
    started_late = kills = unheld = 0
    resumed: list[float] = []
    for number, point in enumerate(sorted(rng.sample(range(tasks * 9 // 10), pauses))):
        if not arena.wait_until_finished(point):
            break  # what is missing is counted as lost
        path = rng.choice([*paths, None])
        what: dict[str, Any] = {"queue": "default"} if path is None else {"task": path}
        ends_by_itself = rng.random() < 0.3
        found = pause(**what, reason="the battery", until=1.0 if ends_by_itself else None)
        begin = arena.database.value("SELECT clock_timestamp()")
        ids += arena.enqueue(bodies.work, [(0.0,)] * MEANWHILE)
        ids += arena.enqueue(bodies.work_sync, [(0.0,)] * MEANWHILE)
        if number % 3 == 0:
            victim = rng.choice(workers)
            arena.kill(victim)
            workers[workers.index(victim)] = arena.start(*arguments, options=options)
            kills += 1
        if ends_by_itself:
            assert found.until is not None
            end = found.until
            wait_until(lambda end=end: arena.database.value("SELECT clock_timestamp() > %s", end))
        else:
            time.sleep(rng.uniform(0.1, 1.0))  # how long the pause lasts is part of the case
            end = arena.database.value("SELECT clock_timestamp()")
            left = f"SELECT count(*) FROM aiotasks_task WHERE status = 'READY' AND {_MEANT}"
            unheld += int(arena.database.value(left, path, path)) < MEANWHILE
            resume(**what)
        query = (
            "SELECT count(*) FROM aiotasks_task"
            f" WHERE last_attempted_at > %s AND last_attempted_at < %s AND {_MEANT}"
        )
        started_late += int(arena.database.value(query, begin, end, path, path))
        began = time.monotonic()
        since = f"SELECT count(*) FROM aiotasks_task WHERE last_attempted_at >= %s AND {_MEANT}"
        wait_until(
            lambda since=since, end=end, path=path: arena.database.value(since, end, path, path), TIMEOUT
        )
        resumed.append(time.monotonic() - began)
    arena.wait_until_finished(len(ids))
    judged = arena.judge(ids)
    report.figure(
        lost=judged.lost,
        started_while_paused=started_late,
        overwrites=judged.overwrites,
        repeats=judged.repeats,
        crashes_counted=judged.crashes,
        kills=kills,
        longest_until_the_first_start=round(max(resumed, default=0.0), 2),
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(unheld == 0, f"in {unheld} pauses not all tasks waited that were enqueued meanwhile")
    report.expect(started_late == 0, f"{started_late} started while they were paused")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(
        judged.repeats <= judged.crashes, f"{judged.repeats} repeats of {judged.crashes} counted crashes"
    )
    report.expect(all(worker.is_alive() for worker in workers), "a worker has ended")
