"""The ticks of schedules: enqueued in time, once, and one that fails holds up no other."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from django.db import utils

import aiotasks
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.policies.unique import parse_unique_key
from aiotasks.rows import Schedule
from aiotasks.schedules.cron import tick_id
from aiotasks.store.loop import resources
from aiotasks.store.schedules import DeclaredSchedule, Move, ScheduleRow
from aiotasks.store.store import Store
from aiotasks.store.wakeups import Wakeup
from aiotasks.worker.events import EventLog, Events, Observer
from aiotasks.worker.fleet import Fleet
from aiotasks.worker.maintenance import promoter as promoting
from aiotasks.worker.maintenance import ticker as ticking
from aiotasks.worker.maintenance.promoter import Promoter
from aiotasks.worker.maintenance.ticker import LOCKED_WAIT, Ticker
from tests import limited_tasks
from tests.site import default_task_backend, running_store
from tests.store.rows import insert, new_schedule, unique_job

from . import tasks
from .harness import Configure, Ledger, until

AGO = datetime(2026, 1, 1, 2, tzinfo=UTC)  # of "nightly", in Berlin
LATER = datetime(2036, 1, 1, 2, tzinfo=UTC)


class Nobody:
    """Notes who is woken."""

    def __init__(self) -> None:
        self.woken: list[Wakeup] = []

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        self.woken += wakeups

    def wake_self(self) -> None:
        pass


class Recorder(Observer):
    def __init__(self) -> None:
        self.ticks: list[tuple[str, datetime]] = []
        self.skipped: list[tuple[str, datetime, UUID]] = []
        self.missed: list[tuple[str, datetime]] = []
        self.failed: list[tuple[str, int]] = []
        self.recovered: list[str] = []

    def ticked(self, schedule: str, tick: datetime, late: float) -> None:
        self.ticks.append((schedule, tick))

    def tick_skipped(self, schedule: str, tick: datetime, holder: UUID) -> None:
        self.skipped.append((schedule, tick, holder))

    def ticks_missed(self, schedule: str, since: datetime) -> None:
        self.missed.append((schedule, since))

    def schedule_failed(self, schedule: str, error: str, failures: int) -> None:
        self.failed.append((schedule, failures))

    def schedule_recovered(self, schedule: str) -> None:
        self.recovered.append(schedule)


class Site:
    """A ticker that ticks when a test says so."""

    def __init__(self) -> None:
        options = default_task_backend.config
        self.waker = Nobody()
        self.seen = Recorder()
        self.ticker = Ticker(
            resources(options).driver,
            backend="default",
            options=options,
            waker=self.waker,
            observer=Events(self.seen, EventLog()),
        )
        self.store = running_store()

    async def declare(self, *schedules: Schedule, next_at: datetime | None = AGO) -> None:
        written = [DeclaredSchedule(each, None, next_at) for each in schedules]
        await self.store.declare_schedules("default", written, from_code=False)

    async def rows(self) -> dict[str, ScheduleRow]:
        return {row.schedule.name: row for row in (await self.store.select_schedules("default")).rows}


@pytest.fixture
async def site(database: str) -> Site:
    return Site()


async def stored(conn: asyncpg.Connection) -> dict[str, list[str]]:
    """The moments of the ticks that have tasks, by schedule."""
    found: dict[str, list[str]] = {}
    for row in await conn.fetch("SELECT metadata::text FROM aiotasks_task ORDER BY id"):
        metadata = json.loads(row[0])
        found.setdefault(metadata["_schedule"], []).append(metadata["_scheduled_for"])
    return found


async def test_a_tick_is_stored_and_the_next_one_is_ahead(site: Site, conn: asyncpg.Connection) -> None:
    await site.declare(new_schedule())
    assert await site.ticker.run_once() == 0.0
    row = (await site.rows())["nightly"]
    assert row.last_tick is not None
    assert row.next_at is not None
    now = datetime.now(UTC)
    assert now - timedelta(days=1, hours=2) < row.last_tick <= now < row.next_at  # the latest, of months
    assert await stored(conn) == {"nightly": [row.last_tick.isoformat()]}
    assert site.seen.ticks == [("nightly", row.last_tick)]
    assert site.waker.woken == [Wakeup("default", "default", lane="loop")]
    assert await conn.fetchval("SELECT id FROM aiotasks_task") == tick_id("default", "nightly", row.last_tick)
    assert await site.ticker.run_once() == 0.0
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 1


@pytest.mark.parametrize("missed", ["last", "skip", "all"])
async def test_missed_ticks(site: Site, conn: asyncpg.Connection, missed: Any) -> None:
    """Of 600 hours "all" makes up for 24, in several transactions."""
    ago = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=600, minutes=-30)
    await site.declare(
        new_schedule("h", expression="30 * * * *", overlap="allow", missed=missed), next_at=ago
    )
    ticking_at_once = ticking.MOST_TICKS
    try:
        ticking.MOST_TICKS = 10
        assert await site.ticker.run_once() == 0.0
    finally:
        ticking.MOST_TICKS = ticking_at_once
    number = len((await stored(conn)).get("h", []))
    assert number in {"last": (1,), "skip": (0, 1), "all": (23, 24, 25)}[missed]
    assert len(site.seen.missed) == {"last": 0, "skip": 1 - number, "all": 1}[missed]
    assert site.seen.missed in ([], [("h", ago)])
    assert await site.store.select_due_schedules("default", 10) == []


async def test_the_three_ways_of_overlap(site: Site, conn: asyncpg.Connection) -> None:
    ways = [new_schedule(way, overlap=way) for way in ("skip", "queue", "allow")]

    async def tick(number: int) -> None:
        await conn.execute("UPDATE aiotasks_schedule SET next_at = $1", AGO + timedelta(days=number))
        # So that the last one is what is due, and not that of today.
        await conn.execute("UPDATE aiotasks_schedule SET missed = 'all', missed_within = 1e9")
        plan = Ticker._plan

        async def only_one(self: Ticker, due: Any, look: ticking.Look) -> Any:
            plans = await plan(self, due, look)
            look.has_more = False
            return [each._replace(ticks=each.ticks[:1], next_at=LATER) for each in plans]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ticker, "_plan", only_one)
            await site.ticker.run_once()

    async def numbers() -> dict[str, int]:
        return {name: len(times) for name, times in (await stored(conn)).items()}

    await site.declare(*ways)
    await tick(0)
    await tick(1)  # while those of the first wait
    assert await numbers() == {"skip": 1, "queue": 1, "allow": 2}
    await conn.execute("UPDATE aiotasks_task SET status = 'RUNNING'")
    await tick(2)
    assert await numbers() == {"skip": 1, "queue": 2, "allow": 3}
    await tick(3)
    assert await numbers() == {"skip": 1, "queue": 2, "allow": 4}
    rows = await site.rows()
    assert {name: row.skipped for name, row in rows.items()} == {"skip": 3, "queue": 2, "allow": 0}
    assert rows["skip"].skipped_tick == rows["queue"].skipped_tick == AGO + timedelta(days=3)
    assert len(site.seen.skipped) == 5
    await conn.execute("UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = clock_timestamp()")
    await tick(4)
    assert await numbers() == {"skip": 2, "queue": 3, "allow": 5}


async def test_several_workers_and_each_tick_once(site: Site, conn: asyncpg.Connection) -> None:
    others = [Site() for _ in range(7)]
    await site.declare(*(new_schedule(f"{number}", overlap="allow") for number in range(600)))
    await asyncio.gather(*(each.ticker.run_once() for each in (site, *others)))
    while await site.store.select_due_schedules("default", 1):
        await site.ticker.run_once()
    found = await stored(conn)
    assert len(found) == 600
    assert {len(times) for times in found.values()} == {1}


async def test_several_workers_where_transactions_are_serializable(
    site: Site, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL rolls some of them back: a schedule waits, and none has failed."""
    name = await conn.fetchval("SELECT quote_ident(current_database())")
    await conn.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    monkeypatch.setattr(ticking, "MOST_SCHEDULES", 10)
    try:
        await site.declare(*(new_schedule(f"{number}", overlap="allow") for number in range(60)))
        while await site.store.select_due_schedules("default", 1):
            await asyncio.gather(*(site.ticker.run_once() for _ in range(6)))
    finally:
        await conn.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
    found = await stored(conn)
    assert len(found) == 60
    assert {len(times) for times in found.values()} == {1}
    assert site.seen.failed == []


async def test_ticks_have_the_limit_of_their_schedule(site: Site, conn: asyncpg.Connection) -> None:
    for overlap in ("skip", "allow"):
        await site.declare(new_schedule(overlap, overlap=overlap, limit_key="tenant:1", ordered="stop"))
    await site.ticker.run_once()
    rows = await conn.fetch("SELECT lane, limit_key, ordered FROM aiotasks_task")
    assert [tuple(row) for row in rows] == [("loop+", "tenant:1", "stop")] * 2


async def test_a_tick_that_was_enqueued_is_not_again(site: Site, conn: asyncpg.Connection) -> None:
    """Somebody has set next_at back by hand; beside it others tick as ever."""
    await site.declare(new_schedule("allow", overlap="allow"), new_schedule("skip"))
    await site.ticker.run_once()
    before = await stored(conn)
    await conn.execute("UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = clock_timestamp()")
    await conn.execute("UPDATE aiotasks_schedule SET next_at = last_tick")
    await site.declare(new_schedule("other"))
    await site.ticker.run_once()
    after = await stored(conn)
    assert after.pop("other")
    assert after == before
    assert await site.store.select_due_schedules("default", 10) == []
    assert site.seen.failed == []


BAD_ROWS = {
    "zone": {"timezone": "Europe/Nowhere"},
    "expression": {"expression": "no times"},
    "missed": {"missed": "never"},
    "names": {"queue_name": "q" * 3000},
    "metadata": {"metadata": "[1]"},
}


@pytest.mark.parametrize("what", BAD_ROWS)
async def test_a_bad_row_fails_alone_and_backs_off(
    site: Site, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.INFO, "aiotasks")
    await site.declare(new_schedule("bad", **BAD_ROWS[what]), new_schedule("good"), new_schedule("other"))
    await site.ticker.run_once()
    assert sorted(await stored(conn)) == ["good", "other"]
    bad = (await site.rows())["bad"]
    assert (bad.failures, bad.next_at, bad.last_tick) == (1, AGO, None)
    assert bad.error
    await site.ticker.run_once()
    assert (await site.rows())["bad"].failures == 1
    await conn.execute("UPDATE aiotasks_schedule SET retry_at = clock_timestamp() WHERE name = 'bad'")
    await site.ticker.run_once()
    assert site.seen.failed == [("bad", 1), ("bad", 2)]
    good = new_schedule("bad")
    await conn.execute(
        "UPDATE aiotasks_schedule SET retry_at = clock_timestamp(), timezone = $1, expression = $2, "
        "missed = $3, queue_name = $4, metadata = NULL WHERE name = 'bad'",
        *(good.timezone, good.expression, good.missed, good.queue_name),
    )
    await site.ticker.run_once()
    assert sorted(await stored(conn)) == ["bad", "good", "other"]
    assert site.seen.recovered == ["bad"]
    assert [record.levelname for record in caplog.records if "bad" in record.getMessage()] == [
        "ERROR",
        "INFO",
    ]
    row = (await site.rows())["bad"]
    assert (row.failures, row.error, row.retry_at) == (0, None, None)


async def test_tasks_that_the_database_refuses_hold_up_no_others(
    site: Site, conn: asyncpg.Connection
) -> None:
    await conn.execute("ALTER TABLE aiotasks_task ADD CONSTRAINT no_bad CHECK (task_path <> 'bad')")
    try:
        ways: list[Any] = ["skip", "allow"]
        await site.declare(
            *(new_schedule(f"good {way}", overlap=way) for way in ways),
            *(new_schedule(f"bad {way}", overlap=way, task_path="bad") for way in ways),
        )
        await site.ticker.run_once()
    finally:
        await conn.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT no_bad")
    assert sorted(await stored(conn)) == ["good allow", "good skip"]
    assert sorted(site.seen.failed) == [("bad allow", 1), ("bad skip", 1)]
    assert "no_bad" in ((await site.rows())["bad skip"].error or "")


async def test_a_key_of_an_open_transaction_holds_up_no_others(
    site: Site, conn: asyncpg.Connection, database: str
) -> None:
    own: dict[str, Any] = {"overlap": None, "unique_key": "k"}
    await site.declare(new_schedule("own", **own), new_schedule("other"))
    holder = await asyncpg.connect(database)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await Store(ConnectionDriver(holder)).insert_unique_job(unique_job("k"), lock_timeout=1.0)
        await site.ticker.run_once()
        assert list(await stored(conn)) == ["other"]
        assert site.seen.failed == [("own", 1)]
        await transaction.commit()
    finally:
        await holder.close()
    await conn.execute("UPDATE aiotasks_schedule SET retry_at = NULL WHERE name = 'own'")
    await site.ticker.run_once()
    assert [name for name, *_ in site.seen.skipped] == ["own"]
    assert (await site.rows())["own"].skipped == 1


async def test_locked_schedules_are_come_back_to(site: Site, conn: asyncpg.Connection, database: str) -> None:
    await site.declare(new_schedule())
    (due,) = await site.store.select_due_schedules("default", 10)
    other = await asyncpg.connect(database)
    try:
        transaction = other.transaction()
        await transaction.start()
        await Store(ConnectionDriver(other)).move_schedules("default", [Move(due, LATER, AGO)])
        assert await site.ticker.run_once() == LOCKED_WAIT
        await transaction.rollback()  # as a worker that was killed
    finally:
        await other.close()
    assert await site.ticker.run_once() == 0.0
    assert list(await stored(conn)) == ["nightly"]


async def test_a_failed_commit_leaves_the_tick_due(
    site: Site, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.declare(new_schedule(), new_schedule("other", overlap="allow"))
    with monkeypatch.context() as patch:

        async def broken(self: Store, *_: Any, **__: Any) -> None:
            raise utils.OperationalError("the connection is closed")

        patch.setattr(Store, "insert_jobs", broken)
        with pytest.raises(utils.OperationalError):
            await site.ticker.run_once()
    assert await stored(conn) == {}
    assert {row.next_at for row in (await site.rows()).values()} == {AGO}
    assert site.seen.failed == []
    await site.ticker.run_once()
    assert sorted(await stored(conn)) == ["nightly", "other"]


async def test_jitter_schedules_the_task(site: Site, conn: asyncpg.Connection) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    times = {"expression": "* * * * *", "timezone": "UTC"}
    await site.declare(new_schedule("j", **times, jitter=1e6, overlap="allow"), next_at=minute)
    await site.ticker.run_once()
    row = await conn.fetchrow("SELECT status, run_after FROM aiotasks_task")
    assert row is not None
    assert row["status"] == "SCHEDULED"
    assert minute < row["run_after"] < minute + timedelta(days=13)
    assert site.waker.woken == [Wakeup("default", "default", row["run_after"].timestamp())]


async def test_schedules_that_catch_up_hold_up_no_others(
    site: Site, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of "all", after an outage. A transaction has so many ticks at most, whatever they are of."""
    monkeypatch.setattr(ticking, "MOST_SCHEDULES", 10)
    monkeypatch.setattr(ticking, "MOST_TICKS", 20)
    sizes: list[int] = []
    insert = Store.insert_jobs

    async def counted(self: Store, jobs: Any, **values: Any) -> None:
        sizes.append(len(jobs))
        await insert(self, jobs, **values)

    monkeypatch.setattr(Store, "insert_jobs", counted)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    times: dict[str, Any] = {"expression": "* * * * *", "timezone": "UTC", "overlap": "allow"}
    behind = [new_schedule(f"behind {number}", missed="all", **times) for number in range(12)]
    await site.declare(*behind, next_at=now - timedelta(hours=1))
    await site.declare(new_schedule("in time", **times), next_at=now)
    await site.ticker.run_once()
    assert max(sizes) == 20
    names = [name for name, _ in site.seen.ticks]
    assert set(names[: names.index("in time")]) == {schedule.name for schedule in behind}
    assert names.index("in time") < 60  # of more than 720
    assert {len(times) for name, times in (await stored(conn)).items() if name != "in time"} <= {61, 62}


async def test_large_arguments_are_of_several_transactions(
    site: Site, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticking, "MOST_BYTES", 1000)
    large: dict[str, Any] = {"args": json.dumps(["a" * 400]), "overlap": "allow"}
    await site.declare(*(new_schedule(f"{number}", **large) for number in range(5)))
    every_minute: dict[str, Any] = {"expression": "* * * * *", "timezone": "UTC", "missed": "all"}
    ago = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
    await site.declare(new_schedule("m", **large, **every_minute), next_at=ago)
    await site.ticker.run_once()
    of_transactions = await conn.fetch(
        "SELECT sum(length(args::text)) FROM aiotasks_task GROUP BY xmin::text"
    )
    assert max(row[0] for row in of_transactions) <= 1000
    assert len((await stored(conn))["m"]) >= 11
    assert len(await stored(conn)) == 6


async def test_a_schedule_whose_task_takes_too_long_to_store_holds_up_no_others(
    configure: Configure, conn: asyncpg.Connection
) -> None:
    configure(COMMAND_TIMEOUT=0.5)
    site = Site()
    await conn.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN IF NEW.queue_name = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER slow BEFORE INSERT ON aiotasks_task FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    try:
        await site.declare(new_schedule("slow", queue_name="slow", overlap="allow"))
        await site.declare(new_schedule("a", overlap="allow"), new_schedule("b"))
        await site.ticker.run_once()
        assert sorted(await stored(conn)) == ["a", "b"]
        assert site.seen.failed == [("slow", 1)]
        # Its next try holds up no batch.
        await conn.execute("UPDATE aiotasks_schedule SET retry_at = clock_timestamp() WHERE name = 'slow'")
        await site.declare(new_schedule("c", overlap="allow"), next_at=datetime.now(UTC))
        await site.ticker.run_once()
        assert site.seen.failed == [("slow", 1), ("slow", 2)]
        assert "c" in await stored(conn)
        assert (await site.rows())["c"].failures == 0
    finally:
        await conn.execute("DROP TRIGGER slow ON aiotasks_task; DROP FUNCTION slow()")


async def test_locked_keys_hold_up_others_for_a_moment(
    site: Site, conn: asyncpg.Connection, database: str
) -> None:
    """And are no failure at once."""
    now = datetime.now(UTC)
    numbers = range(20)
    holder = await asyncpg.connect(database)
    try:
        transaction = holder.transaction()
        await transaction.start()
        store = Store(ConnectionDriver(holder))
        await store.insert_unique_jobs([unique_job(f"k{number}") for number in numbers], lock_timeout=1.0)
        own: dict[str, Any] = {"overlap": None, "unique_waiting": False}
        locked = [new_schedule(f"s{number}", unique_key=f"k{number}", **own) for number in numbers]
        await site.declare(*locked, next_at=now)
        ticking_them = asyncio.create_task(site.ticker.run_once())
        await until(lambda: conn.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
        await site.declare(new_schedule("other"), next_at=now)
        assert await ticking_them == 0.0
        assert list(await stored(conn)) == ["other"]
        rows = await site.rows()
        assert all(rows[each.name].retry_at and not rows[each.name].failures for each in locked)
        assert site.seen.failed == []
        await transaction.rollback()
    finally:
        await holder.close()
    await conn.execute("UPDATE aiotasks_schedule SET retry_at = clock_timestamp() WHERE retry_at IS NOT NULL")
    await site.ticker.run_once()
    assert len(await stored(conn)) == 21


async def test_a_bad_row_that_is_locked_is_come_back_to(
    site: Site, conn: asyncpg.Connection, database: str
) -> None:
    """Not at once, again and again."""
    await site.declare(new_schedule("bad", timezone="Europe/Nowhere"))
    other = await asyncpg.connect(database)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE aiotasks_schedule SET priority = 1")
        assert await site.ticker.run_once() == LOCKED_WAIT
        await transaction.rollback()
    finally:
        await other.close()
    assert await site.ticker.run_once() == 0.0
    assert site.seen.failed == [("bad", 1)]


async def test_many_locked_schedules_hold_up_no_others(
    site: Site, conn: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticking, "MOST_SCHEDULES", 10)
    await site.declare(*(new_schedule(f"locked {number}") for number in range(20)))
    await site.declare(new_schedule("other"), next_at=AGO + timedelta(days=1))
    holder = await asyncpg.connect(database)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("UPDATE aiotasks_schedule SET priority = 1 WHERE name LIKE 'locked %'")
        await site.ticker.run_once()
        assert list(await stored(conn)) == ["other"]
        assert await site.ticker.run_once() == LOCKED_WAIT
    finally:
        await holder.close()


async def test_a_task_with_the_name_of_a_schedule_as_its_key(site: Site, conn: asyncpg.Connection) -> None:
    """No key that a task may have is the one of a schedule."""
    await site.declare(new_schedule("nightly"))
    for key in ("nightly", "schedule nightly"):
        await site.store.insert_unique_job(unique_job(key), lock_timeout=1.0)
    await site.ticker.run_once()
    assert (await site.rows())["nightly"].skipped == 0
    key = await conn.fetchval("SELECT unique_key FROM aiotasks_task WHERE metadata IS NOT NULL")
    with pytest.raises(ValueError, match="that doesn't begin with 'aiotasks:'"):
        parse_unique_key(key)


# With a worker


def every_second(name: str, **values: Any) -> Schedule:
    return new_schedule(
        name,
        expression="* * * * * *",
        timezone="UTC",
        task_path=tasks.add.module_path,
        args="[1, 2]",
        **values,
    )


async def declare(*schedules: Schedule, next_at: datetime) -> None:
    written = [DeclaredSchedule(each, None, next_at) for each in schedules]
    await running_store().declare_schedules("default", written, from_code=False)


async def test_workers_tick_by_the_clock_and_run_the_tasks(
    database: str, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    begin = datetime.now(UTC).replace(microsecond=0)
    await declare(every_second("s", overlap="allow", missed="all"), next_at=begin)
    async with aiotasks.Worker(), aiotasks.Worker():
        await until(lambda: ledger.statuses().get("SUCCESSFUL", 0) >= 3)
        await conn.execute("UPDATE aiotasks_schedule SET next_at = NULL")
    found = (await stored(conn))["s"]
    moments = [datetime.fromisoformat(each) for each in found]
    assert moments == [moments[0] + timedelta(seconds=number) for number in range(len(moments))]


async def test_ticks_keep_to_the_limit_of_their_task(
    database: str, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """Beside what others enqueue with it."""
    limited_tasks.gate.append(asyncio.Event())
    path = limited_tasks.one_key.module_path
    schedule = every_second("s", overlap="allow", limit_key="tests.one-key")
    await declare(replace(schedule, task_path=path, args="[]"), next_at=datetime.now(UTC))
    try:
        async with aiotasks.Worker(grace=0):
            await until(lambda: ledger.statuses().get("RUNNING"))
            await limited_tasks.one_key.aenqueue("another")
            await until(lambda: ledger.statuses().get("READY", 0) >= 2)
            assert ledger.statuses()["RUNNING"] == 1
            await conn.execute("UPDATE aiotasks_schedule SET next_at = NULL")
            limited_tasks.gate[-1].set()
            await until(lambda: ledger.statuses().keys() == {"SUCCESSFUL"})
    finally:
        limited_tasks.gate.clear()


async def test_a_schedule_that_was_added_elsewhere_is_noticed(
    database: str, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """By the wake-up for what is due earlier than what the worker waits for."""
    await declare(every_second("far"), next_at=LATER)
    async with aiotasks.Worker() as worker:
        await until(lambda: worker.engine.promoter.waiting_for == LATER.timestamp())
        soon = datetime.now(UTC)
        await declare(every_second("near"), next_at=soon)
        wakeup = Wakeup("default", "default", soon.timestamp())
        resources(default_task_backend.config).notifier.notify([wakeup])
        await until(lambda: ledger.statuses().get("SUCCESSFUL", 0) >= 1)


async def test_without_notify_a_schedule_is_noticed_by_the_polls(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    configure(NOTIFY=False, POLL_INTERVAL=1)
    await declare(every_second("far"), next_at=LATER)
    async with aiotasks.Worker() as worker:
        await until(lambda: worker.engine.promoter.waiting_for == LATER.timestamp())
        await declare(every_second("near"), next_at=datetime.now(UTC))
        await until(lambda: ledger.statuses().get("SUCCESSFUL", 0) >= 1)


async def test_a_promoter_without_ticker_leaves_ticks_to_others(database: str) -> None:
    await declare(every_second("s"), next_at=AGO)
    promoter = Promoter(running_store(), backend="default", waker=Nobody(), peers=Fleet())
    assert await promoter.run_once() == float("inf")
    assert promoter.waiting_for is None


async def test_a_promoter_waits_for_ticks_and_calls_the_ticker(database: str) -> None:
    class Calls:
        number = 0

        def look(self, due: float | None = None) -> None:
            self.number += 1

    calls = Calls()
    promoter = Promoter(running_store(), backend="default", waker=Nobody(), peers=Fleet(), ticker=calls)
    await declare(every_second("later"), next_at=LATER)
    wait = await promoter.run_once()
    assert wait == pytest.approx((LATER - datetime.now(UTC)).total_seconds(), abs=60)
    assert (promoter.waiting_for, calls.number) == (LATER.timestamp(), 0)
    await declare(every_second("due"), next_at=AGO)
    assert await promoter.run_once() == float("inf")  # the ticker calls it when it is done
    assert calls.number == 1


async def test_ticks_do_not_wait_for_many_tasks_that_are_due(
    conn: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promoting, "PROMOTE_LIMIT", 10)
    await insert(running_store(), 30, run_after=LATER)
    await conn.execute("UPDATE aiotasks_task SET run_after = $1", AGO)
    await declare(every_second("due"), next_at=AGO)
    calls: list[int] = []

    class Calls:
        def look(self, due: float | None = None) -> None:
            calls.append(1)

    promoter = Promoter(running_store(), backend="default", waker=Nobody(), peers=Fleet(), ticker=Calls())
    await promoter.run_once()
    assert len(calls) == 4  # after each full batch, and at the end
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'") == 30


async def test_ticks_go_on_while_a_task_cannot_be_promoted(site: Site, conn: asyncpg.Connection) -> None:
    await insert(site.store, 1, run_after=LATER)
    await conn.execute("UPDATE aiotasks_task SET run_after = $1", AGO)
    await conn.execute(
        "ALTER TABLE aiotasks_task ADD CONSTRAINT never CHECK (run_after IS NULL OR status <> 'READY')"
    )
    promoter = Promoter(site.store, backend="default", waker=Nobody(), peers=Fleet(), ticker=site.ticker)
    site.ticker.connect(promoter)
    await declare(every_second("s", overlap="allow"), next_at=AGO)
    parts = [asyncio.create_task(part.run()) for part in (promoter, site.ticker)]
    try:
        await until(lambda: len(site.seen.ticks) >= 3)
    finally:
        for part in parts:
            part.cancel()
        await asyncio.wait(parts)
        await conn.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT never")


async def test_a_worker_that_ends_when_it_is_empty_runs_the_ticks_that_have_come(
    database: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its ticker hasn't looked yet."""

    async def later(self: Ticker) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Ticker, "run", later)
    await declare(replace(every_second("s"), expression="0 0 1 1 *"), next_at=AGO)
    async with aiotasks.Worker() as worker:
        await worker.wait_until_empty()
        assert ledger.statuses() == {"SUCCESSFUL": 1}
