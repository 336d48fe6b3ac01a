"""A wake-up goes to two workers of many. All of these polls are an hour away."""

import json
import signal
from collections.abc import Callable

import asyncpg
import pytest

import aiotasks
from aiotasks.store.wakeups import CHANNEL
from tests.site import default_task_backend, running_store
from tests.store.rows import insert

from . import tasks
from .harness import Configure, Ledger, Process, Start, until, wait_until

HOUR = 3600

# No poll, no rescue and no end of a lease can help.
OPTIONS = {"POLL_INTERVAL": HOUR, "LEASE_TIMEOUT": 300}

type StartFleet = Callable[..., list[Process]]


@pytest.fixture
def fleet(start_worker: Start, ledger: Ledger) -> StartFleet:
    """Start some workers, and return once enqueues can choose each of them."""

    def fleet(number: int, *arguments: str) -> list[Process]:
        before = listening(ledger)
        workers = [start_worker(*arguments, ready=False, options=OPTIONS) for _ in range(number)]
        wait_until(lambda: listening(ledger) == before + number, 60)
        return workers

    return fleet


def listening(ledger: Ledger) -> int:
    return int(ledger.value("SELECT count(*) FROM aiotasks_worker WHERE listening AND channel IS NOT NULL"))


def enqueue_ten(ledger: Ledger, *, beside: int = 0) -> None:
    """One after another, each once the one before is done, while ``beside`` others run."""
    others = {"RUNNING": beside} if beside else {}
    for number in range(1, 11):
        tasks.add.enqueue(1, 2)
        wait_until(lambda number=number: ledger.statuses() == {**others, "SUCCESSFUL": number})


async def test_an_enqueue_wakes_two_workers(
    fleet: StartFleet, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """By their own channels, and tells them names only."""
    fleet(3)
    heard: list[tuple[str, str]] = []
    for (channel,) in await conn.fetch("SELECT channel FROM aiotasks_worker"):
        await conn.add_listener(channel, lambda *args: heard.append(args[-2:]))
    await conn.add_listener(CHANNEL, lambda *args: heard.append(args[-2:]) if args[-1] else None)  # no probe
    for number in range(1, 11):
        await tasks.note.aenqueue("a secret")
        await until(lambda number=number: ledger.statuses() == {"SUCCESSFUL": number})
        await until(lambda number=number: len(heard) >= 2 * number)
    assert CHANNEL not in dict(heard)
    assert [json.loads(payload) for _, payload in heard] == [
        ["default", "default", "loop", 0, place] for _ in range(10) for place in (1, 2)
    ]
    await conn.reset()


def test_of_those_that_are_killed_none_is_chosen(fleet: StartFleet, ledger: Ledger) -> None:
    """Their leases last. Without a look at their sessions half of the wake-ups would go to two of them."""
    *killed, _ = fleet(4)
    for worker in killed:
        worker.kill()
    enqueue_ten(ledger)


def test_one_that_is_stopped_leaves_it_to_the_second(fleet: StartFleet, ledger: Ledger) -> None:
    stopped, _ = fleet(2)
    stopped.send(signal.SIGSTOP)
    enqueue_ten(ledger)


def test_one_that_is_full_passes_it_on(fleet: StartFleet, ledger: Ledger) -> None:
    """Of four, three are full, so that half of the wake-ups go to two of them."""
    fleet(3, "--concurrency", "1")
    for _ in range(3):
        tasks.wait_for_release.enqueue()
    wait_until(lambda: ledger.statuses() == {"RUNNING": 3})
    fleet(1)
    enqueue_ten(ledger, beside=3)


def test_a_burst_reaches_all(fleet: StartFleet, ledger: Ledger) -> None:
    """The two that are woken call the others."""
    fleet(4, "--concurrency", "2")
    default_task_backend.enqueue_many(tasks.wait_for_release, [((), {})] * 9)
    wait_until(lambda: ledger.statuses() == {"RUNNING": 8, "READY": 1})


def test_one_that_stops_passes_it_on(fleet: StartFleet, ledger: Ledger) -> None:
    """It LISTENs for as long as its grace, and claims no more."""
    (stopping,) = fleet(1, "--grace", "60")
    tasks.wait_for_release.enqueue()
    wait_until(lambda: ledger.statuses() == {"RUNNING": 1})
    fleet(1)
    stopping.send(signal.SIGTERM)
    stopping.wait_for("stopping")
    enqueue_ten(ledger, beside=1)


# --- Workers of one process, which share a channel


async def test_each_worker_of_a_process_gets_its_own_wake_ups(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """By queue, and by lane."""
    configure(**OPTIONS)
    heard: list[str] = []
    await conn.add_listener(CHANNEL, lambda *args: heard.append(args[-1]) if args[-1] else None)  # no probe
    async with (
        aiotasks.Worker(queues=["a"], threads=0),
        aiotasks.Worker(queues=["b"], threads=0),
        aiotasks.Worker(queues=["a", "b"], concurrency=0),
    ):
        await until(lambda: listening(ledger) == 3)
        assert ledger.value("SELECT count(DISTINCT channel) FROM aiotasks_worker") == 1
        number = 0
        for task in (tasks.add, tasks.add_sync) * 3:
            for name in ("a", "b"):
                number += 1
                await task.using(queue_name=name).aenqueue(1, 2)
                await until(lambda number=number: ledger.statuses() == {"SUCCESSFUL": number})
    assert heard == []  # so nobody else was told
    await conn.reset()


async def test_a_full_worker_calls_the_others_of_its_process(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it passes on goes to other channels than its own."""
    monkeypatch.setattr("aiotasks.worker.claiming.loop.FORGET_INTERVAL", HOUR)
    configure(**OPTIONS)
    async with (
        aiotasks.Worker(concurrency=1, threads=1, grace=0) as first,
        aiotasks.Worker(concurrency=1, threads=1, grace=0) as second,
    ):
        await until(lambda: listening(ledger) == 2)
        for claimer in (first.engine.claimer, second.engine.claimer):
            await until(lambda claimer=claimer: claimer.quarantine.has_looked and not claimer.lanes_to_claim)
        await insert(running_store(), 2, task_path=tasks.wait_for_release.module_path)
        first.engine.claimer.wake()  # as at a poll
        await until(lambda: ledger.statuses() == {"RUNNING": 2})
