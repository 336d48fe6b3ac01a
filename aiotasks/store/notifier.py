"""Notifier: sends wake-ups by NOTIFY, after the commit of what they tell."""

import logging
import time
from collections.abc import Iterable

from django.db import utils

from ..db.errors import Code, sqlstate
from .outbox import Outbox
from .store import Store
from .wakeups import CHANNEL, Wakeup

__all__ = ["INTERVAL", "NOT_SENT", "QUEUE_IS_FULL", "Notifier", "send", "throttle"]

logger = logging.getLogger("aiotasks.store")

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

# The wake-ups whose time a process remembers; with more it forgets them all, and sends them again.
MOST_REMEMBERED = 1000

# SQLSTATEs of a role that may not read the table of workers, and of a database whose migration is due. And
# seconds until the next try to choose two workers: each is an error in the server's log.
CANT_CHOOSE = (Code.NO_PRIVILEGE, Code.NO_COLUMN, Code.NO_TABLE)
CHOOSE_AGAIN = 60.0


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

# Until when, by ``time.monotonic()``, all workers of a database are woken, because two can't be chosen.
_all_until: dict[str, float] = {}


async def send(store: Store, database: str, wakeups: Iterable[Wakeup], *, alone: bool) -> bool:
    """Send wake-ups over ``store``: to two workers each where the lane is known, else to all.

    ``alone``: the statements are transactions of their own. Inside a caller's transaction all workers are
    woken, because the statement that chooses two may fail, and the transaction with it; and nothing is sent
    while PostgreSQL's queue of notifications is half full: returns False then.
    """
    few: list[Wakeup] = []
    all_workers: list[Wakeup] = []
    chooses = alone and time.monotonic() >= _all_until.get(database, 0.0)
    for wakeup in wakeups:
        (few if chooses and wakeup.lane is not None else all_workers).append(wakeup)
    if few:
        try:
            await store.wake_workers(CHANNEL, few)
        except utils.ProgrammingError as error:
            if sqlstate(error) not in CANT_CHOOSE:
                raise
            logger.info("Every NOTIFY wakes all workers, because two can't be chosen error=%r", str(error))
            _all_until[database] = time.monotonic() + CHOOSE_AGAIN
            all_workers += few
    if not all_workers:
        return True
    payloads = list(dict.fromkeys(wakeup.payload() for wakeup in all_workers))
    return await store.notify(CHANNEL, payloads, alone=alone)


class Notifier(Outbox[Wakeup]):
    """Sends wake-ups after a commit; no caller waits for them."""

    def __init__(self, store: Store, database: str) -> None:
        super().__init__(
            lambda wakeups: send(store, database, wakeups, alone=True),
            at_once=MOST_AT_ONCE,
            within=SEND_TIMEOUT,
            log=lambda error: logger.info(NOT_SENT, str(error)),
            failed=lambda wakeups: throttle.forget(database, wakeups),
            name="aiotasks notifier",
        )
        self._database = database

    def notify(self, wakeups: Iterable[Wakeup]) -> None:
        """Send those that this process hasn't just sent."""
        self.put(wakeup for wakeup in wakeups if throttle.should_notify_now(self._database, wakeup))
