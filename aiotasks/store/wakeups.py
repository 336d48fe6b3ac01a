"""What NOTIFY says to workers, and how it is sent.

A payload is a JSON list ``[backend, queue_name, due]``: there are READY tasks in the queue, or
(``due``, seconds since the epoch) one that is due at that time; with a fourth item, true, a task
that runs is to be cancelled. Any role that can connect may
listen, so nothing else is ever in it.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..job import Job, NewJob
from .batcher import Batcher
from .store import Store

__all__ = ["CHANNEL", "Notifier", "Wakeup", "cancel_wakeups", "read_payload", "wakeups_of"]

logger = logging.getLogger("aiotasks.store")

CHANNEL = "aiotasks"

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

    Those that come while one is under way are coalesced. One that gets lost costs a poll
    interval, never a task.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # 1,000 payloads bound one statement; more queues than that go in the next.
        self._batcher: Batcher[Wakeup, None] = Batcher(self._send, limit=1000)
        self._unsent: dict[asyncio.Future[None], Wakeup] = {}
        self._failed: set[Wakeup] = set()

    def notify(self, wakeups: Iterable[Wakeup]) -> None:
        for wakeup in wakeups:
            future = self._batcher.submit(wakeup)
            self._unsent[future] = wakeup
            future.add_done_callback(self._sent)

    async def all_sent(self) -> None:
        """Wait for what is under way; for a process that is about to end."""
        while self._unsent:
            await asyncio.wait(self._unsent)

    async def send_what_failed(self) -> None:
        """Try once more; for a loop that ends, which has cut off what was under way."""
        if self._failed:
            await self._send(list(self._failed))

    def _sent(self, future: "asyncio.Future[None]") -> None:
        wakeup = self._unsent.pop(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            if len(self._failed) < MOST_FAILED:
                self._failed.add(wakeup)
            logger.info(
                "a NOTIFY was not sent, workers find the tasks at their next poll error=%r", str(error)
            )

    async def _send(self, wakeups: list[Wakeup]) -> Sequence[None]:
        await self._store.notify(CHANNEL, list({wakeup.payload() for wakeup in wakeups}), alone=True)
        self._failed.difference_update(wakeups)
        return [None] * len(wakeups)
