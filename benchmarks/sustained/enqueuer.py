"""``python -m benchmarks.sustained.enqueuer RATE``: enqueue no-ops at a steady rate until SIGTERM.

A call that takes long doesn't delay the next (an open loop), as with callers that don't know of each other.
RATE 0: as many as workers run, by rows that are inserted as they are wanted.
"""

import asyncio
import sys

import uvloop

from ..contenders.aiotasks.flood import Flood
from ..contenders.common import ticks
from ..contenders.site import set_up

__all__: list[str] = []

# Seconds between two calls of aenqueue_many: some ten tasks each.
INTERVAL = 0.01


async def main(rate: float) -> None:
    if rate == 0:
        await Flood("default").feed(_Unwatched())
        return
    noop = set_up("benchmarks.settings_sustained").noop
    from django.db import Error
    from django.tasks import default_task_backend

    async def enqueue(number: int) -> None:
        try:
            await default_task_backend.aenqueue_many(noop, [((), {})] * number)
        except Error as error:  # the rate of enqueues shows it, too
            print(f"{number} tasks could not be enqueued: {error}", file=sys.stderr)

    owed = 0.0
    async with asyncio.TaskGroup() as group:
        async for _ in ticks(sys.maxsize, INTERVAL):
            owed += rate * INTERVAL
            number, owed = int(owed), owed % 1
            if number:
                group.create_task(enqueue(number))


class _Unwatched:
    """In place of the worker that a flood watches: whoever started this process does."""

    def check(self) -> None:
        pass


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
