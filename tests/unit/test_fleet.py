"""Fleet: workers that count each other take turns, and a worker that is left alone acts again by itself."""

import asyncio
import random
import time
from itertools import pairwise
from math import inf

import pytest

from aiotasks.store.workers import Place
from aiotasks.worker.fleet import Fleet

INTERVAL = 60.0


def place(fleet: Fleet, number: int, rank: int, at: float) -> None:
    """Have the fleet take the database's clock for ``at``."""
    fleet.update(Place(number, rank), at - time.monotonic())


def turns(number: int, since: float, until: float, *, dead: int | None = None) -> list[float]:
    """When the workers act, each by its own count; the worker ``dead`` doesn't."""
    found = []
    for rank in set(range(number)) - {dead}:
        fleet, now = Fleet(), since
        while now < until:
            place(fleet, number, rank, now)
            now += fleet.seconds_to_turn(INTERVAL)
            found.append(now)
    return sorted(found)


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("number", [2, 3, 10, 100])
def test_no_interval_is_without_a_turn(number: int) -> None:
    since = random.uniform(0, 2e9)
    until = since + 3 * number * INTERVAL
    found = [at for at in turns(number, since, until) if at <= until]
    assert max(gaps([since, *found])) <= INTERVAL * 1.001
    assert len(found) <= 3 * number / 0.8 + 2  # as many as one worker's would be


@pytest.mark.parametrize("number", [2, 3, 10])
def test_a_dead_workers_turn_is_missed_and_no_other(number: int) -> None:
    since = random.uniform(0, 2e9)
    until = since + 3 * number * INTERVAL
    found = [at for at in turns(number, since, until, dead=1) if at <= until]
    assert max(gaps([since, *found])) <= INTERVAL * 1.8 * 1.001


def test_a_worker_alone_acts_within_each_interval() -> None:
    fleet = Fleet()
    assert fleet.is_alone
    waits = [fleet.seconds_to_turn(INTERVAL, 0.2) for _ in range(1000)]
    assert INTERVAL * 0.2 <= min(waits) < INTERVAL * 0.4
    assert INTERVAL * 0.8 < max(waits) <= INTERVAL
    place(fleet, 1, 0, 1e9)
    assert fleet.is_alone
    place(fleet, 2, 1, 1e9)
    assert not fleet.is_alone


async def test_a_survivor_acts_soon() -> None:
    """The turn of one in a hundred is far away, and comes within an interval once the others have gone."""
    fleet = Fleet()
    place(fleet, 100, 50, 0.0)
    moved = asyncio.Event()
    turn = fleet.turn(INTERVAL, moved=moved)
    assert turn.at == inf
    now = asyncio.get_running_loop().time()
    turn.next()
    assert turn.at - now > 30 * INTERVAL
    place(fleet, 1, 0, 0.0)
    assert moved.is_set()
    assert turn.at - now <= INTERVAL * 1.1


async def test_no_change_of_the_fleet_delays_a_turn() -> None:
    """Else workers that come one after another would keep each other from acting."""
    fleet = Fleet()
    turn = fleet.turn(INTERVAL)
    turn.next()
    at = turn.at
    for number in range(2, 50):
        place(fleet, number, number - 1, 0.0)
        assert turn.at <= at


async def test_a_turn_that_is_waited_for_comes_when_it_is_moved() -> None:
    fleet = Fleet()
    place(fleet, 100, 50, 0.0)
    turn = fleet.turn(3600.0)
    for _ in range(2):
        waiting = asyncio.ensure_future(turn.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        turn.take_within(0.01)
        await asyncio.wait_for(waiting, 30)
        assert turn.at == inf


async def test_who_is_called_before_it_waits_acts_at_once() -> None:
    turn = Fleet().turn(3600.0)
    turn.take_within(0.0)
    await asyncio.wait_for(turn.wait(), 30)
    waiting = asyncio.ensure_future(turn.wait())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()


async def test_a_wait_ends_by_its_time() -> None:
    turn = Fleet().turn(0.01)
    for _ in range(3):
        await asyncio.wait_for(turn.wait(), 30)
