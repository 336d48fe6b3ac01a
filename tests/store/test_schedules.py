"""Schedules at the level of statements: which are due, who moves them, what declares and changes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from aiotasks.db.drivers import ConnectionDriver
from aiotasks.policies.policy import Policy
from aiotasks.rows import Schedule
from aiotasks.store.schedules import DeclaredSchedule, DueSchedule, Move, ScheduleRow
from aiotasks.store.store import Store

from .rows import insert, new_schedule

AGO = datetime(2026, 1, 1, 2, tzinfo=UTC)
LATER = datetime(2036, 1, 1, 2, tzinfo=UTC)


async def declare(
    store: Store, *schedules: Schedule, next_at: datetime | None = AGO, from_code: bool = True
) -> dict[str, datetime | None]:
    return await store.declare_schedules(
        "default",
        [DeclaredSchedule(each, each.digest() if from_code else None, next_at) for each in schedules],
        from_code=from_code,
    )


async def one(store: Store, name: str = "nightly") -> ScheduleRow:
    ((row),) = (await store.select_schedules("default", [name])).rows
    return row


async def due(store: Store) -> DueSchedule:
    (found,) = await store.select_due_schedules("default", 10)
    return found


EVERYTHING: dict[str, Any] = {
    "missed": "all",
    "missed_within": 1.5,
    "overlap": None,
    "jitter": 2.5,
    "lane": "thread",
    "priority": -3,
    "args": "[1]",
    "kwargs": '{"a": "\\u0000"}',
    "expires": 3.5,
    "metadata": '{"m": 1}',
    "unique_key": "k",
    "unique_period": 4.5,
    "unique_waiting": True,
    "limit_key": "tenant:42",
    "ordered": "stop",
    "policy": Policy(max_crashes=7, keep_result=8.5),
}


async def test_every_value_is_kept(store: Store) -> None:
    whole, plain = new_schedule("whole", **EVERYTHING), new_schedule("plain")
    await declare(store, whole, plain)
    assert [row.schedule for row in (await store.select_schedules("default")).rows] == [plain, whole]
    moved = await store.move_schedules(
        "default", [Move(each, None, None) for each in await store.select_due_schedules("default", 10)]
    )
    assert moved == {"whole": whole, "plain": plain}


async def test_what_is_as_it_was_is_not_written(store: Store, conn: asyncpg.Connection) -> None:
    schedule = new_schedule()
    assert await declare(store, schedule) == {"nightly": AGO}
    before = await conn.fetchval("SELECT ctid FROM aiotasks_schedule")
    assert await declare(store, schedule) == {}
    assert await conn.fetchval("SELECT ctid FROM aiotasks_schedule") == before
    assert await declare(store, new_schedule(args="[1]")) == {"nightly": AGO}


async def test_changed_times_begin_where_they_are_told_to(store: Store) -> None:
    await declare(store, new_schedule(), next_at=LATER)
    assert await declare(store, new_schedule(priority=1), next_at=AGO) == {"nightly": LATER}
    sooner = LATER - timedelta(hours=1)
    assert await declare(store, new_schedule(expression="0 4 * * *"), next_at=sooner) == {"nightly": sooner}
    assert await declare(store, new_schedule(timezone="UTC"), next_at=AGO) == {"nightly": AGO}
    assert await declare(store, new_schedule(), next_at=LATER) == {"nightly": AGO}  # it is due


async def test_an_operators_schedule_is_not_touched_and_not_replaced(store: Store) -> None:
    own = new_schedule(args="[1]")
    assert await declare(store, own, from_code=False) == {"nightly": AGO}
    assert await declare(store, new_schedule()) == {}
    assert await declare(store, new_schedule(), from_code=False) == {}
    assert await store.stop_schedules("default", ["nightly"]) == {}
    assert ((await one(store)).schedule, (await one(store)).from_code) == (own, False)
    await declare(store, new_schedule("code"))
    assert await declare(store, new_schedule("code", args="[2]"), from_code=False) == {}


async def test_a_paused_one_stays_paused_whatever_is_declared(store: Store) -> None:
    await declare(store, new_schedule())
    assert await store.pause_schedule("default", "nightly", "why")
    assert await store.pause_schedule("default", "nightly", "because")
    assert not await store.pause_schedule("default", "other", "why")
    assert await store.select_due_schedules("default", 10) == []
    assert await declare(store, new_schedule(expression="0 4 * * *"), next_at=AGO) == {"nightly": None}
    row = await one(store)
    assert (row.pause_reason, row.next_at, row.paused_at is None) == ("because", None, False)
    assert not await store.resume_schedule("default", new_schedule(), LATER)  # its times have changed
    now = new_schedule(expression="0 4 * * *")
    assert await store.resume_schedule("default", now, LATER)
    assert not await store.resume_schedule("default", now, AGO)
    row = await one(store)
    assert (row.pause_reason, row.next_at, row.paused_at) == (None, LATER, None)


async def test_a_stopped_one_ticks_again_once_it_is_declared(store: Store) -> None:
    await declare(store, new_schedule(), new_schedule("other"))
    assert await store.stop_schedules("default", ["nightly", "none"]) == {"nightly": True}
    assert await store.stop_schedules("default", ["nightly"]) == {}
    assert (await due(store)).name == "other"
    _, declared = await store.select_declared("default")
    stopped = next(each for each in declared if each.name == "nightly")
    assert (stopped.is_stopped, stopped.next_at) == (True, None)
    await store.pause_schedule("default", "nightly", "")
    await store.resume_schedule("default", new_schedule(), LATER)
    assert (await one(store)).next_at is None
    assert await declare(store, new_schedule(), next_at=AGO) == {"nightly": LATER}
    assert (await one(store)).stopped_at is None
    assert not await store.delete_schedule("default", "nightly")  # it is declared


async def test_a_tick_belongs_to_the_first_that_moves_it(store: Store, database: str) -> None:
    await declare(store, new_schedule())
    found = await due(store)
    move = Move(found, LATER, AGO)
    other = await asyncpg.connect(database)
    try:
        transaction = other.transaction()
        await transaction.start()
        assert list(await Store(ConnectionDriver(other)).move_schedules("default", [move])) == ["nightly"]
        assert await store.move_schedules("default", [move]) == {}  # it doesn't wait
        assert await store.fail_schedules("default", [(found, "no")], shortest=1.0, longest=1.0) == {}
        assert await store.stop_schedules("default", ["nightly"]) == {"nightly": False}
        await transaction.commit()
    finally:
        await other.close()
    assert await store.move_schedules("default", [move]) == {}
    row = await one(store)
    assert (row.next_at, row.last_tick) == (LATER, AGO)
    assert await store.select_due_schedules("default", 10) == []


async def test_one_whose_times_have_changed_meanwhile_is_not_moved(store: Store) -> None:
    await declare(store, new_schedule())
    found = await due(store)
    await declare(store, new_schedule(timezone="UTC"), next_at=AGO)  # its next tick is at the same time
    assert await store.move_schedules("default", [Move(found, LATER, AGO)]) == {}


async def test_a_failure_is_counted_once_and_tried_again_later_each_time(
    store: Store, conn: asyncpg.Connection
) -> None:
    await declare(store, new_schedule())
    waits = []
    for number in range(1, 6):
        found = await due(store)
        assert found.failures == number - 1
        fail = [(found, f"no {number}")]
        assert await store.fail_schedules("default", fail, shortest=10.0, longest=60.0) == {"nightly": number}
        assert await store.fail_schedules("default", fail, shortest=10.0, longest=60.0) == {}
        row = await one(store)
        assert (row.error, row.failures, row.next_at) == (f"no {number}", number, AGO)
        assert await store.select_due_schedules("default", 10) == []
        following = await store.next_due("default")
        assert following is not None
        assert following.tick_at == row.retry_at
        waits.append(
            await conn.fetchval(
                "SELECT extract(epoch FROM retry_at - clock_timestamp()) FROM aiotasks_schedule"
            )
        )
        await conn.execute("UPDATE aiotasks_schedule SET retry_at = clock_timestamp()")
    assert [round(float(wait), -1) for wait in waits] == [10, 20, 40, 60, 60]
    await store.move_schedules("default", [Move(await due(store), LATER, AGO)])
    row = await one(store)
    assert (row.failures, row.error, row.retry_at) == (0, None, None)


async def test_the_next_tick_stands_beside_the_next_task(store: Store) -> None:
    await declare(store, new_schedule(), next_at=LATER, from_code=False)
    following = await store.next_due("default")
    assert following is not None
    assert following[:3] == (None, None, None)
    assert following.tick_at == LATER
    assert following.tick_seconds is not None
    assert following.tick_seconds > 60
    await insert(store, run_after=LATER - timedelta(hours=1))
    following = await store.next_due("default")
    assert following is not None
    assert (following.at, following.tick_at) == (LATER - timedelta(hours=1), LATER)
    await store.delete_schedule("default", "nightly")
    following = await store.next_due("default")
    assert following is not None
    assert following.tick_at is None


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC"])
async def test_times_that_python_has_not_hold_up_nobody(
    store: Store, conn: asyncpg.Connection, time: str
) -> None:
    await declare(store, new_schedule(), new_schedule("other"))
    names = ("next_at", "retry_at", "last_tick", "skipped_tick", "paused_at", "stopped_at")
    changes = ", ".join(f"{name} = '{time}'" for name in names)
    await conn.execute(f"UPDATE aiotasks_schedule SET {changes} WHERE name = 'nightly'")
    assert (await due(store)).name == "other"
    following = await store.next_due("default")
    assert following is not None
    assert following.tick_at == AGO
    assert all(each.next_at is not None for each in (await store.select_declared("default"))[1])
    assert [getattr(await one(store), name) for name in names] == [None] * len(names)


async def test_left_out_ticks_are_counted(store: Store) -> None:
    await declare(store, new_schedule())
    await store.skip_ticks("default", [("nightly", AGO, 2)])
    await store.skip_ticks("default", [("nightly", LATER, 3)])
    row = await one(store)
    assert (row.skipped, row.skipped_tick) == (5, LATER)


async def test_backends_have_schedules_of_their_own(store: Store) -> None:
    await declare(store, new_schedule())
    assert await store.select_due_schedules("other", 10) == []
    assert await store.next_due("other") is None
    assert (await store.select_declared("other"))[1] == []
    assert (await store.select_schedules("other")).rows == []
    assert not await store.delete_schedule("other", "nightly")
