"""Outbox: NOTIFYs that go out after a commit, many in one statement, while no caller waits for them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from itertools import islice

from django.db import utils

from ..db.retry import repeat

__all__ = ["Outbox"]

# Limits of the items that wait, and of the failed ones that are remembered, so that memory stays bounded in
# an outage.
MOST_WAITING = 10_000
MOST_FAILED = 1000


class Outbox[Item]:
    """Sends items soon, each once.

    Items that come while a statement is under way go together in the next. A lost one costs a poll interval,
    never a task.

    send: sends items in one statement, of at most ``at_once``. within: seconds for which it is tried again,
    because others may have left their own out for these. failed: is called with items that couldn't be sent.
    log: logs the error.
    """

    def __init__(
        self,
        send: Callable[[set[Item]], Awaitable[object]],
        *,
        at_once: int,
        within: float,
        log: Callable[[utils.Error], None],
        failed: Callable[[set[Item]], None] = lambda items: None,
        name: str,
    ) -> None:
        self._send_items = send
        self._at_once = at_once
        self._within = within
        self._failed = failed
        self._log = log
        self._name = name
        self._waiting: set[Item] = set()
        self._unsent: set[Item] = set()
        self._sender: asyncio.Task[None] | None = None

    def put(self, items: Iterable[Item]) -> None:
        """Send ``items``; returns at once."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.update(items)
        if self._waiting and self._sender is None:
            # An empty context, because the items belong to no caller, not even to the first.
            self._sender = asyncio.get_running_loop().create_task(
                self._run(), context=Context(), name=self._name
            )
            self._sender.add_done_callback(self._ended)

    async def all_sent(self) -> None:
        """Wait until no item is under way; for a process that is about to end."""
        while self._sender is not None:
            await asyncio.wait([self._sender])

    async def send_what_is_left(self) -> None:
        """Send the waiting and the failed items; for a loop that ends, which has cancelled the sender."""
        self._waiting |= self._unsent
        while self._waiting:
            await self._send()

    def _ended(self, sender: "asyncio.Task[None]") -> None:
        """Do what a sender couldn't that a closing loop cancelled before its first step."""
        if self._sender is sender:
            self._sender = None

    async def _run(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._send()
                except utils.Error as error:
                    self._log(error)
        finally:
            # Nothing is awaited between the last check of the loop above and this, or an item that arrived
            # in between would wait for the next one.
            self._sender = None

    async def _send(self) -> None:
        items = set(islice(self._waiting, self._at_once))
        self._waiting -= items
        self._unsent |= set(islice(items, MOST_FAILED - len(self._unsent)))
        sent = False
        try:
            await repeat(lambda: self._send_items(items), within=self._within)
            sent = True
        finally:
            if not sent:
                self._failed(items)
        self._unsent -= items
