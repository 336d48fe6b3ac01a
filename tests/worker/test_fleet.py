"""Workers that share polls and maintenance: what one of them does when it is far from being its turn."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import pytest

import aiotasks
from aiotasks.store.workers import Place
from aiotasks.worker.fleet import Fleet, Turn
from aiotasks.worker.maintenance.promoter import Promoter
from tests.site import running_store
from tests.store import rows
from tests.store.rows import insert

from . import tasks
from .harness import Configure, Ledger, until
from .test_wakeups import in_future

FAR = 3600.0


@pytest.fixture
def long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fleet of hundreds: whoever isn't alone has its turn in an hour."""
    seconds = Fleet.seconds_to_turn

    def seconds_to_turn(fleet: Fleet, interval: float, earliest: float = 0.8) -> float:
        return seconds(fleet, interval, earliest) if fleet.is_alone else FAR

    monkeypatch.setattr(Fleet, "seconds_to_turn", seconds_to_turn)


def is_far(turn: Turn) -> bool:
    return turn.at - asyncio.get_running_loop().time() > FAR / 2


async def test_a_survivor_polls_soon(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger, long_turns: None
) -> None:
    """A fleet of which all others die must not leave it waiting for its turn among them."""
    configure(POLL_INTERVAL=1, LEASE_TIMEOUT=3)
    store = running_store()
    other = await rows.worker(store, lease=FAR)
    await store.renew_lease(other, FAR, True)
    async with aiotasks.Worker() as worker:
        await until(lambda: is_far(worker.engine.claimer.poll))

        async def is_left() -> UUID | None:
            """Insert a task. The claims of the poll that has begun, and of the start, may take the first."""
            (id,) = await insert(store, task_path=tasks.add.module_path, args="[1, 2]")
            return id if ledger.task(str(id)).status == "READY" else None

        id = await until(is_left)
        assert is_far(worker.engine.claimer.poll)
        await rows.expire(conn, other)
        await until(lambda: ledger.task(str(id)).status == "SUCCESSFUL")
        await until(lambda: worker.engine.peers.is_alone)


async def test_a_dead_workers_tasks_wait_for_no_turn(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger, long_turns: None
) -> None:
    """The first of the others that renews its lease sees that one has expired."""
    configure(LEASE_TIMEOUT=6)
    store = running_store()
    (id,) = await insert(store, task_path=tasks.add.module_path, args="[1, 2]")
    dead = await rows.worker(store, lease=FAR)
    assert len(await rows.claim(store, dead)) == 1
    async with aiotasks.Worker() as first, aiotasks.Worker() as second, aiotasks.Worker() as third:
        engines = [worker.engine for worker in (first, second, third)]
        await until(lambda: all(engine.workers.number == 3 for engine in engines))
        await until(lambda: all(is_far(engine.rescue_turn) for engine in engines))
        await until(lambda: all(engine.lease.may_rescue() for engine in engines))
        assert ledger.statuses() == {"RUNNING": 1}
        await rows.expire(conn, dead)
        await until(lambda: ledger.task(str(id)).status == "SUCCESSFUL")
        assert ledger.task(str(id)).crashes == 1
        await until(lambda: ledger.workers() == 3)


async def test_a_worker_that_stops_is_not_counted(configure: Configure, ledger: Ledger) -> None:
    """It claims no more, and may wait for its tasks for hours."""
    configure(LEASE_TIMEOUT=6)
    tasks.seen.clear()
    async with aiotasks.Worker(grace=FAR) as stops:
        await tasks.wait_for_release.aenqueue("runs")
        await until(lambda: tasks.seen == ["runs"])
        try:
            async with aiotasks.Worker(grace=0) as stays:
                await until(lambda: stays.engine.peers.number == stays.engine.workers.number == 2)
                stopping = asyncio.ensure_future(stops.stop())
                await until(lambda: stays.engine.peers.is_alone and stays.engine.workers.is_alone)
                assert ledger.workers() == 2
                assert not stopping.done()
        finally:
            stops.hurry()


@pytest.mark.parametrize("number", [1, 3, 100])
async def test_workers_wait_for_a_due_task_one_after_another(
    database: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """So that the others find nothing to do, and do it if the first one is blocked."""
    store = running_store()
    await tasks.add.using(run_after=in_future(30)).aenqueue(1, 2)
    following = await store.next_due("default")

    async def next_due(backend: str, *, refused: Sequence[UUID]) -> object:
        return following  # to all at the same moment

    monkeypatch.setattr(store, "next_due", next_due)
    waits = []
    for rank in range(number):
        peers = Fleet()
        peers.update(Place(number, rank), 0.0)
        promoter = Promoter(store, backend="default", waker=_Nobody(), peers=peers)
        waits.append(await promoter.run_once())
    first = min(waits)
    places = sorted(round((wait - first) * 10) for wait in waits)
    assert places == [min(place, 10) for place in range(number)]


class _Nobody:
    def wake(self, wakeups: object, *, since: float | None = None) -> None:
        pass

    def wake_self(self) -> None:
        pass
