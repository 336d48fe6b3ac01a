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

# Seconds between probes, and within which one must arrive. A session can break without an error (a half-open
# connection), so the listener sends itself notifications. Both together limit a time without NOTIFY to
# 10 s.
PROBE_INTERVAL = 5.0
PROBE_TIMEOUT = 5.0

# If the first probe doesn't arrive, there is most likely a pooler in transaction mode, which loses LISTEN.
# Seconds until the next try, at most, in case that somebody has fixed it.
DEAF_PAUSE = 60.0

# Called with a message, or with None after every (re)connection, because messages may have been missed.
type Callback[Message] = Callable[[Message | None], None]


class _Deaf(utils.OperationalError):
    """LISTEN succeeded, but notifications don't arrive."""


class Listener[Message]:
    """Passes notifications of ``channel`` on to its subscribers, and reconnects for as long as it has any.

    It LISTENs first and then calls its subscribers with None, so that no message falls between. It never
    raises into the loop; its subscribers poll as well.

    ``read`` returns the message of a payload, or None if it isn't one.

    ``listening`` is set while notifications are known to arrive, so not before the first probe has. Probes
    are sent by ``notify`` (channel, payloads) over another connection, because a pooler in transaction mode
    delivers a session's own notifications, but no others.
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
        self._alias = alias
        self._channel = channel
        self._read = read
        self._notify = notify
        self._timeout = timeout
        self._deaf = False
        self._outage = Outage(logger, f"listener of {alias}", "NOTIFY is not received; polling instead")
        self._subscribers: set[Callback[Message]] = set()
        self._task: asyncio.Task[None] | None = None
        self._probe = f"{channel}_probe_{uuid.uuid4().hex}"
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
        echo = asyncio.Event()

        def end(_: object) -> None:
            lost.set()
            echo.set()  # it can't arrive

        connection.add_termination_listener(end)
        with django_errors():
            await connection.add_listener(self._probe, lambda *_: echo.set())
            while True:
                echo.clear()
                await self._notify(self._probe, [""])
                with suppress(TimeoutError):
                    await asyncio.wait_for(echo.wait(), PROBE_TIMEOUT)
                if not echo.is_set():
                    if self.listening.is_set():
                        raise TimeoutError("a notification didn't arrive")
                    await self._leave_no_trace(connection)
                    raise _Deaf
                if not lost.is_set() and not self.listening.is_set():
                    # Not before: a pooler's session would keep the LISTEN for its next client.
                    await connection.add_listener(self._channel, self._notified)
                    self.listening.set()
                    self._deaf = False
                    self._outage.ended()
                    logger.debug("Listening for NOTIFY database=%r", self._alias)
                    self._call(None)
                with suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), PROBE_INTERVAL)
                if lost.is_set():
                    raise OSError("the server closed the connection")

    async def _leave_no_trace(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """UNLISTEN on the session of a pooler, if the pooler gives the same one again."""
        with suppress(utils.Error), django_errors():
            await connection.execute(f"UNLISTEN {self._probe}", timeout=PROBE_TIMEOUT)

    def _notified(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if isinstance(payload, str) and (message := self._read(payload)) is not None:
            self._call(message)

    def _call(self, message: Message | None) -> None:
        for callback in list(self._subscribers):
            callback(message)
