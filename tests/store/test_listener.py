"""The Listener: wake-ups arrive, and it finds its way back from whatever happens to its connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import asyncpg
import pytest

from aiotasks.db import listener as listener_module
from aiotasks.db.listener import Channel, Listener
from aiotasks.store.wakeups import CHANNEL, Wakeup, read_payload
from tests.proxy import Proxy
from tests.worker.harness import until

PAYLOAD = json.dumps(["default", "q", None])
WAKEUP = Wakeup("default", "q")


class Heard:
    """What a subscriber was told: wake-ups, and None for "look for yourself"."""

    def __init__(self) -> None:
        self.all: list[Wakeup | None] = []
        self._news: asyncio.Queue[Wakeup | None] = asyncio.Queue()

    def __call__(self, wakeup: Wakeup | None) -> None:
        self.all.append(wakeup)
        self._news.put_nowait(wakeup)

    async def next(self) -> Wakeup | None:
        async with asyncio.timeout(20):
            return await self._news.get()


type Notify = Callable[[str, list[str]], Awaitable[None]]


class Listening(NamedTuple):
    """A listener with the workers' channel."""

    channel: Channel[Wakeup]
    close: Callable[[], Awaitable[None]]

    @property
    def listening(self) -> asyncio.Event:
        return self.channel.listening

    def subscribed(self, callback: Callable[[Wakeup | None], None]) -> AbstractContextManager[None]:
        return self.channel.subscribed(callback)


def listen(notify: Notify, *, timeout: float) -> Listening:
    listener = Listener("default", notify, timeout=timeout)
    return Listening(listener.channel(CHANNEL, read_payload, own=True), listener.close)


@pytest.fixture
async def notify(database: str) -> AsyncIterator[Notify]:
    """What sends the probes: a connection that isn't the listener's."""
    connection = await asyncpg.connect(database)

    async def notify(channel: str, payloads: list[str]) -> None:
        await connection.execute("SELECT pg_notify($1, unnest($2::text[]))", channel, payloads)

    yield notify
    await connection.close()


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "PROBE_INTERVAL", 0.05)
    monkeypatch.setattr(listener_module, "PROBE_TIMEOUT", 0.5)


async def sessions(conn: asyncpg.Connection) -> list[int]:
    rows = await conn.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'aiotasks'"
    )
    return [pid for (pid,) in rows]


async def test_it_listens_first_and_then_has_everybody_look(conn: asyncpg.Connection, notify: Notify) -> None:
    """Fault 16 of docs/faults.md: what was enqueued before is found by looking, what comes after is told."""
    listener, heard, later = listen(notify, timeout=5), Heard(), Heard()
    with listener.subscribed(heard):
        assert await heard.next() is None
        assert listener.listening.is_set()
        await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, PAYLOAD)
        assert await heard.next() == WAKEUP
        with listener.subscribed(later):
            await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, PAYLOAD)
            assert await heard.next() == await later.next() == WAKEUP
        await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, PAYLOAD)
        assert await heard.next() == WAKEUP
    assert later.all == [WAKEUP]
    await listener.close()


async def test_strangers_payloads_are_ignored(conn: asyncpg.Connection, notify: Notify) -> None:
    listener, heard = listen(notify, timeout=5), Heard()
    with listener.subscribed(heard):
        assert await heard.next() is None
        for payload in ("", "{", "[]", '["default"]', '["default", 1, null]', "[" * 3000, "null", PAYLOAD):
            await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        assert await heard.next() == WAKEUP
    await listener.close()


async def test_it_comes_back_after_its_session_was_ended(
    conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, notify: Notify
) -> None:
    """Fault 15 of docs/faults.md: at once, without a probe."""
    monkeypatch.setattr(listener_module, "PROBE_INTERVAL", 3600.0)
    listener, heard = listen(notify, timeout=5), Heard()
    with listener.subscribed(heard):
        for _ in range(3):
            assert await heard.next() is None
            (pid,) = await sessions(conn)
            await conn.execute("SELECT pg_terminate_backend($1)", pid)
        assert await heard.next() is None
        await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, PAYLOAD)
        assert await heard.next() == WAKEUP
    await listener.close()


async def test_it_notices_a_line_that_swallows_everything(
    proxy: Proxy, conn: asyncpg.Connection, notify: Notify
) -> None:
    """Fault 15 of docs/faults.md: half-open, nobody says a word."""
    listener, heard = listen(notify, timeout=0.5), Heard()
    with listener.subscribed(heard):
        assert await heard.next() is None
        proxy.mode = "blackhole"
        await until(lambda: proxy.connections >= 2)  # it has given the first one up
        assert not listener.listening.is_set()
        proxy.mode = "pass"
        assert await heard.next() is None
        await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, PAYLOAD)
        assert await heard.next() == WAKEUP
    await listener.close()


async def test_it_goes_on_trying_while_nobody_answers(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, notify: Notify
) -> None:
    proxy.mode = "refuse"
    listener, heard = listen(notify, timeout=0.5), Heard()
    with listener.subscribed(heard):
        await until(lambda: "NOTIFY is not received" in caplog.text)
        assert not listener.listening.is_set()
        proxy.mode = "pass"
        assert await heard.next() is None
    await listener.close()


async def test_it_stays_outside_any_transaction(conn: asyncpg.Connection, notify: Notify) -> None:
    """Fault 18 of docs/faults.md: an open one would fill the server's notification queue."""
    listener, heard = listen(notify, timeout=5), Heard()
    with listener.subscribed(heard):
        assert await heard.next() is None
        (pid,) = await sessions(conn)

        async def is_idle() -> bool:
            return bool(
                await conn.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid) == "idle"
            )

        await until(is_idle)
    await listener.close()


async def nobody_listens(conn: asyncpg.Connection) -> bool:
    return not await sessions(conn)


async def test_without_subscribers_there_is_no_connection(conn: asyncpg.Connection, notify: Notify) -> None:
    listener, heard = listen(notify, timeout=5), Heard()
    for _ in range(2):
        with listener.subscribed(heard):
            assert await heard.next() is None
        await until(lambda: nobody_listens(conn))
    await listener.close()


async def test_a_session_that_nothing_arrives_on_is_deaf(
    conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 19 of docs/faults.md: as through a pooler. Logged once, not taken for listening, tried again."""
    monkeypatch.setattr(listener_module, "PROBE_TIMEOUT", 0.05)
    monkeypatch.setattr(listener_module, "DEAF_PAUSE", 0.05)
    probes = 0
    arrives = False

    async def notify(channel: str, payloads: list[str]) -> None:
        nonlocal probes
        probes += 1
        if arrives:
            await conn.execute("SELECT pg_notify($1, '')", channel)

    listener, heard = listen(notify, timeout=5), Heard()
    with listener.subscribed(heard):
        await until(lambda: probes >= 3)
        assert not listener.listening.is_set()
        assert heard.all == []
        monkeypatch.setattr(listener_module, "PROBE_TIMEOUT", 5.0)
        arrives = True
        assert await heard.next() is None
        assert listener.listening.is_set()
    await listener.close()
    assert caplog.text.count("NOTIFY is not delivered") == 1


class Texts:
    """What a subscriber of a channel of texts was told."""

    def __init__(self) -> None:
        self.all: list[str | None] = []

    def __call__(self, text: str | None) -> None:
        self.all.append(text)


async def test_channels_come_and_go_on_one_session(conn: asyncpg.Connection, notify: Notify) -> None:
    """Each subscriber hears its own channel, and is told to look whenever LISTEN begins there."""
    listener = Listener("default", notify, timeout=5)
    wakeups = listener.channel(CHANNEL, read_payload, own=True)
    others = listener.channel("others", str)
    heard, texts = Heard(), Texts()
    with wakeups.subscribed(heard):
        assert await heard.next() is None
        before = await sessions(conn)
        for _ in range(2):
            texts.all.clear()
            with others.subscribed(texts):
                await until(lambda: texts.all == [None])
                await conn.execute("SELECT pg_notify('others', 'x'), pg_notify($1, $2)", CHANNEL, PAYLOAD)
                await until(lambda: texts.all == [None, "x"])
                assert await heard.next() == WAKEUP
            await until(lambda: not others.listening.is_set())
            await conn.execute("SELECT pg_notify('others', 'y')")
        assert await sessions(conn) == before
    assert texts.all == [None, "x"]
    await listener.close()


async def test_it_listens_a_while_longer_where_it_should(conn: asyncpg.Connection, notify: Notify) -> None:
    listener = Listener("default", notify, timeout=5)
    channel = listener.channel("others", str, linger=0.5)
    texts = Texts()
    for _ in range(3):
        with channel.subscribed(texts):
            await until(channel.listening.is_set)
    assert texts.all == [None]  # it has never ended
    assert len(await sessions(conn)) == 1
    await until(lambda: nobody_listens(conn))
    assert not channel.listening.is_set()
    with channel.subscribed(texts):
        await until(channel.listening.is_set)
    await listener.close()
    await until(lambda: nobody_listens(conn))


async def test_a_channel_alone_is_probed(conn: asyncpg.Connection, notify: Notify) -> None:
    probed: list[str] = []

    async def count(channel: str, payloads: list[str]) -> None:
        probed.append(channel)
        await notify(channel, payloads)

    listener = Listener("default", count, timeout=5)
    listener.channel(CHANNEL, read_payload, own=True)
    with listener.channel("others", str).subscribed(Texts()):
        await until(lambda: len(probed) >= 3)
    assert probed[:2] == [listener.own_channel, "others"]
    assert CHANNEL not in probed
    await listener.close()
