"""What only trying tells: poolers, NOTIFY, clocks."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from django.db import connection

from aiotasks.db.connect import connect
from aiotasks.db.statement import Statement
from aiotasks.operations.check.clock import clock_difference
from aiotasks.operations.check.notify import notify_arrives
from aiotasks.operations.check.pooler import find_pooler
from aiotasks.operations.connection import operator_connection
from aiotasks.store.store import Store
from tests.proxy import Proxy


class Servers:
    """The processes behind a pooler, the one that was used last on top, as PgBouncer has them."""

    def __init__(self, number: int) -> None:
        self.idle = list(range(1, number + 1))
        self.pids = number

    def take(self) -> int:
        assert self.idle, "it would hang"
        return self.idle.pop()

    def give_back(self, pid: int) -> None:
        self.idle.append(pid)


class Pooled:
    """A connection to such a pooler."""

    announced_pid = 2**31 - 1  # of no process

    def __init__(self, servers: Servers, *, busy: bool = False) -> None:
        self._servers = servers
        self._busy = busy  # others take what has come free, and free what they had
        self._pid: int | None = None

    async def fetch(
        self, statement: Statement, *args: Any, timeout: float | None = None
    ) -> Sequence[Sequence[Any]]:
        if self._pid is not None:
            return [(self._pid,)]
        async with self.transaction():
            return [(self._pid,)]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self._pid = self._servers.take()
        yield
        self._servers.give_back(self._pid)
        if self._busy:
            self._servers.idle.insert(0, self._servers.idle.pop())
        self._pid = None


class Fixed(Pooled):
    """A connection that has a process to itself, by a pooler in session mode."""

    def __init__(self, pid: int) -> None:
        super().__init__(Servers(1))
        self._servers.idle = [pid]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("processes", [2, 20])
async def test_a_pooler_in_transaction_mode(processes: int, busy: bool) -> None:
    servers = Servers(processes)
    assert await find_pooler(Pooled(servers, busy=busy), Pooled(servers, busy=busy)) == "transaction"


async def test_a_pooler_with_a_single_process_is_not_waited_for() -> None:
    servers = Servers(1)
    assert await find_pooler(Pooled(servers), Pooled(servers)) == "transaction"


async def test_a_pooler_in_session_mode() -> None:
    assert await find_pooler(Fixed(1), Fixed(2)) == "session"


async def test_no_pooler(database: str) -> None:
    """Nor is something that hands everything on, such as a load balancer, taken for one."""
    params = connection.settings_dict
    here = {key: params[key] for key in ("HOST", "PORT")}
    async with (
        operator_connection("default", timeout=5.0) as one,
        operator_connection("default", timeout=5.0) as other,
    ):
        assert await find_pooler(one, other) == "none"
    with Proxy(params["HOST"], int(params["PORT"])) as proxy:
        params.update(HOST="127.0.0.1", PORT=str(proxy.port))
        try:
            async with (
                operator_connection("default", timeout=5.0) as one,
                operator_connection("default", timeout=5.0) as other,
            ):
                assert await find_pooler(one, other) == "none"
        finally:
            params.update(here)


async def test_notify(database: str, pg: Any) -> None:
    listening = await connect("default", timeout=5.0, statement_cache_size=0)
    deaf = await asyncpg.connect(pg.dsn())  # to another database
    try:
        async with operator_connection("default", timeout=5.0) as line:
            store = Store(line)
            assert await notify_arrives(listening, store, within=5.0) is True
            assert await notify_arrives(deaf, store, within=0.05) is False
        for one in (listening, deaf):
            assert await one.fetch("SELECT * FROM pg_listening_channels()") == []
    finally:
        listening.terminate()
        deaf.terminate()


async def test_clocks(database: str) -> None:
    async with operator_connection("default", timeout=5.0) as line:
        difference, doubt = await clock_difference(Store(line))
    assert abs(difference) <= doubt + 0.1  # one machine's clock, read twice
