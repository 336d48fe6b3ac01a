"""The memory of a worker: idle, and over very many tasks."""

import asyncio

import psutil

from ..common import run
from ..site import set_up
from .flood import Flood
from .support import aiotasks_worker, all_ended, drained, registered

__all__ = ["measure"]

# Seconds for which an idle worker is left alone before it is looked at.
SETTLE = 5.0


def measure(count: int) -> dict[str, float]:
    """RSS in MB (of 10**6 bytes) when idle, after a tenth of ``count`` no-ops, and after all."""
    set_up()

    def rss_mb() -> float:
        parent = psutil.Process(process.pid)
        return sum(each.memory_info().rss for each in [parent, *parent.children(recursive=True)]) / 10**6

    async def measured() -> dict[str, float]:
        await registered(process)
        await asyncio.sleep(SETTLE)
        idle = rss_mb()
        flood = Flood("default")
        await flood.feed(process, count // 10)
        await all_ended(process)
        warm = rss_mb()
        await flood.feed(process, count)
        await all_ended(process)
        end = rss_mb()
        return {"idle_mb": idle, "warm_mb": warm, "end_mb": end, "growth_percent": (end / warm - 1) * 100}

    with aiotasks_worker() as process:
        figures = run(measured())
    run(drained(count))
    return figures
