"""Time limits of coroutine tasks and of sync tasks, raced against the other ways in which a task ends."""

import asyncio
import logging
import re
import signal
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished, task_started
from django.utils import timezone

import aiotasks
from aiotasks import models, registry
from aiotasks.operations.status import read_status
from aiotasks.operations.tables import as_text
from aiotasks.operations.text import status_parts
from aiotasks.registry import resolve
from aiotasks.rows import AnyResult
from aiotasks.testing import drain as aiotasks_drain
from aiotasks.worker.execution import Execution
from aiotasks.worker.running import deadlines
from aiotasks.worker.running import imports as imports_module
from aiotasks.worker.running.sync_threads import SyncThreads
from tests.conftest import ROOT
from tests.site import default_task_backend

from . import timeout_tasks as tasks
from .harness import TIMEOUT, Ledger, Start, until, wait_until

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


@pytest.mark.parametrize("kind", ["atomic", "transaction"])
async def test_an_abandoned_coroutine_commits_nothing_while_its_backoff_decides(
    database: str, ledger: Ledger, short_grace: None, kind: str
) -> None:
    """The backoff and receivers have the variables of the body, and are outside of its block."""
    received: list[Any] = []

    async def receive(task_result: AnyResult, **others: Any) -> None:
        if task_result.task.module_path == tasks.goes_on_in_a_block_and_asks.module_path:
            await tasks.note_sync.aenqueue("by a receiver")
            received.append((tasks.variable.get("unset"), await models.Worker.objects.acount()))

    result = await tasks.goes_on_in_a_block_and_asks.aenqueue(kind)
    task_finished.connect(receive)
    try:
        async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
            let_time_pass(worker, await begun(worker))
            await until(lambda: "of the body" in tasks.seen)
            tasks.released.set()
            await until(lambda: "left" in tasks.seen)
            tasks.seen.append("decide")
            await until(lambda: received)
            await worker.wait_until_empty()
    finally:
        task_finished.disconnect(receive)
    assert received == [("of the body", 1)]
    assert await outcome(result) == [TASK_TIMEOUT]
    assert sorted(text for text in tasks.seen if "by" in text) == ["by a receiver", "by the backoff"]
    assert "from a block" not in tasks.seen


async def test_an_abandoned_coroutine_has_no_orm_thread_any_more(database: str, short_grace: None) -> None:
    result = await tasks.queries_after_its_time.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    assert await outcome(result) == [TASK_TIMEOUT]
    assert "has outlived the task" in tasks.seen[-1]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (tasks.goes_on_in_a_block, "atomic"),
        (tasks.goes_on_in_a_block, "nested"),
        (tasks.goes_on_in_a_block, "transaction"),
        (tasks.goes_on_and_ends_a_block, "atomic"),
        (tasks.goes_on_and_ends_a_block, "transaction"),
    ],
)
async def test_an_abandoned_coroutine_commits_nothing(
    database: str, ledger: Ledger, short_grace: None, task: Any, kind: str
) -> None:
    """Its blocks have connections of their own. They are rolled back where it leaves them."""
    result = await task.aenqueue(kind)
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        let_time_pass(worker, await begun(worker))
        await until(lambda: ledger.task(result.id).status == "FAILED")
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
        await worker.wait_until_empty()
    assert ledger.statuses() == {"FAILED": 1}
    assert ledger.events("from a block") == 0
    assert tasks.seen == (["begun", "closed"] if task is tasks.goes_on_in_a_block else ["begun"])
    assert await outcome(result) == [TASK_TIMEOUT]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (tasks.goes_on_in_a_block, "nested"),
        (tasks.goes_on_in_a_block, "transaction"),
        (tasks.goes_on_and_ends_a_block, "atomic"),
        (tasks.goes_on_and_ends_a_block, "transaction"),
    ],
)
async def test_a_coroutine_that_outlasts_the_shutdown_commits_nothing(
    database: str, ledger: Ledger, task: Any, kind: str
) -> None:
    """It has been given back: another worker may run it by now."""
    await task.aenqueue(kind)
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
    assert worker.stuck
    assert ledger.statuses() == {"READY": 1}
    assert execution.task is not None
    tasks.released.set()
    await until(execution.task.done)
    assert ledger.statuses() == {"READY": 1}
    assert ledger.events("from a block") == 0
    assert tasks.seen == (["begun", "closed"] if task is tasks.goes_on_in_a_block else ["begun"])


async def test_a_coroutine_that_outlasts_the_shutdown_has_no_orm_thread(database: str) -> None:
    await tasks.queries_after_its_release.aenqueue()
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
    assert execution.task is not None
    tasks.released.set()
    await until(execution.task.done)
    assert "has outlived the task" in tasks.seen[-1]


async def test_an_abandoned_coroutine_marks_the_end_as_stuck(database: str, short_grace: None) -> None:
    """So that the process doesn't wait for it."""
    await tasks.ignores_cancellation.aenqueue()
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
    assert worker.stuck
    tasks.released.set()
    await until(lambda: not worker.engine.runner.deadlines.outlasting)


# --- Threads


async def test_a_thread_at_its_limit_is_recorded_fenced_and_replaced(
    database: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt is over while its thread goes on; the next task has a thread of its own."""
    caplog.set_level(logging.INFO, "aiotasks.worker")
    result = await tasks.waits.aenqueue("first")
    async with aiotasks.Worker(grace=5, threads=1) as worker, asyncio.timeout(TIMEOUT):
        threads = worker.engine.sync_threads
        await until(lambda: ledger.task(result.id).status == "FAILED")
        assert (threads.stuck, threads.usable) == (1, 1)
        following = await tasks.note_sync.aenqueue("next")
        await worker.wait_until_empty()
        assert await outcome(following) == "next"
        assert ("ended", "first") not in tasks.seen
        assert len(threads._pool.threads) == 2
        assert [execution.job.task_path for execution in worker.running()] == [tasks.waits.module_path]
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
        await until(lambda: len(threads._pool.threads) == 1)
        assert (threads.stuck, threads.usable) == (0, 1)
        assert await outcome(await run(worker, tasks.note_sync, "last")) == "last"
    assert not worker.stuck
    assert ("ended", "first") in tasks.seen
    assert await outcome(result) == [TASK_TIMEOUT]
    assert "released.wait" in result.errors[0].traceback  # where it was
    assert [r.message for r in caplog.records if "lane=thread" in r.message and "waits" in r.message]


async def run(worker: aiotasks.Worker, task: Any, *args: Any) -> AnyResult:
    result: AnyResult = await task.aenqueue(*args)
    await worker.wait_until_empty()
    return result


async def test_no_more_than_twice_the_threads_are_stuck(
    database: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing of the lane is claimed, until a thread comes back."""
    monkeypatch.setattr("aiotasks.worker.recycler.PATIENCE", 0.1)
    for name in ("first", "second"):
        await tasks.waits.aenqueue(name)
    async with aiotasks.Worker(grace=5, threads=1) as worker, asyncio.timeout(TIMEOUT):
        threads = worker.engine.sync_threads
        await until(lambda: ledger.statuses() == {"FAILED": 2})
        assert (threads.stuck, threads.usable, threads.capacity()) == (2, 0, 0)
        third = await tasks.note_sync.aenqueue("third")
        on_loop = await tasks.does_not_wait.aenqueue("loop")
        await until(lambda: ledger.task(on_loop.id).status == "SUCCESSFUL")
        assert ledger.task(third.id).status == "READY"
        await until(worker._worn.is_set)
        await worker.wait_until_exhausted()
        tasks.released.set()
        await worker.wait_until_empty()
        await until(lambda: len(threads._pool.threads) == 1)
    assert await outcome(third) == "third"


async def test_a_thread_that_comes_back_is_used_at_once(
    database: str, ledger: Ledger, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that waits for it is claimed without a poll."""
    configure(POLL_INTERVAL=3600)
    for name in ("first", "second"):
        await tasks.waits.aenqueue(name)
    async with aiotasks.Worker(grace=5, threads=1) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.statuses() == {"FAILED": 2})
        third = await tasks.note_sync.aenqueue("third")
        on_loop = await tasks.does_not_wait.aenqueue("loop")  # the claimer has looked after this
        await until(lambda: ledger.task(on_loop.id).status == "SUCCESSFUL")
        await until(worker.engine.ownership.is_idle)
        freed: list[str] = []
        slot_freed = worker.engine.claimer.slot_freed

        def note(*args: Any) -> None:
            freed.append(ledger.task(third.id).status)
            slot_freed(*args)

        monkeypatch.setattr(worker.engine.claimer, "slot_freed", note)
        tasks.released.set()
        await until(lambda: ledger.task(third.id).status == "SUCCESSFUL")
    assert freed[0] == "READY"  # before anything has claimed it


async def test_the_log_names_the_error_of_a_thread_that_goes_on(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was never raised, so its text has no traceback."""
    await tasks.waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    (failed,) = [r.message for r in caplog.records if f"{tasks.waits.module_path} failed " in r.message]
    assert "error='aiotasks.exceptions.TaskTimeout: The " in failed


@pytest.mark.parametrize("late", [tasks.waits_and_fails, tasks.returns_a_coroutine_late])
async def test_what_a_thread_makes_of_it_later_is_ignored(database: str, late: Any) -> None:
    result = await late.aenqueue()
    async with aiotasks.Worker(grace=5, threads=1) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
        assert worker.engine.finisher.fenced == 0
        assert await outcome(await run(worker, tasks.note_sync, "next")) == "next"
    assert await outcome(result) == [TASK_TIMEOUT]
    assert result.attempts == 1


async def test_the_coroutine_of_a_sync_function_has_the_same_limit(database: str) -> None:
    ends, sleeps = await tasks.returns_a_coroutine.aenqueue(0), await tasks.returns_a_coroutine.aenqueue(3600)
    await drain()
    assert await outcome(ends) == "awaited"
    assert await outcome(sleeps) == [TASK_TIMEOUT]
    assert "in _waits" in sleeps.errors[0].traceback


async def test_a_stuck_thread_keeps_no_worker_from_ending(database: str, ledger: Ledger) -> None:
    """Its row is finished, so there is no lease to keep."""
    result = await tasks.waits.aenqueue()
    async with aiotasks.Worker(grace=60) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.task(result.id).status == "FAILED")
    assert not worker.stuck
    assert ledger.workers() == 0
    tasks.released.set()
    await until(lambda: not worker.engine.runner.deadlines.outlasting)


async def test_others_see_how_many_threads_are_stuck(database: str, ledger: Ledger) -> None:
    result = await tasks.waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.task(result.id).status == "FAILED")
        await until(lambda: ledger.value("SELECT stuck_threads FROM aiotasks_worker") == 1)
        status = await read_status(default_task_backend)
        assert (status.fleet.stuck_threads, status.workers[0].stuck_threads) == (1, 1)
        assert as_text(status_parts(status)).count("/10 (1 stuck)") == 2
        tasks.released.set()
        await until(lambda: ledger.value("SELECT stuck_threads FROM aiotasks_worker") == 0)
        await worker.wait_until_empty()


# --- Races


def let_time_pass(worker: aiotasks.Worker, execution: Execution) -> None:
    """Have the limit of a task that has begun be over at this moment."""
    assert execution.limit is not None
    execution.limit.ends_at = time.monotonic()
    worker.engine.runner.deadlines.forget(execution)
    worker.engine.runner.deadlines.watch(execution)


async def begun(worker: aiotasks.Worker) -> Execution:
    await until(lambda: "begun" in tasks.seen)
    (execution,) = worker.engine.runner.running
    return execution


@pytest.mark.parametrize("task", [tasks.ends_at_its_limit, tasks.ends_at_its_limit_sync])
async def test_the_end_at_the_moment_of_the_limit(database: str, ledger: Ledger, task: Any) -> None:
    """One outcome each, whichever comes first, and nothing stays behind."""
    number = 200 if task is tasks.ends_at_its_limit else 40
    results = await default_task_backend.aenqueue_many(task, [((n,), {}) for n in range(number)])
    async with aiotasks.Worker(grace=5, threads=4) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        deadlines = worker.engine.runner.deadlines
        await until(lambda: not deadlines.outlasting)
        assert deadlines._timers == {}
        await until(lambda: len(worker.engine.sync_threads._pool.threads) <= 4)
        assert worker.engine.slots._taken == {"loop": 0, "thread": 0}
        assert worker.engine.finisher.fenced == 0
    for n, result in enumerate(results):
        assert await outcome(result) in (n, [TASK_TIMEOUT])
        assert result.attempts == 1


@pytest.mark.parametrize("task", [tasks.sleeps_long, tasks.waits_long])
async def test_a_cancel_before_the_limit_decides(database: str, task: Any) -> None:
    result = await task.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        worker.engine.runner.cancel(execution, "cancelled")
        let_time_pass(worker, execution)
        await worker.wait_until_empty()
    assert await outcome(result) == ["aiotasks.exceptions.TaskCancelled"]


async def test_a_cancel_after_the_limit_changes_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "CANCEL_TIMEOUT", 0.2)
    result = await tasks.ignores_cancellation_long.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        let_time_pass(worker, execution)
        await until(lambda: execution.cancelled_for == "timed out")
        await result.acancel()
        await worker.engine.canceller.run_once()
        assert execution.cancelled_for == "timed out"
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    assert await outcome(result) == [TASK_TIMEOUT]


async def test_a_cancelled_coroutine_holds_its_slot_no_longer_than_its_limit(
    database: str, short_grace: None
) -> None:
    """One that ignores the user's cancel is given up as one that ignores ours."""
    result = await tasks.ignores_cancellation_long.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        worker.engine.runner.cancel(execution, "cancelled")
        let_time_pass(worker, execution)
        await worker.wait_until_empty()
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    assert await outcome(result) == ["aiotasks.exceptions.TaskCancelled"]


async def test_a_shutdown_after_the_limit_gives_back(database: str, ledger: Ledger) -> None:
    """As long as the body is in its clean-up: no attempt is spent."""
    result = await tasks.ignores_cancellation_long.aenqueue()
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        let_time_pass(worker, execution)
        await until(lambda: execution.cancelled_for == "timed out")
    assert worker.stuck
    assert (ledger.task(result.id).status, ledger.task(result.id).worker_ids) == ("READY", [])
    assert worker.engine.runner.deadlines._timers == {}
    tasks.released.set()
    assert execution.task is not None
    await until(execution.task.done)


async def test_a_shutdown_before_the_limit_keeps_the_thread(database: str, ledger: Ledger) -> None:
    """An embedded worker's stop outlasts the grace: the lease is kept until the thread has ended."""
    result = await tasks.waits_long.aenqueue()
    async with aiotasks.Worker(grace=0) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        worker.engine.runner.cancel(execution, "shutdown")
        let_time_pass(worker, execution)
        await until(lambda: worker.engine.runner.deadlines._timers == {})
        assert execution in worker.engine.runner.running
    assert ledger.task(result.id).status == "RUNNING"
    tasks.released.set()
    await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    await until(lambda: ledger.workers() == 0)


async def test_the_limit_moves_with_a_coroutine_to_the_loop(database: str) -> None:
    result = await tasks.returns_a_coroutine_at_once.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        execution = await begun(worker)
        await until(lambda: not execution.in_thread)
        let_time_pass(worker, execution)
        await worker.wait_until_empty()
    assert await outcome(result) == [TASK_TIMEOUT]


async def test_an_import_is_no_part_of_the_time(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts from when the body begins."""

    def slow(*args: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() < began + 3 * tasks.SHORT:
            time.sleep(0.001)
        return resolve(*args)

    monkeypatch.setattr(imports_module, "resolve", slow)
    monkeypatch.setattr(registry, "_resolved", {})
    results = [await tasks.returns_a_coroutine.aenqueue(0), await tasks.returns_all_the_same.aenqueue()]
    await drain()
    assert [await outcome(result) for result in results] == ["awaited", "partial"]


async def test_a_limit_ends_in_an_attempt_of_its_own(database: str) -> None:
    """Subject to retry; a backoff is asked off the loop after a thread's time-out, and once."""
    result, sync = await tasks.times_out_once.aenqueue(), await tasks.times_out_once_sync.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        assert [await outcome(each) for each in (result, sync)] == [2, 2]
        tasks.released.set()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
        await worker.wait_until_empty()
    assert tasks.seen == [("TaskTimeout", False), "the first has ended"]
    for each in (result, sync):
        await each.arefresh()
        assert [error.exception_class_path for error in each.errors] == [TASK_TIMEOUT]


# --- The context


@pytest.mark.parametrize("task", [tasks.shows_its_context, tasks.shows_its_context_sync])
async def test_the_context_shows_the_time(database: str, task: Any) -> None:
    result = await task.aenqueue()
    before = timezone.now()
    await drain()
    deadline, remaining, is_cancelled, attempt = await outcome(result)
    assert before < datetime.fromisoformat(deadline) <= timezone.now() + timedelta(seconds=tasks.LONG)
    assert 0 < remaining <= tasks.LONG
    assert (is_cancelled, attempt) == (False, 1)


async def test_the_context_without_a_limit(database: str) -> None:
    result = await tasks.has_no_limit.aenqueue()
    await drain()
    assert await outcome(result) == [None, None, False]


async def test_a_naive_deadline_where_the_times_are(database: str, settings: Any) -> None:
    settings.USE_TZ = False
    result = await tasks.shows_its_context.aenqueue()
    await drain()
    assert datetime.fromisoformat((await outcome(result))[0]).tzinfo is None


async def test_a_sync_task_learns_that_it_is_cancelled(database: str) -> None:
    result = await tasks.waits_until_cancelled.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: "begun" in tasks.seen)
        await result.acancel()
        await worker.wait_until_empty()
    assert await outcome(result) == "noticed"


async def test_a_sync_task_learns_that_its_time_is_over(database: str) -> None:
    result = await tasks.waits_until_its_time_is_over.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
        await until(lambda: not worker.engine.runner.deadlines.outlasting)
    assert await outcome(result) in ("noticed", [TASK_TIMEOUT])


async def test_a_sync_task_learns_that_the_grace_is_over(database: str) -> None:
    await tasks.waits_until_cancelled.aenqueue()
    async with aiotasks.Worker(grace=0), asyncio.timeout(TIMEOUT):
        await until(lambda: "begun" in tasks.seen)
    # The thread ends by itself, or the run would find it left behind.


async def test_the_shortest_limit_begins_with_the_body(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is late isn't given up before that."""
    run = SyncThreads.run

    def run_late(threads: SyncThreads, call: Any) -> Any:
        def late() -> None:
            began = time.monotonic()
            while time.monotonic() < began + tasks.SHORT:
                time.sleep(0.001)
            call()

        return run(threads, late)

    monkeypatch.setattr(SyncThreads, "run", run_late)
    results = [await tasks.has_begun.aenqueue() for _ in range(5)]
    async with aiotasks.Worker(grace=5, threads=5) as worker, asyncio.timeout(TIMEOUT):
        outlasting = worker.engine.runner.deadlines.outlasting
        unbegun = False

        def has_ended() -> bool:
            nonlocal unbegun
            unbegun = unbegun or any(one.limit is None or one.limit.ends_at is None for one in outlasting)
            return len(tasks.seen) == 5

        await until(has_ended)
        await worker.wait_until_empty()
        await until(lambda: not outlasting)
    assert not unbegun
    assert len(results) == 5


span: ContextVar[str] = ContextVar("span", default="")


@pytest.mark.parametrize("task", [tasks.waits, tasks.ignores_cancellation, tasks.sleeps, tasks.note_sync])
async def test_receivers_share_a_context_whatever_ends_the_attempt(
    database: str, short_grace: None, task: Any
) -> None:
    got = []

    async def started(task_result: AnyResult, **kwargs: Any) -> None:
        span.set(task_result.id)

    async def finished(task_result: AnyResult, **kwargs: Any) -> None:
        got.append((task_result.id, span.get()))

    task_started.connect(started)
    task_finished.connect(finished)
    try:
        result = await task.aenqueue(*(["x"] if task is tasks.note_sync else []))
        async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
            await until(lambda: got)
            tasks.released.set()
            await until(lambda: not worker.engine.runner.deadlines.outlasting)
    finally:
        task_started.disconnect(started)
        task_finished.disconnect(finished)
    assert got == [(result.id, result.id)]


# --- In a drain


async def test_a_drain_keeps_to_limits(database: str) -> None:
    """Its thread is the test's own, so it waits for a sync function, which is too late all the same."""
    results = [await task.aenqueue() for task in (tasks.sleeps, tasks.is_too_long_for_a_drain)]
    assert await aiotasks_drain() == 2
    assert [await outcome(result) for result in results] == [[TASK_TIMEOUT]] * 2


# --- Processes

# Seconds for what has several starts of processes in it, on a busy machine.
SLOW = 120.0


def test_a_supervised_worker_with_stuck_threads_is_started_again(start: Start, ledger: Ledger) -> None:
    """Once it is idle otherwise: its own end, which is no crash, and nothing is lost."""
    process = start("-m", "aiotasks.worker", "--processes", "2", "--threads", "2")
    wait_until(lambda: process.log.count("connections: at most") >= 2, SLOW)
    before = {row.pid for row in ledger.rows("SELECT pid FROM aiotasks_worker")}
    stuck = tasks.never_comes_back.enqueue()
    wait_until(lambda: "A worker has ended to be started again pid=" in process.log, SLOW)
    assert "only a new process frees them stuck=1" in process.log
    wait_until(lambda: process.log.count("connections: at most") >= 3, SLOW)
    after = {row.pid for row in ledger.rows("SELECT pid FROM aiotasks_worker")}
    assert len(before & after) == 1
    assert "A worker has ended; starting another" not in process.log
    following = tasks.note_sync.enqueue("next")
    wait_until(lambda: ledger.task(following.id).status == "SUCCESSFUL")
    assert process.stop() == 0
    row = ledger.task(stuck.id)
    assert (row.status, len(row.worker_ids), row.crashes) == ("FAILED", 1, 0)


def test_a_worker_without_a_supervisor_only_logs_while_it_has_threads(
    start_worker: Start, ledger: Ledger
) -> None:
    """Perhaps nobody starts another."""
    worker = start_worker("--threads", "1")
    tasks.never_comes_back.enqueue()
    worker.wait_for("only a new process frees them stuck=1")
    following = tasks.note_sync.enqueue("next")
    wait_until(lambda: ledger.task(following.id).status == "SUCCESSFUL")
    assert worker.is_alive()
    assert worker.stop() == 0


@pytest.mark.parametrize("arguments", [[], ["--until-empty"]])
def test_a_worker_without_threads_asks_for_another_process(
    start: Start, ledger: Ledger, arguments: list[str]
) -> None:
    """Whatever runs it, systemd perhaps, sees an exit code."""
    results = [tasks.never_comes_back.enqueue() for _ in range(3)]
    worker = start("-m", "aiotasks.worker", "--threads", "1", *arguments)
    assert worker.wait(SLOW) == 75
    assert "The worker stops to be started again exit=75" in worker.log
    assert sorted(ledger.task(result.id).status for result in results) == ["FAILED", "FAILED", "READY"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_during_a_recycle_leaves_the_grace(
    start: Start, ledger: Ledger, tmp_path: Path, processes: int
) -> None:
    """It asks for the stop that is under way."""
    process = start("-m", "aiotasks.worker", "--processes", f"{processes}", "--threads", "1", "--grace", "60")
    wait_until(lambda: process.log.count("connections: at most") == processes, SLOW)
    path = tmp_path / "ticks"
    results = [tasks.ticks_until.enqueue(f"{path}") for _ in range(4)]
    wait_until(lambda: ledger.statuses() == {"RUNNING": 4})
    for _ in range(2 * processes):
        tasks.never_comes_back.enqueue()
    wait_until(lambda: process.log.count("stopping, running=") == processes, SLOW)
    process.send(signal.SIGTERM)
    if processes > 1:
        process.wait_for("Stopping processes=2")
    ticks = path.stat().st_size
    wait_until(lambda: path.stat().st_size > ticks + 400)  # two seconds or more: cancelled ones are over
    Path(f"{path}.end").touch()
    assert process.wait(SLOW) == 0
    assert {ledger.task(result.id).status for result in results} == {"SUCCESSFUL"}


def test_a_coroutine_that_never_ends_keeps_no_process(start: Start, ledger: Ledger) -> None:
    """Abandoned after five seconds, it swallows every cancellation: `--until-empty` ends all the same."""
    result = tasks.never_ends.enqueue()
    worker = start("-m", "aiotasks.worker", "--until-empty")
    assert worker.wait(SLOW) == 3
    assert "lane=loop" in worker.log
    assert "in never_ends" in worker.log
    assert ledger.task(result.id).status == "FAILED"
    assert ledger.workers() == 0


def test_call_command_leaves_with_it(start: Start, ledger: Ledger) -> None:
    """Where the caller's process would go on, closing the loop would wait forever."""
    tasks.never_ends.enqueue()
    code = (
        "import django; django.setup(); from django.core.management import call_command;"
        "call_command('aiotasks', 'worker', '--until-empty')"
    )
    assert start("-c", code).wait(SLOW) == 3
    assert ledger.workers() == 0


# --- The examples of docs/howto/timeouts.md


@pytest.fixture
def examples(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the code of the page defines, as if it were in the module of this file's tasks."""
    page = (ROOT / "docs/howto/timeouts.md").read_text("utf-8")
    found: dict[str, Any] = {
        "__name__": tasks.__name__,
        "read_rows": lambda path: ["a", "b"],
        "save_row": tasks.seen.append,
    }
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(code, found)
    monkeypatch.setattr(registry, "_resolved", {})
    for name in ("fetch_rates", "import_rows", "fetch_page", "refresh_totals", "convert"):
        monkeypatch.setattr(tasks, name, found[name], raising=False)
    ledger.connection.execute("CREATE MATERIALIZED VIEW totals AS SELECT 1 AS total")
    yield found
    ledger.connection.execute("DROP MATERIALIZED VIEW totals")


async def test_the_examples_of_the_page(database: str, examples: dict[str, Any]) -> None:
    """Those that need nothing of the network."""
    results = [
        await examples["import_rows"].aenqueue("rows.csv"),
        await examples["convert"].aenqueue(["echo", "done"]),
        await examples["refresh_totals"].aenqueue(),
        await examples["fetch_rates"].aenqueue("EUR"),
    ]
    await drain()
    assert [await outcome(result) for result in results] == [2, "done\n", None, None]
    assert tasks.seen == ["a", "b"]


async def test_the_examples_in_tests_of_a_site(
    database: str, examples: dict[str, Any], settings: Any
) -> None:
    """Their context is the same over the backend for tests."""
    settings.TASKS |= {"immediate": {"BACKEND": "aiotasks.testing.ImmediateBackend"}}
    for name, argument, value in (("import_rows", "rows.csv", 2), ("convert", ["echo", "done"], "done\n")):
        result = await examples[name].using(backend="immediate").aenqueue(argument)
        assert result.return_value == value
