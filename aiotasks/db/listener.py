"""The one LISTEN connection of an event loop to a database.

The session is outside any pool, because LISTEN is lost with it, and outside any transaction, because one that
stays open fills the server's notification queue.
https://www.postgresql.org/docs/current/sql-listen.html
"""

import asyncio
import contextvars
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from django.db import utils

from .connect import connect
from .errors import django_errors
from .outage import Outage

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Channel", "Listener"]

logger = logging.getLogger("aiotasks.store")

# Seconds without a notification after which a probe is sent, at most, and within which one must arrive. A
# session can break without an error (a half-open connection), so a listener that has heard nothing has a
# notification sent. Both together limit a time without NOTIFY to 10 s.
PROBE_INTERVAL = 5.0
PROBE_TIMEOUT = 5.0

# A statement that chooses workers tries this lock, to see whether the session is there.
LOCK = "SELECT pg_advisory_lock_shared(hashtextextended($1, 0))"

# What a probe says on a channel that others LISTEN on, too. It is no message to any reader.
PROBE = ""

# If the first probe doesn't arrive, there is most likely a pooler in transaction mode, which loses LISTEN.
# Seconds until the next try, at most, in case that somebody has fixed it.
DEAF_PAUSE = 60.0

# Called with a message, or with None after every (re)connection, because messages may have been missed.
type Callback[Message] = Callable[[Message | None], None]


class _Deaf(utils.OperationalError):
    """LISTEN succeeded, but notifications don't arrive."""


class Channel[Message]:
    """One channel of a Listener, which LISTENs on it for as long as it has subscribers, and ``linger``
    seconds longer.

    The Listener LISTENs first and then calls the subscribers with None, so that no message falls between.
    Subscribers poll as well. ``listening`` is set while notifications of the channel are known to arrive.

    ``read`` returns the message of a payload, or None if it isn't one.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[str], Message | None],
        update: Callable[[], None],
        *,
        linger: float,
    ) -> None:
        self.name = name
        self.listening = asyncio.Event()
        self._read = read
        self._update = update
        self._linger = linger
        self._subscribers: set[Callback[Message]] = set()
        self._lingering: asyncio.TimerHandle | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the Listener is to LISTEN on it."""
        return bool(self._subscribers) or self._lingering is not None

    @contextmanager
    def subscribed(self, callback: Callback[Message]) -> Iterator[None]:
        """Have ``callback`` called with every message while the block lasts."""
        self._subscribers.add(callback)
        self._stop_lingering()
        self._update()
        try:
            yield
        finally:
            self._subscribers.discard(callback)
            if not self._subscribers and self._linger and self.listening.is_set():
                self._stop_lingering()
                loop = asyncio.get_running_loop()
                self._lingering = loop.call_later(self._linger, self._linger_no_more)
            self._update()

    def pass_on(self, message: Message, *, sender: Callback[Message]) -> None:
        """Call the subscribers with ``message`` as if it had been notified, but for the ``sender``."""
        for callback in list(self._subscribers):
            if callback != sender:
                callback(message)

    def notified(self, payload: str) -> None:
        """Call the subscribers with the message of a payload, if it is one."""
        if self._subscribers and (message := self._read(payload)) is not None:
            self.call(message)

    def call(self, message: Message | None) -> None:
        """Call the subscribers."""
        for callback in list(self._subscribers):
            callback(message)

    def close(self) -> None:
        """Have no subscribers any more."""
        self._subscribers.clear()
        self._stop_lingering()

    def _linger_no_more(self) -> None:
        self._lingering = None
        self._update()

    def _stop_lingering(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None


class Listener:
    """Has one session for all of its channels while one of them is wanted, and reconnects. It never raises
    into the loop.

    A channel is listening only after the first probe has arrived, on ``own_channel``, on which this listener
    alone LISTENs. Later probes go to the first of the channels that are wanted: every listener hears them and
    puts its own off, so that a hundred listeners send as many as one. ``notify`` (channel, payloads) sends
    probes over another connection, because a pooler in transaction mode delivers a session's own
    notifications, but no others.

    While it listens, its session holds a shared advisory lock on the hash of ``own_channel``. The lock ends
    with the session, so that a statement can see whether anybody LISTENs there.
    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """

    def __init__(
        self, alias: str, notify: Callable[[str, list[str]], Awaitable[None]], *, timeout: float
    ) -> None:
        self.own_channel = f"aiotasks_{uuid.uuid4().hex}"
        self._alias = alias
        self._notify = notify
        self._timeout = timeout
        self._channels: list[Channel[Any]] = []
        self._by_name: dict[str, Channel[Any]] = {}
        self._deaf = False
        self._outage = Outage(logger, f"listener of {alias}", "NOTIFY is not received; polling instead")
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()  # since the last probe was sent
        self._heard_at = 0.0  # by the loop's clock
        self._changed = asyncio.Event()  # other channels are wanted, or the session has ended

    def channel[Message](
        self, name: str, read: Callable[[str], Message | None], *, own: bool = False, linger: float = 0.0
    ) -> Channel[Message]:
        """Return a channel, to be subscribed to. ``own``: it gets the messages of ``own_channel``, too."""
        channel = Channel(name, read, self._update, linger=linger)
        self._channels.append(channel)
        self._by_name[name] = channel
        if own:
            self._by_name[self.own_channel] = channel
        return channel

    async def close(self) -> None:
        """Stop listening; waits for the connection to be closed."""
        for channel in self._channels:
            channel.close()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def _update(self) -> None:
        """Have a session if one of the channels is wanted, and LISTEN there on those that are."""
        is_wanted = any(channel.is_wanted for channel in self._channels)
        if is_wanted and self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), context=contextvars.Context(), name="aiotasks listener"
            )
        elif not is_wanted and self._task is not None:
            self._task.cancel()
            self._task = None
        self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                connection = await connect(self._alias, timeout=self._timeout, statement_cache_size=0)
                try:
                    await self._listen(connection)
                finally:
                    for channel in self._channels:
                        channel.listening.clear()
                    connection.terminate()  # close() may hang, and there is nothing to lose
            except _Deaf:
                self._outage.ended()
                pause = DEAF_PAUSE * random.uniform(0.5, 1.0)
                if not self._deaf:
                    self._deaf = True
                    logger.warning(
                        "NOTIFY is not delivered; polling instead. Behind a transaction-mode pooler set "
                        "LISTEN_DATABASE to a direct connection database=%r",
                        self._alias,
                    )
            except utils.Error as error:
                pause = self._outage.failed(error)
            await asyncio.sleep(pause)

    async def _listen(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """LISTEN on ``connection`` until it fails; raises a ``django.db`` error then."""
        lost = False

        def end(_: object) -> None:
            nonlocal lost
            lost = True
            self._changed.set()
            self._heard.set()  # nothing can arrive

        connection.add_termination_listener(end)
        with django_errors():
            async with asyncio.timeout(self._timeout):
                await connection.add_listener(self.own_channel, self._notified)
            if not await self._arrives(self.own_channel):
                await self._leave_no_trace(connection)
                raise _Deaf
            if not lost:
                # Not before: a pooler's session would keep it for its next client.
                async with asyncio.timeout(self._timeout):
                    await connection.execute(LOCK, self.own_channel)
                self._deaf = False
                self._outage.ended()
                logger.debug("Listening for NOTIFY database=%r", self._alias)
            while not lost:
                self._changed.clear()
                await self._follow(connection)
                await self._silence()
                if not self._changed.is_set() and not await self._arrives(self._probed()):
                    raise TimeoutError("a notification didn't arrive")
            raise OSError("the server closed the connection")

    async def _follow(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """LISTEN on the channels that are wanted, and on no others."""
        for channel in self._channels:
            if channel.is_wanted == channel.listening.is_set():
                continue
            async with asyncio.timeout(self._timeout):
                if channel.is_wanted:
                    await connection.add_listener(channel.name, self._notified)
                    channel.listening.set()
                    channel.call(None)
                else:
                    channel.listening.clear()
                    await connection.remove_listener(channel.name, self._notified)

    def _probed(self) -> str:
        """The channel of the next probe."""
        names = (channel.name for channel in self._channels if channel.listening.is_set())
        return next(names, self.own_channel)

    async def _arrives(self, channel: str) -> bool:
        """Send a probe, and return whether it or any other notification arrives."""
        self._heard.clear()
        await self._notify(channel, [PROBE])
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), PROBE_TIMEOUT)
        return self._heard.is_set()

    async def _silence(self) -> None:
        """Wait until nothing has been heard for a while, other channels are wanted, or the connection is
        lost.

        The while is random, so that of many listeners that hear each other's probes one sends the next.
        """
        heard_at = None
        while heard_at != self._heard_at and not self._changed.is_set():
            heard_at = self._heard_at
            pause = PROBE_INTERVAL * random.uniform(0.5, 1.0)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(heard_at + pause):
                    await self._changed.wait()

    async def _leave_no_trace(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """UNLISTEN on the session of a pooler, if the pooler gives the same one again."""
        with suppress(utils.Error), django_errors():
            await connection.execute(f"UNLISTEN {self.own_channel}", timeout=PROBE_TIMEOUT)

    def _notified(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._heard.set()
        if isinstance(payload, str) and (found := self._by_name.get(channel)) is not None:
            found.notified(payload)
