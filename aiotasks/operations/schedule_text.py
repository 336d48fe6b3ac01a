"""Schedules for people: plain text, for any terminal."""

from collections.abc import Sequence
from datetime import datetime

from .schedules import ScheduleState
from .text import counted, moment_as_text, printable

__all__ = ["schedules_as_text"]


def schedules_as_text(schedules: Sequence[ScheduleState]) -> str:
    """Return a paragraph for each schedule."""
    return "\n\n".join(map(_schedule, schedules)) if schedules else "No schedule."


def _schedule(schedule: ScheduleState) -> str:
    source = "code" if schedule.from_code else "operator"
    when = "" if schedule.words == schedule.expression else f" ({schedule.expression})"
    lines = [
        f"{printable(schedule.name)}: {printable(schedule.words + when)}, {printable(schedule.timezone)} "
        f"[{source}, {schedule.state}]"
    ]
    lines += [f"  {label:<8} {text}" for label, text in _details(schedule) if text]
    return "\n".join(lines)


def _details(schedule: ScheduleState) -> list[tuple[str, str]]:
    return [
        ("task", _call(schedule)),
        ("next", ", ".join(map(moment_as_text, schedule.next))),
        ("last", "never" if schedule.last_tick is None else moment_as_text(schedule.last_tick)),
        ("skipped", _skipped(schedule)),
        ("failed", _failed(schedule)),
        ("paused", _since(schedule.paused_at, schedule.pause_reason)),
        ("stopped", _since(schedule.stopped_at, "no worker's code declares it")),
    ]


def _call(schedule: ScheduleState) -> str:
    arguments = [*map(repr, schedule.args), *(f"{name}={value!r}" for name, value in schedule.kwargs.items())]
    return printable(f"{schedule.task_path}({', '.join(arguments)}), queue {schedule.queue_name}")


def _skipped(schedule: ScheduleState) -> str:
    if schedule.skipped_tick is None:
        return ""
    return f"{counted(schedule.skipped, 'tick')}, the last one {moment_as_text(schedule.skipped_tick)}"


def _failed(schedule: ScheduleState) -> str:
    if not schedule.failures:
        return ""
    again = "" if schedule.retry_at is None else f", tried again {moment_as_text(schedule.retry_at)}"
    return f"{counted(schedule.failures, 'time')}{again}: {printable(schedule.error or '')}"


def _since(moment: datetime | None, reason: str | None) -> str:
    if moment is None:
        return ""
    return f"since {moment_as_text(moment)}" + (f": {printable(reason)}" if reason else "")
