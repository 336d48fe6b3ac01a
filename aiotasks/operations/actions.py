"""What operators change: cancel, retry or delete tasks.

For commands and pages, which have asked for permission already.
"""

from typing import Literal, get_args

from ..bulk import BulkCounts, Progress, Which
from ..worker.startup import backend_of

__all__ = ["ACTIONS", "Action", "perform"]

Action = Literal["cancel", "retry", "delete"]
ACTIONS: tuple[Action, ...] = get_args(Action)


def perform(
    action: Action,
    which: Which,
    *,
    backend: str = "default",
    everything: bool = False,
    progress: Progress | None = None,
) -> BulkCounts:
    """Do the action with the tasks of a backend, by its alias, over Django's connection.

    Parameters and errors: see ``PostgresBackend.acancel_many``; a retry ignores ``everything``. Raises
    ValueError for another action, and ImproperlyConfigured for an alias that isn't one of aiotasks'.
    """
    if action not in ACTIONS:
        raise ValueError(f"An action is one of {', '.join(ACTIONS)}, not {action!r:.100}.")
    found = backend_of(backend)
    counts: BulkCounts
    if action == "retry":
        counts = found.retry_many(which, progress=progress)
    else:
        method = found.cancel_many if action == "cancel" else found.delete_many
        counts = method(which, everything=everything, progress=progress)
    return counts
