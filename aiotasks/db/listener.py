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

__all__ = ["Listener"]

logger = logging.getLogger("aiotasks.store")

# Seconds without a notification after which a probe is sent, at most, and within which one must arrive. A
# session can break without an error (a half-open connection), so a listener that has heard nothing has a
# notification sent. Both together limit a time without NOTIFY to 10 s.
PROBE_INTERVAL = 5.0
PROBE_TIMEOUT = 5.0

# A statement that chooses workers tries this lock, to see whether the session is there.
LOCK = "SELECT pg_advisory_lock_shared(hashtextextended($1, 0))"

# What a probe says on the common channel. It is no message to any reader.
PROBE = ""

# If the first probe doesn't arrive, there is most likely a pooler in transaction mode, which loses LISTEN.
# Seconds until the next try, at most, in case that somebody has fixed it.
DEAF_PAUSE = 60.0

# Called with a message, or with None after every (re)connection, because messages may have been missed.
type Callback[Message] = Callable[[Message | None], None]


class _Deaf(utils.OperationalError):
    """LISTEN succeeded, but notifications don't arrive."""


class Listener[Message]:
    """Passes the notifications of two channels on to its subscribers, and reconnects for as long as it has
    any.

    All listeners have ``channel``, and each an ``own_channel``. It LISTENs first and then calls its
    subscribers with None, so that no message falls between. It never raises into the loop; its subscribers
    poll as well.

    ``read`` returns the message of a payload, or None if it isn't one.

    ``listening`` is set while notifications are known to arrive, so not before the first probe has, on the
    own channel. Later probes go to ``channel``: every listener hears them and puts its own off, so that a
    hundred listeners send as many as one. ``notify`` (channel, payloads) sends probes over another
    connection, because a pooler in transaction mode delivers a session's own notifications, but no others.

    While it listens, its session holds a shared advisory lock on the hash of ``own_channel``. The lock ends
    with the session, so that a statement can see whether anybody LISTENs there.
    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """

    def __init__(
        self,
        alias: str,
        channel: str,
        read: Callable[[str], Message | None],
        notify: Callable[[str, list[str]], Awaitable[None]],
        *,
        timeout: float,
    ) -> None:
        self.own_channel = f"{channel}_{uuid.uuid4().hex}"
        self._alias = alias
        self._channel = channel
        self._read = read
        self._notify = notify
        self._timeout = timeout
        self._deaf = False
        self._outage = Outage(logger, f"listener of {alias}", "NOTIFY is not received; polling instead")
        self._subscribers: set[Callback[Message]] = set()
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()  # since the last probe was sent
        self._heard_at = 0.0  # by the loop's clock
        self.listening = asyncio.Event()

    @contextmanager
    def subscribed(self, callback: Callback[Message]) -> Iterator[None]:
        """Have ``callback`` called with every message while the block lasts."""
        self._subscribers.add(callback)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._run(), context=contextvars.Context(), name="aiotasks listener"
            )
        try:
            yield
        finally:
            self._subscribers.discard(callback)
            if not self._subscribers and self._task is not None:
                self._task.cancel()
                self._task = None

    def pass_on(self, message: Message, *, sender: Callback[Message]) -> None:
        """Call the subscribers with ``message`` as if it had been notified, but for the ``sender``."""
        for callback in list(self._subscribers):
            if callback != sender:
                callback(message)

    async def close(self) -> None:
        """Stop listening; waits for the connection to be closed."""
        self._subscribers.clear()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                connection = await connect(self._alias, timeout=self._timeout, statement_cache_size=0)
                try:
                    await self._listen(connection)
                finally:
                    self.listening.clear()
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
        lost = asyncio.Event()

        def end(_: object) -> None:
            lost.set()
            self._heard.set()  # nothing can arrive

        connection.add_termination_listener(end)
        with django_errors():
            async with asyncio.timeout(self._timeout):
                await connection.add_listener(self.own_channel, self._notified)
            if not await self._arrives(self.own_channel):
                await self._leave_no_trace(connection)
                raise _Deaf
            if not lost.is_set():
                # Not before: a pooler's session would keep them for its next client.
                async with asyncio.timeout(self._timeout):
                    await connection.execute(LOCK, self.own_channel)
                    await connection.add_listener(self._channel, self._notified)
                self.listening.set()
                self._deaf = False
                self._outage.ended()
                logger.debug("Listening for NOTIFY database=%r", self._alias)
                self._call(None)
            while True:
                await self._silence(lost)
                if lost.is_set():
                    raise OSError("the server closed the connection")
                if not await self._arrives(self._channel):
                    raise TimeoutError("a notification didn't arrive")

    async def _arrives(self, channel: str) -> bool:
        """Send a probe, and return whether it or any other notification arrives."""
        self._heard.clear()
        await self._notify(channel, [PROBE])
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), PROBE_TIMEOUT)
        return self._heard.is_set()

    async def _silence(self, lost: asyncio.Event) -> None:
        """Wait until nothing has been heard for a while, or the connection is lost.

        The while is random, so that of many listeners that hear each other's probes one sends the next.
        """
        heard_at = None
        while heard_at != self._heard_at and not lost.is_set():
            heard_at = self._heard_at
            pause = PROBE_INTERVAL * random.uniform(0.5, 1.0)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(heard_at + pause):
                    await lost.wait()

    async def _leave_no_trace(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """UNLISTEN on the session of a pooler, if the pooler gives the same one again."""
        with suppress(utils.Error), django_errors():
            await connection.execute(f"UNLISTEN {self.own_channel}", timeout=PROBE_TIMEOUT)

    def _notified(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._heard.set()
        if isinstance(payload, str) and (message := self._read(payload)) is not None:
            self._call(message)

    def _call(self, message: Message | None) -> None:
        for callback in list(self._subscribers):
            callback(message)
