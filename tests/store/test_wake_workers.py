"""wake_workers: which workers a wake-up goes to."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.rows import Lane
from aiotasks.store.store import Store
from aiotasks.store.wakeups import CHANNEL, Wakeup, read_payload
from tests.worker.harness import until

from .rows import expire

LOCK = "SELECT pg_advisory_lock_shared(hashtextextended($1, 0))"


class Workers:
    """Rows of workers, each with a session that LISTENs as the Listener's does, and what these have heard."""

    def __init__(self, store: Store, database: str, stack: AsyncExitStack) -> None:
        self.heard: list[tuple[str, Wakeup | None]] = []
        self.sessions: dict[str, asyncpg.Connection] = {}
        self._store = store
        self._database = database
        self._stack = stack

    async def add(
        self, channel: str | None, *, queues: list[str] | None = None, listening: bool = True, **slots: int
    ) -> Any:
        id = uuid4()
        own = f"{CHANNEL}_{channel}" if channel else None
        loop, threads = slots.get("loop", 10), slots.get("threads", 10)
        await self._store.register_worker(
            id, "default", "host", 1, queues or [], loop, threads, "0", 60.0, own
        )
        await self._store.renew_lease(id, 60.0, listening)
        session = await asyncpg.connect(self._database)
        self._stack.push_async_callback(session.close)
        self.sessions[channel or "old"] = session
        await session.add_listener(CHANNEL, self._hear(f"{channel or 'old'} by all"))
        if own:
            await session.add_listener(own, self._hear(channel or ""))
            await session.execute(LOCK, own)
        return id

    def _hear(self, name: str) -> Any:
        def hear(connection: Any, pid: int, channel: str, payload: Any) -> None:
            self.heard.append((name, read_payload(payload)))

        return hear

    async def woken(self, *wakeups: Wakeup) -> dict[str, Wakeup | None]:
        """Wake; returns what each has heard. Whoever hears none was passed over: the order is kept."""
        self.heard.clear()
        await self._store.wake_workers(CHANNEL, list(wakeups))
        for session in self.sessions.values():
            if not session.is_closed():
                await session.fetch("SELECT")  # its notifications come before the reply
        await asyncio.sleep(0)
        return dict(self.heard)


@pytest.fixture
async def workers(store: Store, database: str) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        yield Workers(store, database, stack)


def news(lane: Lane = "loop", queue_name: str = "q", **values: Any) -> Wakeup:
    return Wakeup("default", queue_name, lane=lane, **values)


async def test_two_of_many_are_woken_by_turns(workers: Workers) -> None:
    for name in "abcde":
        await workers.add(name)
    times: Counter[str] = Counter()
    for _ in range(40):
        woken = await workers.woken(news(passed=1))
        assert sorted(wakeup.place for wakeup in woken.values() if wakeup) == [1, 2]
        assert {wakeup.passed for wakeup in woken.values() if wakeup} == {1}
        times.update(list(woken))
    assert sum(times.values()) == 80
    assert set(times) == set("abcde")


async def test_only_those_that_can_claim_it(workers: Workers) -> None:
    await workers.add("q", queues=["q", "other"], threads=0)
    await workers.add("elsewhere", queues=["other"])
    await workers.add("threads", loop=0)
    await workers.add("polls", listening=False)
    assert set(await workers.woken(news())) == {"q"}
    assert set(await workers.woken(news("thread"))) == {"threads"}
    assert set(await workers.woken(news(queue_name="other"))) == {"q", "elsewhere"}


async def test_none_whose_session_has_ended_or_whose_lease_is_over(
    workers: Workers, conn: asyncpg.Connection
) -> None:
    for name in "abc":
        await workers.add(name)
    await expire(conn, await workers.add("expired"))
    pids = {name: session.get_server_pid() for name, session in workers.sessions.items()}
    for name in "ab":
        workers.sessions[name].terminate()  # as at a SIGKILL

    async def have_ended() -> bool:
        return not await conn.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)", [pids["a"], pids["b"]]
        )

    await until(have_ended)
    for _ in range(5):
        woken = await workers.woken(news())
        assert [(name, wakeup.place) for name, wakeup in woken.items() if wakeup] == [("c", 1)]


async def test_a_look_at_a_dead_session_hides_it_from_nobody(
    workers: Workers, conn: asyncpg.Connection, database: str
) -> None:
    """The look takes the session's lock. A transaction that stays open must not keep it."""
    await workers.add("alive")
    await workers.add("dead")
    pid = workers.sessions["dead"].get_server_pid()
    workers.sessions["dead"].terminate()

    async def has_ended() -> bool:
        return not await conn.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)

    await until(has_ended)
    other = await asyncpg.connect(database)
    async with other.transaction():
        await Store(ConnectionDriver(other)).wake_workers(CHANNEL, [news()])
        woken = await workers.woken(news())
    await other.close()
    assert [(name, wakeup.place) for name, wakeup in woken.items() if wakeup] == [("alive", 1)]


async def test_workers_of_one_process_are_woken_once(workers: Workers) -> None:
    """They share its LISTEN session, and so its channel."""
    await workers.add("shared")
    await workers.add("shared")
    woken = await workers.woken(news())
    assert [wakeup.place for wakeup in woken.values() if wakeup] == [1]
    assert {wakeup.place for _, wakeup in workers.heard if wakeup} == {1}


async def test_where_there_is_none_all_are_woken(workers: Workers) -> None:
    """A worker that has just begun to LISTEN, and hasn't stored it yet."""
    await workers.add("new", listening=False)
    woken = await workers.woken(news())
    assert woken == {"new by all": Wakeup("default", "q")}


async def test_workers_of_the_release_before_are_woken_too(workers: Workers) -> None:
    await workers.add("new")
    await workers.add(None, queues=["q"])
    woken = await workers.woken(news())
    assert {name for name in woken if "by all" not in name} == {"new"}
    assert woken["old by all"] == Wakeup("default", "q")
    assert set(await workers.woken(news(queue_name="other"))) == {"new"}
    await workers.add("newer")
    assert set(await workers.woken(news(sender=f"{CHANNEL}_new"))) == {"newer"}  # the old one has heard of it


async def test_what_is_passed_on_goes_to_others(workers: Workers) -> None:
    await workers.add("a")
    sender = f"{CHANNEL}_a"
    assert await workers.woken(news(sender=sender)) == {}  # nor to all: there is nobody
    await workers.add("b")
    for _ in range(5):
        assert set(await workers.woken(news(sender=sender))) == {"b"}


async def test_many_queues_in_one_statement(workers: Workers) -> None:
    for name in "abc":
        await workers.add(name)
    heard = []
    await workers.woken(*(news(queue_name=f"q{n}") for n in range(300)))
    heard = [wakeup.queue_name for _, wakeup in workers.heard if wakeup]
    assert Counter(heard) == {f"q{n}": 2 for n in range(300)}


async def test_the_setting_for_its_commit_is_local(conn: asyncpg.Connection) -> None:
    before = await conn.fetchval("SHOW synchronous_commit")
    await Store(ConnectionDriver(conn)).wake_workers(CHANNEL, [news()])
    assert await conn.fetchval("SHOW synchronous_commit") == before == "on"
