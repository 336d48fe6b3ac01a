"""Ticker: enqueues the tasks of schedules whose ticks have come."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from django.db import utils

from ...conf import Options
from ...db.drivers import AsyncpgDriver
from ...db.errors import Code, constraint, is_transient, sqlstate, waited_too_long, was_rolled_back
from ...db.outage import Outage
from ...rows import NewJob, Schedule
from ...schedules.cron import Times, tick_id
from ...schedules.ticks import job_of_tick, ticks_due
from ...store.enqueue import PRIMARY_KEY
from ...store.schedules import DueSchedule, Move
from ...store.settling import Limits, Settled, Settling, wakeups_after
from ...store.store import Store
from ..events import NULL, Observer
from ..protocols import LooksForDue, Wakes

__all__ = ["Ticker"]

logger = logging.getLogger("aiotasks.worker")

# Schedules that are read at once. Chosen: reading so many takes 0.1 s, and all of them have a turn before one
# of them has its second.
MOST_DUE = 10_000

# What one transaction moves on and stores: schedules, their ticks, and bytes of arguments. Chosen: other
# workers pass over the rows meanwhile. Each tick has a template of its own, and what the server does for
# templates grows with their square: 0.03 s for 1,000, 6.5 s for 20,000.
MOST_SCHEDULES = 250
MOST_TICKS = 1_000
MOST_BYTES = 10_000_000

# Ticks of one schedule in a transaction ("all" makes up for many): finding them blocks the loop for 5 ms.
MOST_OF_ONE = 100

# After so many ticks the loop runs something else: about 2 ms.
AT_ONCE = 50

# Seconds until the next look for schedules that are locked: by another worker, which is about to move them
# on, or by somebody who changes them in a long transaction.
LOCKED_WAIT = 0.2

# Seconds for which a tick waits for a key that another transaction has written. The rows of its schedules are
# locked meanwhile, so not for long. And for which one waits whose schedule has a transaction of its own: most
# others hold a key for a few milliseconds.
LOCK_TIMEOUT = 0.5
LOCK_TIMEOUT_ALONE = 0.05

# Seconds in which the tasks of a schedule that is ticked alone have to be stored, and twice as many after
# each of its failures, up to COMMAND_TIMEOUT. Chosen: 100 tasks take 0.02 s, and others wait meanwhile.
ANSWER_TIMEOUT_ALONE = 1.0

# Seconds for which schedules are ticked alone until those are looked for again that can be ticked together.
LONGEST_ALONE = 0.5

# Seconds until a schedule whose tick waits for a key is tried again, and after which this is a failure.
# Chosen: a transaction that enqueues may well last for seconds.
LOCKED_RETRY = 1.0
LONGEST_LOCK = 60.0

# Seconds until a schedule that has failed is tried again, at first and at most. Chosen: a bad time zone stays
# bad, and a trigger that refuses tasks may be fixed within minutes.
SHORTEST_RETRY, LONGEST_RETRY = 5.0, 600.0

# Characters of an error that are kept on the schedule.
LONGEST_ERROR = 1000


class Plan(NamedTuple):
    """The ticks to enqueue of a schedule that is due, its next one, and whether others came too long ago."""

    due: DueSchedule
    ticks: list[datetime]
    next_at: datetime | None
    misses: bool


@dataclass(slots=True)
class Look:
    """What becomes of the schedules that are due.

    done: how many were moved on or put off. has_more: another look finds more that can be done at once.
    failed: those that couldn't be ticked, and why (None: they wait for a key).
    """

    done: int = 0
    has_more: bool = False
    failed: list[tuple[DueSchedule, str | None]] = field(default_factory=list)


class Tick(NamedTuple):
    """A tick, and the row of its task."""

    name: str
    at: datetime
    job: NewJob


class Ticker:
    """Every worker has one. A tick is enqueued by the first that moves its schedule on, and in the same
    transaction: no leader, no lock between statements, and no tick is lost or doubled by a crash.

    It waits for nothing by itself: the promoter's alarm calls ``look()``. ``connect`` names the promoter,
    which has to look for the next tick afterwards.
    """

    def __init__(
        self,
        driver: AsyncpgDriver,
        *,
        backend: str,
        options: Options,
        waker: Wakes,
        observer: Observer = NULL,
    ) -> None:
        self._driver = driver
        self._store = Store(driver)
        self._backend = backend
        self._options = options
        self._waker = waker
        self._observer = observer
        self._called = asyncio.Event()

    def connect(self, promoter: LooksForDue) -> None:
        """Name the part that knows when the next tick comes."""
        self._promoter = promoter

    def look(self, due: float | None = None) -> None:
        """Look for schedules whose ticks have come. ``due`` makes no difference."""
        self._called.set()

    async def run(self) -> None:
        """Enqueue ticks whenever ``look()`` is called, forever."""
        outage = Outage(logger, "ticker", "schedules wait for the database", observer=self._observer)
        while True:
            await self._called.wait()
            self._called.clear()
            try:
                wait = await self.run_once()
                outage.ended()
            except utils.Error as error:
                wait = outage.failed(error)
            if wait:
                await asyncio.sleep(wait)
            self._promoter.look()

    async def run_once(self) -> float:
        """Enqueue the ticks that have come; returns the seconds to wait until the next look at the least."""
        refused: set[str] = set()  # the schedules of batches that didn't go through
        while True:
            due = await self._store.select_due_schedules(self._backend, MOST_DUE)
            look = Look(has_more=len(due) == MOST_DUE)
            alone = [each for each in due if each.is_apart or each.name in refused]
            others = [each for each in due if not each.is_apart and each.name not in refused]
            alone += await self._tick_together(others, look)
            refused.update(each.name for each in alone)
            await self._tick_alone(alone, look)
            await self._fail(look)
            if not look.done or not look.has_more:
                return LOCKED_WAIT if due and not look.done else 0.0

    async def _tick_together(self, due: Sequence[DueSchedule], look: Look) -> list[DueSchedule]:
        """Enqueue the ticks of many schedules in each transaction; returns the schedules of those that the
        database has refused, or not answered in time."""
        refused: list[DueSchedule] = []
        for batch in _batches(due):
            plans = await self._plan(batch, look)
            try:
                look.done += await self._tick(plans, Limits(LOCK_TIMEOUT))
            except Exception as error:
                if _is_away(error):
                    raise
                refused += [plan.due for plan in plans]
        return refused

    async def _tick_alone(self, due: Sequence[DueSchedule], look: Look) -> None:
        """The same for one schedule after the other, which has failed if the database refuses its tasks."""
        began = time.monotonic()
        for each in due:
            if time.monotonic() - began > LONGEST_ALONE:
                look.has_more = True
                return
            for plan in await self._plan([each], look):
                try:
                    look.done += await self._tick_one(plan)
                except Exception as error:  # a row that others have written may raise anything
                    if _is_away(error):
                        raise
                    if was_rolled_back(error):
                        continue
                    late = (each.now - each.next_at).total_seconds()
                    waits = sqlstate(error) == Code.LOCK_TIMEOUT and late < LONGEST_LOCK
                    look.failed.append((each, None if waits else _text(error)))

    async def _tick_one(self, plan: Plan) -> int:
        answer = min(self._options.command_timeout, ANSWER_TIMEOUT_ALONE * 2.0 ** min(plan.due.failures, 20))
        limits = Limits(LOCK_TIMEOUT_ALONE, answer)
        try:
            return await self._tick([plan], limits)
        except utils.IntegrityError as error:
            if constraint(error) != PRIMARY_KEY:
                raise
        # Somebody has set next_at back: these ticks were enqueued.
        ids = {tick_id(self._backend, plan.due.name, tick): tick for tick in plan.ticks}
        found = {state.id for state in await self._store.select_states([*ids], self._backend)}
        return await self._tick([plan._replace(ticks=[ids[id] for id in ids if id not in found])], limits)

    async def _plan(self, batch: Sequence[DueSchedule], look: Look) -> list[Plan]:
        """Find out which ticks one transaction enqueues. A schedule for which that can't be said fails."""
        plans: list[Plan] = []
        walked = 0
        for each in batch:
            most = min(MOST_OF_ONE, MOST_TICKS // len(batch), MOST_BYTES // len(batch) // max(1, each.size))
            try:
                ticks, next_at = ticks_due(
                    Times(each.expression, each.timezone),
                    missed=each.missed,
                    within=each.missed_within,
                    next_at=each.next_at,
                    now=each.now,
                    most=max(1, most),
                )
            except Exception as error:  # others may have written the row  # noqa: BLE001
                look.failed.append((each, _text(error)))
                continue
            misses = not ticks or (each.missed == "all" and ticks[0] > each.next_at)
            plans.append(Plan(each, ticks, next_at, misses))
            # Some of its ticks that have come are left for another transaction.
            look.has_more = look.has_more or (next_at is not None and next_at <= each.now)
            walked += 1 + len(ticks)
            if walked >= AT_ONCE:
                walked = 0
                await asyncio.sleep(0)
        return plans

    async def _tick(self, plans: Sequence[Plan], limits: Limits) -> int:
        """Move schedules on and enqueue their ticks: both or neither, and nothing where others were first.
        Returns how many were moved on."""
        if not plans:
            return 0
        ticks: list[Tick] = []
        settled: list[Settled] = []
        try:
            async with self._driver.transaction() as driver:
                store = Store(driver)
                moves = [Move(plan.due, plan.next_at, max(plan.ticks, default=None)) for plan in plans]
                moved = await store.move_schedules(self._backend, moves)
                mine = [plan for plan in plans if plan.due.name in moved]
                ticks = await self._rows(mine, moved)
                settled = await self._store_tasks(store, ticks, limits)
        finally:
            # They may be stored even if the COMMIT has had no answer.
            if settled:
                self._waker.wake(wakeups_after([tick.job for tick in ticks], settled))
        self._report(mine, ticks, settled)
        return len(mine)

    async def _rows(self, plans: Iterable[Plan], schedules: Mapping[str, Schedule]) -> list[Tick]:
        rows: list[Tick] = []
        for plan in plans:
            schedule = schedules[plan.due.name]
            for at in plan.ticks:
                id = tick_id(self._backend, schedule.name, at)
                job = job_of_tick(schedule, self._backend, id, at, now=plan.due.now)
                rows.append(Tick(schedule.name, at, job))
            if len(rows) % AT_ONCE < len(plan.ticks):
                await asyncio.sleep(0)
        return rows

    async def _store_tasks(self, store: Store, ticks: Sequence[Tick], limits: Limits) -> list[Settled]:
        if not ticks:
            return []
        settling = Settling([tick.job for tick in ticks], self._options.moved_tasks, in_transaction=True)
        settled = await settling.run(store, limits)
        skipped: dict[str, list[datetime]] = {}
        for tick, each in zip(ticks, settled, strict=True):
            if each.holder is not None:
                skipped.setdefault(tick.name, []).append(tick.at)
        if skipped:
            noted = [(name, max(times), len(times)) for name, times in skipped.items()]
            await store.skip_ticks(self._backend, noted)
        return settled

    def _report(self, plans: Iterable[Plan], ticks: Iterable[Tick], settled: Iterable[Settled]) -> None:
        by_name = {plan.due.name: plan.due for plan in plans}
        for plan in plans:
            if plan.due.failures:
                self._observer.schedule_recovered(plan.due.name)
            if plan.misses:
                self._observer.ticks_missed(plan.due.name, plan.due.next_at)
        for tick, each in zip(ticks, settled, strict=True):
            if each.holder is None:
                late = (by_name[tick.name].now - tick.at).total_seconds()
                self._observer.ticked(tick.name, tick.at, late)
            else:
                self._observer.tick_skipped(tick.name, tick.at, each.holder.id)

    async def _fail(self, look: Look) -> None:
        """Have the schedules wait that couldn't be ticked."""
        waiting = [(due, error) for due, error in look.failed if error is None]
        failed = [(due, error) for due, error in look.failed if error is not None]
        for those, shortest in ((waiting, LOCKED_RETRY), (failed, SHORTEST_RETRY)):
            if not those:
                continue
            noted = await self._store.fail_schedules(
                self._backend, those, shortest=shortest, longest=LONGEST_RETRY
            )
            look.done += len(noted)
            for due, error in those:
                if error is not None and due.name in noted:
                    self._observer.schedule_failed(due.name, error, noted[due.name])


def _batches(due: Iterable[DueSchedule]) -> Iterator[list[DueSchedule]]:
    """The schedules of one transaction each."""
    batch: list[DueSchedule] = []
    size = 0
    for each in due:
        if batch and (len(batch) == MOST_SCHEDULES or size + each.size > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.size
    if batch:
        yield batch


def _is_away(error: Exception) -> bool:
    """Whether the error says nothing about the schedules: the database couldn't be used.

    One of them may have waited for too long, for a lock or a trigger. If it is the database that has no
    answer, noting the failure has none, too.
    """
    return is_transient(error) and not was_rolled_back(error) and not waited_too_long(error)


def _text(error: Exception) -> str:
    """The error as the schedule's row shows it."""
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR].replace("\0", "\\0")
