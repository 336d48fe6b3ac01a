"""Time limits of coroutine tasks and of sync tasks, raced against the other ways in which a task ends."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.tasks import TaskResultStatus

import aiotasks
from aiotasks.rows import AnyResult
from aiotasks.worker.running import deadlines
from tests.site import default_task_backend

from . import timeout_tasks as tasks
from .harness import TIMEOUT, Ledger, until

TASK_TIMEOUT = "aiotasks.exceptions.TaskTimeout"


@pytest.fixture(autouse=True)
def clean_slate(configure: Any) -> Iterator[None]:
    for kept in (tasks.seen, tasks.contexts):
        kept.clear()
    tasks.released.clear()
    yield
    tasks.released.set()


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled coroutines get a moment only."""
    monkeypatch.setattr(deadlines, "CANCEL_TIMEOUT", 0.05)


async def drain(**parameters: Any) -> None:
    async with aiotasks.Worker(grace=5, **parameters) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()


async def outcome(result: AnyResult) -> Any:
    await result.arefresh()
    if result.status == TaskResultStatus.SUCCESSFUL:
        return result.return_value
    return [error.exception_class_path for error in result.errors]


# --- Coroutines


@pytest.mark.parametrize("task", [tasks.ends_in_time, tasks.does_not_wait, tasks.ends_in_time_sync])
async def test_what_ends_in_time_is_not_touched(database: str, task: Any) -> None:
    results = await default_task_backend.aenqueue_many(task, [((f"{n}",), {}) for n in range(20)])
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        assert worker.engine.runner.deadlines._timers == {}
    assert [await outcome(result) for result in results] == [f"{n}" for n in range(20)]


async def test_a_coroutine_is_cancelled_at_its_limit(database: str) -> None:
    results = [await task.aenqueue() for task in (tasks.sleeps, tasks.cleans_up, tasks.has_a_longer_timeout)]
    await drain()
    assert [await outcome(result) for result in results] == [[TASK_TIMEOUT]] * 3
    assert tasks.seen == ["cleaned up"]
    traceback = results[0].errors[0].traceback
    assert "longer than its timeout of 0.05 s" in traceback
    assert "in sleeps" in traceback  # where it was


async def test_what_the_body_makes_of_its_cancellation_counts(database: str) -> None:
    value = await tasks.returns_all_the_same.aenqueue()
    error = await tasks.raises_its_own_error.aenqueue()
    await drain()
    assert await outcome(value) == "partial"
    assert await outcome(error) == ["builtins.LookupError"]


async def test_a_time_out_of_the_bodys_own_stays_its_own(database: str) -> None:
    result = await tasks.has_its_own_timeout.aenqueue()
    await drain()
    assert await outcome(result) == ["builtins.TimeoutError"]


async def test_a_blocked_loop_ends_nothing_by_itself(database: str) -> None:
    """A body that has returned before the loop could look is over; one that waits then is cancelled."""
    late = await tasks.blocks_the_loop.aenqueue()
    waits = await tasks.blocks_the_loop_and_waits.aenqueue()
    await drain()
    assert await outcome(late) == "late"
    assert await outcome(waits) == [TASK_TIMEOUT]


async def test_a_coroutine_that_ignores_its_cancellation_is_abandoned(
    database: str, ledger: Ledger, short_grace: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is written, its slot is free, and what it returns later changes nothing."""
    caplog.set_level(logging.INFO, "aiotasks.worker")
    result = await tasks.ignores_cancellation.aenqueue()
    async with aiotasks.Worker(grace=5, concurrency=1) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.task(result.id).status == "FAILED")
        runner = worker.engine.runner
        assert (len(runner.running), len(runner.deadlines.outlasting)) == (0, 1)
        assert worker.engine.slots.free("loop") == 1
        following = await tasks.does_not_wait.aenqueue("next")
        await worker.wait_until_empty()
        assert await outcome(following) == "next"
        assert "ended" not in tasks.seen
        tasks.released.set()
        await until(lambda: not runner.deadlines.outlasting)
    assert tasks.seen == ["begun", "ended"]
    assert not worker.stuck
    assert await outcome(result) == [TASK_TIMEOUT]
    assert "in ignores_cancellation" in result.errors[0].traceback
    (goes_on,) = [r.message for r in caplog.records if "goes on after its timeout" in r.message]
    assert f"lane=loop id={result.id} path='tests.worker.timeout_tasks.ignores_cancellation'" in goes_on
    assert "in ignores_cancellation" in goes_on
    assert [r.message for r in caplog.records if "went on after its timeout has ended" in r.message]


async def test_an_abandoned_coroutine_has_no_orm_thread_any_more(database: str, short_grace: None) -> None:
    result = await tasks.queries_after_its_time.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    assert await outcome(result) == [TASK_TIMEOUT]
    assert "has outlived the task" in tasks.seen[-1]


async def test_an_abandoned_coroutine_marks_the_end_as_stuck(database: str, short_grace: None) -> None:
    """So that the process doesn't wait for it."""
    await tasks.ignores_cancellation.aenqueue()
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
    assert worker.stuck
    tasks.released.set()
    await until(lambda: not worker.engine.runner.deadlines.outlasting)
