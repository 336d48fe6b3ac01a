"""Check ``schedules``: those that can't be declared or don't tick."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import utils

from ...db.errors import Code, sqlstate
from ...schedules.cron import Times
from ...schedules.declarations import is_within
from ...schedules.discovery import Discovered, read_code
from ...store.schedules import ScheduleRow, Schedules
from ..status import WorkerRow
from ..text import counted, schedule_troubles
from .examination import Examination
from .finding import Result

__all__ = ["check", "judge_schedules"]

# A live worker enqueues a tick within a second. Chosen: longer than a restart takes.
LATE = timedelta(minutes=2)

# As in declare_schedules.sql.
AHEAD = timedelta(days=1)

# More names than these don't help.
SHOWN = 5


async def check(examination: Examination) -> Result:
    """Return which schedules of the code can't be declared, and which rows don't tick."""
    code = read_code(examination.alias, examination.options)
    try:
        found = await examination.store.select_schedules(examination.alias)
        _, declared = await examination.store.select_declared(examination.alias)
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:
            raise
        return "not checked", "This role may not read the schedules.", ""
    kept = [row.name for row in declared if is_within(row.declared_in or "", code.failed)]
    return judge_schedules(found, code, kept=kept, workers=examination.live_workers())


def judge_schedules(
    found: Schedules, code: Discovered, *, kept: Sequence[str] = (), workers: Sequence[WorkerRow] = ()
) -> Result:
    """Return the result for the schedules of the table, and what the code declares.

    kept: those of the table that modules have declared that can't be imported now. workers: the live ones.
    """
    messages, remedies = [_sentence(trouble.text()) for trouble in code.troubles()[:SHOWN]], []
    if kept:
        messages.append(
            f"{counted(len(kept), 'schedule')} that they have declared before go on: {_named(kept)}."
        )
    if messages:
        remedies.append(
            "Fix the code: workers declare the other schedules, and stop none of these meanwhile."
        )
    # The code of the workers is usually this one.
    if others := schedule_troubles(workers, told=" ".join(messages)):
        messages += map(_sentence, others[:SHOWN])
        remedies.append("Fix it where those workers run; until then they tick what the table has.")
    if code.elsewhere:
        names = [f"{name!r} in {module}" for name, module in code.elsewhere.items()]
        messages.append(
            f"Workers don't import the modules of schedules, so these don't count: {_named(names)}."
        )
        remedies.append(
            "Move them into the module `tasks` or `schedules` of an installed app, or have "
            "OPTIONS['SCHEDULES'] name all modules that declare schedules."
        )
    ticking = [row for row in found.rows if row.next_at is not None]
    failing = [row for row in ticking if row.failures]
    if failing:
        messages.append(f"Ticks can't be enqueued: {_named([_failure(row) for row in failing])}.")
        remedies.append("They are tried again; have `aiotasks schedules` show when, and fix the reason.")
    late = [row.schedule.name for row in ticking if not row.failures and _is_late(row, found.now)]
    if late:
        messages.append(f"No worker has enqueued ticks that have come: of {_named(late)}.")
        remedies.append("Start a worker, whose OPTIONS['SCHEDULES'] isn't False.")
    if ahead := [row.schedule.name for row in ticking if _is_ahead(row, found.now)]:
        messages.append(f"The next tick is more than a day later than the times say: of {_named(ahead)}.")
        remedies.append(
            "The database's clock was ahead when it was computed. Pause and resume them; for those of the "
            "code workers do so."
        )
    operators = {row.schedule.name for row in found.rows if not row.from_code}
    if shadowed := sorted(operators.intersection(each.name for each in code.declarations)):
        messages.append(
            "Schedules of the code aren't declared, because operators have added some with these names: "
            f"{_named(shadowed)}."
        )
        remedies.append("Remove them (`aiotasks schedules remove NAME`), or rename those of the code.")
    if messages:
        return "error" if code.problems else "warning", " ".join(messages), " ".join(remedies)
    if not found.rows:
        return "ok", "There are no schedules.", ""
    return "ok", f"No tick is late or fails, of {counted(len(found.rows), 'schedule')}.", ""


def _is_late(row: ScheduleRow, now: datetime) -> bool:
    return row.next_at is not None and row.next_at < now - LATE


def _is_ahead(row: ScheduleRow, now: datetime) -> bool:
    try:
        expected = Times(row.schedule.expression, row.schedule.timezone).next_after(now)
    except ValueError:
        return False  # its ticks fail
    return expected is not None and row.next_at is not None and row.next_at > expected + AHEAD


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _failure(row: ScheduleRow) -> str:
    return f"{row.schedule.name!r} ({row.error})"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
