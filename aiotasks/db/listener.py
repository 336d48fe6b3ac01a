"""The one LISTEN connection of an event loop to a database.

A session that LISTENs must be its own: outside any pool (LISTEN is lost with the session) and
outside any transaction (one that stays open fills the server's notification queue).
https://www.postgresql.org/docs/current/sql-listen.html
"""

import asyncio
import contextvars
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
from django.db import utils

from .connect import connect
from .errors import django_errors
from .outage import Outage

__all__ = ["Listener"]

logger = logging.getLogger("aiotasks.store")

# A session can die without a word (a half-open connection), so the listener has itself notified
# and waits for it. Both together bound the deafness: 10 s, within which the poll finds what NOTIFY
# doesn't tell.
PROBE_INTERVAL = 5.0
PROBE_TIMEOUT = 5.0

# Where the very first probe doesn't arrive there is most likely a pooler in transaction mode, whose
# sessions a LISTEN is lost on. Seconds until the next try, at most: somebody may have mended it.
DEAF_PAUSE = 60.0

# Called with a message, or None where any may have been missed: after every (re)connection.
type Callback[Message] = Callable[[Message | None], None]


class _Deaf(utils.OperationalError):
    """LISTEN went through, but what is notified doesn't arrive."""


class Listener[Message]:
    """Passes what is notified on ``channel`` on to its subscribers, and reconnects for as long as it has any.

    It LISTENs first and then tells its subscribers to look for themselves, so that nothing
    falls between. It never raises into the loop: whoever relies on it polls as well.

    ``read`` makes a message of a payload, or None of what isn't one.

    ``listening`` is set while notifications are known to arrive: not before the first probe has.
    Probes are sent by ``notify`` (channel, payloads), over another connection: a pooler in
    transaction mode hands a session its own notifications, but nobody else's.
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
                    connection.terminate()  # nothing on it is worth a farewell that may hang
            except _Deaf:
                self._outage.ended()
                pause = DEAF_PAUSE * random.uniform(0.5, 1.0)
                if not self._deaf:
                    self._deaf = True
                    logger.warning(
                        "NOTIFY doesn't arrive, polling: behind a pooler in transaction mode "
                        "LISTEN_DATABASE is to name a direct line database=%r",
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
            echo.set()  # which is waited for in vain

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
                    # Not before: what others send would come to whoever has the pooler's session.
                    await connection.add_listener(self._channel, self._heard)
                    self.listening.set()
                    self._deaf = False
                    self._outage.ended()
                    logger.debug("listening database=%r", self._alias)
                    self._tell(None)
                with suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), PROBE_INTERVAL)
                if lost.is_set():
                    raise OSError("the server closed the connection")

    async def _leave_no_trace(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """UNLISTEN on the session of a pooler, if that is the one that we get."""
        with suppress(utils.Error), django_errors():
            await connection.execute(f"UNLISTEN {self._probe}", timeout=PROBE_TIMEOUT)

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if isinstance(payload, str) and (message := self._read(payload)) is not None:
            self._tell(message)

    def _tell(self, message: Message | None) -> None:
        for callback in list(self._subscribers):
            callback(message)
