"""Changes: every waiter is told, whatever falls between looking and listening; and nothing is left behind."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.db import utils

from aiotasks.conf import Options
from aiotasks.db.errors import Code
from aiotasks.rows import Status
from aiotasks.store import joins
from aiotasks.store.changes import AWAITED, CHANNEL, WATCHED, payloads_of
from aiotasks.store.joins import Changes, Watch
from aiotasks.store.loop import LoopResources, close_pools, resources
from aiotasks.store.outcomes import Awaited, Finish
from aiotasks.store.store import Store
from tests.worker.harness import until

from .rows import claim, claim_of, claimed, finish, insert, lane, worker


@pytest.fixture(autouse=True)
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test fails where something was missed."""
    monkeypatch.setattr(joins, "POLL_SHORTEST", 3600.0)
    monkeypatch.setattr(joins, "POLL_LONGEST", 3600.0)


async def listening(held: LoopResources) -> None:
    await until(lambda: held.changes.is_listening)


async def reported(watch: Watch, ids: Collection[UUID], *, timeout: float = 30.0) -> bool:
    """Wait until all of these have been reported, and say whether no others were."""
    found: set[UUID] = set()
    async with asyncio.timeout(timeout):
        while not found >= {*ids}:
            found |= await watch.changed()
    return found == {*ids}


async def tell(conn: asyncpg.Connection, ids: Collection[UUID]) -> None:
    await conn.execute("SELECT pg_notify($1, unnest($2::text[]))", CHANNEL, payloads_of(ids))


async def test_what_has_ended_or_is_gone_is_told_at_once(held: LoopResources) -> None:
    _, (job,) = await claimed(held.store)
    await finish(held.store, job)
    gone = uuid4()
    (waits,) = await insert(held.store)
    async with held.changes.watching("default", [job.id, gone, waits]) as watch:
        assert await reported(watch, [job.id, gone])
        assert waits not in await watch.changed(timeout=0.2)
    (other,) = await insert(held.store, backend="other")  # no task of this backend
    async with held.changes.watching("default", [other]) as watch:
        assert await reported(watch, [other])


async def test_a_notification_is_told_to_those_that_wait(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    first, second, third = await insert(held.store, 3)
    async with (
        held.changes.watching("default", [first, second]) as one,
        held.changes.watching("default", [second]) as other,
    ):
        await listening(held)
        await until(lambda: marks(conn, [first, second]))
        await tell(conn, [first, second, third])
        assert await reported(one, [first, second])
        assert await reported(other, [second])


async def marks(conn: asyncpg.Connection, ids: Collection[UUID], level: int = AWAITED) -> bool:
    rows = await conn.fetch("SELECT awaited FROM aiotasks_task WHERE id = ANY($1)", ids)
    return [mark for (mark,) in rows] == [level] * len(ids)


async def test_rows_are_marked_once_listen_works(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens: list[bool] = []
    await_jobs = held.store.await_jobs

    async def noted(*args: Any) -> Awaited:
        listens.append(held.changes.is_listening)
        return await await_jobs(*args)

    monkeypatch.setattr(held.store, "await_jobs", noted)
    (id,) = await insert(held.store)
    async with held.changes.watching("default", [id]):
        await until(lambda: marks(conn, [id]))
    assert set(listens) == {True}


@pytest.mark.parametrize("number", [1, 700])
async def test_nothing_falls_between_looking_and_listening(
    held: LoopResources, conn: asyncpg.Connection, number: int
) -> None:
    """Rows end at any moment of the looks, told of only where the finish has seen a mark."""
    rounds = 40 if number == 1 else 3
    worker_id = await worker(held.store)
    for _ in range(rounds):
        await insert(held.store, number)
        jobs = await claim(held.store, worker_id, loop=lane(slots=number))
        ids = [job.id for job in jobs]
        assert len(ids) == number

        async def end(left: dict[UUID, Any]) -> None:
            await asyncio.sleep(random.uniform(0, 0.02))
            while left:
                some = dict(random.sample(list(left.items()), min(len(left), 40)))
                outcomes = [Finish(*claim_of(job), Status.SUCCESSFUL, "1", None) for job in some.values()]
                finished = await held.store.finish_jobs(outcomes)
                held.teller.tell(finished.awaited)
                for id in finished.at:
                    del left[id]

        async with asyncio.TaskGroup() as group:
            group.create_task(end({job.id: job for job in jobs}))
            for some in (ids[: number // 2 + 1], ids[number // 2 :]):
                group.create_task(watch_until_reported(held.changes, some))
    assert held.changes.number == 0


async def watch_until_reported(changes: Changes, ids: list[UUID]) -> None:
    await asyncio.sleep(random.uniform(0, 0.02))
    async with changes.watching("default", ids) as watch:
        assert await reported(watch, ids)


async def test_a_locked_row_is_asked_for_again(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction may end it, and has seen no mark."""
    _, (job,) = await claimed(held.store)
    looks = 0
    await_jobs = Store.await_jobs

    async def counted(self: Store, *args: Any) -> Awaited:
        nonlocal looks
        looks += 1
        return await await_jobs(self, *args)

    monkeypatch.setattr(Store, "await_jobs", counted)
    async with conn.transaction():
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'FAILED', finished_at = now() WHERE id = $1", job.id
        )
        watching = held.changes.watching("default", [job.id])
        watch = await watching.__aenter__()
        await until(lambda: looks >= 5)
        assert looks < 30  # it waits longer each time
        assert await watch.changed(timeout=0.01) == set()
    assert await reported(watch, [job.id])
    await watching.__aexit__(None, None, None)


async def test_each_change_is_told_to_those_that_want_it(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    (id,) = await insert(held.store)
    async with held.changes.watching("default", [id]) as ends:
        await listening(held)
        await until(lambda: marks(conn, [id]))
        async with held.changes.watching("default", [id], WATCHED) as watch:
            assert await reported(watch, [id])  # to look at its state after the mark
            assert await marks(conn, [id], WATCHED)
            await held.listener.close()
            await tell(conn, [id])  # which nobody hears
        assert await ends.changed(timeout=0.01) == set()


async def test_a_lost_session_has_all_looked_at_again(held: LoopResources, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(held.store, 200)
    ids = [job.id for job in jobs]
    async with held.changes.watching("default", ids) as watch:
        await listening(held)
        await until(lambda: marks(conn, ids))
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
        )
        await until(lambda: not held.changes.is_listening)
        await finish(held.store, *jobs)  # told to nobody
        assert await reported(watch, ids)


async def test_polls_find_what_nobody_tells(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch, conn: asyncpg.Connection
) -> None:
    """As a worker of the release before, or where NOTIFY isn't used."""
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.05)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.1)
    _, (told, untold) = await claimed(held.store, 2)
    deaf = resources(Options(notify=False))
    async with (
        held.changes.watching("default", [told.id]) as one,
        deaf.changes.watching("default", [untold.id]) as other,
    ):
        await until(lambda: marks(conn, [told.id]))
        assert await other.changed(timeout=0.3) == set()
        assert await one.changed(timeout=0.01) == set()
        assert not await marks(conn, [untold.id])
        await finish(held.store, told, untold)
        assert await reported(one, [told.id])
        assert await reported(other, [untold.id])
    async with deaf.changes.watching("default", await insert(held.store), WATCHED) as watch:
        for _ in range(3):
            assert len(await watch.changed()) == 1  # something may have changed
    await close_pools()


async def test_short_tasks_are_joined_soon_without_listen(held: LoopResources) -> None:
    """Some looks come before the first poll."""
    deaf = Changes(held.store, None)
    _, (job,) = await claimed(held.store)
    async with deaf.watching("default", [job.id]) as watch:
        assert await watch.changed(timeout=0.05) == set()
        await finish(held.store, job)
        assert await reported(watch, [job.id])


async def test_polls_add_no_looks_at_a_locked_row(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its own, which would multiply."""
    for name, seconds in (("POLL_SHORTEST", 0.01), ("POLL_LONGEST", 0.02)):
        monkeypatch.setattr(joins, name, seconds)
    for name in ("LOCKED_SHORTEST", "LOCKED_LONGEST"):
        monkeypatch.setattr(joins, name, 3600.0)
    free, locked = await insert(held.store, 2)
    looks: Counter[UUID] = Counter()
    await_jobs = held.store.await_jobs

    async def counted(ids: Sequence[UUID], *args: Any) -> Awaited:
        looks.update(ids)
        return await await_jobs(ids, *args)

    monkeypatch.setattr(held.store, "await_jobs", counted)
    async with conn.transaction(), held.changes.watching("default", [free]):
        await conn.execute("SELECT FROM aiotasks_task WHERE id = $1 FOR UPDATE", locked)
        await listening(held)
        async with held.changes.watching("default", [locked]):
            await until(lambda: looks[locked])
            polls = looks[free] + 20
            await until(lambda: looks[free] >= polls)
            assert looks[locked] < 5  # a poll may come while the first is under way


async def test_nothing_is_left_behind(held: LoopResources) -> None:
    ids = await insert(held.store, 3)

    async def wait() -> None:
        async with held.changes.watching("default", ids) as watch:
            await watch.changed()

    for pause in (0.0, 0.001, 0.05):
        waiting = [asyncio.create_task(wait()) for _ in range(20)]
        await asyncio.sleep(pause)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert held.changes.number == 0
        assert not held.changes.is_busy
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "aiotasks joins"])


async def test_an_error_that_no_waiting_helps_against_is_raised(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: Any) -> Awaited:
        raise utils.ProgrammingError("no such table")

    monkeypatch.setattr(held.store, "await_jobs", fail)
    monkeypatch.setattr(held.store, "select_ended_jobs", fail)
    async with held.changes.watching("default", [uuid4()]) as one:
        for _ in range(2):
            with pytest.raises(utils.ProgrammingError, match="no such table"):
                await one.changed()


class Refusal(Exception):
    sqlstate = Code.NO_PRIVILEGE


async def test_a_role_that_may_not_mark_polls(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aiotasks.store")
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.05)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.1)

    async def refuse(*args: Any) -> Awaited:
        error = utils.ProgrammingError("permission denied")
        error.__cause__ = Refusal()
        raise error

    monkeypatch.setattr(held.store, "await_jobs", refuse)
    _, (job,) = await claimed(held.store)
    async with held.changes.watching("default", [job.id]) as watch:
        await until(lambda: "Joins poll" in caplog.text)
        assert await watch.changed(timeout=0.3) == set()
        await finish(held.store, job)
        assert await reported(watch, [job.id])
    assert caplog.text.count("Joins poll") == 1


async def test_an_outage_is_waited_for(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, (job,) = await claimed(held.store)
    await finish(held.store, job)
    failures = 3
    select_ended_jobs = held.store.select_ended_jobs

    async def fail(*args: Any) -> Awaited:
        nonlocal failures
        if failures:
            failures -= 1
            raise utils.OperationalError("away")
        return await select_ended_jobs(*args[:2])

    monkeypatch.setattr(held.store, "await_jobs", fail)
    monkeypatch.setattr(held.store, "select_ended_jobs", fail)
    async with held.changes.watching("default", [job.id]) as watch:
        assert await reported(watch, [job.id])
    assert caplog.text.count("Outage began: joins wait for the database") == 1


async def test_ten_thousand_waiters_share_statements(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = 0
    fetch = held.driver.fetch

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += 1
        return await fetch(*args, **kwargs)

    ids = await insert(held.store, 10_000)
    monkeypatch.setattr(held.driver, "fetch", counted)
    async with asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(watch_until_reported(held.changes, [id]))
        await until(lambda: marks(conn, ids))
        monkeypatch.undo()
        assert held.changes.number == 10_000
        assert statements < 100
        await tell(conn, ids)
    listeners = await conn.fetch(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
    )
    assert len(listeners) == 1
