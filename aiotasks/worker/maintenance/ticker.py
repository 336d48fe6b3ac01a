"""Ticker: enqueues the tasks of schedules whose ticks have come."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import utils

from ...conf import Options
from ...db.drivers import AsyncpgDriver
from ...db.errors import Code, constraint, is_transient, sqlstate, was_rolled_back
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

# Schedules in one transaction, and ticks of one of them ("all" makes up for many). Chosen: other workers
# pass over the rows meanwhile, and the loop computes the next ticks of so many in about 10 ms.
MOST_SCHEDULES = 250
MOST_TICKS = 250

# After so many schedules the loop runs something else: about 2 ms.
AT_ONCE = 50

# Seconds until the next look for schedules that are locked: by another worker, which is about to move them
# on, or by somebody who changes them in a long transaction.
LOCKED_WAIT = 0.2

# Seconds for which a tick waits for a key that another transaction has written. The rows of its schedules are
# locked meanwhile, so not for long; a schedule whose tasks have a key of their own waits alone.
LOCK_TIMEOUT = 0.5

# Seconds until a schedule that has failed is tried again, at first and at most. Chosen: a bad time zone stays
# bad, and a trigger that refuses tasks may be fixed within minutes.
SHORTEST_RETRY, LONGEST_RETRY = 5.0, 600.0

# Characters of an error that are kept on the schedule.
LONGEST_ERROR = 1000


class Plan(NamedTuple):
    """The ticks to enqueue of a schedule that is due, and its next one."""

    due: DueSchedule
    ticks: list[datetime]
    next_at: datetime | None


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
        while True:
            due = await self._store.select_due_schedules(self._backend, MOST_SCHEDULES)
            plans = await self._plan(due)
            alone = [plan for plan in plans if plan.due.has_own_key]
            moved = await self._tick_together([plan for plan in plans if not plan.due.has_own_key])
            for plan in alone:
                moved += await self._tick_alone(plan)
            if moved < len(plans) and not moved:
                return LOCKED_WAIT
            if not plans or (len(due) < MOST_SCHEDULES and not any(map(_has_more, plans))):
                return 0.0

    async def _plan(self, due: Sequence[DueSchedule]) -> list[Plan]:
        """Find out which ticks are to be enqueued. A schedule for which that can't be said has failed."""
        plans: list[Plan] = []
        failed: list[tuple[DueSchedule, str]] = []
        for number, each in enumerate(due, 1):
            try:
                ticks, next_at = ticks_due(
                    Times(each.expression, each.timezone),
                    missed=each.missed,
                    within=each.missed_within,
                    next_at=each.next_at,
                    now=each.now,
                    most=MOST_TICKS,
                )
                plans.append(Plan(each, ticks, next_at))
            except Exception as error:  # others may have written the row  # noqa: BLE001
                failed.append((each, _text(error)))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._fail(failed)
        return plans

    async def _tick_together(self, plans: Sequence[Plan]) -> int:
        """Enqueue ticks in one transaction, or, if the database refuses one of them, each in one of its own;
        returns how many schedules were moved on."""
        if not plans:
            return 0
        try:
            return await self._tick(plans)
        except Exception as error:
            if _is_away(error):
                raise
        return sum([await self._tick_alone(plan) for plan in plans])

    async def _tick_alone(self, plan: Plan) -> int:
        """The same for one schedule, which has failed if the database refuses its tasks."""
        try:
            try:
                return await self._tick([plan])
            except utils.IntegrityError as error:
                if constraint(error) != PRIMARY_KEY:
                    raise
            # Somebody has set next_at back: these ticks were enqueued.
            ids = {tick_id(self._backend, plan.due.name, tick): tick for tick in plan.ticks}
            found = {state.id for state in await self._store.select_states([*ids], self._backend)}
            return await self._tick([plan._replace(ticks=[ids[id] for id in ids if id not in found])])
        except Exception as error:  # a row that others have written may raise anything
            if was_rolled_back(error):
                return 0
            if _is_away(error):
                raise
            await self._fail([(plan.due, _text(error))])
            return 0

    async def _tick(self, plans: Sequence[Plan]) -> int:
        """Move schedules on and enqueue their ticks: both or neither, and nothing where others were first."""
        ticks: list[Tick] = []
        settled: list[Settled] = []
        try:
            async with self._driver.transaction() as driver:
                store = Store(driver)
                moves = [Move(plan.due, plan.next_at, max(plan.ticks, default=None)) for plan in plans]
                moved = await store.move_schedules(self._backend, moves)
                mine = [plan for plan in plans if plan.due.name in moved]
                ticks = [tick for plan in mine for tick in self._rows(plan, moved[plan.due.name])]
                settled = await self._store_tasks(store, ticks)
        finally:
            # They may be stored even if the COMMIT has had no answer.
            if settled:
                self._waker.wake(wakeups_after([tick.job for tick in ticks], settled))
        self._report(mine, ticks, settled)
        return len(mine)

    def _rows(self, plan: Plan, schedule: Schedule) -> Iterable[Tick]:
        for at in plan.ticks:
            id = tick_id(self._backend, schedule.name, at)
            yield Tick(schedule.name, at, job_of_tick(schedule, self._backend, id, at, now=plan.due.now))

    async def _store_tasks(self, store: Store, ticks: Sequence[Tick]) -> list[Settled]:
        if not ticks:
            return []
        settling = Settling([tick.job for tick in ticks], self._options.moved_tasks, in_transaction=True)
        settled = await settling.run(store, Limits(LOCK_TIMEOUT))
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
        for name, due in by_name.items():
            if due.failures:
                self._observer.schedule_recovered(name)
        for tick, each in zip(ticks, settled, strict=True):
            if each.holder is None:
                late = (by_name[tick.name].now - tick.at).total_seconds()
                self._observer.ticked(tick.name, tick.at, late)
            else:
                self._observer.tick_skipped(tick.name, tick.at, each.holder.id)

    async def _fail(self, failed: Sequence[tuple[DueSchedule, str]]) -> None:
        if not failed:
            return
        noted = await self._store.fail_schedules(
            self._backend, failed, shortest=SHORTEST_RETRY, longest=LONGEST_RETRY
        )
        for due, error in failed:
            if due.name in noted:
                self._observer.schedule_failed(due.name, error, noted[due.name])


def _has_more(plan: Plan) -> bool:
    """Whether some of the schedule's ticks that have come are left for another transaction."""
    return plan.next_at is not None and plan.next_at <= plan.due.now


def _is_away(error: Exception) -> bool:
    """Whether the error says nothing about the schedules: the database couldn't be used."""
    return is_transient(error) and not was_rolled_back(error) and sqlstate(error) != Code.LOCK_TIMEOUT


def _text(error: Exception) -> str:
    """The error as the schedule's row shows it."""
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR].replace("\0", "\\0")
