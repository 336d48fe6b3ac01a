"""What NOTIFY says to workers, and how it is sent.

A payload is a JSON list ``[backend, queue_name, due]``: there are READY tasks in the queue, or
(``due``, seconds since the epoch) one that is due at that time; with a fourth item, true, a task
that runs is to be cancelled. Any role that can connect may
listen, so nothing else is ever in it.
"""

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from itertools import islice

from django.db import utils

from ..job import Job, NewJob
from .store import Store

__all__ = ["CHANNEL", "Notifier", "Wakeup", "cancel_wakeups", "read_payload", "wakeups_of"]

logger = logging.getLogger("aiotasks.store")

CHANNEL = "aiotasks"

# Seconds between two NOTIFYs of a process. A caller that enqueues one task after another would have
# every INSERT wait for the last one's wake-up to be sent (measured: half as many a second). A worker
# that was woken claims until nothing is left, so it misses the later ones only if it is done already.
INTERVAL = 0.005

# The payloads of one statement; more queues than that go in the next.
MOST_AT_ONCE = 1000

# The wake-ups remembered that couldn't be sent, so that an outage doesn't fill the memory.
MOST_FAILED = 1000


@dataclass(frozen=True, slots=True)
class Wakeup:
    """READY tasks in a queue; with ``due``, one scheduled for then; with ``cancel``, one to cancel."""

    backend: str
    queue_name: str
    due: float | None = None
    cancel: bool = False

    def payload(self) -> str:
        return json.dumps([self.backend, self.queue_name, self.due, *([True] if self.cancel else [])])


def read_payload(payload: str) -> Wakeup | None:
    """Read a payload; None for one that isn't ours (any role may notify on our channel)."""
    try:
        match json.loads(payload):
            case [str(backend), str(queue_name), (None | float() | int()) as due]:
                return Wakeup(backend, queue_name, due)
            case [str(backend), str(queue_name), None, True]:
                return Wakeup(backend, queue_name, cancel=True)
    except (ValueError, RecursionError):
        pass
    return None


def wakeups_of(jobs: Iterable[NewJob]) -> list[Wakeup]:
    """One wake-up a queue, with the earliest due time of its scheduled tasks."""
    ready: set[tuple[str, str]] = set()
    due: dict[tuple[str, str], float] = {}
    for kind in {job.kind for job in jobs}:
        key = (kind.backend, kind.queue_name)
        if kind.run_after is None:
            ready.add(key)
        else:
            at = kind.run_after.timestamp()
            due[key] = min(at, due.get(key, at))
    return [*(Wakeup(*key) for key in ready), *(Wakeup(*key, at) for key, at in due.items())]


def cancel_wakeups(jobs: Iterable[Job]) -> list[Wakeup]:
    """For the owners of those that run."""
    return [Wakeup(job.backend, job.queue_name, cancel=True) for job in jobs if job.status == "RUNNING"]


class Notifier:
    """Sends wake-ups after the commit that they tell of; nobody waits for them.

    The first goes at once; those that come while it is under way, or within ``INTERVAL`` of it, go
    together. One that gets lost costs a poll interval, never a task.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: set[Wakeup] = set()
        self._failed: set[Wakeup] = set()
        self._sender: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()

    def notify(self, wakeups: Iterable[Wakeup]) -> None:
        self._waiting.update(wakeups)
        if self._waiting and self._sender is None:
            # An empty context: the wake-up is nobody's, least of all the first caller's.
            self._sender = asyncio.get_running_loop().create_task(
                self._run(), context=Context(), name="aiotasks notifier"
            )
            self._sender.add_done_callback(self._ended)

    async def all_sent(self) -> None:
        """Wait for what is under way or waits; for a process that is about to end."""
        self._hurried.set()
        while self._sender is not None:
            await asyncio.wait([self._sender])

    async def send_what_is_left(self) -> None:
        """Send what hasn't gone, or try again; for a loop that ends, which has cut off the sender."""
        self._waiting |= self._failed
        if self._waiting:
            await self._send()

    def _ended(self, sender: "asyncio.Task[None]") -> None:
        """One that was cancelled before its first step (the loop is closing) hasn't run at all."""
        if self._sender is sender:
            self._sender = None

    async def _run(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._send()
                except utils.Error as error:
                    logger.info(
                        "a NOTIFY was not sent, workers find the tasks at their next poll error=%r",
                        str(error),
                    )
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._hurried.wait()
        finally:
            # Nothing is awaited between finding nothing to send and this: a wake-up that arrived in
            # between would wait for the next one.
            self._sender = None

    async def _send(self) -> None:
        wakeups = set(islice(self._waiting, MOST_AT_ONCE))
        self._waiting -= wakeups
        self._failed |= set(islice(wakeups, MOST_FAILED - len(self._failed)))
        await self._store.notify(CHANNEL, [wakeup.payload() for wakeup in wakeups], alone=True)
        self._failed -= wakeups
