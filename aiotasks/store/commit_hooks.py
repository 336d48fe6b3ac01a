"""NOTIFY after the commit of a transaction on Django's connection, once for all tasks of it."""

import logging
from collections.abc import Collection, Iterable
from itertools import islice
from uuid import UUID

from django.db import connections, utils

from ..compat import on_commit_hooks, savepoints
from ..db.drivers import DjangoDriver
from ..sync import drive
from .changes import send_all
from .notifier import NOT_SENT, QUEUE_IS_FULL, throttle
from .store import Store
from .wakeups import Wakeup

__all__ = ["notify_on_commit"]

logger = logging.getLogger("aiotasks.store")

# So many of the transaction's last hooks are searched for one of aiotasks. With more, a loop that enqueues
# each task in a savepoint of its own would take quadratic time; a second hook costs a NOTIFY.
MOST_HOOKS = 20


class _AfterCommit:
    """An on_commit hook that notifies of what was done since one savepoint: wakes the workers, and tells who
    awaits tasks that have ended."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self.wakeups: set[Wakeup] = set()
        self.changed: set[UUID] = set()

    def __call__(self) -> None:
        _notify(self._alias, self.wakeups, self.changed)


def notify_on_commit(alias: str, wakeups: Collection[Wakeup], changed: Collection[UUID]) -> None:
    """NOTIFY after the commit, once for all tasks of a transaction."""
    connection = connections[alias]
    if not connection.in_atomic_block:
        if connection.get_autocommit():
            _notify(alias, wakeups, changed)
        else:  # the site commits by itself; the server keeps the NOTIFY until then
            _send(alias, wakeups, changed, alone=False)
        return
    here = savepoints(connection)  # a hook of the same savepoints is kept or dropped with this one
    hook = None
    for within, found, *_ in islice(reversed(on_commit_hooks(connection)), MOST_HOOKS):
        if within == here and isinstance(found, _AfterCommit):
            hook = found
            break
    if hook is None:
        hook = _AfterCommit(alias)
        connection.on_commit(hook)
    hook.wakeups.update(wakeups)
    hook.changed.update(changed)


def _notify(alias: str, wakeups: Iterable[Wakeup], changed: Collection[UUID]) -> None:
    """NOTIFY. The tasks are committed, so an error here must not look like one of the enqueue."""
    connection = connections[alias]
    # A site that commits by itself has the next transaction open already, and may roll it back.
    alone = connection.get_autocommit() and not connection.in_atomic_block
    unsent = [wakeup for wakeup in wakeups if not alone or throttle.should_notify_now(alias, wakeup)]
    if not unsent and not changed:
        return
    try:
        _send(alias, unsent, changed, alone=alone)
    except utils.Error as error:
        throttle.forget(alias, unsent)
        logger.warning(NOT_SENT, str(error))
    except Exception:  # a patched driver's error is no error of the enqueue either
        throttle.forget(alias, unsent)
        logger.exception("NOTIFY was not sent, the driver failed; workers find the tasks at their next poll")


def _send(alias: str, wakeups: Collection[Wakeup], changed: Collection[UUID], *, alone: bool) -> None:
    # Whether a NOTIFY is sent depends on the time, so Django's query log doesn't show it: assertNumQueries
    # counts one query for each enqueue.
    store = Store(DjangoDriver(alias, logged=False))
    if not drive(send_all(store, alias, wakeups, changed, alone=alone)):
        logger.warning(QUEUE_IS_FULL)
