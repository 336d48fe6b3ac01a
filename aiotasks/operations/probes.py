"""What only trying tells: who answers behind a connection, whether NOTIFY arrives, what time it is there."""

import asyncio
import time
import uuid
from contextlib import AbstractAsyncContextManager, suppress
from typing import Literal, Protocol

from ..db.drivers import Connection, Driver
from ..db.errors import django_errors
from ..store.store import Store
from ..store.wakeups import CHANNEL

__all__ = ["Pooler", "ServerLine", "clock_difference", "find_pooler", "notify_arrives"]

# A pooler has been seen to give two connections the same process at the first try; others of its
# clients may get in between.
ROUNDS = 3

type Pooler = Literal["none", "session", "transaction"]


class ServerLine(Driver, Protocol):
    """What ``find_pooler`` needs of a connection."""

    @property
    def announced_pid(self) -> int:
        """The server process that it was told of when it was opened."""

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Have the statements inside share a transaction."""


async def find_pooler(one: ServerLine, other: ServerLine) -> Pooler:
    """What stands between us and PostgreSQL, by who answers on two connections.

    A pooler in transaction mode gives the process that has answered one of them to the other, as soon
    as that begins a transaction, and the first another one. One in session mode has told us of a
    process that isn't there. One that takes turns changes the process from statement to statement.
    """
    ours, theirs = Store(one), Store(other)
    for _ in range(ROUNDS):
        pid = await ours.backend_pid()
        if await ours.backend_pid() != pid:
            return "transaction"
        async with other.transaction():  # it keeps its process meanwhile
            if await theirs.backend_pid() == pid or await ours.backend_pid() != pid:
                return "transaction"
    return "none" if pid == one.announced_pid else "session"


async def notify_arrives(listening: Connection, store: Store, *, within: float) -> bool:
    """Whether a session that LISTENs on ``listening`` hears what ``store`` says, in so many seconds.

    Not what it says itself: that comes back even through a pooler that tells it of nothing else.
    """
    heard = asyncio.Event()
    channel = f"{CHANNEL}_probe_{uuid.uuid4().hex}"

    def hear(*_: object) -> None:
        heard.set()

    with django_errors():
        await listening.add_listener(channel, hear)
    try:
        await store.notify(channel, [""], alone=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(heard.wait(), within)
    finally:
        with django_errors():  # a pooler would go on listening for us
            await listening.remove_listener(channel, hear)
    return heard.is_set()


async def clock_difference(store: Store) -> tuple[float, float]:
    """By how many seconds the database's clock is ahead of ours, and how far off that may be."""
    best = (0.0, float("inf"))
    for _ in range(3):
        before = time.time()
        there = await store.read_clock()
        after = time.time()
        doubt = (after - before) / 2
        if doubt < best[1]:
            best = (there.timestamp() - (before + after) / 2, doubt)
    return best
