"""Tasks with limits for the battery and for operators' tests, most of which write start and end."""

import asyncio
import os
import time

from aiotasks import Limit, task
from tests.site import Context

from .tasks import arecord, record

PLACES = 3

places = Limit("battery.places", by="key", concurrency=PLACES)
line = Limit("battery.line", by="key", ordered=True)
stops = Limit("battery.stops", by="key", ordered=True, after_failure="stop")


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


@task(limit=stops)
async def fail_in_line(key: str) -> None:
    raise ValueError(key)
