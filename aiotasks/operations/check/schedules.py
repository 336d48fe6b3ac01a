"""Check ``schedules``: those that can't be declared or don't tick."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from django.db import utils

from ...db.errors import Code, sqlstate
from ...schedules.declarations import declared, find_problems
from ...schedules.discovery import import_modules, modules_of
from ...store.schedules import ScheduleRow, Schedules
from ..text import counted
from .examination import Examination
from .finding import Result

__all__ = ["check", "judge_schedules"]

# A live worker enqueues a tick within a second. Chosen: longer than a restart takes.
LATE = timedelta(minutes=2)

# More names than these don't help.
SHOWN = 5


async def check(examination: Examination) -> Result:
    """Return which schedules of the code can't be declared, and which rows don't tick."""
    unknown = import_modules(modules_of(examination.options))
    try:
        found = await examination.store.select_schedules(examination.alias)
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:
            raise
        return "not checked", "This role may not read the schedules.", ""
    in_code = [each.name for each in declared(examination.alias)]
    return judge_schedules(found, find_problems(examination.alias), unknown, in_code)


def judge_schedules(
    found: Schedules, problems: Sequence[str], unknown: Mapping[str, BaseException], in_code: Collection[str]
) -> Result:
    """Return the result for the schedules of the table.

    problems: sentences about those of the code that can't be declared. in_code: the names of the others.
    unknown: the modules that may declare some and can't be imported, and why.
    """
    messages, remedies = list(problems[:SHOWN]), []
    if unknown:
        names = [f"{module} ({type(error).__name__}: {error})" for module, error in unknown.items()]
        messages.append(f"Modules that may declare schedules can't be imported: {_named(names)}.")
    if problems or unknown:
        remedies.append("Fix the code: workers declare the other schedules, and stop none meanwhile.")
    failing = [row for row in found.rows if row.failures]
    if failing:
        messages.append(f"Ticks can't be enqueued: {_named([_failure(row) for row in failing])}.")
        remedies.append("They are tried again; have `aiotasks schedules` show when, and fix the reason.")
    late = [row.schedule.name for row in found.rows if not row.failures and _is_late(row, found.now)]
    if late:
        messages.append(f"No worker has enqueued ticks that have come: of {_named(late)}.")
        remedies.append("Start a worker, whose OPTIONS['SCHEDULES'] isn't False.")
    operators = {row.schedule.name for row in found.rows if not row.from_code}
    if shadowed := sorted(operators.intersection(in_code)):
        messages.append(
            "Operators have added schedules with names that the code has, too, whose own aren't declared: "
            f"{_named(shadowed)}."
        )
        remedies.append("Remove them (`aiotasks schedules remove NAME`), or rename those of the code.")
    if messages:
        return "error" if problems else "warning", " ".join(messages), " ".join(remedies)
    if not found.rows:
        return "ok", "There are no schedules.", ""
    return "ok", f"No tick is late or fails, of {counted(len(found.rows), 'schedule')}.", ""


def _is_late(row: ScheduleRow, now: datetime) -> bool:
    return row.next_at is not None and row.next_at < now - LATE


def _failure(row: ScheduleRow) -> str:
    return f"{row.schedule.name!r} ({row.error})"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
