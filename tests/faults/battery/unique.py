"""The run of unique keys: many enqueuers of few keys, while workers and enqueuers are killed."""

import json
import time
from random import Random
from uuid import UUID

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["unique"]

_UNFINISHED_TWICE = """
    SELECT coalesce(unique_key, former_key) AS key FROM aiotasks_task
    WHERE status IN ('SCHEDULED', 'READY', 'RUNNING') GROUP BY 1 HAVING count(*) > 1
"""
# A task that was stored before the one before it was finished. ready_at is never earlier than the insert.
_OVERLAPS = """
    SELECT count(*) FROM (
        SELECT ready_at, max(finished_at) OVER (
            PARTITION BY coalesce(unique_key, former_key) ORDER BY ready_at
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before
        FROM aiotasks_task
    ) AS task WHERE task.ready_at < task.before
"""


def unique(arena: Arena, rng: Random, report: Report, *, keys: int, times: int, kills: int) -> None:
    """kill -9 of a worker or an enqueuer at random moments; each is replaced at once."""
    report.load = f"{keys} keys, each {times} times by 5 enqueuers of 20 callers, 3 workers, {kills} kills"
    options = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1, "MAX_CRASHES": 100}
    arguments = ("--concurrency", "20", "--threads", "2")
    workers = arena.fleet(3, *arguments, options=options)
    acknowledged = arena.file("acknowledged")
    acknowledged.touch()
    enqueuing = ("tests.faults.enqueuer", str(acknowledged))
    enqueuers = [
        arena.run(*enqueuing, str(number), str(keys), str(times), "20", options=options)
        for number in range(5)
    ]
    looks = twice = killed_enqueuers = 0
    share = max(1, keys // (kills + 2))
    moments = [share * (number + 1) + rng.randrange(share) for number in range(kills)]
    before: tuple[int, int] | None = None
    since = time.monotonic()
    while time.monotonic() - since < TIMEOUT:
        looks += 1
        twice += len(arena.database.rows(_UNFINISHED_TWICE))
        stored_so_far = int(arena.database.value("SELECT count(*) FROM aiotasks_task"))
        if (now := (stored_so_far, acknowledged.stat().st_size)) != before:
            before, since = now, time.monotonic()
        if moments and stored_so_far >= moments[0]:
            moments.pop(0)
            if rng.random() < 0.5:
                victim = rng.randrange(3)
                arena.kill(workers[victim])
                workers[victim] = arena.start(*arguments, options=options)
            else:
                killed_enqueuers += 1
                victim = rng.randrange(5)
                enqueuers[victim].kill()
                again = str(100 + killed_enqueuers)
                enqueuers[victim] = arena.run(*enqueuing, again, str(keys), str(times), "20", options=options)
        if not any(each.is_alive() for each in enqueuers):
            if not moments:
                break
            # They were faster than the looks.
            enqueuers[0] = arena.run(*enqueuing, "200", str(keys), str(times), "20", options=options)
        time.sleep(0.02)
    arena.wait_until_finished(int(arena.database.value("SELECT count(*) FROM aiotasks_task")))
    lines = [json.loads(line) for line in acknowledged.read_text().splitlines()]
    errors = [line[2] for line in lines if line[1] is None]
    ids = {line[1] for line in lines if line[1] is not None}
    judged = arena.judge(sorted(ids))
    stored = {row.id for row in arena.database.rows("SELECT id FROM aiotasks_task")}
    missing = sum(UUID(id) not in stored for id in ids)
    overlaps = int(arena.database.value(_OVERLAPS))
    report.figure(
        enqueues=len(lines),
        tasks=len(stored),
        duplicates=sum(line[2] is True for line in lines),
        errors=len(errors),
        looks=looks,
        two_unfinished=twice,
        overlaps=overlaps,
        acknowledged_and_missing=missing,
        lost=judged.lost,
        killed_workers=kills - len(moments) - killed_enqueuers,
        killed_enqueuers=killed_enqueuers,
    )
    report.expect(
        twice == 0 and overlaps == 0, f"{twice} keys with two unfinished tasks, {overlaps} overlaps"
    )
    report.expect(missing == 0 and judged.lost == 0, f"{missing} missing, {judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(not errors, f"{len(errors)} errors, as {errors[:1]}")
    report.expect(not moments, f"{len(moments)} kills didn't happen")
