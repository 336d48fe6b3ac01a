"""What the tests of the backend share."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
from asgiref.sync import async_to_sync, sync_to_async
from django.utils import timezone

import aiotasks
from aiotasks import PostgresTaskResult
from aiotasks.models import Worker
from aiotasks.rows import AnyResult
from tests.site import postgres_result
from tests.worker.harness import until

# Nothing here takes seconds; a busy machine may.
DEADLINE = 30.0


@dataclass(frozen=True)
class Api:
    """Calls a method that exists sync and async, in one of three ways, from an async test.

    - async: on the test's own loop, so over its pool;
    - sync: in a thread, so over its Django connection;
    - bridged: the async one below ``async_to_sync``, so over the Django connection again.
    """

    way: str

    async def call(self, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if self.way == "async":
            return await getattr(owner, f"a{name}")(*args, **kwargs)
        return await sync_to_async(self.call_sync)(owner, name, *args, **kwargs)

    def call_sync(self, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """The same from sync code (not for the async way)."""
        if self.way == "sync":
            return getattr(owner, name)(*args, **kwargs)
        return async_to_sync(getattr(owner, f"a{name}"))(*args, **kwargs)

    async def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> PostgresTaskResult:
        return postgres_result(await self.call(task, "enqueue", *args, **kwargs))


@asynccontextmanager
async def worker(**options: Any) -> AsyncIterator[aiotasks.Worker]:
    """A worker on the test's loop."""
    async with asyncio.timeout(DEADLINE):
        async with aiotasks.Worker(**{"concurrency": 10, "threads": 4, "grace": 5.0, **options}) as running:
            yield running


async def run_all(**options: Any) -> None:
    """Run a worker until nothing is left to do; its results and signals are out on return."""
    async with worker(**options) as running:
        await running.wait_until_empty()


async def make_host(name: str) -> None:
    """A row of the site's own data, by the async ORM."""
    now = timezone.now()
    await Worker.objects.acreate(
        **{"id": uuid4(), "backend": "site", "host": name, "pid": 0, "queues": "{}", "concurrency": 0},
        **{"threads": 0, "version": "", "started_at": now, "lease_expires_at": now},
    )


async def finished(result: AnyResult) -> AnyResult:
    """Refresh ``result`` until it is final."""

    async def is_finished() -> bool:
        await result.arefresh()
        return result.is_finished

    await until(is_finished)
    return result


def times_of(result: AnyResult) -> list[datetime]:
    """When it was enqueued, started, attempted last and finished; it must have been all of that."""
    times = [result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at]
    known = [time for time in times if time is not None]
    assert len(known) == len(times), times
    return known


def value_of(observer: psycopg.Connection, query: str) -> Any:
    """The one value that ``query`` finds."""
    ((found,),) = observer.execute(query)
    return found


def fields_of(result: AnyResult) -> dict[str, Any]:
    """All that a TaskResult holds."""
    return {field.name: getattr(result, field.name) for field in fields(result)}


@dataclass(frozen=True)
class Heard:
    """What one receiver of a task signal was told."""

    signal: str
    sender: Any
    fields: dict[str, Any]
    error: BaseException | None

    @classmethod
    def of(cls, signal: str, sender: Any, task_result: AnyResult) -> "Heard":
        values = {name: list(v) if isinstance(v, list) else v for name, v in fields_of(task_result).items()}
        return cls(signal, sender, values, sys.exc_info()[1])


def connections_left(observer: Any, *, allowed: int = 0) -> list[Any]:
    """Who else is connected to the test database, once those that are leaving have left."""
    end = time.monotonic() + 5
    while True:
        left: list[Any] = observer.execute(
            """
            SELECT pid, application_name, query FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
            """
        ).fetchall()
        if len(left) <= allowed or time.monotonic() > end:
            return left
        time.sleep(0.01)
