"""Check ``limits``: lines in order that stand still, limits that the code doesn't declare, and tasks that no
live worker is new enough for."""

from collections.abc import Sequence

from django.db import utils

from ...db.errors import Code, sqlstate
from ...schedules.discovery import import_modules, modules_of_apps
from ...store.inspection import WaitingLane
from ..limit_listing import select_statuses
from ..limit_statuses import LimitStatus
from ..status import WorkerRow
from ..tables import printable
from .examination import Examination
from .finding import Result
from .waiting import LIMIT, SHOWN, kind_of

__all__ = ["check", "judge_limits"]


async def check(examination: Examination) -> Result:
    """Return whether keys of limits stand still until somebody acts."""
    failed = import_modules(modules_of_apps(("tasks",)))
    alias, store = examination.alias, examination.store
    # Without one of the modules it can't be said which limits there are.
    learns = None if failed else examination.options.moved_tasks
    try:
        standing = await select_statuses(store, alias, standing=True, learns=learns)
        waiting = await store.list_waiting(LIMIT)
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:
            raise
        return "not checked", "This role may not read the limits.", ""
    return judge_limits(
        standing, [one for one in waiting if one.backend == alias], examination.live_workers()
    )


def judge_limits(
    standing: Sequence[LimitStatus], waiting: Sequence[WaitingLane], workers: Sequence[WorkerRow]
) -> Result:
    """Return the result for the keys that stand still, the lanes that have READY tasks, and the live workers
    of a backend."""
    messages, remedies = [], []
    too_old = [
        f"queue {printable(one.queue_name)!r}, {kind_of(one.lane)}"
        for one in waiting
        if one.lane.endswith("+") and _are_too_old(one, workers)
    ]
    if too_old:
        messages.append(f"Every live worker that serves them is older than limits by key: {_some(too_old)}.")
        remedies.append("Restart the workers that were left behind by a deploy.")
    stopped = [one for one in standing if one.stands == "stopped"]
    if stopped:
        found = [f"{_name(one)} (by task {one.stopped_by}, {one.waiting} waiting)" for one in stopped]
        messages.append(f"Ordered keys are stopped by a FAILED task: {_some(found)}.")
        remedies.append(
            "Retry the task, or let the key go on without it: "
            f"`manage.py aiotasks limits skip {_name(stopped[0])} {stopped[0].stopped_by}`."
        )
    if unknown := [one for one in standing if one.stands == "unknown"]:
        names = [f"{_name(one)} ({one.waiting} waiting)" for one in unknown]
        messages.append(f"Tasks wait for limits that the code here doesn't declare: {_some(names)}.")
        remedies.append(
            "Workers whose code declares them run them. If they were taken out of the code, set a number: "
            f"`manage.py aiotasks limits set {_name(unknown[0])} concurrency=1` has one task of each key run "
            "at a time."
        )
    paused = [one for one in standing if one.stands == "paused" and one.waiting.number]
    if messages:
        return "warning", " ".join(messages), " ".join(remedies)
    if paused:
        names = [f"{_name(one)} ({one.waiting} waiting)" for one in paused]
        return "ok", f"No key of a limit is stopped. Paused: {_some(names)}.", ""
    return "ok", "No key of a limit is stopped.", ""


def _are_too_old(waiting: WaitingLane, workers: Sequence[WorkerRow]) -> bool:
    serving = [
        worker for worker in workers if worker.serves(waiting.queue_name) and worker.slots_for(waiting.lane)
    ]
    return bool(serving) and not any(worker.claims_keyed for worker in serving)


def _name(limit: LimitStatus) -> str:
    return limit.name if limit.key is None else f"{limit.name}:{limit.key}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
