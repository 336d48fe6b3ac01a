"""Fixtures of the backend's tests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created
from django.dispatch import Signal
from django.tasks import signals as task_signals
from django.test import override_settings

from aiotasks.db import drivers
from tests.worker.harness import configure

from .support import Api, Heard

__all__ = ["configure"]

NAMES = {getattr(task_signals, name): name for name in ("task_enqueued", "task_started", "task_finished")}


@pytest.fixture(params=["async", "sync", "bridged"])
def api(request: pytest.FixtureRequest) -> Api:
    return Api(request.param)


@pytest.fixture(params=["async", "sync"])
def either(request: pytest.FixtureRequest) -> Api:
    """Where a worker runs, which takes a tenth of a second, two ways must do."""
    return Api(request.param)


@pytest.fixture(params=["sync", "bridged"])
def sync_api(request: pytest.FixtureRequest) -> Api:
    return Api(request.param)


@pytest.fixture
def observer(database: str) -> Iterator[psycopg.Connection]:
    """A connection outside of everything that is tested, for sync tests."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def heard() -> Iterator[list[Heard]]:
    """What sync receivers of the three task signals hear."""
    log: list[Heard] = []

    def receiver(sender: Any, signal: Signal, task_result: Any, **kwargs: Any) -> None:
        log.append(Heard.of(NAMES[signal], sender, task_result))

    with _connected(receiver):
        yield log


@pytest.fixture
def aheard() -> Iterator[list[Heard]]:
    """What async receivers of the three task signals hear."""
    log: list[Heard] = []

    async def receiver(sender: Any, signal: Signal, task_result: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        log.append(Heard.of(NAMES[signal], sender, task_result))

    with _connected(receiver):
        yield log


@contextmanager
def _connected(receiver: Callable[..., Any]) -> Iterator[None]:
    for signal in NAMES:
        signal.connect(receiver)
    yield
    for signal in NAMES:
        signal.disconnect(receiver)


@pytest.fixture
async def notified(conn: asyncpg.Connection) -> AsyncIterator[list[str]]:
    """The payloads of our NOTIFYs, as they arrive; ``sync_point`` flushes them."""
    payloads: list[str] = []
    await conn.add_listener("aiotasks", lambda *args: payloads.append(args[-1]))
    yield payloads
    await conn.reset()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our statements over asyncpg, in the order in which they are sent."""
    sent: list[str] = []
    fetch = drivers.AsyncpgDriver.fetch

    async def counted(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(statement.name)
        return await fetch(self, statement, *args, **kwargs)

    monkeypatch.setattr(drivers.AsyncpgDriver, "fetch", counted)
    return sent


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Who opens a connection: "asyncpg" or "django", once for each."""
    made: list[str] = []
    connect = asyncpg.connect

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append("asyncpg")
        return connect(*args, **kwargs)

    def created(**kwargs: Any) -> None:
        made.append("django")

    monkeypatch.setattr(asyncpg, "connect", counted)
    connection_created.connect(created)
    yield made
    connection_created.disconnect(created)


def _forget_time_zone() -> None:
    """Django's own receiver does this for the connections of its own thread."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        for name in ("timezone", "timezone_name"):
            vars(connection).pop(name, None)


def _in_all_threads(function: Any) -> None:
    function()
    SyncToAsync.single_thread_executor.submit(function).result()


@pytest.fixture(params=["America/New_York", "Asia/Kathmandu"])
def naive_time(request: pytest.FixtureRequest, database: str) -> Iterator[str]:
    """USE_TZ off, in two time zones."""
    with override_settings(USE_TZ=False, TIME_ZONE=request.param):
        _in_all_threads(_forget_time_zone)
        yield request.param
    _in_all_threads(_forget_time_zone)
