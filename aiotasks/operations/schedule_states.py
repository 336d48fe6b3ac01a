"""A schedule as operators see it: its state, its times in a zone, and the task that its ticks wait for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal
from uuid import UUID

from django.conf import settings

from ..rows import Missed, Overlap
from ..schedules.cron import EVERY, Times
from ..schedules.ticks import key_of
from ..schedules.words import in_words
from ..store.schedules import ScheduleRow
from ..store.store import Store

__all__ = ["ScheduleState", "select_holders", "state_of"]

# The next ticks that people are shown.
NEXT_TICKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """A schedule, and how it is. Its times are aware, in the time zone ``shown_in``: its own, for an
    interval TIME_ZONE of the settings, and UTC where that is unknown.

    words: when it ticks, in words. state: "active"; "failing": its last tick couldn't be enqueued, and is
    tried again; "paused", by an operator; "stopped": no worker's code declares it; "ended": it never ticks
    again.
    from_code: the code declares it, else an operator has added it. missed, within, overlap, jitter: see
    ``aiotasks.periodic``; times are in seconds. next: the next three ticks.
    last_tick: the last one that was enqueued or left out; None: there was none. skipped: how many were left
    out because of an unfinished task, or one with its key, the last of them ``skipped_tick``. failures: how
    often in a row a tick couldn't be enqueued, the last time by ``error``; it is tried again at ``retry_at``.
    holder: the task because of which a tick would be left out now; None: there is none.
    """

    name: str
    words: str
    expression: str
    timezone: str
    shown_in: str
    state: Literal["active", "failing", "paused", "stopped", "ended"]
    from_code: bool
    task_path: str
    queue_name: str
    priority: int
    args: list[Any]
    kwargs: dict[str, Any]
    missed: Missed
    within: float | None
    overlap: Overlap | None
    jitter: float | None
    next: list[datetime]
    last_tick: datetime | None
    skipped: int
    skipped_tick: datetime | None
    holder: UUID | None
    failures: int
    error: str | None
    retry_at: datetime | None
    paused_at: datetime | None
    pause_reason: str | None
    stopped_at: datetime | None


async def select_holders(store: Store, backend: str, rows: Sequence[ScheduleRow]) -> dict[str, UUID]:
    """Return by the names of schedules the tasks because of which a tick of theirs would be left out now."""
    keys = {row.schedule.name: key for row in rows if (key := key_of(row.schedule)) is not None}
    held = await store.select_holders(backend, set(keys.values())) if keys else {}
    return {name: held[key] for name, key in keys.items() if key in held}


def state_of(row: ScheduleRow, holder: UUID | None = None) -> ScheduleState:
    """Return a stored schedule for people. holder: the task because of which its ticks are left out."""
    schedule = row.schedule
    try:
        times = Times(schedule.expression, schedule.timezone)
    except ValueError:  # others may have written it, or this machine doesn't know the time zone
        times = None
    ticks = [] if row.next_at is None else [row.next_at]
    while times is not None and 0 < len(ticks) < NEXT_TICKS and (tick := times.next_after(ticks[-1])):
        ticks.append(tick)
    shown_in, zone = _zone_of(times)

    def local(moment: datetime | None) -> datetime | None:
        return None if moment is None else moment.astimezone(zone)

    return ScheduleState(
        name=schedule.name,
        words=schedule.expression if times is None else in_words(times),
        expression=schedule.expression,
        timezone=schedule.timezone,
        shown_in=shown_in,
        state=_kind_of(row),
        from_code=row.from_code,
        task_path=schedule.task_path,
        queue_name=schedule.queue_name,
        priority=schedule.priority,
        args=json.loads(schedule.args),
        kwargs=json.loads(schedule.kwargs),
        missed=schedule.missed,
        within=schedule.missed_within,
        overlap=schedule.overlap,
        jitter=schedule.jitter,
        next=[tick.astimezone(zone) for tick in ticks],
        last_tick=local(row.last_tick),
        skipped=row.skipped,
        skipped_tick=local(row.skipped_tick),
        holder=holder,
        failures=row.failures,
        error=row.error,
        retry_at=local(row.retry_at),
        paused_at=local(row.paused_at),
        pause_reason=row.pause_reason,
        stopped_at=local(row.stopped_at),
    )


def _kind_of(row: ScheduleRow) -> Literal["active", "failing", "paused", "stopped", "ended"]:
    if row.stopped_at is not None:
        return "stopped"
    if row.paused_at is not None:
        return "paused"
    if row.failures:
        return "failing"
    return "active" if row.next_at is not None else "ended"


def _zone_of(times: Times | None) -> tuple[str, tzinfo]:
    """In which zone people are shown the times of a schedule: its name, and itself."""
    if times is None:
        return "UTC", UTC
    if not times.expression.strip().startswith(EVERY):
        return times.timezone, times.zone
    try:
        return settings.TIME_ZONE, Times(times.expression, settings.TIME_ZONE).zone
    except ValueError:  # this machine doesn't know it
        return "UTC", UTC
