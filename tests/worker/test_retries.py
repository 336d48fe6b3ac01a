"""Tasks that are tried again, in both lanes: attempts, backoffs, log, signals, and what ends them."""

import asyncio
import json
import logging
import os
import socket
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished, task_started

import aiotasks
from aiotasks.rows import AnyResult, Job
from aiotasks.testing import drain as adrain
from aiotasks.worker.events import Observer
from aiotasks.worker.outcomes import Retried
from aiotasks.worker.running import async_backoff, failures
from tests.examples import example
from tests.site import postgres_result

from . import retry_tasks as tasks
from .harness import TIMEOUT, Configure, Ledger, until

FLAKY = "tests.worker.retry_tasks.Flaky"


@pytest.fixture(autouse=True)
def clean_slate(configure: Configure) -> None:
    tasks.seen.clear()


async def run_to_the_end(*results: AnyResult) -> list[aiotasks.PostgresTaskResult]:
    """Run a worker until these have ended."""

    async def ended() -> bool:
        for result in results:
            await result.arefresh()
        return all(result.is_finished for result in results)

    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):
        await until(ended)
    return [postgres_result(result) for result in results]


def classes(result: AnyResult) -> list[str]:
    return [error.exception_class_path.rpartition(".")[2] for error in result.errors]


async def test_a_task_is_tried_again_until_it_succeeds(database: str) -> None:
    for result in await run_to_the_end(
        await tasks.flaky.aenqueue("Flaky", 2), await tasks.flaky_sync.aenqueue("Flaky", 2)
    ):
        assert (result.return_value, result.attempts, result.failures) == (3, 3, 2)
        assert classes(result) == ["Flaky", "Flaky"]
        assert "attempt 1" in result.errors[0].traceback
        assert result.started_at is not None
        assert result.last_attempted_at is not None
        assert result.started_at < result.last_attempted_at
        assert result.task.run_after is None


async def test_its_attempts_are_counted(database: str) -> None:
    for result in await run_to_the_end(
        await tasks.flaky.aenqueue("Flaky", 9), await tasks.flaky_sync.aenqueue("SystemExit", 9)
    ):
        assert (result.status, result.attempts, len(result.errors)) == (TaskResultStatus.FAILED, 4, 4)
        assert result.failures == 3  # those after which it was tried again


async def test_each_error_notes_its_attempt(database: str, conn: asyncpg.Connection) -> None:
    before = datetime.now(UTC)
    result = await tasks.flaky.aenqueue("Flaky", 9)
    await run_to_the_end(result)
    row = await conn.fetchrow("SELECT errors, last_attempted_at FROM aiotasks_task WHERE id = $1", result.id)
    notes = [json.loads(text) for text in row["errors"]]
    assert [list(note) for note in notes] == [
        ["class", "traceback", "attempt", "began", "seconds", "worker"]
    ] * 4
    assert [note["attempt"] for note in notes] == [1, 2, 3, 4]
    assert {note["worker"] for note in notes} == {f"{socket.gethostname()}:{os.getpid()}"}
    began = [datetime.fromisoformat(note["began"]) for note in notes]
    assert before < began[0] < began[1] < began[2] < began[3] == row["last_attempted_at"]
    assert all(0 < note["seconds"] < 30 for note in notes)


async def test_a_cancellation_of_its_own_is_a_failure_as_others_are(database: str) -> None:
    (result,) = await run_to_the_end(await tasks.cancels_itself.aenqueue())
    assert (result.return_value, classes(result)) == (2, ["CancelledError"])


async def test_classes_say_what_is_tried_again(database: str) -> None:
    only, other, but, most = await run_to_the_end(
        await tasks.only_flaky.aenqueue("Flakier", 2),
        await tasks.only_flaky.aenqueue("ValueError", 2),
        await tasks.but_flaky.aenqueue("Flakier", 2),
        await tasks.but_flaky.aenqueue("ValueError", 2),
    )
    assert [only.return_value, most.return_value] == [3, 3]
    assert [(classes(one), one.attempts) for one in (other, but)] == [(["ValueError"], 1), (["Flakier"], 1)]


async def test_a_task_may_say_when_it_is_tried_again(database: str) -> None:
    at_once, soon, given_up = await run_to_the_end(
        await tasks.retry_after.aenqueue(0),
        await tasks.retry_after.aenqueue(0.01),
        await tasks.give_up.aenqueue(),
    )
    assert [at_once.return_value, soon.return_value] == [2, 2]
    assert classes(at_once) == ["Retry"]
    assert (classes(given_up), given_up.attempts) == (["GiveUp"], 1)
    assert f"{FLAKY}: the cause" in given_up.errors[0].traceback


@pytest.mark.parametrize("task", [tasks.snooze, tasks.snooze_sync], ids=["loop", "thread"])
async def test_a_snooze_is_neither_an_error_nor_an_attempt(database: str, task: Any) -> None:
    (result,) = await run_to_the_end(await task.aenqueue(3, 0.01))
    assert (result.return_value, result.snoozes) == ([4, 1], 3)
    assert (result.errors, result.attempts, result.failures) == ([], 1, 0)


async def test_while_it_waits_it_is_ready_and_has_not_finished(
    database: str, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    signals: list[Any] = []
    result = await tasks.fails_for_an_hour.aenqueue()

    def note(sender: Any, task_result: AnyResult, **kwargs: Any) -> None:
        signals.append(task_result.status)

    async def waits() -> bool:
        return bool(await conn.fetchval("SELECT status = 'SCHEDULED' FROM aiotasks_task"))

    task_started.connect(note)
    task_finished.connect(note)
    try:
        with caplog.at_level(logging.INFO):
            async with aiotasks.Worker(grace=5):
                await until(waits)
                await until(lambda: " failed and is tried again " in caplog.text)
    finally:
        task_started.disconnect(note)
        task_finished.disconnect(note)
    await result.arefresh()
    assert (result.status, result.finished_at, result.attempts) == (TaskResultStatus.READY, None, 1)
    assert signals == [TaskResultStatus.RUNNING]
    (record,) = [record for record in caplog.records if "Flaky" in record.getMessage()]
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "failed and is tried again in 3600.000 s " in text
    assert f" failures=1 max_attempts=5 error='{FLAKY}: later' at=tests/worker/retry_tasks.py:" in text
    assert await postgres_result(result).acancel()


async def test_the_last_failure_is_logged_as_an_error_once(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await run_to_the_end(await tasks.flaky.aenqueue("Flaky", 9))
    assert caplog.text.count(" failed and is tried again in ") == 3
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["django.tasks"]


async def test_an_observer_is_told_of_each_retry(database: str) -> None:
    class Recorder(Observer):
        def __init__(self) -> None:
            self.retries: list[tuple[int, int]] = []
            self.given_back = 0

        def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
            assert seconds is not None
            self.retries.append((outcome.failures, outcome.most))

        def released(self, number: int, reason: str) -> None:
            self.given_back += number

    recorder = Recorder()
    result = await tasks.flaky.aenqueue("Flaky", 2)

    async def has_ended() -> bool:
        await result.arefresh()
        return result.is_finished

    worker = aiotasks.Worker()
    worker.events.subscribe(recorder)
    async with worker, asyncio.timeout(TIMEOUT):
        await until(has_ended)  # not until the queue is empty: for a moment each retry isn't due
    assert recorder.retries == [(1, 4), (2, 4)]
    assert recorder.given_back == 0


# --- Backoffs


@pytest.mark.parametrize(
    ("task", "in_thread"),
    [
        (tasks.asks, False),
        (tasks.asks_async, False),
        (tasks.asks_sync, True),
        (tasks.asks_async_in_thread, False),
    ],
    ids=["coroutine", "async backoff", "thread", "async backoff of a sync task"],
)
async def test_a_backoff_runs_where_the_body_ran(database: str, task: Any, in_thread: bool) -> None:
    (result,) = await run_to_the_end(await task.aenqueue())
    assert result.return_value == 3
    told = [(text, attempts, count, errors) for text, attempts, count, errors, _ in tasks.seen]
    assert told == [
        ("attempt 1", 1, 1, ["Flaky"]),
        ("attempt 2", 2, 2, ["Flaky", "Flaky"]),
    ]
    assert {thread.startswith("aiotasks-sync-") for *_, thread in tasks.seen} == {in_thread}


@pytest.mark.parametrize("lane", ["loop", "thread"])
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("raises", "BackoffError"),
        ("raises_from_none", "BackoffError"),
        ("raises_async", "BackoffError"),
        ("raises_frozen", "FrozenBackoffError"),
        ("exits", "SystemExit"),
        ("exits_async", "SystemExit"),
        ("interrupts_async", "KeyboardInterrupt"),
        ("hangs", "TimeoutError"),
        ("swallows", "TimeoutError"),
        ("nonsense", "ValueError"),
        ("says_no_more", "Flaky"),
    ],
)
async def test_a_backoff_that_fails_ends_the_task_with_both_errors(
    database: str, monkeypatch: pytest.MonkeyPatch, name: str, stored: str, lane: str
) -> None:
    monkeypatch.setattr(async_backoff, "BACKOFF_TIMEOUT", 0.05)
    monkeypatch.setattr(async_backoff, "CANCEL_TIMEOUT", 0.05)
    (result,) = await run_to_the_end(await getattr(tasks, f"{name}_{lane}").aenqueue())
    assert (result.attempts, classes(result)) == (1, [stored])
    assert f"{FLAKY}: of the task" in result.errors[0].traceback
    tracebacks = result.errors[0].traceback.count("Traceback (most recent call last)")
    assert tracebacks == 1 + (stored != "Flaky")
    tasks.seen.append("released")
    await until(lambda: not any("_ask" in repr(one) for one in asyncio.all_tasks()))


async def test_a_call_that_raises_leaks_no_task_and_no_slot(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(failures.Failures, "outcome_in_thread", broken)
        (result,) = await run_to_the_end(await tasks.fails_by_the_options.aenqueue())
    assert classes(result) == ["RuntimeError"]
    assert "A call in a thread has raised" in caplog.text


async def test_a_cancel_during_a_backoff_ends_the_task(database: str) -> None:
    result = await tasks.fails_and_asks_long.aenqueue()
    async with aiotasks.Worker(grace=5):
        await until(lambda: tasks.seen == ["failed"])
        assert await postgres_result(result).acancel()

        async def ended() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(ended)
    assert classes(result) == ["TaskCancelled"]


async def test_a_stop_during_a_backoff_keeps_the_failure(database: str) -> None:
    result = await tasks.fails_and_asks_long.aenqueue()
    async with aiotasks.Worker(grace=0):
        await until(lambda: tasks.seen == ["failed"])
    await result.arefresh()
    assert (result.status, result.attempts, classes(result)) == (TaskResultStatus.READY, 1, ["Flaky"])
    assert postgres_result(result).failures == 1


# --- What ends a task although it has attempts left


async def test_a_return_value_that_can_not_be_stored_is_final(database: str) -> None:
    """Another attempt would do again what the body has done to its end."""
    (result,) = await run_to_the_end(await tasks.unserialisable.aenqueue())
    assert (classes(result), tasks.seen) == (["TypeError"], ["run"])


async def test_a_retry_after_its_expiry_fails_with_its_own_error(database: str) -> None:
    failed, snoozed = await run_to_the_end(
        await tasks.fails_for_longer_than_it_may.aenqueue(),
        await tasks.snoozes_for_longer_than_it_may.aenqueue(),
    )
    assert (classes(failed), failed.attempts) == (["Flaky"], 1)
    assert classes(snoozed) == ["TaskExpired"]
    assert "aiotasks.exceptions.Snooze" in snoozed.errors[0].traceback


async def test_options_are_for_tasks_that_say_nothing(configure: Configure) -> None:
    configure(MAX_ATTEMPTS=2, BACKOFF=tasks.SOON)
    (result,) = await run_to_the_end(await tasks.fails_by_the_options.aenqueue())
    assert (result.attempts, classes(result)) == (2, ["Flaky", "Flaky"])


async def test_a_worker_does_not_start_with_a_backoff_that_is_not_there(configure: Configure) -> None:
    configure(MAX_ATTEMPTS=2, BACKOFF="nowhere.backoff")
    with pytest.raises(ImproperlyConfigured, match=r"BACKOFF 'nowhere\.backoff' leads to no function"):
        async with aiotasks.Worker():
            pass


# --- Wake-ups


async def test_a_storm_of_retries_is_told_once_a_queue_and_batch(
    database: str, conn: asyncpg.Connection
) -> None:
    """Of later retries nobody is told: everybody looks for the first one, and finds the next."""
    told: list[Any] = []
    listening = await asyncpg.connect(database)
    await listening.add_listener("aiotasks", lambda *args: told.append(json.loads(args[-1])))
    try:
        for _ in range(200):
            await tasks.fails_for_an_hour.aenqueue()
        told.clear()

        async def all_wait() -> bool:
            return bool(
                await conn.fetchval("SELECT count(*) = 200 FROM aiotasks_task WHERE status = 'SCHEDULED'")
            )

        async with aiotasks.Worker(grace=5):
            await until(all_wait)
        due = [payload for payload in told if payload[2] is not None]
        assert 1 <= len(due) <= 3  # an earlier one by rounding of clocks
    finally:
        await listening.close()


async def test_a_retry_is_due_in_time_for_a_worker_that_waits_for_a_later_task(
    database: str, ledger: Ledger
) -> None:
    await tasks.fails_for_an_hour.aenqueue()
    async with aiotasks.Worker(grace=5):
        await until(lambda: ledger.statuses() == {"SCHEDULED": 1})
        result = await tasks.flaky.aenqueue("Flaky", 1)

        async def ended() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(ended, 10.0)
    assert result.return_value == 2


# --- The page


async def test_the_page_on_retries(database: str) -> None:
    async def get_status(url: str) -> int:
        raise ConnectionError(url)

    async def deliver(message: int) -> str:
        return ("busy", "no such address", "not yet", "done")[message]

    with example("howto/retries.md") as page:
        await page.run(get_status=get_status)
        await page.run()
        await page.run()
        await page.run(deliver=deliver)
        assert page.blocks == []
        fetched = await page.fetch.aenqueue("https://example.com")
        sent = [await page.send.aenqueue(message) for message in range(4)]
        waits = page.as_the_server_says
        assert waits(page.Busy(7.0), fetched) == 7.0
        assert waits(ValueError(), fetched).total_seconds() == 0
        await adrain()
        for result in (fetched, *sent):
            await result.arefresh()
        assert fetched.failures >= 1  # the jitter may have had it run again during the drain
        assert [(one.status, one.failures, one.snoozes) for one in sent] == [
            (TaskResultStatus.READY, 1, 0),
            (TaskResultStatus.FAILED, 0, 0),
            (TaskResultStatus.READY, 0, 1),
            (TaskResultStatus.SUCCESSFUL, 0, 0),
        ]


async def test_a_drain_runs_attempts_that_are_due(database: str) -> None:
    """And leaves later ones alone, as it does tasks of later."""
    at_once, later = await tasks.retry_after.aenqueue(0), await tasks.retry_after.aenqueue(3600)
    assert await adrain() == 3
    await at_once.arefresh()
    await later.arefresh()
    assert (at_once.status, later.status) == (TaskResultStatus.SUCCESSFUL, TaskResultStatus.READY)
    assert later.attempts == 1
