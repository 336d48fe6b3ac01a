"""A run of bulk actions: tasks are cancelled and retried, while workers and the server die."""

import threading
import time
from collections import Counter
from random import Random

from django.db import connections, utils

from aiotasks import BulkCounts, TaskFilter
from aiotasks.bulk_actions import ActionName
from aiotasks.operations.actions import perform
from aiotasks.operations.pauses import pause, resume
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["bulk"]

LEASE = 2.0

_CANCELLED = """
    SELECT count(*) FROM aiotasks_task
    WHERE EXISTS (
        SELECT FROM unnest(errors) AS error WHERE error->>'class' = 'aiotasks.exceptions.TaskCancelled'
    )
"""
# What an operator's retry may do, and nobody else.
_RETRIED = "SELECT count(*) FROM overwritten WHERE old = 'FAILED' AND new IN ('READY', 'SCHEDULED')"


def bulk(
    arena: Arena, rng: Random, report: Report, *, tasks: int, rounds: int, kills: int, restarts: int
) -> None:
    """Cancel what waits or runs, and retry it, by turns; at last everything is retried until it succeeds.

    The first cancel meets tasks that are paused until a batch of them has ended.
    """
    report.load = (
        f"{tasks} tasks, 3 workers, {rounds} cancels and retries, {kills} kills, {restarts} restarts"
    )
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 1000}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    pause(queue="default")
    ids = arena.enqueue_work(rng, tasks, (0.0, 0.05))
    faults = ["kill"] * kills + ["restart"] * restarts + ["none"] * (2 * rounds - kills - restarts)
    rng.shuffle(faults)
    totals: Counter[str] = Counter()
    first_batch = 0
    for number, fault in enumerate(faults):
        acting = _Acting("retry" if number % 2 else "cancel", totals)
        acting.start()
        if number == 0:
            wait_until(lambda acting=acting: acting.progress, TIMEOUT)
            first_batch = acting.progress[0].cancelled
            resume(queue="default")
        time.sleep(rng.uniform(0.0, 0.3))
        if fault == "kill":
            victim = rng.choice(workers)
            arena.kill(victim)
            workers[workers.index(victim)] = arena.start(*arguments, options=options)
        elif fault == "restart":
            arena.restart()
        acting.join()
    for _ in range(10):  # what is locked or runs may need another
        arena.wait_until_finished(tasks)
        if not _unsuccessful(arena):
            break
        _act("retry", totals, [])
    arena.wait_until_finished(tasks)
    judged = arena.judge(ids)
    changed = int(arena.database.value("SELECT count(*) FROM overwritten"))
    retried = int(arena.database.value(_RETRIED))
    overwrites = judged.overwrites - retried
    cancelled = int(arena.database.value(_CANCELLED))
    report.figure(
        tasks_cancelled=cancelled,
        cancelled=totals["cancelled"],
        requested=totals["requested"],
        retried=totals["retried"],
        locked=totals["locked"],
        interrupted=totals["interrupted"],
        lost=judged.lost,
        overwrites=overwrites,
        late=judged.late,
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(overwrites == 0, f"{overwrites} overwrites")
    report.expect(changed == retried, f"{changed - retried} final states changed otherwise")
    report.expect(retried >= totals["retried"], f"{totals['retried']} counted, but {retried} retried")
    report.expect(
        cancelled >= first_batch > 0, f"{cancelled} cancelled, and {first_batch} in the first batch"
    )
    report.expect(all(worker.is_alive() for worker in workers), "a worker has ended")


class _Acting(threading.Thread):
    """An action in a thread of its own, repeated until it has come to its end."""

    def __init__(self, action: ActionName, totals: Counter[str]) -> None:
        super().__init__(name=f"bulk {action}")
        self.progress: list[BulkCounts] = []
        self._action: ActionName = action
        self._totals = totals

    def run(self) -> None:
        try:
            _act(self._action, self._totals, self.progress)
        finally:
            connections.close_all()


def _act(action: ActionName, totals: Counter[str], seen: list[BulkCounts]) -> None:
    """Repeat the action until it has come to its end; ``seen`` gets its progress."""
    end = time.monotonic() + TIMEOUT
    while True:
        before = len(seen)
        try:
            perform(action, TaskFilter(), everything=True, progress=seen.append)
        except utils.Error:
            totals["interrupted"] += 1
            connections.close_all()
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
        finally:
            totals.update(*(counts._asdict() for counts in seen[before:][-1:]))


def _unsuccessful(arena: Arena) -> int:
    return int(arena.database.value("SELECT count(*) FROM aiotasks_task WHERE status <> 'SUCCESSFUL'"))
