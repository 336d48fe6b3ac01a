"""Declarer: brings the table of schedules up to what the code declares."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from django.db import utils

from ...conf import Options
from ...db.drivers import AsyncpgDriver
from ...db.errors import describe, is_transient
from ...policies.text import is_storable
from ...rows import Schedule
from ...schedules.cron import Times
from ...schedules.declarations import is_within
from ...schedules.discovery import import_modules, read_code
from ...store.schedules import Declared, DeclaredSchedule
from ...store.store import Store
from ...store.wakeups import Wakeup
from ..protocols import Leases, Wakes

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["DECLARE_INTERVAL", "Declarer"]

logger = logging.getLogger("aiotasks.worker")

# Seconds between two looks of the fleet, after that of each worker's start: another release may have declared
# or stopped schedules meanwhile. Chosen.
DECLARE_INTERVAL = 60.0

# Schedules in one statement: some 10 ms.
MOST_AT_ONCE = 500

# After the next ticks of so many schedules the loop runs something else: about 3 ms.
TICKS_AT_ONCE = 50

# Seconds until a schedule is stopped whose row was locked: a worker has just enqueued its tick.
LOCKED_WAIT = 1.0

# Names in a line of the log.
MOST_SHOWN = 10

# What keeps a worker from declaring schedules, in its row: sentences, and characters of each.
MOST_TROUBLES = 5
LONGEST_TROUBLE = 500


class Wanted(NamedTuple):
    """What the code of this process declares: by name the schedules, their digests, and their modules.

    wrong: the names of those that can't be declared. failed: the modules that can't be imported. troubles:
    why, in sentences for people.
    """

    schedules: Mapping[str, tuple[Schedule, str, str | None]]
    wrong: Collection[str]
    failed: Collection[str]
    troubles: Sequence[str] = ()


class Announcement(NamedTuple):
    """What a worker's row says of its schedules: the names of those that its code declares, and what keeps
    it from declaring some."""

    worker_id: "UUID | None"
    names: frozenset[str]
    troubles: tuple[str, ...]


class Declarer:
    """Every worker has one, and they take turns. What is as it was isn't written."""

    def __init__(
        self,
        driver: AsyncpgDriver,
        *,
        backend: str,
        options: Options,
        lease: Leases,
        waker: Wakes,
        importer: Executor,
    ) -> None:
        self._driver = driver
        self._store = Store(driver)
        self._backend = backend
        self._options = options
        self._lease = lease
        self._waker = waker
        self._importer = importer
        self._wanted: Wanted | None = None
        self._announced = Announcement(None, frozenset(), ())
        self._failure = ""  # of the last round, in a sentence; empty: there was none
        self._shadowed: set[str] = set()
        self._refused: list[str] = []
        self._refusal = ""  # why, in a sentence
        # By name when a next tick was computed, and what it is.
        self._ticks: dict[str, tuple[datetime, datetime | None]] = {}

    async def declare(self) -> float | None:
        """Write the schedules of the code that the table hasn't as they are, and stop those that no live
        worker's code declares. Returns the seconds until it should be tried again where some were locked."""
        wanted = await self._read()
        await self._announce(wanted)
        try:
            wait = await self._bring_up(wanted)
        except utils.Error as error:
            if not is_transient(error):
                self._failure = describe(error, self._options.database)
                await self._announce(wanted)
            raise
        self._failure = ""
        await self._announce(wanted)
        return wait

    async def _bring_up(self, wanted: Wanted) -> float | None:
        now, rows = await self._store.select_declared(self._backend)
        found = {row.name: row for row in rows}
        self._warn_of_operators(wanted.schedules, found)
        changes = await self._changes(wanted, found, now)
        gone = [row.name for row in rows if _is_gone(row, wanted)]
        if not changes and not gone:
            return None
        try:
            # In one transaction, so that one that was renamed ticks under one of its names.
            async with self._driver.transaction() as driver:
                written, stopped = await self._write(Store(driver), changes, gone)
            self._refused, self._refusal = [], ""
        except utils.Error as error:
            if is_transient(error):
                raise
            written, stopped = await self._write_each(changes, gone)
        self._report(changes, written, [name for name, is_stopped in stopped.items() if is_stopped])
        return None if all(stopped.values()) else LOCKED_WAIT

    async def _read(self) -> Wanted:
        """What the code declares; it is read again once a module can be imported that has failed."""
        wanted = self._wanted
        if wanted is not None and wanted.failed:
            failed = await self._in_thread(partial(import_modules, wanted.failed))
            if len(failed) < len(wanted.failed):
                wanted = None
        if wanted is None:
            self._wanted = wanted = await self._in_thread(self._read_code)
        return wanted

    async def _in_thread[Result](self, call: Callable[[], Result]) -> Result:
        """Call what imports, for as long as that takes."""
        return await asyncio.get_running_loop().run_in_executor(self._importer, call)

    def _read_code(self) -> Wanted:
        code = read_code(self._backend, self._options)
        troubles = code.troubles()
        for trouble in troubles:
            if trouble.error is not None:
                logger.error(
                    "Could not import a module that may declare schedules; its own go on module=%s",
                    ", ".join(trouble.modules),
                    exc_info=trouble.error,
                )
            if trouble.problems:
                logger.error("A schedule of the code cannot be declared problem=%s", trouble.text())
        if code.elsewhere:
            logger.warning(
                "Schedules are not declared, because workers do not import their modules for them "
                "count=%d names=%s modules=%s",
                *_shown(code.elsewhere),
                sorted(set(code.elsewhere.values())),
            )
        return Wanted(
            {each.name: (each.row, each.row.digest(), each.module) for each in code.declarations},
            {problem.name for problem in code.problems},
            list(code.failed),
            [trouble.text() for trouble in troubles],
        )

    async def _announce(self, wanted: Wanted) -> None:
        """Have the other workers stop none of the code's schedules while this one lives, and operators see
        what keeps it from declaring them."""
        worker_id = self._lease.current_id()
        names = frozenset([*wanted.schedules, *wanted.wrong])
        texts = [text for text in (self._failure, self._refusal, *wanted.troubles) if text]
        troubles = tuple(text if is_storable(text) else ascii(text) for text in texts[:MOST_TROUBLES])
        new = Announcement(worker_id, names, tuple(text[:LONGEST_TROUBLE] for text in troubles))
        if worker_id is None or new == self._announced:
            return
        if new.names or new.troubles or worker_id == self._announced.worker_id:
            await self._store.announce_schedules(worker_id, new.names, new.troubles)
        self._announced = new

    async def _changes(
        self, wanted: Wanted, found: Mapping[str, Declared], now: datetime
    ) -> list[DeclaredSchedule]:
        """The schedules that the table hasn't as they are, in the order in which all workers lock them."""
        changes: list[DeclaredSchedule] = []
        for number, (schedule, digest, module) in enumerate(wanted.schedules.values(), 1):
            new = DeclaredSchedule(schedule, digest, self._next_tick(schedule, now), module)
            if _differs(new, found.get(schedule.name)):
                changes.append(new)
            if number % TICKS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return sorted(changes, key=lambda change: change.schedule.name)

    def _next_tick(self, schedule: Schedule, now: datetime) -> datetime | None:
        since, tick = self._ticks.get(schedule.name, (now, now))
        if not since <= now or (tick is not None and tick <= now):
            tick = Times(schedule.expression, schedule.timezone).next_after(now)
            self._ticks[schedule.name] = now, tick
        return tick

    async def _write(
        self, store: Store, changes: Sequence[DeclaredSchedule], gone: Collection[str]
    ) -> tuple[dict[str, datetime | None], dict[str, bool]]:
        """Write schedules and stop others; return by name the next ticks of those written, and of those that
        are gone whether they were stopped."""
        written: dict[str, datetime | None] = {}
        for start in range(0, len(changes), MOST_AT_ONCE):
            batch = changes[start : start + MOST_AT_ONCE]
            written |= await store.declare_schedules(self._backend, batch, from_code=True)
        return written, await store.stop_schedules(self._backend, gone) if gone else {}

    async def _write_each(
        self, changes: Sequence[DeclaredSchedule], gone: Collection[str]
    ) -> tuple[dict[str, datetime | None], dict[str, bool]]:
        """The same where the database refuses some of them (a constraint or a trigger of the site)."""
        written, stopped = await self._write(self._store, [], gone)
        refused: dict[str, utils.Error] = {}
        for change in changes:
            try:
                written |= (await self._write(self._store, [change], []))[0]
            except utils.Error as error:
                if is_transient(error):
                    raise
                refused[change.schedule.name] = error
        if refused and self._refused != [*refused]:
            logger.error(
                "The database refuses schedules of the code; others go on count=%d names=%s error=%r",
                *_shown(refused),
                str(next(iter(refused.values()))),
            )
        self._refused = [*refused]
        self._refusal = ""
        if refused:
            name, reason = next(iter(refused.items()))
            more = f" and {len(refused) - 1} more" if refused.keys() != {name} else ""
            self._refusal = f"The database refuses schedule {name!r}{more}: {reason}"
        return written, stopped

    def _report(
        self, changes: Sequence[DeclaredSchedule], written: Mapping[str, datetime | None], stopped: list[str]
    ) -> None:
        if stopped:
            logger.info(
                "Stopped schedules that no worker's code declares count=%d names=%s", *_shown(stopped)
            )
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
            logger.warning("Schedule not declared: an operator has added one with this name name=%r", name)
        self._shadowed = shadowed


def _shown(names: Collection[str]) -> tuple[int, list[str]]:
    """How many they are, and the first of them for a line of the log."""
    return len(names), sorted(names)[:MOST_SHOWN]


def _is_gone(row: Declared, wanted: Wanted) -> bool:
    """Whether the code has declared the schedule, and does no longer."""
    return (
        row.from_code
        and not row.is_stopped
        and row.name not in wanted.schedules
        and row.name not in wanted.wrong
        and not (row.declared_in is not None and is_within(row.declared_in, wanted.failed))
    )


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
