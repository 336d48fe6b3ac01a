"""Ticks: which of a schedule's are enqueued, and the rows of their tasks. No I/O."""

import json
from datetime import datetime, timedelta
from uuid import UUID

from .. import tracing
from ..policies.unique import OWN_PREFIX, UniqueRule, stored_key
from ..rows import JobTemplate, Missed, NewJob, Schedule, UniqueJob
from .cron import Times

__all__ = ["job_of_tick", "key_of", "ticks_due"]

# For how many seconds ticks are made up for, where a schedule doesn't say. "skip": workers take turns and may
# be busy, so a tick isn't missed at once. "all": chosen; a day of seconds is 86,400 tasks.
WITHIN: dict[Missed, float | None] = {"last": None, "skip": 60.0, "all": 86_400.0}


def ticks_due(
    times: Times, *, missed: Missed, within: float | None, next_at: datetime, now: datetime, most: int
) -> tuple[list[datetime], datetime | None]:
    """Return the ticks to enqueue of a schedule whose tick ``next_at`` has come, and its next one.

    That one may have come, too, where there are more than ``most``. Only "all" walks over the ticks: of a
    schedule of seconds there may have been a million.
    """
    within = WITHIN[missed] if within is None else within
    earliest = next_at if within is None else max(next_at, now - timedelta(seconds=within))
    if missed == "all":
        tick = next_at if next_at == earliest else times.next_after(earliest - timedelta.resolution)
        ticks: list[datetime] = []
        while tick is not None and tick <= now and len(ticks) < most:
            ticks.append(tick)
            tick = times.next_after(tick)
        return ticks, tick
    # Somebody may have set a next_at by hand that is no tick.
    last = max(next_at, times.last_until(now) or next_at)
    return [last] if last >= earliest else [], times.next_after(now)


def job_of_tick(schedule: Schedule, backend: str, id: UUID, tick: datetime, *, now: datetime) -> NewJob:
    """Return the row of a task for one tick of a schedule.

    With a jitter the task is due later than the tick, by a part of it that follows from ``id``.
    """
    own: dict[str, object] = {"_schedule": schedule.name, "_scheduled_for": tick.isoformat()}
    if (tracer := tracing.tracer) is not None:
        with tracing.sending(tracer, schedule.queue_name, schedule.task_path, schedule.name) as sent:
            sent.ids.append(str(id))
        if sent.carrier:
            own[tracing.KEY] = sent.carrier
    template = JobTemplate(
        backend=backend,
        queue_name=schedule.queue_name,
        task_path=schedule.task_path,
        lane=schedule.lane,
        priority=schedule.priority,
        run_after=tick + timedelta(seconds=schedule.jitter * _fraction(id)) if schedule.jitter else None,
        expires=schedule.expires,
        metadata=json.dumps(json.loads(schedule.metadata or "{}") | own),
        policy=schedule.policy,
        ordered=schedule.ordered,
    )
    values = (str(id), template, schedule.args, schedule.kwargs, now)
    limit_key = schedule.limit_key
    key = key_of(schedule)
    if key is None:
        return NewJob(*values, limit_key=limit_key)
    if schedule.overlap is None:
        period, waiting = schedule.unique_period, bool(schedule.unique_waiting)
    else:
        period, waiting = None, schedule.overlap == "queue"
    rule = UniqueRule(period, waiting, on_conflict="return", keep_run_after=False)
    return UniqueJob(*values, key, rule, limit_key=limit_key)


def key_of(schedule: Schedule) -> str | None:
    """Return the key of which there is one task at a time, as the table has it; None: ticks are never left
    out."""
    if schedule.overlap == "allow":
        return None
    if schedule.overlap is None:
        return schedule.unique_key
    return stored_key(f"{OWN_PREFIX}schedule:{schedule.name}")


def _fraction(id: UUID) -> float:
    """A number from 0 to 1, the same for the same id: tick_id() has put 62 bits of a hash at its end."""
    return (id.int & 0xFFFF_FFFF) / 0xFFFF_FFFF
