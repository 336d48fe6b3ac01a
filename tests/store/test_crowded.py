"""A server that has fewer connections for a role than its pool would open."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from django.db import connection, utils

from aiotasks.conf import Options
from aiotasks.db import cache as cache_module
from aiotasks.db.connect import connect
from aiotasks.store.loop import LoopResources, close_pools, resources
from tests.worker.harness import until

from .test_pools import fetch_one


@pytest.fixture
def limit(database: str) -> Iterator[psycopg.Connection]:
    """Everybody here is a role that may have two connections at a time."""
    here = connection.settings_dict
    user = here["USER"]
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE few LOGIN PASSWORD '{here['PASSWORD']}' CONNECTION LIMIT 2")
        here["USER"] = "few"
        yield admin
        here["USER"] = user
        admin.execute("DROP OWNED BY few; DROP ROLE few")


@pytest.fixture
async def held(limit: psycopg.Connection) -> AsyncIterator[LoopResources]:
    yield resources(Options(command_timeout=20.0))
    await close_pools()


async def test_callers_wait_for_what_there_is(held: LoopResources, caplog: pytest.LogCaptureFixture) -> None:
    assert sorted(await asyncio.gather(*(fetch_one(held, n) for n in range(50)))) == list(range(50))
    assert [record.message for record in caplog.records if "refuses another connection" in record.message]
    assert len(caplog.records) == 1


async def test_a_cancelled_caller_leaves_its_connection_to_others(held: LoopResources) -> None:
    for turns in range(40):
        callers = [asyncio.ensure_future(fetch_one(held, n)) for n in range(6)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for caller in callers[::2]:
            caller.cancel()
        await asyncio.wait(callers, timeout=30)
        assert [caller.result() for caller in callers[1::2]] == [1, 3, 5]


async def test_where_others_have_them_all_it_is_said(held: LoopResources) -> None:
    others = [await connect("default", timeout=5, statement_cache_size=0) for _ in range(2)]
    with pytest.raises(utils.OperationalError, match="too many connections for role"):
        await fetch_one(held)
    for other in others:
        await other.close()


async def test_one_is_given_up_for_somebody_else(held: LoopResources) -> None:
    """As for the lease: whether the pool's are idle or busy."""
    for busy in (False, True):
        await until(lambda: _both_are_open(held))
        work = asyncio.ensure_future(_work(held)) if busy else None
        if busy:
            await asyncio.sleep(0)
        held.driver.cache.shed()

        async def another() -> bool:
            try:
                other = await connect("default", timeout=5, statement_cache_size=0)
            except utils.OperationalError:
                return False
            await other.close()
            return True

        await until(another)
        if work is not None:
            await work
        assert await fetch_one(held) == 1


async def _both_are_open(held: LoopResources) -> bool:
    await asyncio.gather(*(fetch_one(held, n) for n in range(5)))
    return bool(held.pool.get_size() == 2)


async def _work(held: LoopResources) -> None:
    for _ in range(30):
        await asyncio.gather(*(fetch_one(held, n) for n in range(5)))


async def test_no_more_than_the_limit_stay_open(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one is given up meanwhile, and whoever uses them at that moment."""
    monkeypatch.setattr(cache_module, "SHED_TIME", 0.0)
    held = resources(Options(command_timeout=20.0))
    cache = held.driver.cache
    for turns in range(20):
        await asyncio.gather(*(fetch_one(held, n) for n in range(4)))
        cache.limit_to(1)
        work = [asyncio.ensure_future(fetch_one(held, n)) for n in range(3)]
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        cache.shed()
        await asyncio.gather(*work)
        await until(lambda: held.pool.get_size() <= 1 and not cache.returning)
        assert await fetch_one(held) == 1
        assert held.pool.get_size() == 1
        cache.limit = None
    await close_pools()
