"""The run of tasks with time limits, in both lanes."""

import os
import signal
from contextlib import suppress
from random import Random

import psutil

from tests.worker import timeout_tasks as bodies
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["timeouts"]


def timeouts(arena: Arena, rng: Random, report: Report, *, tasks: int, stuck: int, kills: int) -> None:
    """Bodies around their limit, some that never come back, and kill -9 of the processes of a supervisor."""
    report.load = f"{tasks} tasks around their limit, {stuck} stuck, 3 processes, {kills} kills"
    supervisor = arena.start(
        *("--processes", "3", "--concurrency", "20", "--threads", "5"),
        options={"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1, "MAX_CRASHES": 100},
    )
    wait_until(lambda: supervisor.log.count("connections: at most") >= 3, TIMEOUT)
    calls = [[round(rng.uniform(0, 2 * bodies.SHORT), 3)] for _ in range(tasks - stuck)]
    half = len(calls) // 2
    ids = [
        *arena.enqueue(bodies.late, calls[:half]),
        *arena.enqueue(bodies.late_sync, calls[half:]),
        *arena.enqueue(bodies.never_comes_back, [[] for _ in range(stuck)]),
    ]
    for point in sorted(rng.sample(range(tasks * 8 // 10), kills)):
        if not arena.wait_until_finished(point):
            break  # what is missing is not finished, below
        victims = psutil.Process(supervisor.pid).children()
        if victims:  # else the last ones are being replaced
            with suppress(ProcessLookupError):
                os.kill(rng.choice(victims).pid, signal.SIGKILL)
    # The processes of the others may all have been killed.
    ids += arena.enqueue(bodies.never_comes_back, [[]])
    all_finished = arena.wait_until_finished(len(ids))
    with suppress(AssertionError):  # expected below
        wait_until(lambda: arena.said("to be started again") > 0, TIMEOUT)
    codes = arena.stop([supervisor])
    rows = arena.database.rows(
        """
        SELECT task.status, task.task_path, cardinality(task.worker_ids) - task.crashes AS attempts,
               task.errors[cardinality(task.errors)]::json ->> 'class' AS error
        FROM aiotasks_task AS task
        """
    )
    failed = [row for row in rows if row.status == "FAILED"]
    others = [row for row in failed if row.error != "aiotasks.exceptions.TaskTimeout"]
    twice = [row for row in rows if row.attempts > 1]
    untimed = [
        row for row in rows if row.task_path == bodies.never_comes_back.module_path and row.status != "FAILED"
    ]
    overwrites = arena.database.value("SELECT count(*) FROM overwritten")
    report.figure(
        succeeded=sum(row.status == "SUCCESSFUL" for row in rows),
        timed_out=len(failed) - len(others),
        other_errors=len(others),
        overwrites=overwrites,
        started_again=arena.said("to be started again"),
        exit=codes[0],
    )
    report.expect(all_finished, f"{len(ids) - arena.finished()} not finished")
    report.expect(not others, f"failed by other errors: {sorted({str(row.error) for row in others})}")
    report.expect(not twice, f"{len(twice)} in two attempts without a crash")
    report.expect(not untimed, f"{len(untimed)} that never come back have not timed out")
    report.expect(overwrites == 0, f"{overwrites} overwrites by late threads")
    report.expect(any(row.status == "SUCCESSFUL" for row in rows), "none was in time")
    report.expect(arena.said("to be started again") > 0, "no process with stuck threads was replaced")
    report.expect(codes == [0], f"exit {codes}")
