"""The one LISTEN connection of an event loop to a database.

A session that LISTENs must be its own: outside any pool (LISTEN is lost with the session) and
outside any transaction (one that stays open fills the server's notification queue).
https://www.postgresql.org/docs/current/sql-listen.html
"""

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
from django.db import utils

from .connect import connect
from .drivers import django_errors
from .repeat import backoff
from .wakeups import CHANNEL, Wakeup, read_payload

__all__ = ["Listener"]

logger = logging.getLogger("aiotasks.store")

# A session can die without a word (a half-open connection, a pooler that swallows NOTIFY), so
# the listener notifies itself and waits for it. Both together bound the deafness: 10 s, within
# which the poll finds what NOTIFY doesn't tell.
PROBE_INTERVAL = 5.0
PROBE_TIMEOUT = 5.0

# Told of a wake-up, or None where any may have been missed: after every (re)connection.
Callback = Callable[[Wakeup | None], None]


class Listener:
    """Passes wake-ups on to its subscribers, and reconnects for as long as it has any.

    It LISTENs first and then tells its subscribers to look for themselves, so that nothing
    falls between. It never raises into the loop: whoever relies on it polls as well.
    """

    def __init__(self, alias: str, *, timeout: float, statement_cache_size: int) -> None:
        self._alias = alias
        self._timeout = timeout
        self._statement_cache_size = statement_cache_size
        self._subscribers: set[Callback] = set()
        self._task: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()

    @contextmanager
    def subscribed(self, callback: Callback) -> Iterator[None]:
        """Have ``callback`` called with every wake-up while the block lasts."""
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
        failures = 0
        while True:
            try:
                connection = await connect(
                    self._alias, timeout=self._timeout, statement_cache_size=self._statement_cache_size
                )
                try:
                    await self._listen(connection)
                finally:
                    if self.listening.is_set():
                        self.listening.clear()
                        failures = 0
                    connection.terminate()  # nothing on it is worth a farewell that may hang
            except utils.Error as error:
                failures += 1
                if failures == 1:
                    logger.warning(
                        "LISTEN is lost, polling until it is back database=%r error=%r",
                        self._alias,
                        str(error),
                    )
            await asyncio.sleep(backoff(failures))

    async def _listen(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """LISTEN on ``connection`` until it fails; raises a ``django.db`` error then."""
        lost = asyncio.Event()
        echo = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        probe = f"{CHANNEL}_probe_{uuid.uuid4().hex}"
        with django_errors():
            await connection.add_listener(probe, lambda *_: echo.set())
            await connection.add_listener(CHANNEL, self._heard)
            self.listening.set()
            logger.debug("listening database=%r", self._alias)
            self._tell(None)
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), PROBE_INTERVAL)
                if lost.is_set():
                    raise OSError("the server closed the connection")
                echo.clear()
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await connection.execute("SELECT pg_notify($1, '')", probe)
                    await echo.wait()

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        if isinstance(payload, str) and (wakeup := read_payload(payload)) is not None:
            self._tell(wakeup)

    def _tell(self, wakeup: Wakeup | None) -> None:
        for callback in list(self._subscribers):
            callback(wakeup)
