"""A run of bulk actions: tasks are cancelled and retried, while workers and the server die."""

import threading
import time
from collections import Counter
from random import Random

from django.db import connections, utils

from aiotasks import BulkCounts, TaskFilter
from aiotasks.operations.actions import Action, perform

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["bulk"]

LEASE = 2.0

# What an operator's retry may do, and nobody else.
_RETRIED = "SELECT count(*) FROM overwritten WHERE old = 'FAILED' AND new IN ('READY', 'SCHEDULED')"


def bulk(
    arena: Arena, rng: Random, report: Report, *, tasks: int, rounds: int, kills: int, restarts: int
) -> None:
    """Cancel what waits or runs, and retry it, by turns; at last everything is retried until it succeeds."""
    report.load = (
        f"{tasks} tasks, 3 workers, {rounds} cancels and retries, {kills} kills, {restarts} restarts"
    )
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 1000}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    ids = arena.enqueue_work(rng, tasks, (0.0, 0.05))
    faults = ["kill"] * kills + ["restart"] * restarts + ["none"] * (2 * rounds - kills - restarts)
    rng.shuffle(faults)
    totals: Counter[str] = Counter()
    for number, fault in enumerate(faults):
        acting = _Acting("retry" if number % 2 else "cancel", totals)
        acting.start()
        time.sleep(rng.uniform(0.0, 0.3))
        if fault == "kill":
            victim = rng.choice(workers)
            arena.kill(victim)
            workers[workers.index(victim)] = arena.start(*arguments, options=options)
        elif fault == "restart":
            arena.restart()
        acting.join()
    end = time.monotonic() + 5 * TIMEOUT
    while _unsuccessful(arena) and time.monotonic() < end:
        _act("retry", totals)
        arena.wait_until_finished(tasks, TIMEOUT)
    judged = arena.judge(ids)
    changed = int(arena.database.value("SELECT count(*) FROM overwritten"))
    retried = int(arena.database.value(_RETRIED))
    overwrites = judged.overwrites - retried
    report.figure(
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
    reached = totals["cancelled"] + totals["requested"]  # waiting, and running ones
    report.expect(reached > tasks / 2, f"only {reached} cancelled or asked to end")
    report.expect(all(worker.is_alive() for worker in workers), "a worker has ended")


class _Acting(threading.Thread):
    """An action in a thread of its own, repeated until it has come to its end."""

    def __init__(self, action: Action, totals: Counter[str]) -> None:
        super().__init__(name=f"bulk {action}")
        self._action: Action = action
        self._totals = totals

    def run(self) -> None:
        try:
            _act(self._action, self._totals)
        finally:
            connections.close_all()


def _act(action: Action, totals: Counter[str]) -> None:
    end = time.monotonic() + TIMEOUT
    while True:
        seen: list[BulkCounts] = [BulkCounts()]
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
            totals.update(seen[-1]._asdict())


def _unsuccessful(arena: Arena) -> int:
    return int(arena.database.value("SELECT count(*) FROM aiotasks_task WHERE status <> 'SUCCESSFUL'"))
