"""``python -m benchmarks.fleet.enqueuer``: a process that enqueues as it is told.

It reads orders from stdin, a JSON object a line, and answers each by a line. A warm-up stores a task due
tomorrow. To any other order the answer is a JSON object of the time (seconds since the epoch) just before
each ``aenqueue``, by task id. Calls are made by the clock, whether those before have returned or not.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone

from ..contenders.common import run, ticks
from ..contenders.site import set_up

__all__ = ["Order"]


@dataclass(frozen=True)
class Order:
    """Enqueue ``count`` of ``task``, called with ``args``, one every ``interval`` seconds (0: all at once).

    delay: seconds until the first. warm_up: store one task that isn't to run yet instead.
    """

    task: str = "now"
    args: tuple[Any, ...] = ()
    count: int = 0
    interval: float = 0.0
    delay: float = 0.0
    warm_up: bool = False

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


async def main() -> None:
    tasks = set_up()

    async def enqueue(order: Order) -> None:
        at = time.time()
        result = await getattr(tasks, order.task).aenqueue(*order.args)
        called[result.id] = at

    while line := await asyncio.to_thread(sys.stdin.readline):
        order, called = Order(**json.loads(line)), dict[str, float]()
        if order.warm_up:
            await tasks.now.using(run_after=timezone.now() + timedelta(days=1)).aenqueue()
        await asyncio.sleep(order.delay)
        async with asyncio.TaskGroup() as group:
            async for _ in ticks(order.count, order.interval):
                group.create_task(enqueue(order))
        print(json.dumps(called), flush=True)


if __name__ == "__main__":
    run(main())
