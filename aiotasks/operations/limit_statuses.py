"""What applies to a key of a limit: the code's numbers or an operator's, and why the key stands still."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from ..policies.limits import Limit
from ..store.limits import LimitState
from .counts import Count

__all__ = ["LimitStatus", "Standstill", "Waiting", "status_of"]

# select_limits.sql counts the running tasks of a key up to here.
MOST_RUNNING = 1_000

# Those that an operator can set.
NUMBERS = ("concurrency", "rate", "burst", "weight")

# Why no task of a key can start now.
# paused: by an operator. stopped: a task of an ordered line is FAILED, and ``after_failure`` is "stop".
# retry: the next task of an ordered line waits for its retry. closed: a task has raised RateLimited.
# full: as many run as may. rate: the next start isn't due yet. unknown: tasks wait, this process' code has no
# such limit, and no operator has set a concurrency or a rate of it: workers of the same code start none.
type Standstill = Literal["paused", "stopped", "retry", "closed", "full", "rate", "unknown"]


class Waiting(NamedTuple):
    """READY tasks: how many, and for how many seconds the oldest of those counted has waited (None: none)."""

    number: Count
    oldest: float | None


NOTHING = Waiting(Count(0, capped=False), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStatus:
    """A key of a limit, with what applies to it; or, where ``key`` is None, the limit of all its keys.

    known: this process' code has a Limit of that name. ordered: as it says.
    concurrency, rate, burst, weight: what applies, None for no limit. changed: those that an operator has
    set, for this key or for all.
    waiting, oldest: its READY tasks, and for how many seconds the oldest has waited; of a limit those of all
    its keys. running: its RUNNING tasks; of a limit with several keys, and no key: 0.
    stands: why it starts nothing now; None: it may start. opens: in how many seconds it will, where that is
    known. pause_reason: the operator's. stopped_by: the FAILED task that has stopped it.
    """

    name: str
    key: str | None
    known: bool
    ordered: bool
    concurrency: int | None
    rate: str | None
    burst: int
    weight: int
    changed: list[str]
    waiting: Count
    oldest: float | None
    running: Count
    stands: Standstill | None
    opens: float | None
    pause_reason: str
    stopped_by: UUID | None


class _Numbers(NamedTuple):
    concurrency: int | None
    rate: str | None
    pace: float | None
    burst: int
    weight: int
    changed: list[str]


def status_of(
    key: str,
    stored: Mapping[str, LimitState],
    limits: Mapping[str, Limit],
    waiting: Mapping[str, Waiting],
) -> LimitStatus:
    """Return the status of a stored key, ``name`` or ``name:key``.

    stored: the rows of keys and names, by these. limits: those that the code knows, by name. waiting: by keys
    and names.
    """
    name, colon, rest = key.partition(":")
    rows = [stored[each] for each in dict.fromkeys((key, name)) if each in stored]
    limit = limits.get(name)
    numbers = _numbers(rows, limit)
    own = stored.get(key)
    waits = waiting.get(key, NOTHING)
    running = 0 if own is None else own.running
    stands, opens = _standstill(rows, own, numbers, limit)
    is_said = limit is not None or numbers.concurrency is not None or numbers.rate is not None
    if not is_said and waits.number.number and stands in (None, "closed"):
        stands, opens = "unknown", None
    return LimitStatus(
        name=name,
        key=rest if colon else None,
        known=limit is not None,
        ordered=limit is not None and limit.ordered,
        concurrency=numbers.concurrency,
        rate=numbers.rate,
        burst=numbers.burst,
        weight=numbers.weight,
        changed=numbers.changed,
        waiting=waits.number,
        oldest=waits.oldest,
        running=Count(running, running >= MOST_RUNNING),
        stands=stands,
        opens=opens,
        pause_reason=next((row.pause_reason or "" for row in rows if row.paused_at is not None), ""),
        stopped_by=None if own is None else own.stopped_by,
    )


def _numbers(rows: Sequence[LimitState], limit: Limit | None) -> _Numbers:
    """What an operator says of the key goes first, then what is said of all keys, then the code."""
    concurrency = None if limit is None else limit.concurrency
    rate = None if limit is None or limit.rate is None else str(limit.rate)
    pace = None if limit is None else limit.pace
    burst, weight = (1, 1) if limit is None else (limit.burst, limit.weight)
    changed: dict[str, None] = {}
    for said in (row.said for row in reversed(rows)):
        changed |= {
            name: None
            for name in ("concurrency", "rate", "burst", "weight")
            if getattr(said, name) is not None
        }
        concurrency = concurrency if said.concurrency is None else said.concurrency
        if said.pace is not None:
            pace = said.pace or None
            rate = said.rate if pace else None
        burst = said.burst or burst
        weight = said.weight or weight
    return _Numbers(concurrency, rate, pace, burst, weight, list(changed))


def _standstill(
    rows: Sequence[LimitState], own: LimitState | None, numbers: _Numbers, limit: Limit | None
) -> tuple[Standstill | None, float | None]:
    """Return why a key starts nothing, and in how many seconds it will."""
    if any(row.paused_at is not None for row in rows) or numbers.concurrency == 0:
        return "paused", None
    if own is not None and (limit is None or limit.ordered):
        if own.stopped_by is not None:
            return "stopped", None
        if own.waiting:
            return "retry", None
    if own is not None and own.closed:
        return "closed", own.closed
    if own is None:
        return None, None
    places = 1 if limit is not None and limit.ordered else numbers.concurrency
    if places is not None and own.running >= places:
        return "full", None
    if numbers.pace is not None and own.level and own.level_age is not None:
        unpaid = max(0.0, own.level - max(0.0, own.level_age) / numbers.pace)
        if (wait := (unpaid - numbers.burst + 1) * numbers.pace) > 0:
            return "rate", wait
    return None, None
