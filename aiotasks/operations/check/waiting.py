"""Check ``waiting``: READY tasks of a queue, a lane or a whole backend that no live worker serves."""

from collections.abc import Mapping, Sequence

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import utils

from ...db.errors import Code, sqlstate
from ...rows import StoredLane
from ...store.inspection import WaitingLane
from ...store.store import Store
from ..connection import operator_connection
from ..status import WorkerRow, select_workers
from .examination import Examination, options_of
from .finding import Result

__all__ = ["LIMIT", "SHOWN", "check", "judge_waiting", "kind_of"]

# A site with a queue for each customer has thousands; the first ones by name are checked.
LIMIT = 1_000

# More names than these don't help.
SHOWN = 5


async def check(examination: Examination) -> Result:
    """Return whether a live worker serves every queue and lane that has READY tasks."""
    if examination.workers is None:
        return "not checked", "The workers' rows can't be read.", ""
    try:
        found = await examination.store.list_waiting(LIMIT)
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:
            raise
        return "not checked", "This role may not read the tasks.", ""
    workers = {
        backend: [one for one in await select_workers(examination.store, backend) if one.alive]
        for backend in {one.backend for one in found}
    }
    for alias in settings.TASKS:
        for one, alive in await _waiting_elsewhere(alias, examination):
            found.append(one)
            workers[alias] = alive
    return judge_waiting(found, workers, list(settings.TASKS))


async def _waiting_elsewhere(
    alias: str, examination: Examination
) -> list[tuple[WaitingLane, list[WorkerRow]]]:
    """Return what waits of a backend that has another database, with its live workers."""
    config = options_of(alias)
    if config is None or config.database == examination.database:
        return []
    try:
        async with operator_connection(config.database, timeout=examination.timeout) as connection:
            store = Store(connection)
            alive = [one for one in await select_workers(store, alias) if one.alive]
            found = await store.list_waiting(LIMIT)
    except (ImproperlyConfigured, utils.Error):
        return []  # the check of that backend reports it
    return [(one, alive) for one in found if one.backend == alias]


def judge_waiting(
    waiting: Sequence[WaitingLane], workers: Mapping[str, Sequence[WorkerRow]], known: Sequence[str]
) -> Result:
    """Return the result for ``waiting``: the backend, queue and lane of READY tasks.

    ``workers`` holds the live workers of each backend, ``known`` the aliases of TASKS.
    """
    unserved = [
        (backend, queue, lane)
        for backend, queue, lane in waiting
        if not any(
            worker.alive and worker.serves(queue) and worker.slots_for(lane) for worker in workers[backend]
        )
    ]
    if not unserved:
        return "ok", "Every queue that has tasks has a worker for them.", ""
    names = [f"backend {backend!r}, queue {queue!r}, {kind_of(lane)}" for backend, queue, lane in unserved]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    remedies = []
    if any(workers[backend] for backend, _, _ in unserved):
        remedies.append("Have a worker serve them: see its --queue, --concurrency and --threads.")
    remedies += [
        f"Start a worker: `manage.py aiotasks worker --backend {backend}`."
        if backend in known
        else f"TASKS has no backend {backend!r}: give it its alias again, or UPDATE the rows."
        for backend in dict.fromkeys(backend for backend, _, _ in unserved if not workers[backend])
    ]
    return (
        "warning",
        f"Tasks are READY that no live worker serves: {'; '.join(names[:SHOWN])}{more}.",
        " ".join(remedies),
    )


def kind_of(lane: StoredLane) -> str:
    """Return what the tasks of a lane are called."""
    kind = "coroutine tasks" if lane.startswith("loop") else "sync tasks"
    return f"{kind} with limits" if lane.endswith("+") else kind
