"""Statements about schedules: which are due, what becomes of their ticks, what declares and changes them."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ..rows import Missed, Schedule
from .columns import schedule, schedule_values
from .statement_group import StatementGroup

__all__ = [
    "Declared",
    "DeclaredSchedule",
    "DueSchedule",
    "Move",
    "ScheduleRow",
    "ScheduleStatements",
    "Schedules",
]


class DueSchedule(NamedTuple):
    """A schedule whose tick has come, as it was at ``now`` by the database's clock.

    failures: how often in a row its ticks couldn't be enqueued. is_apart: whether it isn't ticked together
    with others, because its tasks have a key that other enqueues may take, too, or because its ticks couldn't
    be enqueued the last time. size: bytes of its arguments and metadata.
    """

    now: datetime
    name: str
    expression: str
    timezone: str
    missed: Missed
    missed_within: float | None
    next_at: datetime
    failures: int
    is_apart: bool = False
    size: int = 0


class Move(NamedTuple):
    """Where a schedule goes on: its next tick (None: there is none), and the last one that is done with this
    (None: none was enqueued)."""

    due: DueSchedule
    next_at: datetime | None
    last_tick: datetime | None


class Declared(NamedTuple):
    """What the table has of a schedule, for a worker to compare with its code. ``declared_in``: the module
    that declares it."""

    name: str
    from_code: bool
    digest: str | None
    declared_in: str | None
    is_stopped: bool
    next_at: datetime | None


class DeclaredSchedule(NamedTuple):
    """A schedule to be written, the digest of what the code says (None: an operator's), its first tick
    (None: there is none), and the module that declares it."""

    schedule: Schedule
    digest: str | None
    next_at: datetime | None
    declared_in: str | None = None


class ScheduleRow(NamedTuple):
    """A schedule and its state.

    from_code: whether the code declares it, else an operator has added it. next_at: None while it is paused
    or stopped, or if it never ticks again. retry_at: its ticks can't be enqueued, and aren't tried before.
    last_tick: the last one that was enqueued or left out. skipped: how many were left out because of the
    tasks of others. failures: how often in a row its ticks couldn't be enqueued, the last time by ``error``.
    """

    schedule: Schedule
    from_code: bool
    pause_reason: str | None
    skipped: int
    failures: int
    error: str | None
    paused_at: datetime | None
    stopped_at: datetime | None
    next_at: datetime | None
    retry_at: datetime | None
    last_tick: datetime | None
    skipped_tick: datetime | None


class Schedules(NamedTuple):
    """Schedules in the order of their names, and when they were read, by the database's clock."""

    now: datetime
    rows: list[ScheduleRow]


# The columns of select_schedules before those of the Schedule.
_OF_A_ROW = len(ScheduleRow._fields)


class ScheduleStatements(StatementGroup):
    """Tick, declare and change schedules. A schedule is one of a backend, by its name."""

    async def select_due_schedules(self, backend: str, limit: int) -> list[DueSchedule]:
        """The schedules whose tick has come, the earliest first: at most ``limit``."""
        return [DueSchedule(*row) for row in await self._fetch("select_due_schedules", backend, limit)]

    async def move_schedules(self, backend: str, moves: Sequence[Move]) -> dict[str, Schedule]:
        """Move schedules on; return by name those that no other worker has moved or locked meanwhile."""
        rows = await self._fetch(
            "move_schedules",
            backend,
            [move.due.name for move in moves],
            [move.due.next_at for move in moves],
            [move.due.expression for move in moves],
            [move.due.timezone for move in moves],
            [move.next_at for move in moves],
            [move.last_tick for move in moves],
        )
        return {each.name: each for each in map(schedule, rows)}

    async def skip_ticks(self, backend: str, skipped: Sequence[tuple[str, datetime, int]]) -> None:
        """Note by the names of schedules the last tick that was left out, and how many were."""
        await self._fetch("skip_ticks", backend, *map(list, zip(*skipped, strict=True)))

    async def fail_schedules(
        self,
        backend: str,
        failed: Sequence[tuple[DueSchedule, str | None]],
        *,
        shortest: float,
        longest: float,
    ) -> dict[str, int]:
        """Note errors (None: no failure, to be tried again all the same), and have the ticks tried again
        after ``shortest`` seconds, then twice as long each time, ``longest`` at most. Returns by name how
        often in a row each has failed; those that another worker has noted are left out."""
        rows = await self._fetch(
            "fail_schedules",
            backend,
            [due.name for due, _ in failed],
            [due.next_at for due, _ in failed],
            [error for _, error in failed],
            shortest,
            longest,
        )
        return {row[0]: row[1] for row in rows}

    async def select_declared(self, backend: str) -> tuple[datetime, list[Declared]]:
        """The time by the database's clock, and what it has of all schedules."""
        rows = await self._fetch("select_declared", backend)
        return rows[0][0], [Declared(*row[1:]) for row in rows if row[1] is not None]

    async def declare_schedules(
        self, backend: str, schedules: Sequence[DeclaredSchedule], *, from_code: bool
    ) -> dict[str, datetime | None]:
        """Write schedules; return the next tick of each that was written, by name.

        from_code: the code declares them. Else they are an operator's, and one whose name the backend has
        already isn't written.
        """
        rows = await self._fetch(
            "declare_schedules",
            backend,
            from_code,
            [each.digest for each in schedules],
            [each.declared_in for each in schedules],
            [each.next_at for each in schedules],
            *schedule_values([each.schedule for each in schedules]),
        )
        return {row[0]: row[1] for row in rows}

    async def announce_schedules(
        self, worker_id: UUID, names: Collection[str], troubles: Collection[str] = ()
    ) -> None:
        """Have no other worker stop these schedules while this one lives: its code declares them.

        troubles: what keeps it from declaring some, in sentences. They are in the same column, behind a space
        each, with which no name begins.
        """
        await self._fetch("announce_schedules", worker_id, [*names, *(f" {text}" for text in troubles)])

    async def stop_schedules(self, backend: str, names: Collection[str]) -> dict[str, bool]:
        """Stop schedules. Returns by name those that the code of no other live worker declares, and whether
        each was stopped: somebody may have locked its row."""
        return {row[0]: row[1] for row in await self._fetch("stop_schedules", backend, list(names))}

    async def select_schedules(self, backend: str, names: Collection[str] | None = None) -> Schedules:
        """The schedules of these names; all if it is None."""
        rows = await self._fetch("select_schedules", backend, None if names is None else list(names))
        return Schedules(
            rows[0][0],
            [ScheduleRow(schedule(row[_OF_A_ROW:]), *row[1:_OF_A_ROW]) for row in rows if row[1] is not None],
        )

    async def select_holders(self, backend: str, keys: Collection[str]) -> dict[str, UUID]:
        """The tasks that hold these keys, by key."""
        return {row[0]: row[1] for row in await self._fetch("select_holders", backend, list(keys))}

    async def pause_schedule(self, backend: str, name: str, reason: str) -> bool:
        """Have it tick no more until it is resumed. Returns whether there is one."""
        return bool(await self._fetch("pause_schedule", backend, name, reason))

    async def resume_schedule(self, backend: str, seen: Schedule, next_at: datetime | None) -> bool:
        """Have it tick again from ``next_at`` on. Returns whether it was paused, and its times are still
        those that were seen."""
        return bool(
            await self._fetch("resume_schedule", backend, seen.name, next_at, seen.expression, seen.timezone)
        )

    async def delete_schedule(self, backend: str, name: str) -> bool:
        """Returns whether there was one that the code doesn't declare."""
        return bool(await self._fetch("delete_schedule", backend, name))
