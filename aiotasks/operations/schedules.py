"""What operators do with schedules: look at them, add their own, pause, resume, run and remove them.

Those of the code and those of operators are rows of one table, and every worker ticks both.
"""

import asyncio
import json
import sys
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Unpack
from uuid import UUID

from django.db import utils
from django.tasks import Task
from django.tasks.signals import task_enqueued

from .. import signals
from ..backend import PostgresBackend
from ..db.errors import Code, sqlstate
from ..policies.text import is_storable
from ..registry import resolve
from ..row_results import duplicate_of, result_of
from ..rows import AnyResult, AnyTask, Schedule, UniqueJob
from ..schedules.cron import Times
from ..schedules.declarations import Declaration
from ..schedules.ticks import job_of_tick
from ..schedules.wanted import Wanted, WantedKeywords, parse_name, parse_wanted
from ..store.route import Route
from ..store.schedules import DeclaredSchedule, ScheduleRow
from ..store.store import Store
from ..store.wakeups import Wakeup
from ..worker.startup import backend_of
from .pauses import parse_reason
from .schedule_states import ScheduleState, select_holders, state_of
from .status import select_workers
from .text import schedule_troubles

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7

__all__ = [
    "ScheduleState",
    "aadd_schedule",
    "add_schedule",
    "alist_schedules",
    "apause_schedule",
    "aremove_schedule",
    "aresume_schedule",
    "arun_schedule",
    "list_schedules",
    "list_troubles",
    "pause_schedule",
    "remove_schedule",
    "resume_schedule",
    "run_schedule",
]

# After so many schedules the loop runs something else: their next ticks take some 10 ms.
AT_ONCE = 50


async def alist_schedules(
    backend: str = "default", *, names: Collection[str] | None = None
) -> list[ScheduleState]:
    """Return the schedules of a backend, by name. names: only these; None: all.

    Raises ImproperlyConfigured for an alias that isn't a backend of aiotasks, ``django.db`` errors where the
    database fails.
    """
    states: list[ScheduleState] = []
    for row, holder in await backend_of(backend).dispatch(_select, names):
        states.append(state_of(row, holder))
        if len(states) % AT_ONCE == 0:
            await asyncio.sleep(0)
    return states


def list_schedules(backend: str = "default", *, names: Collection[str] | None = None) -> list[ScheduleState]:
    """The same in sync code, over Django's connection: see ``alist_schedules``."""
    return [state_of(*found) for found in backend_of(backend).run_over_django(_select, names)]


def list_troubles(backend: str = "default") -> list[str]:
    """Return what keeps live workers from declaring schedules of their code, in sentences for people; none
    where this role may not read the workers. In sync code; errors of ``alist_schedules``.
    """
    return backend_of(backend).run_over_django(_troubles)


async def aadd_schedule(
    name: str,
    task: str | AnyTask,
    cron: str | None = None,
    *,
    backend: str = "default",
    **keywords: Unpack[WantedKeywords],
) -> ScheduleState:
    """Add a schedule beside those of the code, which no deploy changes. Returns it.

    task: the task, or its path. backend: the alias in TASKS. cron, and the keywords ``every``, ``timezone``,
    ``args``, ``kwargs``, ``missed``, ``within``, ``overlap`` and ``jitter``: see ``aiotasks.periodic``.

    Its first tick is the next one from now on. Raises TypeError or ValueError for wrong arguments, or for a
    name that the backend has already; UnknownTask or InvalidTask for a task that no worker could run;
    errors of ``alist_schedules``.
    """
    wanted = parse_wanted(cron, **keywords)
    return await backend_of(backend).dispatch(_add, parse_name(name), task, wanted)


def add_schedule(
    name: str,
    task: str | AnyTask,
    cron: str | None = None,
    *,
    backend: str = "default",
    **keywords: Unpack[WantedKeywords],
) -> ScheduleState:
    """The same in sync code, over Django's connection: see ``aadd_schedule``."""
    wanted = parse_wanted(cron, **keywords)
    return backend_of(backend).run_over_django(_add, parse_name(name), task, wanted)


async def apause_schedule(name: str, *, reason: str = "", backend: str = "default") -> ScheduleState:
    """Have a schedule tick no more until it is resumed, whatever is deployed meanwhile. Returns it.

    reason: for people who look at the status. Where it is paused already, the reason is changed. Tasks of
    earlier ticks go on. Raises LookupError if the backend has no schedule of this name, ValueError for a bad
    reason, errors of ``alist_schedules``.
    """
    return await backend_of(backend).dispatch(_pause, name, parse_reason(reason))


def pause_schedule(name: str, *, reason: str = "", backend: str = "default") -> ScheduleState:
    """The same in sync code, over Django's connection: see ``apause_schedule``."""
    return backend_of(backend).run_over_django(_pause, name, parse_reason(reason))


async def aresume_schedule(name: str, *, backend: str = "default") -> ScheduleState:
    """Have a paused schedule tick again, from now on: no tick of the pause is made up for. Returns it.

    One that isn't paused stays as it is. Raises LookupError if the backend has no schedule of this name,
    ValueError if its time zone or its expression isn't known here, errors of ``alist_schedules``.
    """
    return await backend_of(backend).dispatch(_resume, name)


def resume_schedule(name: str, *, backend: str = "default") -> ScheduleState:
    """The same in sync code, over Django's connection: see ``aresume_schedule``."""
    return backend_of(backend).run_over_django(_resume, name)


async def arun_schedule(name: str, *, backend: str = "default") -> AnyResult:
    """Enqueue the task of a schedule at once, also of one that is paused. Its ticks stay as they are.

    Returns the task's result; where the schedule, or a key of its task, allows no other one meanwhile, the
    result of the task that has the key, with ``is_duplicate``. The task's ``context.scheduled_for`` is the
    time of the call. Raises LookupError if the backend has no schedule of this name, UnknownTask if its task
    can't be imported here, errors of ``alist_schedules``.
    """
    return await backend_of(backend).dispatch(_run, name)


def run_schedule(name: str, *, backend: str = "default") -> AnyResult:
    """The same in sync code, over Django's connection: see ``arun_schedule``."""
    return backend_of(backend).run_over_django(_run, name)


async def aremove_schedule(name: str, *, backend: str = "default") -> None:
    """Remove a schedule that an operator has added, or one that no code declares. Its tasks stay.

    Raises LookupError if the backend has no schedule of this name, ValueError for one that the code declares,
    which would declare it again; errors of ``alist_schedules``.
    """
    await backend_of(backend).dispatch(_remove, name)


def remove_schedule(name: str, *, backend: str = "default") -> None:
    """The same in sync code, over Django's connection: see ``aremove_schedule``."""
    backend_of(backend).run_over_django(_remove, name)


async def _select(
    backend: PostgresBackend, route: Route, names: Collection[str] | None
) -> list[tuple[ScheduleRow, UUID | None]]:
    """The schedules, and the tasks because of which ticks of theirs are left out."""
    known = None if names is None else [name for name in names if is_storable(name)]
    rows = (await route.run(lambda store: store.select_schedules(backend.alias, known))).rows
    holders = await route.run(lambda store: select_holders(store, backend.alias, rows))
    return [(row, holders.get(row.schedule.name)) for row in rows]


async def _troubles(backend: PostgresBackend, route: Route) -> list[str]:
    try:
        workers = await route.run_alone(lambda store: select_workers(store, backend.alias))
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:
            raise
        return []
    return schedule_troubles(workers)


async def _add(
    backend: PostgresBackend, route: Route, name: str, task: str | AnyTask, wanted: Wanted
) -> ScheduleState:
    alias = backend.alias
    found = task if isinstance(task, Task) else resolve(task, backend.config.moved_tasks)
    if found.backend != alias:
        found = found.using(backend=alias)
    schedule = Declaration(name=name, task=found, wanted=wanted).row
    now, rows = await route.run(lambda store: store.select_schedules(alias, [name]))
    if rows:
        whose = "The code declares" if rows[0].from_code else "There is"
        raise ValueError(f"{whose} a schedule {name!r} of backend {alias!r} already. Choose another name.")
    new = DeclaredSchedule(schedule, None, wanted.times.next_after(now))
    written = await route.run_alone(lambda store: store.declare_schedules(alias, [new], from_code=False))
    if name not in written:
        raise ValueError(f"Somebody else has just added a schedule {name!r} of backend {alias!r}.")
    _wake(backend, route, schedule.queue_name, new.next_at)
    return await _state(backend, route, name)


async def _pause(backend: PostgresBackend, route: Route, name: str, reason: str) -> ScheduleState:
    await _row(backend, route, name)
    await route.run(lambda store: store.pause_schedule(backend.alias, name, reason))
    return await _state(backend, route, name)


async def _resume(backend: PostgresBackend, route: Route, name: str) -> ScheduleState:
    while True:
        now, row = await _row(backend, route, name)
        seen = row.schedule
        next_at = Times(seen.expression, seen.timezone).next_after(now)
        if await route.run(partial(_resume_row, backend.alias, seen, next_at)) or row.paused_at is None:
            break  # else a deploy has just changed its times
    # In any case: a try before this one may have resumed it, and its reply may have been lost.
    _wake(backend, route, seen.queue_name, next_at)
    return await _state(backend, route, name)


async def _resume_row(alias: str, seen: Schedule, next_at: datetime | None, store: Store) -> bool:
    return await store.resume_schedule(alias, seen, next_at)


async def _run(backend: PostgresBackend, route: Route, name: str) -> AnyResult:
    now, row = await _row(backend, route, name)
    moved_tasks = backend.config.moved_tasks
    task = resolve(row.schedule.task_path, moved_tasks)
    schedule = replace(row.schedule, jitter=None)
    id = uuid7()
    job = job_of_tick(schedule, backend.alias, id, now, now=now)
    own = json.loads(job.template.metadata or "{}") | {"_by_hand": True}
    job = replace(job, template=replace(job.template, metadata=json.dumps(own)))
    if isinstance(job, UniqueJob):
        (settled,) = await route.insert_unique([job])
        if settled.holder is not None:
            return duplicate_of(settled.holder, moved_tasks, task)
    else:
        await route.insert([job])
    stored = await route.select(backend.alias, id)
    if stored is None:
        raise LookupError(f"Task {id} of schedule {name!r} was enqueued, and has been deleted since.")
    result = result_of(stored, moved_tasks)
    if signals.audience(task_enqueued, type(backend)) is not signals.Audience.NOBODY:
        await route.send(task_enqueued, type(backend), result)
    return result


async def _remove(backend: PostgresBackend, route: Route, name: str) -> None:
    _, row = await _row(backend, route, name)
    removed = await route.run(lambda store: store.delete_schedule(backend.alias, name))
    # A try before this one may have removed it, and its reply may have been lost.
    if not removed and (await route.run(lambda store: store.select_schedules(backend.alias, [name]))).rows:
        raise ValueError(
            f"The code declares schedule {name!r} of {row.schedule.task_path}, and would declare it again. "
            "Remove it there, or pause it."
        )


async def _row(backend: PostgresBackend, route: Route, name: str) -> tuple[datetime, ScheduleRow]:
    """The time by the database's clock, and the schedule. Raises LookupError."""
    names = [name] if is_storable(name) else []
    now, rows = await route.run(lambda store: store.select_schedules(backend.alias, names))
    if not rows:
        raise _unknown(backend, name)
    return now, rows[0]


async def _state(backend: PostgresBackend, route: Route, name: str) -> ScheduleState:
    found = await _select(backend, route, [name])
    if not found:
        raise _unknown(backend, name)
    return state_of(*found[0])


def _unknown(backend: PostgresBackend, name: str) -> LookupError:
    return LookupError(f"Backend {backend.alias!r} has no schedule {name!r:.200}.")


def _wake(backend: PostgresBackend, route: Route, queue_name: str, next_at: datetime | None) -> None:
    """Have the workers look for the earliest tick again."""
    if next_at is not None:
        route.wake([Wakeup(backend.alias, queue_name, due=next_at.timestamp())])
