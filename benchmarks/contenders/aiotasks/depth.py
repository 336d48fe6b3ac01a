"""The drain beside millions of other rows: of tasks with a higher priority, in the same queue."""

from ..common import run
from ..site import insert_rows, set_up
from .drains import enqueue
from .support import TIMEOUT, aiotasks_worker, connection, database_time, drained

__all__ = ["drain", "fill"]

# Rows of each kind for each task that is measured: 1,000,000 for 20,000.
ROWS_PER_TASK = 50


def fill(count: int) -> None:
    """Add the rows: as many that are ready, scheduled for tomorrow, and finished yesterday."""

    async def filled() -> None:
        async with connection() as opened:
            for status in ("READY", "SCHEDULED", "SUCCESSFUL"):
                await insert_rows(opened, count * ROWS_PER_TASK, status=status)
            await opened.execute("VACUUM (ANALYZE) aiotasks_task", timeout=TIMEOUT)

    run(filled())


def drain(count: int) -> dict[str, float]:
    """Drain ``count`` tasks that go first, then stop the worker, which has begun with the others."""
    set_up()
    run(enqueue("noop", count, priority=1))
    since = run(database_time())

    async def first_ones_done() -> None:
        async with connection() as opened:

            async def done() -> bool:
                return count <= await opened.fetchval(
                    """
                    SELECT count(*) FROM aiotasks_task
                    WHERE status IN ('FAILED', 'SUCCESSFUL') AND finished_at >= $1 AND priority = 1
                    """,
                    since,
                )

            await process.until(done, TIMEOUT)

    with aiotasks_worker() as process:
        run(first_ones_done())
    return run(drained(count, priority=1))
