"""Schedules for people: plain text, for any terminal."""

from collections.abc import Sequence
from datetime import datetime

from ..schedules.cron import EVERY
from .schedule_states import ScheduleState
from .tables import printable
from .text import counted

__all__ = ["schedules_as_text"]


def schedules_as_text(schedules: Sequence[ScheduleState]) -> str:
    """Return a paragraph for each schedule."""
    return "\n\n".join(map(_schedule, schedules)) if schedules else "No schedule."


def _schedule(schedule: ScheduleState) -> str:
    source = "code" if schedule.from_code else "operator"
    when = "" if schedule.words == schedule.expression else f" ({schedule.expression})"
    lines = [
        f"{printable(schedule.name)}: {printable(schedule.words + when)}, {printable(_zone(schedule))} "
        f"[{source}, {schedule.state}]"
    ]
    lines += [f"  {label:<8} {text}" for label, text in _details(schedule) if text]
    return "\n".join(lines)


def _details(schedule: ScheduleState) -> list[tuple[str, str]]:
    return [
        ("task", _call(schedule)),
        ("next", ", ".join(map(_moment, schedule.next)) or "-"),
        ("last", "-" if schedule.last_tick is None else _moment(schedule.last_tick)),
        ("skipped", _skipped(schedule)),
        ("held by", _held(schedule)),
        ("failed", _failed(schedule)),
        ("paused", _since(schedule.paused_at, schedule.pause_reason)),
        ("stopped", _since(schedule.stopped_at, "no worker's code declares it; `remove` removes it")),
    ]


def _zone(schedule: ScheduleState) -> str:
    """By whose clock it goes, and in which zone its times are shown: an interval goes by no clock."""
    if schedule.shown_in == schedule.timezone and not schedule.expression.strip().startswith(EVERY):
        return schedule.timezone
    shown = f"times in {schedule.shown_in}"
    return shown if schedule.expression.strip().startswith(EVERY) else f"{schedule.timezone}, {shown}"


def _held(schedule: ScheduleState) -> str:
    if schedule.holder is None or not schedule.next:
        return ""
    until = {"skip": "it has finished", "queue": "it starts"}.get(schedule.overlap or "", "its key is free")
    return f"task {schedule.holder}: ticks are left out until {until}"


def _moment(moment: datetime) -> str:
    """A time with its day of the week and its offset: ``Tue 2026-12-01 03:00:00+01:00``."""
    return f"{moment:%a} {moment.isoformat(sep=' ', timespec='seconds')}"


def _call(schedule: ScheduleState) -> str:
    arguments = [*map(repr, schedule.args), *(f"{name}={value!r}" for name, value in schedule.kwargs.items())]
    return printable(f"{schedule.task_path}({', '.join(arguments)}), queue {schedule.queue_name}")


def _skipped(schedule: ScheduleState) -> str:
    if schedule.skipped_tick is None:
        return ""
    return f"{counted(schedule.skipped, 'tick')}, the last one {_moment(schedule.skipped_tick)}"


def _failed(schedule: ScheduleState) -> str:
    if not schedule.failures:
        return ""
    again = "" if schedule.retry_at is None else f", tried again {_moment(schedule.retry_at)}"
    return f"{counted(schedule.failures, 'time')}{again}: {printable(schedule.error or '')}"


def _since(moment: datetime | None, reason: str | None) -> str:
    if moment is None:
        return ""
    return f"since {_moment(moment)}" + (f": {printable(reason)}" if reason else "")
