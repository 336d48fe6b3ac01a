"""The table of schedules follows the code that is deployed."""

import logging
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from django.db import utils

import aiotasks
from aiotasks.operations.schedules import apause_schedule, aresume_schedule
from aiotasks.rows import Schedule
from aiotasks.schedules import declarations
from aiotasks.store.loop import resources
from aiotasks.store.schedules import DeclaredSchedule, ScheduleRow
from aiotasks.store.store import Store
from aiotasks.worker.lease.lease import Lease, boottime
from aiotasks.worker.maintenance.declarer import Declarer, Wanted
from tests.site import default_task_backend, running_store
from tests.store.rows import insert, new_schedule, worker

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until
from .test_ticker import AGO, LATER, Nobody, every_second

MINUTES = {"expression": "* * * * *", "timezone": "UTC"}


class Release(Declarer):
    """A worker whose code declares these schedules."""

    def __init__(
        self,
        *schedules: Schedule,
        wrong: Collection[str] = (),
        failed: Collection[str] = (),
        troubles: Sequence[str] = (),
    ) -> None:
        self.waker = Nobody()
        self.lease = Lease(60.0)
        super().__init__(
            resources(default_task_backend.config).driver,
            backend="default",
            options=default_task_backend.config,
            lease=self.lease,
            waker=self.waker,
            importer=ThreadPoolExecutor(1),
        )
        own = {each.name: (each, each.digest(), f"shop.{each.name}") for each in schedules}
        self._declares = Wanted(own, wrong, failed, troubles)

    def _read_code(self) -> Wanted:
        return self._declares


class Site(Release):
    """A worker whose code is what this process declares, in this module and where else SCHEDULES says."""

    def _read_code(self) -> Wanted:
        return Declarer._read_code(self)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No schedule is declared yet."""
    monkeypatch.setattr(declarations, "_entries", {})


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


async def test_what_the_code_no_longer_declares_is_stopped(database: str) -> None:
    await Release(new_schedule("stays"), new_schedule("goes")).declare()
    await running_store().declare_schedules(
        "default", [DeclaredSchedule(new_schedule("an operator's"), None, LATER)], from_code=False
    )
    before = await rows()
    # It may be declared, as far as this worker can see.
    for release in (
        Release(new_schedule("stays"), wrong=["goes"]),
        Release(new_schedule("stays"), failed=["shop.goes"]),
        Release(new_schedule("stays"), failed=["shop"]),
    ):
        await release.declare()
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
    assert caplog.messages == ["Schedule not declared: an operator has added one with this name name='both'"]
    await running_store().delete_schedule("default", "both")
    await release.declare()
    assert (await rows())["both"].from_code


async def test_what_another_live_worker_declares_is_not_stopped(
    database: str, conn: asyncpg.Connection
) -> None:
    """However many workers of two releases there are, and whatever turns they take."""
    old, new = Release(new_schedule("both"), new_schedule("old")), Release(new_schedule("both"))
    for release in (old, new):
        await register(release)
        await release.declare()
    assert (await rows())["old"].stopped_at is None
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() WHERE schedules @> '{old}'")
    await new.declare()
    assert {name for name, row in (await rows()).items() if row.stopped_at is None} == {"both"}
    await register(old)  # under a new id, as a worker does that has lost its lease
    await old.declare()
    await new.declare()
    assert {name for name, row in (await rows()).items() if row.stopped_at is None} == {"both", "old"}


async def register(release: Release) -> None:
    worker_id = await worker(running_store())
    release.lease.registered(worker_id, boottime())


async def test_what_cannot_be_declared_is_not_stopped(
    configure: Configure, entries: None, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SCHEDULES=[__name__])
    await Release(new_schedule("twice"), new_schedule("goes")).declare()
    for task in (tasks.add, tasks.add_sync):
        aiotasks.periodic("@daily", name="twice", args=[1, 2])(task)
    aiotasks.periodic("@daily", name="fine", args=[1, 2])(tasks.add)
    declarer = Site()
    await declarer.declare()
    await declarer.declare()
    stopped = {name for name, row in (await rows()).items() if row.stopped_at is not None}
    assert stopped == {"goes"}
    assert (await rows()).keys() == {"fine", "goes", "twice"}
    (message,) = caplog.messages
    assert "cannot be declared problem=2 schedules have the name 'twice'" in message


async def test_what_other_modules_declare_does_not_count(
    configure: Configure, entries: None, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedded worker would declare it, and the others stop it."""
    configure(SCHEDULES=["tests.worker.tasks"])
    aiotasks.periodic("@daily", name="by chance", args=[1, 2])(tasks.add)
    await Site().declare()
    assert await rows() == {}
    (message,) = caplog.messages
    assert f"count=1 names=['by chance'] modules=['{__name__}']" in message


async def test_a_module_is_imported_again_that_has_failed(
    configure: Configure, entries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "fails_at_first.py"
    module.write_text("import a_module_that_is_nowhere")
    configure(SCHEDULES=["fails_at_first", __name__])
    aiotasks.periodic("@daily", name="fine", args=[1, 2])(tasks.add)
    late = (
        "import aiotasks, tests.worker.tasks\n"
        "aiotasks.periodic('@daily', name='late', args=[1, 2])(tests.worker.tasks.add)\n"
    )
    declarer = Site()
    try:
        for names, source in (({"fine"}, "also_nowhere = 1 / 0"), ({"fine"}, late), ({"fine", "late"}, late)):
            await declarer.declare()
            assert (await rows()).keys() == names
            module.write_text(source)
    finally:
        sys.modules.pop("fails_at_first", None)


async def test_one_that_the_database_refuses_holds_up_no_other(
    database: str, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await Release(new_schedule("goes")).declare()
    await conn.execute("ALTER TABLE aiotasks_schedule ADD CONSTRAINT own CHECK (name <> 'b')")
    try:
        release = Release(*map(new_schedule, "abc"))
        await release.declare()
        await release.declare()
        found = await rows()
        assert {name: row.stopped_at is None for name, row in found.items()} == {
            "a": True,
            "c": True,
            "goes": False,
        }
        (message,) = caplog.messages
        assert message.startswith("The database refuses schedules of the code; others go on count=1")
    finally:
        await conn.execute("ALTER TABLE aiotasks_schedule DROP CONSTRAINT own")


async def troubles(release: Release) -> list[str]:
    """What the row of a worker says that keeps it from declaring."""
    id = release.lease.current_id()
    (row,) = [row for row in await running_store().select_workers("default") if row.id == id]
    return list(row.schedule_troubles)


async def test_operators_see_what_keeps_a_worker_from_declaring(
    database: str, conn: asyncpg.Connection
) -> None:
    release = Release(new_schedule("a"), troubles=["shop.tasks can't be imported: \0" + "x" * 1_000])
    await register(release)
    await release.declare()
    (imports,) = await troubles(release)
    assert imports.startswith("\"shop.tasks can't be imported: \\x00xx")
    assert len(imports) == 500
    fine = Release(new_schedule("a"), new_schedule("b"))
    await register(fine)
    await conn.execute("ALTER TABLE aiotasks_schedule ADD CONSTRAINT own CHECK (name <> 'b')")
    try:
        await fine.declare()
        (refusal,) = await troubles(fine)
        assert refusal.startswith("The database refuses schedule 'b': ")
    finally:
        await conn.execute("ALTER TABLE aiotasks_schedule DROP CONSTRAINT own")
    await fine.declare()
    assert await troubles(fine) == []
    await conn.execute("ALTER TABLE aiotasks_schedule RENAME COLUMN digest TO was_digest")
    try:
        for _ in range(2):
            with pytest.raises(utils.ProgrammingError, match="digest"):
                await fine.declare()
            (failure,) = await troubles(fine)
            assert "digest" in failure
    finally:
        await conn.execute("ALTER TABLE aiotasks_schedule RENAME COLUMN was_digest TO digest")
    await fine.declare()
    assert await troubles(fine) == []
    # Its names count as before.
    await Release().declare()
    assert all(row.stopped_at is None for row in (await rows()).values())


async def test_one_that_is_renamed_ticks_under_one_name(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the worker dies in between."""
    await Release(new_schedule("before")).declare()

    async def die(self: Store, *args: object) -> dict[str, bool]:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "stop_schedules", die)
        with pytest.raises(RuntimeError, match="killed"):
            await Release(new_schedule("after")).declare()
    assert (await rows()).keys() == {"before"}


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
    second = start_worker(options={"SCHEDULES": ["tests.worker.tasks"]})  # a release without them
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
