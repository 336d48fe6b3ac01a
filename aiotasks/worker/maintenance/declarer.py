"""Declarer: brings the table of schedules up to what the code declares."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from datetime import datetime
from typing import NamedTuple

from ...conf import Options
from ...rows import Schedule
from ...schedules.cron import Times
from ...schedules.declarations import declared, find_problems
from ...schedules.discovery import discover
from ...store.schedules import Declared, DeclaredSchedule
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..protocols import Wakes

__all__ = ["DECLARE_INTERVAL", "Declarer"]

logger = logging.getLogger("aiotasks.worker")

# Seconds between two looks of the fleet, after that of each worker's start: another release may have declared
# or stopped schedules meanwhile. Chosen.
DECLARE_INTERVAL = 60.0

# Schedules in one statement: some 10 ms.
MOST_AT_ONCE = 500

# Names in a line of the log.
MOST_SHOWN = 10


class Code(NamedTuple):
    """What this process' code declares: by name the schedules and their digests.

    is_whole: whether all modules that may declare schedules could be imported, and all of these are right.
    """

    schedules: Mapping[str, tuple[Schedule, str]]
    is_whole: bool


class Declarer:
    """Every worker has one, and they take turns. What is as it was isn't written."""

    def __init__(
        self, store: Store, *, backend: str, options: Options, waker: Wakes, importer: Executor
    ) -> None:
        self._store = store
        self._backend = backend
        self._options = options
        self._waker = waker
        self._importer = importer
        self._code: Code | None = None
        self._shadowed: set[str] = set()

    async def declare(self) -> None:
        """Write the schedules of the code that the table hasn't as they are, and stop those that the code has
        no more."""
        if self._code is None:
            loop = asyncio.get_running_loop()
            self._code = await loop.run_in_executor(self._importer, self._read_code)
        code = self._code.schedules
        now, rows = await self._store.select_declared(self._backend)
        found = {row.name: row for row in rows}
        self._warn_of_operators(code, found)
        declared_now = [
            DeclaredSchedule(schedule, digest, _first_tick(schedule, now))
            for schedule, digest in code.values()
        ]
        changes = [each for each in declared_now if _differs(each, found.get(each.schedule.name))]
        for start in range(0, len(changes), MOST_AT_ONCE):
            await self._write(changes[start : start + MOST_AT_ONCE])
        gone = [row.name for row in rows if row.from_code and not row.is_stopped and row.name not in code]
        if gone and self._code.is_whole:
            stopped = await self._store.stop_schedules(self._backend, gone)
            if stopped:
                logger.info("Stopped schedules that the code has no more count=%d names=%s", *_shown(stopped))

    def _read_code(self) -> Code:
        """Import the modules that declare schedules. Blocks, for as long as the imports take."""
        is_whole = discover(self._options)
        for problem in find_problems(self._backend):
            is_whole = False
            logger.error(
                "A schedule of the code cannot be declared; this worker stops none problem=%s", problem
            )
        schedules = [each.row for each in declared(self._backend)]
        return Code({each.name: (each, each.digest()) for each in schedules}, is_whole)

    async def _write(self, changes: list[DeclaredSchedule]) -> None:
        written = await self._store.declare_schedules(self._backend, changes, from_code=True)
        if not written:
            return  # another worker was first
        logger.info("Declared schedules count=%d names=%s", *_shown(written))
        due = min((at for at in written.values() if at is not None), default=None)
        if due is not None:
            queue_name = changes[0].schedule.queue_name
            self._waker.wake([Wakeup(self._backend, queue_name, due.timestamp())])

    def _warn_of_operators(self, code: Mapping[str, object], found: Mapping[str, Declared]) -> None:
        shadowed = {name for name in code if name in found and not found[name].from_code}
        for name in sorted(shadowed - self._shadowed):
            logger.warning(
                "A schedule of the code has the name of an operator's; it isn't declared name=%r", name
            )
        self._shadowed = shadowed


def _shown(names: Collection[str]) -> tuple[int, list[str]]:
    """How many they are, and the first of them for a line of the log."""
    return len(names), sorted(names)[:MOST_SHOWN]


def _differs(new: DeclaredSchedule, row: Declared | None) -> bool:
    """Whether the table's row isn't what the code declares, and may be brought up to it."""
    return row is None or (
        row.from_code
        and (
            row.is_stopped
            or (row.digest, row.declared_in) != (new.digest, new.declared_in)
            # The clock was ahead. By how much it must have been, the statement says.
            or (row.next_at is not None and new.next_at is not None and row.next_at > new.next_at)
        )
    )


def _first_tick(schedule: Schedule, now: datetime) -> datetime | None:
    return Times(schedule.expression, schedule.timezone).next_after(now)
