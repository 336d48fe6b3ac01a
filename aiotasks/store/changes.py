"""Changes: what NOTIFY tells of tasks that somebody awaits.

A payload is a JSON list of ids of tasks: each has ended or was deleted, or, where each change is awaited, has
begun, has other metadata, or is to run again. Whoever hears it looks the tasks up. Any role that can connect
may listen, so a payload holds nothing else.
"""

import json
import logging
from collections.abc import Collection, Iterable
from itertools import batched
from uuid import UUID

from ..rows import FINAL, Job
from .notifier import send
from .outbox import Outbox
from .store import Store
from .wakeups import Wakeup

__all__ = [
    "AWAITED",
    "CHANNEL",
    "WATCHED",
    "Teller",
    "payloads_of",
    "read_ids",
    "send_all",
    "told_of",
]

logger = logging.getLogger("aiotasks.store")

CHANNEL = "aiotasks_changed"

# Values of the column ``awaited``: somebody awaits the task's end, or each change of it.
AWAITED, WATCHED = 1, 2

# Logged where tasks have changed, and nobody is notified.
NOT_TOLD = "NOTIFY of tasks' ends was not sent; joins find them at their next poll error=%r"

# Ids of one payload, of which each takes 39 of its 8,000 bytes at most; and of one statement.
MOST_IN_PAYLOAD = 200
MOST_AT_ONCE = 10 * MOST_IN_PAYLOAD

# Seconds for which a NOTIFY is tried again.
SEND_TIMEOUT = 2.0


def payloads_of(ids: Iterable[UUID]) -> list[str]:
    """The payloads for these tasks."""
    return [
        json.dumps([str(id) for id in some], separators=(",", ":")) for some in batched(ids, MOST_IN_PAYLOAD)
    ]


def read_ids(payload: str) -> list[UUID] | None:
    """Read a payload; None if it isn't one of aiotasks (any role may notify on the channel)."""
    try:
        found = json.loads(payload)
        return [UUID(id) for id in found] if isinstance(found, list) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def told_of(jobs: Iterable[Job]) -> list[UUID]:
    """The ids of the jobs whose change somebody awaits."""
    return [job.id for job in jobs if job.awaited and (job.awaited >= WATCHED or job.status in FINAL)]


async def send_all(
    store: Store, database: str, wakeups: Collection[Wakeup], changed: Collection[UUID], *, alone: bool
) -> bool:
    """Send wake-ups as ``send()`` does, and notify of the tasks that have changed."""
    sent = not wakeups or await send(store, database, wakeups, alone=alone)
    if changed:
        sent = await store.notify(CHANNEL, payloads_of(changed), alone=alone) and sent
    return sent


class Teller(Outbox[UUID]):
    """Notifies of tasks' changes after their commit; no caller waits for that.

    notifies: the option NOTIFY; without it nothing is sent.
    """

    def __init__(self, store: Store, *, notifies: bool) -> None:
        async def send(ids: Iterable[UUID]) -> None:
            await store.notify(CHANNEL, payloads_of(ids), alone=True)

        super().__init__(
            send,
            at_once=MOST_AT_ONCE,
            within=SEND_TIMEOUT,
            log=lambda error: logger.info(NOT_TOLD, str(error)),
            name="aiotasks teller",
        )
        self._notifies = notifies

    def tell(self, ids: Collection[UUID]) -> None:
        """Notify that these tasks, which somebody awaits, have changed."""
        if ids and self._notifies:
            self.put(ids)
