"""``python -m tests.faults.enqueuer FILE NUMBER KEYS TIMES CONNECTIONS``: enqueue unique tasks, many at once.

Each of KEYS keys is enqueued TIMES times by CONNECTIONS callers, in about the same order in every process, so
that processes meet at each key. A line of JSON is written to FILE for every enqueue that has returned: the
key, the id, and whether it was a duplicate; for one that has failed: the key, null, and the error. NUMBER is
the process' own.
"""

# ruff: noqa: E402  # Django must be set up first

import asyncio
import json
import os
import random
import sys

import django

django.setup()

from django.db import utils

import aiotasks
from tests.worker.tasks import work


async def main(file: int, number: int, keys: int, times: int, connections: int) -> None:
    rng = random.Random(number)
    calls = [key for key in range(keys) for _ in range(times)]
    # Everybody is at about the same place.
    calls = [
        key for _, key in sorted((place + rng.uniform(0, 20 * times), key) for place, key in enumerate(calls))
    ]
    left = iter(calls)

    def note(*values: object) -> None:
        os.write(file, f"{json.dumps(values)}\n".encode())

    async def call() -> None:
        for key in left:
            task = work.using(unique_key=f"key {key}")
            seconds = round(rng.uniform(0.0, 0.05), 3)
            try:
                if rng.random() < 0.1:
                    async with aiotasks.transaction():
                        result = await task.aenqueue(seconds)
                        await asyncio.sleep(rng.uniform(0.0, 0.01))  # load
                        if rng.random() < 0.3:
                            raise ZeroDivisionError
                else:
                    result = await task.aenqueue(seconds)
            except ZeroDivisionError:
                continue
            except utils.Error as error:
                note(f"key {key}", None, repr(error))
            else:
                note(f"key {key}", result.id, result.is_duplicate)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(call())


if __name__ == "__main__":
    path, *numbers = sys.argv[1:]
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    number, keys, times, connections = map(int, numbers)
    asyncio.run(main(descriptor, number, keys, times, connections))
