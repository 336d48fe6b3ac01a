"""Tasks with limits for the battery, which write start and end into the ledger."""

import asyncio
import os
import time

from aiotasks import Limit, task
from tests.site import Context

from .tasks import arecord, record

PLACES = 3

places = Limit("battery.places", by="key", concurrency=PLACES)
line = Limit("battery.line", by="key", ordered=True)


@task(takes_context=True, limit=places)
async def work_in_places(context: Context, key: str, seconds: float) -> int:
    await arecord("start", context)
    await asyncio.sleep(seconds)
    await arecord("end", context)
    return os.getpid()


@task(takes_context=True, limit=places)
def work_in_places_sync(context: Context, key: str, seconds: float) -> int:
    record("start", context.task_result.id)
    time.sleep(seconds)
    record("end", context.task_result.id)
    return os.getpid()


@task(takes_context=True, limit=line)
async def work_in_line(context: Context, key: str, seconds: float) -> int:
    await arecord("start", context)
    await asyncio.sleep(seconds)
    await arecord("end", context)
    return os.getpid()
