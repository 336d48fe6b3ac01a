"""Tasks that wait for tasks: a coroutine gives up its slot meanwhile; a thread doesn't, which is logged."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import asyncpg
import pytest

import aiotasks
from aiotasks.executing import current
from aiotasks.joining import SLOT_IS_KEPT_FOR
from aiotasks.worker.claiming import quarantine
from aiotasks.worker.running import joining
from tests.site import default_task_backend as backend
from tests.site import postgres_result

from . import joining_tasks as tasks
from .harness import Configure, Ledger, until

FULL = "All slots are taken by tasks that wait"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    tasks.going_on = tasks.most_going_on = 0
    tasks.noted.clear()
    yield
    assert tasks.going_on == 0


async def test_one_slot_is_enough_for_tasks_that_wait_for_each_other(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    result = await tasks.nested.aenqueue(8)
    async with aiotasks.Worker(concurrency=1) as worker:
        assert (await result.ajoin(timeout=60)).return_value == 8
        await until(lambda: worker.engine.slots.free("loop") == 1)
    assert FULL not in caplog.text


async def test_no_more_bodies_go_on_than_there_are_slots(configure: Configure, ledger: Ledger) -> None:
    results = [await tasks.parent.aenqueue(n, 0.02) for n in range(30)]
    async with aiotasks.Worker(concurrency=3) as worker:
        found = await aiotasks.gather_results(results, timeout=60)
        await until(lambda: worker.engine.slots.free("loop") == 3)
    assert [result.return_value for result in found] == [*range(30)]
    assert 1 <= tasks.most_going_on <= 3


async def test_a_task_waits_for_many(configure: Configure, ledger: Ledger) -> None:
    result = await tasks.parent_of_many.aenqueue(40)
    async with aiotasks.Worker(concurrency=1):
        assert (await result.ajoin(timeout=60)).return_value == [*range(40)]


async def test_a_body_that_goes_on_beside_its_join_keeps_its_slot(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """With one slot it waits forever, which is logged; another worker helps."""
    result = await tasks.parent_that_waits_beside.aenqueue()
    async with aiotasks.Worker(concurrency=1) as worker:
        await until(lambda: FULL in caplog.text)
        assert worker.engine.slots.free("loop") == 0
        async with aiotasks.Worker(concurrency=1):
            assert (await result.ajoin(timeout=60)).return_value == 7
    assert caplog.text.count(FULL) == 1
    assert "lane=loop paths=tests.worker.joining_tasks.parent_that_waits_beside" in caplog.text


@pytest.mark.parametrize("timeout", [0.001, SLOT_IS_KEPT_FOR / 2])
async def test_a_short_wait_keeps_its_slot(database: str, timeout: float) -> None:
    """Another task would have the slot at the end of the wait, for any time."""
    result = await tasks.leaf.aenqueue(1)

    def give_up(*args: object) -> None:
        raise AssertionError("its slot was given up")

    token = current.set(SimpleNamespace(joining=SimpleNamespace(waiting=give_up)))
    try:
        with pytest.raises(TimeoutError):
            await result.ajoin(timeout=timeout)
    finally:
        current.reset(token)


async def test_so_many_at_the_most_give_up_their_slots(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "MOST_WITHOUT_SLOT", 2)
    results = [await tasks.parent.aenqueue(n) for n in range(4)]
    async with aiotasks.Worker(concurrency=2) as worker:
        await until(lambda: FULL in caplog.text)
        assert len(worker.engine.runner.running) == 4
        assert worker.engine.slots.free("loop") == 0
        async with aiotasks.Worker(concurrency=1):
            await aiotasks.gather_results(results, timeout=60)
    assert [result.return_value for result in results] == [*range(4)]


async def test_a_wait_that_ends_otherwise_leaves_the_slots_as_they_were(
    configure: Configure, ledger: Ledger
) -> None:
    configure(queues=["default", "nobody"])
    async with aiotasks.Worker(queues=["default"], concurrency=2) as worker:
        slots = worker.engine.slots
        timed_out = await tasks.waits_for_ever.aenqueue(0.1)
        assert (await timed_out.ajoin(timeout=60)).return_value == "went on"
        assert tasks.noted == ["timed out"]
        cancelled = await tasks.waits_for_ever.aenqueue(0)
        await until(lambda: worker.engine.runner.running and slots.free("loop") == 2)
        assert await postgres_result(await backend.aget_result(cancelled.id)).acancel()
        await cancelled.ajoin(timeout=60)
        assert tasks.noted == ["timed out", "cancelled"]
        await until(lambda: slots.free("loop") == 2)
        late = await tasks.waits_for_ever.aenqueue(0)
        await until(lambda: worker.engine.runner.running and slots.free("loop") == 2)
    await late.arefresh()
    assert (late.status, late.attempts) == ("READY", 0)  # given back at the stop, unspent
    assert slots.free("loop") == 2


async def test_bodies_that_limit_their_waits_go_on_in_slots(configure: Configure, ledger: Ledger) -> None:
    configure(queues=["default", "nobody"])
    results = [await tasks.limits_its_wait.aenqueue(0.2) for _ in range(20)]
    async with aiotasks.Worker(queues=["default"], concurrency=2) as worker:
        await aiotasks.gather_results(results, timeout=60)
        assert tasks.most_going_on <= 2
        await until(lambda: worker.engine.slots.free("loop") == 2)


async def test_a_cancel_of_the_worker_waits_for_no_slot(configure: Configure, ledger: Ledger) -> None:
    """Also that of a body which a limit of its own has cancelled before."""
    configure(queues=["default", "nobody"])
    async with aiotasks.Worker(queues=["default"], concurrency=1) as worker:
        slots = worker.engine.slots
        result = await tasks.limits_its_wait.aenqueue(0.2)
        await until(lambda: worker.engine.runner.running and slots.free("loop") == 1)
        slots.take("loop")  # as another body that doesn't end
        await until(lambda: slots._returning)
        assert await postgres_result(await backend.aget_result(result.id)).acancel()
        await result.ajoin(timeout=60)
        assert [e.exception_class_path for e in result.errors] == ["aiotasks.exceptions.TaskCancelled"]
        slots.release("loop")
        await until(lambda: slots.free("loop") == 1)
    assert tasks.most_going_on == 0


async def test_suspects_that_wait_hold_up_neither_their_children_nor_each_other(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An out-of-memory kill makes suspects of all tasks that only wait."""
    monkeypatch.setattr(quarantine, "APART_TIME", 3600.0)
    results = [await tasks.parent.aenqueue(n) for n in range(3)]
    await conn.execute("UPDATE aiotasks_task SET crashes = 2")
    async with aiotasks.Worker(concurrency=4):
        found = await aiotasks.gather_results(results, timeout=60)
    assert [result.return_value for result in found] == [0, 1, 2]


async def test_an_attempt_whose_time_is_over_while_it_waits(configure: Configure, ledger: Ledger) -> None:
    configure(queues=["default", "nobody"])
    async with aiotasks.Worker(queues=["default"], concurrency=1) as worker:
        result = await tasks.waits_briefly.aenqueue()
        await result.ajoin(timeout=60)
        assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskTimeout"]
        await until(lambda: worker.engine.slots.free("loop") == 1)
        assert (await (await tasks.leaf.aenqueue(3)).ajoin(timeout=60)).return_value == 3


async def test_threads_that_all_wait_are_logged_once(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    results = [await tasks.parent_sync.aenqueue(n) for n in range(2)]
    async with aiotasks.Worker(threads=2):
        await until(lambda: FULL in caplog.text)
        async with aiotasks.Worker(threads=1):
            await aiotasks.gather_results(results, timeout=60)
    assert [result.return_value for result in results] == [0, 1]
    assert caplog.text.count(FULL) == 1
    assert "lane=thread paths=tests.worker.joining_tasks.parent_sync" in caplog.text


async def test_threads_that_wait_for_coroutines_are_not(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    results = [await tasks.parent_sync_of_other_lane.aenqueue(n) for n in range(4)]
    async with aiotasks.Worker(threads=2):
        await aiotasks.gather_results(results, timeout=60)
    assert [result.return_value for result in results] == [*range(4)]
    assert FULL not in caplog.text


async def test_a_join_in_a_thread_ends_with_its_attempt(configure: Configure, ledger: Ledger) -> None:
    configure(queues=["default", "nobody"])
    async with aiotasks.Worker(queues=["default"], threads=1) as worker:
        result = await tasks.waits_briefly_sync.aenqueue()
        await result.ajoin(timeout=60)
        assert [error.exception_class_path for error in result.errors] == ["aiotasks.exceptions.TaskTimeout"]
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
        assert tasks.noted == ["joins", asyncio.CancelledError]
        await until(lambda: worker.engine.slots.free("thread") == 1)
        assert not worker.engine.runner._joining._cancels


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_a_join_in_a_thread_is_cancelled(configure: Configure, ledger: Ledger, how: str) -> None:
    configure(queues=["default", "nobody"])
    result = await tasks.waits_for_ever_sync.aenqueue()
    async with aiotasks.Worker(queues=["default"], threads=1, grace=0) as worker:
        await until(lambda: worker.engine.runner._joining._cancels)
        if how == "cancel":
            assert await postgres_result(await backend.aget_result(result.id)).acancel()
            await result.ajoin(timeout=60)
    await until(lambda: tasks.noted == ["joins", asyncio.CancelledError])
    await until(lambda: ledger.task(result.id).status != "RUNNING")
    await result.arefresh()
    if how == "cancel":
        assert [e.exception_class_path for e in result.errors] == ["aiotasks.exceptions.TaskCancelled"]
    else:
        assert (result.status, result.attempts) == ("READY", 0)  # given back, unspent
