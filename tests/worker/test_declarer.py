"""The table of schedules follows the code that is deployed."""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

import aiotasks
from aiotasks.operations.schedules import apause_schedule, aresume_schedule
from aiotasks.rows import Schedule
from aiotasks.schedules import declarations
from aiotasks.store.schedules import DeclaredSchedule, ScheduleRow
from aiotasks.worker.maintenance.declarer import Code, Declarer
from tests.site import default_task_backend, running_store
from tests.store.rows import insert, new_schedule

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until
from .test_ticker import AGO, LATER, Nobody, every_second

MINUTES = {"expression": "* * * * *", "timezone": "UTC"}


class Release(Declarer):
    """A worker whose code declares these schedules."""

    def __init__(self, *schedules: Schedule, is_whole: bool = True) -> None:
        self.waker = Nobody()
        super().__init__(
            running_store(),
            backend="default",
            options=default_task_backend.config,
            waker=self.waker,
            importer=ThreadPoolExecutor(1),
        )
        self._declares = Code({each.name: (each, each.digest()) for each in schedules}, is_whole)

    def _read_code(self) -> Code:
        return self._declares


async def rows() -> dict[str, ScheduleRow]:
    return {row.schedule.name: row for row in (await running_store().select_schedules("default")).rows}


async def test_new_schedules_begin_after_now(database: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aiotasks")
    release = Release(new_schedule("a", **MINUTES), new_schedule("b"))
    await release.declare()
    found = await rows()
    now = datetime.now(UTC)
    first, second = found["a"].next_at, found["b"].next_at
    assert first is not None
    assert second is not None
    assert now - timedelta(seconds=30) < first <= now + timedelta(minutes=1)
    assert first < second <= now + timedelta(days=1, hours=1)
    assert found["a"].from_code
    (wakeup,) = release.waker.woken
    assert wakeup.due == first.timestamp()
    await release.declare()
    await Release(new_schedule("a", **MINUTES), new_schedule("b")).declare()
    assert [record.getMessage() for record in caplog.records] == [
        "Declared schedules count=2 names=['a', 'b']"
    ]


async def test_what_the_code_has_no_more_is_stopped(database: str) -> None:
    await Release(new_schedule("stays"), new_schedule("goes")).declare()
    await running_store().declare_schedules(
        "default", [DeclaredSchedule(new_schedule("an operator's"), None, LATER)], from_code=False
    )
    before = await rows()
    await Release(new_schedule("stays"), is_whole=False).declare()
    assert await rows() == before
    await Release(new_schedule("stays")).declare()
    after = await rows()
    assert (after["goes"].next_at, after["goes"].stopped_at is None) == (None, False)
    assert {name: row for name, row in after.items() if name != "goes"} == {
        name: row for name, row in before.items() if name != "goes"
    }


@pytest.mark.parametrize(
    ("minutes", "change", "is_past"),
    [(5, {}, True), (5, {"args": "[1]"}, True), (11, {}, False), (5, {"expression": "*/2 * * * *"}, False)],
)
async def test_releases_that_take_turns_lose_no_tick(
    database: str, conn: asyncpg.Connection, minutes: int, change: Any, is_past: bool
) -> None:
    """One that has been stopped by the other release goes on where it was stopped."""
    await Release(new_schedule("new", **MINUTES)).declare()
    await Release().declare()
    stopped_at = datetime.now(UTC) - timedelta(minutes=minutes)
    waited_for = stopped_at + timedelta(seconds=9)
    await conn.execute(
        "UPDATE aiotasks_schedule SET stopped_at = $1, stopped_tick = $2", stopped_at, waited_for
    )
    await Release(new_schedule("new", **(MINUTES | change))).declare()
    row = (await rows())["new"]
    assert row.next_at is not None
    assert row.stopped_at is None
    if is_past:
        assert row.next_at == waited_for
    else:
        assert row.next_at > datetime.now(UTC) - timedelta(seconds=30)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("change", [{}, {"expression": "0 3,15 * * *"}, {"priority": 5}])
async def test_a_tick_that_is_due_survives_a_deploy(
    database: str, conn: asyncpg.Connection, change: Any, stopped: bool
) -> None:
    """It was due by what was declared then, for longer than a stop may take."""
    await Release(new_schedule("a")).declare()
    due = datetime.now(UTC) - timedelta(hours=1)
    await conn.execute("UPDATE aiotasks_schedule SET next_at = $1", due)
    if stopped:
        await Release().declare()
        assert (await rows())["a"].next_at is None
    await Release(new_schedule("a", **change)).declare()
    assert (await rows())["a"].next_at == due


async def test_a_stopped_one_that_was_paused_ticks_for_no_time_of_the_pause(
    database: str, conn: asyncpg.Connection
) -> None:
    await Release(new_schedule("first", **MINUTES), new_schedule("then", **MINUTES)).declare()
    await apause_schedule("first")
    await Release().declare()
    await apause_schedule("then")
    ago = datetime.now(UTC) - timedelta(minutes=5)
    await conn.execute("UPDATE aiotasks_schedule SET stopped_at = $1, paused_at = $1", ago)
    resumed_at = datetime.now(UTC)
    for name in ("first", "then"):
        assert (await aresume_schedule(name)).state == "stopped"
    await Release(new_schedule("first", **MINUTES), new_schedule("then", **MINUTES)).declare()
    for row in (await rows()).values():
        assert row.next_at is not None
        assert resumed_at - timedelta(seconds=30) < row.next_at <= resumed_at + timedelta(minutes=2)


@pytest.mark.parametrize(
    ("change", "failures"), [({"priority": 5}, 3), ({"args": "[1]"}, 0), ({"expression": "* * * * *"}, 0)]
)
async def test_a_failing_one_waits_on_unless_its_call_has_changed(
    database: str, conn: asyncpg.Connection, change: Any, failures: int
) -> None:
    """Two releases may declare it by turns."""
    await Release(new_schedule("a")).declare()
    await conn.execute("UPDATE aiotasks_schedule SET failures = 3, error = 'no', retry_at = $1", LATER)
    await Release(new_schedule("a", **change)).declare()
    row = (await rows())["a"]
    assert (row.failures, row.error, row.retry_at) == ((3, "no", LATER) if failures else (0, None, None))


async def test_a_clock_that_was_ahead_stops_no_schedule(database: str, conn: asyncpg.Connection) -> None:
    release = Release(new_schedule("a", **MINUTES), new_schedule("hours ahead", **MINUTES))
    await release.declare()
    soon = datetime.now(UTC) + timedelta(hours=3)
    await conn.execute(
        "UPDATE aiotasks_schedule SET next_at = CASE name WHEN 'a' THEN $1 ELSE $2::timestamptz END",
        LATER,
        soon,
    )
    await release.declare()
    found = await rows()
    first = found["a"].next_at
    assert first is not None
    assert first < datetime.now(UTC) + timedelta(minutes=2)
    # A clock that is set back makes ticks wait, as they were enqueued already.
    assert found["hours ahead"].next_at == soon


async def test_an_operators_schedule_of_the_same_name_stays(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = new_schedule("both", args="[1]")
    await running_store().declare_schedules("default", [DeclaredSchedule(own, None, LATER)], from_code=False)
    release = Release(new_schedule("both"))
    await release.declare()
    await release.declare()
    assert (await rows())["both"].schedule == own
    assert caplog.messages == [
        "A schedule of the code has the name of an operator's; it isn't declared name='both'"
    ]
    await running_store().delete_schedule("default", "both")
    await release.declare()
    assert (await rows())["both"].from_code


async def test_what_cannot_be_declared_stops_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SCHEDULES=[])
    monkeypatch.setattr(declarations, "_entries", {})
    await Release(new_schedule("twice"), new_schedule("goes")).declare()
    for task in (tasks.add, tasks.add_sync):
        aiotasks.periodic("@daily", name="twice", args=[1, 2])(task)
    aiotasks.periodic("@daily", name="fine", args=[1, 2])(tasks.add)
    declarer = Declarer(
        running_store(),
        backend="default",
        options=default_task_backend.config,
        waker=Nobody(),
        importer=ThreadPoolExecutor(1),
    )
    await declarer.declare()
    await declarer.declare()
    found = await rows()
    assert {name: row.stopped_at for name, row in found.items()} == {
        "fine": None,
        "goes": None,
        "twice": None,
    }
    (message,) = caplog.messages
    assert "cannot be declared; this worker stops none problem=2 schedules have the name 'twice'" in message


def test_a_worker_declares_the_schedules_of_its_code_and_ticks(start_worker: Start, ledger: Ledger) -> None:
    first = start_worker(options={"SCHEDULES": ["tests.worker.scheduled_tasks"]})
    wait_until(lambda: ledger.statuses().get("SUCCESSFUL", 0) >= 2)
    assert first.stop() == 0
    assert "Declared schedules count=2 names=['seconds', 'tests.worker.tasks.add']" in first.log
    kept = "SELECT args, timezone, stopped_at FROM aiotasks_schedule ORDER BY name"
    assert [tuple(row) for row in ledger.rows(kept)] == [
        ([1, 2], "UTC", None),
        ([3, 4], "Europe/Berlin", None),
    ]
    second = start_worker(options={"SCHEDULES": []})  # a release without them
    wait_until(lambda: all(row.stopped_at for row in ledger.rows(kept)))
    assert second.stop() == 0


async def test_a_worker_may_have_nothing_to_do_with_schedules(configure: Configure, ledger: Ledger) -> None:
    configure(SCHEDULES=False)
    store = running_store()
    (scheduled,) = await insert(store, run_after=LATER)
    due = DeclaredSchedule(every_second("due"), None, AGO)
    await store.declare_schedules("default", [due], from_code=True)
    async with aiotasks.Worker() as worker:
        await until(lambda: worker.engine.promoter.waiting_for == LATER.timestamp())
        assert ledger.rows("SELECT id FROM aiotasks_task") == [(scheduled,)]
        assert ledger.value("SELECT stopped_at FROM aiotasks_schedule") is None
