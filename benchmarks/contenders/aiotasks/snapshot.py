"""Claims while a snapshot is held open, which keeps vacuum from clearing up behind the worker."""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ..common import MeasurementFailed, WorkerProcess, percentile, run, ticks, worker
from ..site import set_up
from .support import connection, warm_up

__all__ = ["measure"]

ARRIVALS_PER_S = 500

# Seconds that a percentile is taken over, and for which claims have to be back to normal.
WINDOW = 10.0
RECOVERY = 60.0


def measure(count: int) -> dict[str, float]:
    """p95 of the claims' times, in ms, with a snapshot that is held for ``count`` seconds.

    Of the window before the snapshot, the worst and the last one while it is held, and the one that
    follows the recovery. Windows and recovery are shorter where ``count`` is less than 300.
    """
    scale = min(1.0, count / 300)
    window, recovery = max(1.0, WINDOW * scale), RECOVERY * scale
    set_up()

    async def measured(process: WorkerProcess) -> tuple[float, float]:
        await warm_up(process)
        async with asyncio.TaskGroup() as group:
            arriving = group.create_task(_arrivals())
            await asyncio.sleep(2 * window)
            opened_at = time.time()
            async with connection() as opened, opened.transaction(isolation="repeatable_read"):
                await opened.execute("SELECT FROM aiotasks_task LIMIT 1")
                await asyncio.sleep(count)
            closed_at = time.time()
            await asyncio.sleep(recovery + window)
            arriving.cancel()
        process.check()
        return opened_at, closed_at

    with tempfile.TemporaryDirectory() as directory:
        times = Path(directory) / "claims.json"
        with worker(sys.executable, "-m", "benchmarks.timed_worker", os.fspath(times)) as process:
            opened_at, closed_at = run(measured(process))
        claims: list[tuple[float, float]] = json.loads(times.read_text())
    run(_check_tasks((count + 3 * window + recovery) * ARRIVALS_PER_S))

    def p95_ms(start: float) -> float:
        return percentile([took for at, took in claims if start <= at < start + window], 95) * 1000

    before, after = p95_ms(opened_at - window), p95_ms(closed_at + recovery)
    held = [p95_ms(opened_at + number * window) for number in range(int(count / window))]
    return {
        "before_ms": before,
        "worst_ms": max(held),
        "last_ms": held[-1],
        "after_ms": after,
        "worst_ratio": max(held) / before,
        "after_ratio": after / before,
    }


async def _arrivals() -> None:
    from benchmarks import tasks

    async with asyncio.TaskGroup() as group:
        async for _ in ticks(sys.maxsize, 1 / ARRIVALS_PER_S):
            group.create_task(tasks.noop.aenqueue())


async def _check_tasks(expected: float) -> None:
    """Whether about as many tasks came as should, and all of them were run."""
    async with connection() as opened:
        rows = await opened.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY status")
    found = dict(rows)
    if set(found) - {"READY", "SUCCESSFUL"} or found.get("READY", 0) > ARRIVALS_PER_S:
        raise MeasurementFailed(f"Not all tasks have succeeded: {found}.")
    if sum(found.values()) < 0.98 * expected:
        raise MeasurementFailed(f"{sum(found.values()):,} tasks have come of {expected:,.0f}.")
