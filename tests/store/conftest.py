"""The Store over each of its drivers, and helpers to bring rows into a state."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from aiotasks.conf import Options
from aiotasks.db.drivers import DjangoDriver
from aiotasks.db.statement import Statement
from aiotasks.store.loop import LoopResources, close_pools, resources
from aiotasks.store.store import Store
from aiotasks.sync import drive
from tests.proxy import Proxy


class DjangoInThread:
    """DjangoDriver, driven as sync code drives it, for tests that are coroutines."""

    def __init__(self, alias: str = "default") -> None:
        self._driver = DjangoDriver(alias)

    async def fetch(
        self, statement: Statement, *args: Any, timeout: float | None = None
    ) -> Sequence[Sequence[Any]]:
        def run() -> Sequence[Sequence[Any]]:
            return drive(self._driver.fetch(statement, *args, timeout=timeout))

        return await sync_to_async(run)()


@pytest.fixture
async def held(database: str) -> AsyncIterator[LoopResources]:
    """The running loop's pool and what stands on it, with the default options."""
    yield resources(Options())
    await close_pools()


@pytest.fixture(params=["asyncpg", "django"])
def store(request: pytest.FixtureRequest, database: str) -> Store:
    """The Store, over asyncpg's pool and over Django's connection."""
    if request.param == "django":
        return Store(DjangoInThread())
    held: LoopResources = request.getfixturevalue("held")
    return held.store


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """Between this process' connections that are opened from now on and the server."""
    params = connections["default"].settings_dict
    host, port = params["HOST"], params["PORT"]
    with Proxy(host, int(port)) as proxy:
        params.update(HOST="127.0.0.1", PORT=str(proxy.port))
        yield proxy
        params.update(HOST=host, PORT=port)
