"""What operators change: cancel, retry or delete tasks, or run them before their time.

For commands and pages, which have asked for permission already.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from uuid import UUID

from ..backend import PostgresBackend
from ..bulk import BulkCounts, Progress, Report, Which
from ..bulk_actions import ActionName
from ..rows import Status
from ..store.bulk import Meant
from ..store.route import Route
from ..worker.startup import backend_of
from .counts import COUNT_LIMIT, Count

__all__ = ["acount_meant", "akey_holders", "aperform", "perform"]

# Seconds, after which a person shouldn't wait for a question any longer.
COUNT_WITHIN = 3.0


async def aperform(
    action: ActionName,
    which: Which,
    *,
    backend: str = "default",
    everything: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
    dry_run: bool = False,
) -> BulkCounts:
    """Do the action with the tasks of a backend, by its alias.

    report: called for each batch, before ``progress``, with the outcomes of its tasks by their ids; a task
    that was locked is reported again when the action has come back to it. dry_run: do nothing, and count the
    tasks with which something would be done.
    Other parameters and errors: see ``PostgresBackend.acancel_many``; a retry ignores ``everything``. Raises
    ValueError for another action, and ImproperlyConfigured for an alias that isn't one of aiotasks'.
    """
    logic = partial(
        PostgresBackend.act_on_many, everything=everything, progress=progress, report=report, dry_run=dry_run
    )
    return await backend_of(backend).dispatch(logic, action, which)


def perform(
    action: ActionName,
    which: Which,
    *,
    backend: str = "default",
    everything: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
    dry_run: bool = False,
) -> BulkCounts:
    """The same in sync code, over Django's connection: see ``aperform``."""
    return backend_of(backend).run_over_django(
        PostgresBackend.act_on_many,
        action,
        which,
        everything=everything,
        progress=progress,
        report=report,
        dry_run=dry_run,
    )


class _EnoughError(Exception):
    """Ends a count."""


async def acount_meant(
    action: ActionName,
    which: Which,
    *,
    backend: str = "default",
    most: int = COUNT_LIMIT,
    within: float = COUNT_WITHIN,
) -> Count:
    """Return with how many tasks the action would do something, for a question before it.

    Counting stops at ``most`` and after ``within`` seconds; the number is capped then. Errors: see
    ``aperform``.
    """
    seen = 0

    def stop_at_most(counts: BulkCounts) -> None:
        nonlocal seen
        seen = min(counts.would_change, most)
        if seen == most:
            raise _EnoughError

    try:
        async with asyncio.timeout(within) as limit:
            await aperform(
                action, which, backend=backend, everything=True, progress=stop_at_most, dry_run=True
            )
    except _EnoughError:
        return Count(seen, capped=True)
    except TimeoutError:
        if not limit.expired():
            raise
        return Count(seen, capped=True)
    return Count(seen, capped=False)


async def akey_holders(ids: Sequence[UUID], *, backend: str = "default") -> dict[UUID, UUID]:
    """Return which tasks hold the keys now that these tasks have lost, by the ids of these."""
    return await backend_of(backend).dispatch(_key_holders, ids)


async def _key_holders(backend: PostgresBackend, route: Route, ids: Sequence[UUID]) -> dict[UUID, UUID]:
    meant = Meant(backend.alias, [*Status])
    found = await route.run(lambda store: store.select_left_jobs(ids, meant))
    return {id: job.key_holder for id, job in found.items() if job.key_holder is not None}
