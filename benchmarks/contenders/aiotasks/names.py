"""Many queue names, as where each tenant has a queue: a worker that serves any of them."""

from ..common import latencies, run
from ..site import insert_rows, set_up
from .support import TIMEOUT, aiotasks_worker, connection, drained, warm_up
from .waits import waits

__all__ = ["drain", "trickle"]

SETTINGS = "benchmarks.settings_any_queue"


def drain(names: int, count: int) -> dict[str, float]:
    """Drain ``count`` no-ops, as many in each of so many queues."""
    set_up(SETTINGS)
    run(_insert(count, names, "loop"))
    with aiotasks_worker("--until-empty", settings=SETTINGS) as process:
        process.wait(TIMEOUT)
    return run(drained(count))


def trickle(names: int, count: int) -> dict[str, float]:
    """The waits of ``count`` tasks, one every 20 ms, while in each of so many queues there is a task that
    the worker doesn't run: its lane has no slot there.
    """
    set_up(SETTINGS)
    run(_insert(names, names, "thread"))

    async def measured() -> list[float]:
        await warm_up(process)
        return await waits(process, count, interval=0.02, names=names)

    with aiotasks_worker("--threads", "0", settings=SETTINGS) as process:
        return latencies(run(measured()))


async def _insert(count: int, names: int, lane: str) -> None:
    async with connection() as opened:
        await insert_rows(opened, count, names=names, lane=lane)
        await opened.execute("VACUUM (ANALYZE) aiotasks_task", timeout=TIMEOUT)
