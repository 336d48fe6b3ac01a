"""Drains: what is enqueued before, run by one worker, by the table's own timestamps."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ..common import MeasurementFailed, run
from ..site import set_up
from .support import TIMEOUT, aiotasks_worker, all_ended, drained, registered

__all__ = ["drain", "enqueue", "with_processes", "with_receivers"]


def drain(
    task: str,
    count: int,
    *,
    args: tuple[Any, ...] = (),
    options: tuple[str, ...] = (),
    settings: str = "benchmarks.settings",
    **env: str,
) -> dict[str, float]:
    """Drain ``count`` of ``task``, called with ``args``, by a worker with ``options``."""
    run(enqueue(task, count, args))
    with aiotasks_worker("--until-empty", *options, settings=settings, **env) as process:
        process.wait(TIMEOUT)
    return run(drained(count))


def with_receivers(count: int) -> dict[str, float]:
    """Drain on a site with a sync receiver, and Django's log of tasks in a file."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "tasks.log"
        settings = "benchmarks.settings_receivers"
        figures = drain("noop", count, settings=settings, AIOTASKS_BENCH_LOG=os.fspath(log))
        lines = log.read_text().count("\n")
    if lines != 2 * count:  # a task's start and its end
        raise MeasurementFailed(f"The log has {lines:,} lines, not two for each of {count:,} tasks.")
    return figures


def with_processes(processes: int, count: int) -> dict[str, float]:
    """Drain tasks of 1 ms of CPU time, enqueued once so many workers are up, as they are in production."""

    async def measured() -> dict[str, float]:
        await registered(process, processes)
        await enqueue("cpu", count)
        await all_ended(process)
        return await drained(count)

    with aiotasks_worker("--processes", str(processes)) as process:
        return run(measured())


async def enqueue(task: str, count: int, args: tuple[Any, ...] = (), *, priority: int = 0) -> None:
    """Enqueue ``count`` of ``task``, called with ``args``."""
    tasks = set_up()
    from django.tasks import default_task_backend

    kind = getattr(tasks, task).using(priority=priority)
    await default_task_backend.aenqueue_many(kind, [(args, {})] * count)
