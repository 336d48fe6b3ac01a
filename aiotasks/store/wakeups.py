"""The wake-ups that NOTIFY brings to workers, and how they are sent.

A payload is a JSON list ``[backend, queue_name, due]``: the queue has READY tasks, or a task that is due at
``due`` (seconds since the epoch). With a fourth item, true, a running task is to be cancelled. Any role that
can connect may listen, so a payload holds nothing else.
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

# Logged where a task is stored, but the workers aren't woken.
NOT_SENT = "NOTIFY was not sent; workers find the tasks at their next poll error=%r"
QUEUE_IS_FULL = (
    "NOTIFY was left out of a transaction; workers find the tasks at their next poll. PostgreSQL's queue of "
    "notifications is more than half full, and once it is full commits fail. A session that has executed "
    "LISTEN and is in a long transaction keeps the queue from being emptied"
)

# Seconds within which a process sends the same wake-up once, because a caller that enqueues one task after
# another would spend half its time on wake-ups. A worker that is woken claims again when they are over.
INTERVAL = 0.005

# Seconds for which a NOTIFY is tried again, because other enqueues have left theirs out for it.
SEND_TIMEOUT = 2.0

# The payloads of one statement; more queues than that go in the next.
MOST_AT_ONCE = 1000

# Limits of the waiting wake-ups, and of the failed ones that are remembered, so that memory stays bounded in
# an outage.
MOST_WAITING = 10_000
MOST_FAILED = 1000

# The wake-ups whose time a process remembers; with more it forgets them all, and sends them again.
MOST_REMEMBERED = 1000


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
    """Read a payload; None if it isn't one of aiotasks (any role may notify on the channel)."""
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
    """Wake-ups for the owners of the jobs that are RUNNING."""
    return [Wakeup(job.backend, job.queue_name, cancel=True) for job in jobs if job.status == Status.RUNNING]


class NotifyThrottle:
    """Leaves out wake-ups that this process has sent to the workers of a database within INTERVAL.

    A task is committed before the throttle is asked, so less than INTERVAL after the earlier wake-up was
    begun. A worker claims once more INTERVAL after a wake-up, so it finds that task.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, Wakeup], float] = {}

    def should_notify_now(self, database: str, wakeup: Wakeup) -> bool:
        """Whether to send ``wakeup``. Then the caller must send it, or call ``forget()``."""
        if wakeup.cancel or wakeup.due is not None:  # workers react to each of these once
            return True
        now = time.monotonic()
        key = (database, wakeup)
        if now - self._since.get(key, -INTERVAL) < INTERVAL:
            return False
        if len(self._since) > MOST_REMEMBERED:
            self._since.clear()
        self._since[key] = now
        return True

    def forget(self, database: str, wakeups: Iterable[Wakeup]) -> None:
        """Note that these wake-ups couldn't be sent."""
        for wakeup in wakeups:
            self._since.pop((database, wakeup), None)


throttle = NotifyThrottle()


class Notifier:
    """Sends wake-ups after a commit; no caller waits for them.

    Wake-ups that come while a NOTIFY is under way go together in the next. A lost one costs a poll interval,
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
            # An empty context, because the wake-ups belong to no caller, not even to the first.
            self._sender = asyncio.get_running_loop().create_task(
                self._run(), context=Context(), name="aiotasks notifier"
            )
            self._sender.add_done_callback(self._ended)

    async def all_sent(self) -> None:
        """Wait until no wake-up is under way; for a process that is about to end."""
        while self._sender is not None:
            await asyncio.wait([self._sender])

    async def send_what_is_left(self) -> None:
        """Send the waiting and the failed wake-ups; for a loop that ends, which has cancelled the sender."""
        self._waiting |= self._failed
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
                    logger.info(NOT_SENT, str(error))
        finally:
            # Nothing is awaited between the last check of the loop above and this, or a wake-up that arrived
            # in between would wait for the next one.
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
