"""Metadata of tasks that run, in both lanes: saved, merged, fenced, and with the outcome."""

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.db import utils
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished, task_started

import aiotasks
from aiotasks.metadata import running as running_module
from aiotasks.metadata.running import INTERVAL, RunningMetadata
from aiotasks.rows import AnyResult
from aiotasks.store import batcher
from aiotasks.store.metadata import MetadataAnswer, MetadataStatements, MetadataWrite
from aiotasks.store.outcomes import OutcomeStatements
from aiotasks.testing import drain as adrain
from aiotasks.worker.execution import Execution
from aiotasks.worker.writing.metadata import MetadataSaver
from tests.examples import example
from tests.site import default_task_backend, postgres_result

from . import metadata_tasks as tasks
from . import tasks as plain_tasks
from .harness import TIMEOUT, Configure, Ledger, Start, until, wait_until


@pytest.fixture(autouse=True)
def clean_slate(configure: Configure) -> Iterator[None]:
    for kept in (tasks.seen, tasks.contexts):
        kept.clear()
    for event in (tasks.released, tasks.again):
        event.clear()
    yield
    for event in (tasks.released, tasks.again):
        event.set()


class Saves:
    """The saves of the workers of this process, and what came back. ``before`` is awaited before each."""

    def __init__(self) -> None:
        self.writes: list[list[MetadataWrite]] = []
        self.answers: list[dict[UUID, MetadataAnswer]] = []
        self.before: Callable[[], Any] = self.nothing

    async def nothing(self) -> None: ...

    def of(self, result: AnyResult) -> list[dict[str, Any]]:
        """What was to be written for one task."""
        writes = [write for each in self.writes for write in each if str(write.id) == result.id]
        return [json.loads(write.text or "{}") for write in writes]


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Saves:
    log = Saves()
    save = MetadataStatements.save_metadata

    async def saved(self: Any, writes: Sequence[MetadataWrite]) -> dict[UUID, MetadataAnswer]:
        log.writes.append(list(writes))
        await log.before()
        answers = await save(self, writes)
        log.answers.append(answers)
        return answers

    monkeypatch.setattr(MetadataStatements, "save_metadata", saved)
    return log


async def run_to_the_end(*results: AnyResult, **parameters: Any) -> list[aiotasks.PostgresTaskResult]:
    """Run a worker until these have ended."""

    async def ended() -> bool:
        for result in results:
            await result.arefresh()
        return all(result.is_finished for result in results)

    async with aiotasks.Worker(**{"grace": 5, **parameters}), asyncio.timeout(TIMEOUT):
        await until(ended)
    return [postgres_result(result) for result in results]


def stored(ledger: Ledger, result: AnyResult) -> dict[str, Any]:
    return dict(ledger.task(result.id).metadata or {})


BOTH = pytest.mark.parametrize("lane", ["", "_sync"])


def of(name: str, lane: str) -> Any:
    return getattr(tasks, f"{name}{lane}")


# --- At the end


@BOTH
@pytest.mark.parametrize("how", ["success", "failure", "retry", "snooze"])
async def test_it_is_saved_however_an_attempt_ends(database: str, lane: str, how: str) -> None:
    task = of("notes", lane).using(metadata={"for once": 1, "stays": [2]})
    (result,) = await run_to_the_end(await task.aenqueue(how))
    assert result.status == TaskResultStatus.SUCCESSFUL
    attempts = 1 if how == "success" else 2
    assert result.metadata == {"stays": [2], "attempts": attempts}
    assert tasks.seen == [{"for once": 1, "stays": [2]}, {"stays": [2], "attempts": 1}][:attempts]


async def test_the_first_state_is_that_of_the_enqueue(database: str) -> None:
    given = {"a": {"b": (1, None)}, "ä": "\0"}
    (result,) = await run_to_the_end(await tasks.looks.using(metadata=given).aenqueue())
    assert result.return_value == result.metadata == {"a": {"b": [1, None]}, "ä": "\0"}


async def test_keys_of_aiotasks_stay_and_are_not_shown(database: str, ledger: Ledger) -> None:
    result = await tasks.notes.aenqueue("success")
    ledger.connection.execute("""UPDATE aiotasks_task SET metadata = '{"_trace": "t", "a": 1}'""")
    (result,) = await run_to_the_end(result)
    assert tasks.seen == [{"a": 1}]
    assert result.raw_metadata == {"_trace": "t", "a": 1, "attempts": 1}
    assert result.metadata == {"a": 1, "attempts": 1}


async def test_what_does_not_touch_it_costs_nothing(
    database: str, saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Execution] = []
    end = Execution.end

    def ended(self: Execution, outcome: Any) -> None:
        made.append(self)
        end(self, outcome)

    monkeypatch.setattr(Execution, "end", ended)
    await run_to_the_end(
        await tasks.has_a_context.using(metadata={"a": 1}).aenqueue(), await plain_tasks.add.aenqueue(1, 2)
    )
    assert saves.writes == []
    with_context, without = sorted(made, key=lambda execution: execution.metadata is None)
    assert with_context.metadata is not None
    assert with_context.metadata.is_untouched
    assert without.metadata is None


async def test_what_is_only_looked_at_is_not_written(database: str, saves: Saves) -> None:
    await run_to_the_end(await tasks.looks.using(metadata={"a": 1}).aenqueue())
    assert saves.writes == []


async def test_a_function_that_returns_a_coroutine_has_one(database: str) -> None:
    (result,) = await run_to_the_end(await tasks.returns_a_coroutine.aenqueue())
    assert result.metadata == {"thread": True, "loop": True}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("key", "metadata has the key '_mine'"),
        ("value", "metadata['x']: "),
        ("size", "the limit is 65536"),
    ],
)
async def test_what_cannot_be_saved_is_an_error_of_the_save_alone(
    database: str, caplog: pytest.LogCaptureFixture, what: str, words: str
) -> None:
    """The task has its result, and its metadata as of the last save."""
    (result,) = await run_to_the_end(await tasks.ends_with.aenqueue(what))
    assert words in result.return_value
    assert result.metadata == {"good": 1}
    assert words in caplog.text
    assert f"Metadata could not be saved; the task has those of its last save id={result.id}" in caplog.text


@pytest.mark.parametrize("text", ["[1]", "3", "1" + "0" * 5000])
async def test_a_row_that_others_have_written_fails_who_asks(
    database: str, ledger: Ledger, text: str
) -> None:
    asks, other = await tasks.looks.aenqueue(), await tasks.has_a_context.aenqueue()
    ledger.connection.execute("UPDATE aiotasks_task SET metadata = %s", [text])
    await run_to_the_end(asks, other)
    assert [error.exception_class_path for error in asks.errors] == ["aiotasks.exceptions.InvalidRow"]
    assert other.status == TaskResultStatus.SUCCESSFUL
    assert ledger.value("SELECT metadata::text FROM aiotasks_task WHERE id = %s", asks.id) == text


async def test_receivers_and_backoffs_see_what_is_stored(database: str) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    def receive(signal: Any, task_result: Any, **kwargs: Any) -> None:
        heard.append(("started" if signal is task_started else "finished", task_result.metadata))

    for each in (task_started, task_finished):
        each.connect(receive)
    try:
        await run_to_the_end(await tasks.asks_its_backoff.using(metadata={"a": 1}).aenqueue())
        await run_to_the_end(await tasks.notes.aenqueue("success"))
    finally:
        for each in (task_started, task_finished):
            each.disconnect(receive)
    noted = {"a": 1, "wait": 7}
    assert heard[:3] == [("started", {"a": 1}), ("started", noted), ("finished", noted)]
    assert heard[3:] == [("started", {}), ("finished", {"attempts": 1})]
    assert tasks.seen[0] == noted


# --- While a task runs


@BOTH
async def test_it_is_seen_while_the_task_runs(database: str, ledger: Ledger, lane: str) -> None:
    result = await of("saves_and_waits", lane).aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result) == {"saved": 1})
        await result.arefresh()
        assert (result.status, result.metadata) == (TaskResultStatus.RUNNING, {"saved": 1})
        tasks.released.set()
        await worker.wait_until_empty()
    assert stored(ledger, result) == {"saved": 1, "later": True}


async def test_the_tasks_of_a_worker_share_a_statement(database: str, saves: Saves) -> None:
    """All that have changed by the time of a pass."""
    results = await default_task_backend.aenqueue_many(
        tasks.keeps_saving, [((f"k{n}",), {}) for n in range(20)]
    )
    async with aiotasks.Worker(grace=5, concurrency=20) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: max(map(len, saves.writes), default=0) == 20)
        await until(lambda: all(len(saves.of(result)) >= 2 for result in results))
        tasks.released.set()
        await worker.wait_until_empty()
    for number, result in enumerate(results):
        await result.arefresh()
        assert postgres_result(result).metadata[f"k{number}"] == result.return_value


@BOTH
async def test_progress_is_written_ten_times_a_second_at_most_and_the_last_always(
    database: str, saves: Saves, lane: str
) -> None:
    began = asyncio.get_running_loop().time()
    (result,) = await run_to_the_end(await of("counts", lane).aenqueue(100_000))
    passes = (tasks.seen[0] - began) / INTERVAL + 1
    written = saves.of(result)
    assert len(written) <= passes + 1  # the last one, with the outcome
    progress = result.metadata["progress"]
    assert (progress["done"], progress["total"], progress["message"]) == (99_999, 100_000, "step 99999")
    assert progress["rate"] > 0
    assert written[-1]["progress"] == progress


@BOTH
async def test_a_progress_is_seen_though_no_other_follows(
    database: str, ledger: Ledger, saves: Saves, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    """One that was only noted, because it came while the one before was being saved."""
    monkeypatch.setattr(running_module, "monotonic", lambda: 1000.0)  # so that it is too early for another

    async def report_again() -> None:
        tasks.again.set()
        await until(lambda: tasks.seen)

    saves.before = report_again
    result = await of("reports_twice_and_waits", lane).aenqueue()
    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result).get("progress", {}).get("message") == "two")
        assert ledger.task(result.id).status == "RUNNING"
        tasks.released.set()
    assert [each["progress"]["done"] for each in saves.of(result)] == [1, 2]


@pytest.mark.parametrize("awaited", [None, 1, 2])
async def test_who_awaits_each_change_is_told_of_each_save(
    database: str, ledger: Ledger, conn: asyncpg.Connection, awaited: int | None
) -> None:
    told: list[str] = []
    await conn.add_listener("aiotasks_changed", lambda *args: told.append(args[-1]))
    result = await tasks.saves_and_waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result) == {"saved": 1})
        ledger.connection.execute("UPDATE aiotasks_task SET awaited = %s", [awaited])
        tasks.released.set()
        await worker.wait_until_empty()
        await worker.engine.resources.teller.all_sent()
    await conn.execute("SELECT pg_notify('aiotasks_changed', 'the last')")
    await until(lambda: "the last" in told)
    # Of the last save, which may come with that of the end.
    assert {*told} - {"the last"} == ({f'["{result.id}"]'} if awaited else set())
    assert len(told) <= 1 + (awaited or 0)
    await conn.reset()


async def test_a_save_that_is_awaited_is_told_of_while_the_task_runs(
    database: str, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    told: list[str] = []
    await conn.add_listener("aiotasks_changed", lambda *args: told.append(args[-1]))
    result = await tasks.keeps_saving.aenqueue("k")
    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result))
        ledger.connection.execute("UPDATE aiotasks_task SET awaited = 2")
        await until(lambda: len(told) >= 3)
        assert ledger.task(result.id).status == "RUNNING"
        tasks.released.set()
    assert {*told} == {f'["{result.id}"]'}
    await conn.reset()


# --- With others


async def test_children_write_into_their_parent(database: str) -> None:
    """What they have written until the parent's end is there: also what came after its last save."""
    parent = await tasks.has_children.aenqueue(20)
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()
    await parent.arefresh()
    children = {f"child {id}": "done" for id in parent.return_value}
    assert postgres_result(parent).metadata == {"mine": "after"} | children


async def test_owner_and_others_lose_nothing(database: str, saves: Saves) -> None:
    result = await tasks.keeps_saving.using(metadata={"first": 1}).aenqueue("own")
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: saves.writes)
        for number in range(50):
            await default_task_backend.asave_metadata(result, {f"o{number}": number})
            await asyncio.sleep(0)
        await until(lambda: any(a.changed for answers in saves.answers for a in answers.values()))
        tasks.released.set()
        await worker.wait_until_empty()
    await result.arefresh()
    metadata = postgres_result(result).metadata
    assert metadata["own"] == result.return_value
    assert {key: metadata[key] for key in metadata if not key.startswith("own")} == {
        "first": 1,
        **{f"o{number}": number for number in range(50)},
    }


@BOTH
async def test_a_fenced_attempt_overwrites_nothing(
    database: str, ledger: Ledger, saves: Saves, lane: str
) -> None:
    """Another worker has taken the task, which the first one doesn't know: neither its save nor its end
    counts.
    """
    result = await of("saves_and_waits", lane).aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result) == {"saved": 1})
        await until(lambda: len(saves.answers) == len(saves.writes))
        ledger.connection.execute(
            """UPDATE aiotasks_task SET claim_id = %s, metadata = '{"newer": true}' WHERE id = %s""",
            [uuid4(), result.id],
        )
        tasks.released.set()
        await until(lambda: worker.engine.finisher.fenced == 1)
        assert (saves.of(result)[-1], saves.answers[-1]) == ({"saved": 1, "later": True}, {})
        assert stored(ledger, result) == {"newer": True}
        ledger.connection.execute("DELETE FROM aiotasks_task")


# --- The outcome comes after the save


async def test_an_outcome_waits_for_the_save_under_way(
    database: str, saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would meet the lock of its own row."""
    order: list[str] = []
    going_on = asyncio.Event()
    finish = OutcomeStatements.finish_jobs

    async def finished(self: Any, finishes: Any) -> Any:
        done = await finish(self, finishes)
        if done.at:  # a worker's first sessions finish nothing, to have the statement planned
            order.append("finish")
        return done

    async def wait() -> None:
        order.append("save")
        await going_on.wait()

    monkeypatch.setattr(OutcomeStatements, "finish_jobs", finished)
    saves.before = wait
    result = await tasks.saves_and_waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: order == ["save"])
        tasks.released.set()
        await until(lambda: worker.engine.finisher.pending)
        other = await plain_tasks.add.aenqueue(1, 2)  # is held up by neither
        await until(lambda: order == ["save", "finish"])
        await other.arefresh()
        assert other.is_finished
        going_on.set()
        await worker.wait_until_empty()
    assert order == ["save", "finish", "save", "finish"]
    await result.arefresh()
    assert postgres_result(result).metadata == {"saved": 1, "later": True}


async def test_a_lock_on_its_row_delays_the_end_of_a_task_alone(
    database: str, conn: asyncpg.Connection, saves: Saves
) -> None:
    result = await tasks.saves_and_waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: saves.answers)
        async with conn.transaction():
            await conn.execute(
                """UPDATE aiotasks_task SET metadata = '{"theirs": 1}' WHERE id = $1""", UUID(result.id)
            )
            tasks.released.set()
            await until(lambda: len(saves.answers) >= 2)
            (answer,) = saves.answers[-1].values()
            assert not answer.written
            await run_beside(worker)
            assert worker.engine.finisher.pending
        await worker.wait_until_empty()
    await result.arefresh()
    # What it has saved before, and hasn't changed since, was theirs to remove.
    assert postgres_result(result).metadata == {"theirs": 1, "later": True}


async def run_beside(worker: aiotasks.Worker) -> None:
    """Other tasks run, with metadata of their own."""
    other = await tasks.notes.aenqueue("success")

    async def ended() -> bool:
        await other.arefresh()
        return other.is_finished

    await until(ended)
    assert postgres_result(other).metadata == {"attempts": 1}


async def test_a_database_that_is_away_is_waited_for(
    database: str, saves: Saves, caplog: pytest.LogCaptureFixture
) -> None:
    fails = 3

    async def fail() -> None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise utils.InterfaceError("connection was closed")

    saves.before = fail
    result = await tasks.notes.aenqueue("success")
    with caplog.at_level(logging.INFO, "aiotasks.worker"):
        (result,) = await run_to_the_end(result)
    assert result.metadata == {"attempts": 1}
    assert "Outage began: metadata waits for the database part='metadata'" in caplog.text
    assert "Outage ended part='metadata'" in caplog.text


async def test_a_write_whose_reply_was_lost_is_recognised(database: str, saves: Saves) -> None:
    saved = MetadataStatements.save_metadata
    lost = 1

    async def lose_reply(self: Any, writes: Any) -> Any:
        nonlocal lost
        answers = await saved(self, writes)
        lost -= 1
        if lost >= 0:
            raise utils.InterfaceError("connection was closed")
        return answers

    MetadataStatements.save_metadata = lose_reply  # type: ignore[method-assign]
    try:
        (result,) = await run_to_the_end(await tasks.notes.using(metadata={"a": 1}).aenqueue("success"))
    finally:
        MetadataStatements.save_metadata = saved  # type: ignore[method-assign]
    assert result.metadata == {"a": 1, "attempts": 1}
    assert [answer.changed for answers in saves.answers for answer in answers.values()] == [False, True]


async def test_what_the_database_refuses_holds_up_no_other(
    database: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.connection.execute(
        """ALTER TABLE aiotasks_task ADD CONSTRAINT no_fives CHECK (metadata->>'saved' <> '5')"""
    )
    try:
        results = [await tasks.saves_and_waits.aenqueue(number) for number in range(10)]
        async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
            await until(lambda: all(stored(ledger, r) for n, r in enumerate(results) if n != 5))
            tasks.released.set()
            await worker.wait_until_empty()
    finally:
        ledger.connection.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT no_fives")
    assert ledger.statuses() == {"SUCCESSFUL": 10}
    assert [stored(ledger, result) for result in results] == [
        {} if number == 5 else {"saved": number, "later": True} for number in range(10)
    ]
    assert "Metadata could not be saved; the task has those of its last save" in caplog.text


async def test_a_statement_that_the_database_refuses_keeps_no_outcome_waiting(
    database: str, ledger: Ledger, saves: Saves, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that runs has its metadata saved once the database takes them."""

    async def refuse() -> None:
        raise utils.ProgrammingError("permission denied") from asyncpg.InsufficientPrivilegeError("denied")

    saves.before = refuse
    running = await tasks.saves_and_waits.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        ended = await tasks.notes.aenqueue("success")
        await until(lambda: ledger.task(ended.id).status == "SUCCESSFUL")
        await until(lambda: len(saves.of(running)) >= 2)
        assert stored(ledger, ended) == stored(ledger, running) == {}
        assert f"those of its last save id={ended.id} error='ProgrammingError: permission" in caplog.text
        assert f"last save id={running.id}" not in caplog.text
        saves.before = saves.nothing
        await until(lambda: stored(ledger, running) == {"saved": 1})
        tasks.released.set()
        await worker.wait_until_empty()
    assert ledger.statuses() == {"SUCCESSFUL": 2}


async def test_metadata_of_both_sides_that_are_too_large_leave_the_row(
    database: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    result = await tasks.saves_and_waits.aenqueue("b" * 40_000)
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: stored(ledger, result))
        ledger.connection.execute("UPDATE aiotasks_task SET metadata = %s", [json.dumps({"a": "o" * 65_520})])
        tasks.released.set()
        await worker.wait_until_empty()
    assert ledger.statuses() == {"SUCCESSFUL": 1}
    assert stored(ledger, result) == {"a": "o" * 65_520}
    assert caplog.text.count("would take 65541 bytes as JSON; the limit is 65536") == 1


class SlowStore:
    """In place of a Store: a statement of more than two rows times out."""

    def __init__(self) -> None:
        self.writes: list[list[MetadataWrite]] = []

    async def save_metadata(self, writes: list[MetadataWrite]) -> dict[UUID, MetadataAnswer]:
        self.writes.append(list(writes))
        await asyncio.sleep(0)
        if len(writes) > 2:
            raise utils.OperationalError("too slow") from TimeoutError()
        return {write.id: MetadataAnswer(True, False, None, None) for write in writes}


async def test_a_statement_that_times_out_is_split() -> None:
    store: Any = SlowStore()
    saver = MetadataSaver(store)
    left = 5
    all_saved = asyncio.Event()

    def saved() -> None:
        nonlocal left
        left -= 1
        if not left:
            all_saved.set()

    for number in range(5):
        metadata = RunningMetadata(uuid4(), uuid4(), None, saver)
        metadata.values["a"] = number
        assert not saver.is_saved(metadata, saved)
    async with asyncio.timeout(TIMEOUT):
        await all_saved.wait()
    assert sorted(json.loads(w.text or "")["a"] for some in store.writes if len(some) <= 2 for w in some) == [
        *range(5)
    ]


async def test_a_statement_has_no_more_than_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "FLUSH_SIZE", 2500)
    store: Any = LockedRow(tries=0)
    saver = MetadataSaver(store)
    left: list[RunningMetadata] = []
    for _ in range(5):
        metadata = RunningMetadata(uuid4(), uuid4(), None, saver)
        metadata.values["a"] = "x" * 1000
        left.append(metadata)
        assert not saver.is_saved(metadata, partial(left.remove, metadata))
    await until(lambda: not left)
    assert [len(writes) for writes in store.writes] == [2, 2, 1]


class LockedRow:
    """In place of a Store: the row is locked for the first tries."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.writes: list[list[MetadataWrite]] = []

    async def save_metadata(self, writes: list[MetadataWrite]) -> dict[UUID, MetadataAnswer]:
        self.writes.append(list(writes))
        await asyncio.sleep(0)
        is_free = len(self.writes) > self.tries
        return {write.id: MetadataAnswer(is_free, False, None, None) for write in writes}


async def test_a_late_wish_to_save_is_ignored() -> None:
    """Of a thread, while the last state of its attempt is being written, or after that."""
    store: Any = LockedRow(tries=2)
    saver = MetadataSaver(store)
    metadata = RunningMetadata(uuid4(), uuid4(), None, saver)
    metadata.values["a"] = 1
    saved = asyncio.Event()
    assert not saver.is_saved(metadata, saved.set)
    await until(lambda: saver._locked)
    saver.save_soon(metadata)
    assert saver._due == set()
    await saved.wait()
    assert saver.is_saved(metadata, saved.set)
    saver.save_soon(metadata)
    assert [len(writes) for writes in store.writes] == [1, 1, 1]
    assert (saver._due, saver._under_way, saver._ending, saver._locked) == (set(), set(), {}, set())


# --- Attempts that others end


async def test_a_shutdown_takes_it_back_to_the_row(database: str, ledger: Ledger) -> None:
    result = await tasks.waits_forever.aenqueue()
    async with aiotasks.Worker(grace=0.01), asyncio.timeout(TIMEOUT):
        await until(lambda: tasks.seen)
    assert (ledger.task(result.id).status, stored(ledger, result)) == ("READY", {"began": True})


async def test_a_cancel_leaves_it(database: str, ledger: Ledger) -> None:
    result = await tasks.waits_forever.aenqueue()
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await until(lambda: tasks.seen)
        assert await postgres_result(result).acancel()
        await worker.wait_until_empty()
    assert (ledger.task(result.id).status, stored(ledger, result)) == ("FAILED", {"began": True})


async def test_a_thread_that_goes_on_after_its_timeout_changes_nothing_more(
    database: str, ledger: Ledger, saves: Saves
) -> None:
    result = await tasks.outlasts.aenqueue()
    async with aiotasks.Worker(grace=5), asyncio.timeout(TIMEOUT):
        await until(lambda: ledger.task(result.id).status == "FAILED")
        assert stored(ledger, result) == {"before": True}
        number = len(saves.writes)
        tasks.released.set()
        await until(lambda: tasks.seen[-1] == "ended")
        await plain_tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.statuses() == {"FAILED": 1, "SUCCESSFUL": 1})
    assert (len(saves.writes), stored(ledger, result)) == (number, {"before": True})


async def test_a_thread_that_outlasts_its_worker_has_its_metadata_saved(
    configure: Configure, ledger: Ledger
) -> None:
    """From the heartbeat's loop, which keeps the lease until then."""
    configure(LEASE_TIMEOUT=3, POLL_INTERVAL=0.2)
    result = await tasks.saves_and_waits_sync.aenqueue(5)
    async with aiotasks.Worker(grace=0), asyncio.timeout(TIMEOUT):
        await until(lambda: tasks.seen)
    assert ledger.task(result.id).status == "RUNNING"
    tasks.released.set()
    await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert stored(ledger, result) == {"saved": 5, "later": True}
    await until(lambda: ledger.workers() == 0)


def test_what_a_worker_gives_back_whose_loop_hangs_has_its_metadata(
    start_worker: Start, ledger: Ledger
) -> None:
    worker = start_worker("--concurrency", "5", options={"LOOP_TIMEOUT": 1, "LEASE_TIMEOUT": 600})
    results = [task.enqueue() for task in (tasks.waits_forever, tasks.saves_and_waits_sync)]
    wait_until(lambda: stored(ledger, results[1]) == {"saved": 1})
    wait_until(lambda: ledger.task(results[0].id).status == "RUNNING")
    culprit = plain_tasks.hang.enqueue()
    assert worker.wait() == 1
    assert [ledger.task(result.id).status for result in (culprit, *results)] == ["RUNNING", "READY", "READY"]
    assert stored(ledger, results[0]) == {"began": True}
    assert stored(ledger, results[1]) == {"saved": 1, "later": True}


@pytest.mark.parametrize("task", ["is_killed_while_it_saves", "kills_its_worker"])
def test_a_worker_that_is_killed_leaves_what_was_saved(
    start_worker: Start, ledger: Ledger, task: str
) -> None:
    """The next attempt goes on with it, and only under its own claim."""
    options = {"LEASE_TIMEOUT": 2.0, "POLL_INTERVAL": 0.5}
    result = getattr(tasks, task).using(metadata={"given": 1}).enqueue()
    first = start_worker("--concurrency", "1", options=options, ready=False)
    if task == "is_killed_while_it_saves":
        wait_until(lambda: stored(ledger, result).get("progress", {}).get("done", 0) > 50)
        first.send(signal.SIGKILL)
    first.wait()
    saved = stored(ledger, result)
    second = start_worker("--concurrency", "1", options=options)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert second.stop() == 0
    assert saved["given"] == 1
    assert ledger.task(result.id).return_value == saved
    assert "never saved" not in saved
    assert len(ledger.task(result.id).worker_ids) == 2


# --- Elsewhere


async def test_a_drain_saves_it_too(database: str) -> None:
    results = [
        await task.using(metadata={"a": 1}).aenqueue("success") for task in (tasks.notes, tasks.notes_sync)
    ]
    results.append(await tasks.counts.aenqueue(20_000))
    assert await adrain() == 3
    for result in results:
        await result.arefresh()
    assert [postgres_result(each).metadata for each in results[:2]] == [{"a": 1, "attempts": 1}] * 2
    assert postgres_result(results[2]).metadata["progress"]["done"] == 19_999


async def test_a_context_of_no_attempt_has_none() -> None:
    context = aiotasks.PostgresTaskContext(task_result=object())  # type: ignore[arg-type]
    for call in (context.save_metadata, lambda: context.metadata, lambda: context.progress(1, 2)):
        with pytest.raises(RuntimeError, match="belongs to no running attempt"):
            call()


async def run_a_worker() -> None:
    async with aiotasks.Worker(grace=5) as worker, asyncio.timeout(TIMEOUT):
        await worker.wait_until_empty()


async def test_the_page_on_metadata(database: str) -> None:
    with example("howto/metadata.md") as page:
        await page.run(read=lambda path: ["one", "two"], store=tasks.seen.append)
        await page.run()
        await run_a_worker()
        await page.run()
        assert page.blocks == []
        assert page.result.metadata == {"for": "ann", "files": ["a.csv"], "lines": 2, "seen by": "ops"}


async def test_the_page_on_progress(database: str) -> None:
    with example("howto/progress.md") as page:
        await page.run(resize=tasks.seen.append)
        await page.run(run_a_worker=run_a_worker)
        assert page.blocks == []
        assert set(page.progress) == {"done", "total", "message", "rate", "eta"}
