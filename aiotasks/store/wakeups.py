"""What NOTIFY says to workers, and how it is sent.

A payload is a JSON list ``[backend, queue_name, due]``: there are READY tasks in the queue, or
(``due``, seconds since the epoch) one that is due at that time; with a fourth item, true, a task
that runs is to be cancelled. Any role that can connect may listen, so nothing else is ever in it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from itertools import islice

from django.db import utils

from ..db.retry import repeat
from ..rows import Job, NewJob, Status
from .store import Store

__all__ = [
    "CHANNEL",
    "INTERVAL",
    "NOT_SENT",
    "QUEUE_IS_FULL",
    "Notifier",
    "Wakeup",
    "cancel_wakeups",
    "read_payload",
    "throttle",
    "wakeups_of",
]

logger = logging.getLogger("aiotasks.store")

CHANNEL = "aiotasks"

# What is logged where a task is stored, but the workers aren't woken.
NOT_SENT = "a NOTIFY was not sent, workers find the tasks at their next poll error=%r"
QUEUE_IS_FULL = (
    "a NOTIFY was left out of a transaction, workers find the tasks at their next poll: PostgreSQL's queue "
    "of notifications is more than half full, and where it is full the transaction's commit would fail. A "
    "session that has executed LISTEN and is in a long transaction holds the queue up"
)

# Seconds within which a process tells the workers the same thing once: a caller that enqueues one task
# after another would spend half its time on wake-ups. Whoever is woken looks again when they are over.
INTERVAL = 0.005

# Seconds for which a NOTIFY is tried again: others rely on it that weren't told themselves.
SEND_TIMEOUT = 2.0

# The payloads of one statement; more queues than that go in the next.
MOST_AT_ONCE = 1000

# The wake-ups that wait, and those remembered that couldn't be sent, so that an outage doesn't fill the
# memory.
MOST_WAITING = 10_000
MOST_FAILED = 1000

# The wake-ups whose time a process remembers; with more it forgets them all, and tells them again.
MOST_TOLD = 1000


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
    for kind in {id(job.template): job.template for job in jobs}.values():
        key = (kind.backend, kind.queue_name)
        if kind.run_after is None:
            ready.add(key)
        else:
            at = kind.run_after.timestamp()
            due[key] = min(at, due.get(key, at))
    return [*(Wakeup(*key) for key in ready), *(Wakeup(*key, at) for key, at in due.items())]


def cancel_wakeups(jobs: Iterable[Job]) -> list[Wakeup]:
    """For the owners of those that run."""
    return [Wakeup(job.backend, job.queue_name, cancel=True) for job in jobs if job.status == Status.RUNNING]


class NotifyThrottle:
    """Leaves out wake-ups that this process has sent to the workers of a database a moment ago.

    A task is committed before the throttle is asked, so less than INTERVAL after that wake-up was begun; a
    worker claims once more INTERVAL after a wake-up.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, Wakeup], float] = {}

    def should_notify_now(self, database: str, wakeup: Wakeup) -> bool:
        """Whether to send ``wakeup``. The caller must, or say so by ``forget()``."""
        if wakeup.cancel or wakeup.due is not None:  # workers look for these once
            return True
        now = time.monotonic()
        key = (database, wakeup)
        if now - self._since.get(key, -INTERVAL) < INTERVAL:
            return False
        if len(self._since) > MOST_TOLD:
            self._since.clear()
        self._since[key] = now
        return True

    def forget(self, database: str, wakeups: Iterable[Wakeup]) -> None:
        """They couldn't be sent."""
        for wakeup in wakeups:
            self._since.pop((database, wakeup), None)


throttle = NotifyThrottle()


class Notifier:
    """Sends wake-ups after the commit that they tell of; nobody waits for them.

    Those that come while one is under way go together. One that gets lost costs a poll interval,
    never a task.
    """

    def __init__(self, store: Store, database: str) -> None:
        self._store = store
        self._database = database
        self._waiting: set[Wakeup] = set()
        self._failed: set[Wakeup] = set()
        self._sender: asyncio.Task[None] | None = None

    def notify(self, wakeups: Iterable[Wakeup]) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.update(
                wakeup for wakeup in wakeups if throttle.should_notify_now(self._database, wakeup)
            )
        if self._waiting and self._sender is None:
            # An empty context: the wake-up is nobody's, least of all the first caller's.
            self._sender = asyncio.get_running_loop().create_task(
                self._run(), context=Context(), name="aiotasks notifier"
            )
            self._sender.add_done_callback(self._ended)

    async def all_sent(self) -> None:
        """Wait for what is under way; for a process that is about to end."""
        while self._sender is not None:
            await asyncio.wait([self._sender])

    async def send_what_is_left(self) -> None:
        """Send what hasn't gone, or try again; for a loop that ends, which has cut off the sender."""
        self._waiting |= self._failed
        while self._waiting:
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
                    logger.info(NOT_SENT, str(error))
        finally:
            # Nothing is awaited between finding nothing to send and this: a wake-up that arrived in
            # between would wait for the next one.
            self._sender = None

    async def _send(self) -> None:
        wakeups = set(islice(self._waiting, MOST_AT_ONCE))
        self._waiting -= wakeups
        self._failed |= set(islice(wakeups, MOST_FAILED - len(self._failed)))
        sent = False
        try:
            payloads = [wakeup.payload() for wakeup in wakeups]
            await repeat(lambda: self._store.notify(CHANNEL, payloads, alone=True), within=SEND_TIMEOUT)
            sent = True
        finally:
            if not sent:
                throttle.forget(self._database, wakeups)
        self._failed -= wakeups
