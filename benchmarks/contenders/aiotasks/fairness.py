"""A trickle in one queue during a flood in the other, both served by one worker."""

import asyncio
import time

from ..common import MeasurementFailed, latencies, run
from ..site import set_up
from .flood import Flood
from .support import aiotasks_worker, warm_up
from .waits import waits

__all__ = ["measure"]

SETTINGS = "benchmarks.settings_two_queues"


def measure(count: int) -> dict[str, float]:
    """The waits of ``count`` tasks, one every 20 ms."""
    set_up(SETTINGS)

    async def measured() -> dict[str, float]:
        await warm_up(process)
        flood = Flood("flood")
        started = time.perf_counter()
        feeding = asyncio.create_task(flood.feed(process))
        await asyncio.sleep(1.0)
        found = await waits(process, count, interval=0.02)
        seconds = time.perf_counter() - started
        feeding.cancel()
        await asyncio.wait([feeding])
        if flood.ran_dry:
            raise MeasurementFailed("The flood has run dry for a moment, so there was nothing to wait for.")
        return {**latencies(found), "flood_per_s": flood.inserted / seconds}

    with aiotasks_worker(settings=SETTINGS) as process:
        return run(measured())
