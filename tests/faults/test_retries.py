"""Tasks that are tried again, under faults: lost replies, fences, locks, old releases, and random fates."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.db import utils
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from aiotasks.backend import PostgresBackend
from aiotasks.conf import Options
from aiotasks.db.statement import Statement
from aiotasks.rows import Job, Status
from aiotasks.store.bulk import Meant
from aiotasks.store.loop import close_pools, resources
from aiotasks.store.outcomes import Finish, OutcomeStatements, Release
from aiotasks.store.store import Store
from aiotasks.store.wakeups import Wakeup
from aiotasks.worker import waker as waker_module
from aiotasks.worker.build import Builder
from aiotasks.worker.events import EventLog, Observer
from aiotasks.worker.execution import Execution
from aiotasks.worker.outcomes import Failed, Outcome, Retried, Snoozed, Succeeded
from aiotasks.worker.running.orm_threads import OrmThreads
from aiotasks.worker.waker import Waker
from aiotasks.worker.writing.finisher import Finisher
from tests.site import default_task_backend, running_store
from tests.store.rows import (
    CANCELLED,
    WORKER_LOST,
    claim,
    claim_of,
    claimed,
    expire,
    insert,
    lane,
    rescue,
    row,
    worker,
)
from tests.worker.harness import Configure, until

ERROR = json.dumps({"class": "builtins.ValueError", "traceback": "ValueError: no\n"})


@pytest.fixture
async def store(configure: Configure) -> Any:
    configure()
    yield running_store()
    await close_pools()


class Recorder(Observer):
    def __init__(self) -> None:
        self.retries: list[UUID] = []
        self.rejected: list[UUID] = []

    def retried(self, job: Job, outcome: Retried, seconds: float | None) -> None:
        self.retries.append(job.id)

    def fenced(self, job: Job, outcome: Outcome) -> None:
        self.rejected.append(job.id)


class Writer:
    """A finisher, and what it has told others."""

    def __init__(self, options: Options | None = None) -> None:
        self.wakeups: list[Wakeup] = []
        self.seen = Recorder()
        builder = Builder(
            backend="default",
            sender=PostgresBackend,
            options=options or default_task_backend.config,
            observer=self.seen,
        )
        self.finisher: Finisher = builder.finisher(
            running_store(), make_context=OrmThreads(1, limit=1).session, wake=self.wakeups.extend
        )

    async def write(self, *outcomes: tuple[Job, Outcome]) -> None:
        for job, outcome in outcomes:
            execution = Execution(job)
            execution.outcome = outcome
            self.finisher.finish(execution)
        assert await self.finisher.wait_idle(10)


def retried(delay: float = 60.0) -> Retried:
    return Retried(delay, Failed(ValueError("no"), ERROR), 1, 3)


@pytest.fixture
async def other(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "commits later"])
@pytest.mark.parametrize("name", ["release_jobs", "finish_jobs"])
async def test_a_write_whose_reply_was_lost_is_one(
    store: Store,
    conn: asyncpg.Connection,
    other: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    committed: bool,
) -> None:
    """A repeated release finds nothing, because the row has no claim id any more. A repeated statement finds
    the row locked while the server hasn't committed the first one."""
    _, (job,) = await claimed(store)
    write = getattr(store, name)
    transaction = other.transaction()
    await transaction.start()
    looks = 0

    async def lose_the_reply(rows: Any) -> Any:
        if committed:
            await write(rows)
        else:
            unseen = await write_unseen(rows)
            assert unseen.at if name == "finish_jobs" else unseen
        monkeypatch.setattr(store, name, count)
        raise utils.OperationalError("the connection was lost")

    async def fetch(statement: Statement, *args: Any, timeout: float | None) -> Any:
        return await other.fetch(statement.sql, *args)

    driver: Any = SimpleNamespace(fetch=fetch)
    write_unseen = getattr(OutcomeStatements(driver), name)

    async def count(rows: Any) -> Any:
        nonlocal looks
        looks += 1
        return await write(rows)

    monkeypatch.setattr(store, name, lose_the_reply)
    writer = Writer()
    execution = Execution(job)
    execution.outcome = retried() if name == "release_jobs" else Succeeded(1, "1")
    writer.finisher.finish(execution)
    if not committed:
        await until(lambda: looks > 1)  # the lock is noticed, and forgotten
        assert (writer.finisher.retried, writer.finisher.succeeded, writer.finisher.fenced) == (0, 0, 0)
    await transaction.commit()
    assert await writer.finisher.wait_idle(10)
    assert writer.finisher.fenced == 0
    stored = await row(conn, job.id)
    if name == "finish_jobs":
        assert (writer.finisher.succeeded, stored["status"]) == (1, "SUCCESSFUL")
        return
    assert writer.finisher.retried == 1
    assert writer.seen.retries == [job.id]
    assert (stored["failures"], len(stored["errors"])) == (1, 1)
    assert [wakeup.due is not None for wakeup in writer.wakeups] == [True]  # others wait for it, too


async def test_retries_beside_one_that_the_database_refuses_count_once(
    store: Store, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch that was split by a time-out the first half is written, when the second one fails."""
    _, jobs = await claimed(store, 4)
    release_jobs = store.release_jobs

    async def time_out(releases: Any) -> Any:
        monkeypatch.setattr(store, "release_jobs", release_jobs)
        raise utils.OperationalError("no answer") from TimeoutError()

    monkeypatch.setattr(store, "release_jobs", time_out)
    refused = Failed(ValueError("no"), "not JSON")
    writer = Writer()
    await writer.write(*((job, retried()) for job in jobs[:3]), (jobs[3], Retried(60.0, refused, 1, 3)))
    assert (writer.finisher.retried, writer.finisher.fenced) == (3, 0)
    assert sorted(writer.seen.retries) == sorted(job.id for job in jobs[:3])


async def test_a_retry_that_comes_too_late_is_fenced(store: Store, conn: asyncpg.Connection) -> None:
    worker_id, (job,) = await claimed(store)
    await expire(conn, worker_id)
    await rescue(store)
    before = await row(conn, job.id)
    writer = Writer()
    await writer.write((job, retried()))
    assert (writer.finisher.retried, writer.finisher.fenced) == (0, 1)
    assert (writer.seen.retries, writer.seen.rejected) == ([], [job.id])
    assert writer.wakeups == []
    assert await row(conn, job.id) == before


async def test_refusals_end_the_task_with_the_right_error(store: Store, conn: asyncpg.Connection) -> None:
    _, jobs = await claimed(store, 4, expires=60.0)
    cancelled, cancelled_snooze, late, late_snooze = jobs
    await store.cancel_jobs([cancelled.id, cancelled_snooze.id], "default", CANCELLED)
    own, expired = Failed(ValueError("no"), ERROR), Failed(ValueError("late"), CANCELLED)
    writer = Writer()
    await writer.write(
        (cancelled, Retried(1.0, own, 1, 3)),
        (cancelled_snooze, Snoozed(1.0, expired)),
        (late, Retried(3600.0, own, 1, 3)),
        (late_snooze, Snoozed(3600.0, expired)),
    )
    stored = [await row(conn, job.id) for job in jobs]
    assert [one["status"] for one in stored] == ["FAILED"] * 4
    classes = [json.loads(one["errors"][0])["class"].rpartition(".")[2] for one in stored]
    assert classes == ["ValueError", "TaskCancelled", "ValueError", "TaskCancelled"]
    assert [json.loads(one["errors"][0])["traceback"] for one in stored][3] == "cancelled"
    assert (writer.finisher.failed, writer.finisher.retried, writer.finisher.fenced) == (4, 0, 0)


async def test_a_retry_of_a_locked_row_waits_alone(
    store: Store, conn: asyncpg.Connection, database: str
) -> None:
    _, (locked, free) = await claimed(store, 2)
    other = await asyncpg.connect(database)
    writer = Writer()
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE aiotasks_task SET priority = 1 WHERE id = $1", locked.id)
        for job in (locked, free):
            execution = Execution(job)
            execution.outcome = retried()
            writer.finisher.finish(execution)
        await until(lambda: writer.finisher.retried > 0)
        assert writer.seen.retries == [free.id]
        await transaction.commit()
        assert await writer.finisher.wait_idle(10)
    finally:
        await other.close()
    assert writer.seen.retries == [free.id, locked.id]
    assert (await row(conn, locked.id))["failures"] == 1


async def test_a_finish_that_fails_beside_a_retry_does_not_count_it_twice(
    store: Store, conn: asyncpg.Connection
) -> None:
    """The batch is split, and written again: its retry has been stored by then."""
    _, (again, done, refused) = await claimed(store, 3)
    writer = Writer()
    await writer.write((again, retried()), (done, Succeeded(1, "1")), (refused, Succeeded("\0", "not JSON")))
    assert (writer.finisher.retried, writer.finisher.fenced) == (1, 0)
    assert (writer.finisher.succeeded, writer.finisher.failed) == (1, 1)
    assert (await row(conn, again.id))["failures"] == 1


async def test_one_wake_up_a_queue_and_batch_of_the_earliest(store: Store) -> None:
    worker_id = await worker(store)
    await insert(store, 3, queue_name="a")
    await insert(store, 2, queue_name="b")
    jobs = await claim(store, worker_id, loop=lane(["a", "b"]))
    jobs.sort(key=lambda job: job.queue_name)
    delays = [30.0, 10.0, 0.0, 0.0, 20.0]
    writer = Writer()
    await writer.write(*((job, retried(delay)) for job, delay in zip(jobs, delays, strict=True)))
    told = sorted((wakeup.queue_name, wakeup.due is not None) for wakeup in writer.wakeups)
    assert told == [("a", False), ("a", True), ("b", False), ("b", True)]
    (a,) = [wakeup.due for wakeup in writer.wakeups if wakeup.queue_name == "a" and wakeup.due]
    (b,) = [wakeup.due for wakeup in writer.wakeups if wakeup.queue_name == "b" and wakeup.due]
    assert a < b


async def test_nobody_is_told_of_what_is_due_after_one_that_was_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    told: list[Wakeup] = []
    looks: list[float | None] = []
    monkeypatch.setattr(waker_module, "time", SimpleNamespace(time=lambda: now))
    notifier: Any = SimpleNamespace(notifier=SimpleNamespace(notify=told.extend))
    monkeypatch.setattr(waker_module, "resources", lambda options: notifier)
    waker = Waker(resources(default_task_backend.config), "default", listens=True)
    parts: Any = SimpleNamespace(look=looks.append, wake=lambda wakeup: None)
    waker.connect(parts, parts, parts, parts)

    def wake(due: float, queue: str = "q") -> bool:
        told.clear()
        waker.wake([Wakeup("default", queue, due)])
        return bool(told)

    assert wake(now + 10)
    assert not wake(now + 20)  # they look at 10, and find this one
    assert wake(now + 20, "other")
    assert wake(now + 5)
    assert not wake(now + 8)
    now += 6
    assert wake(now + 100)  # the one they looked for has been due
    assert wake(now + 50)
    assert looks == [1010.0, 1020.0, 1020.0, 1005.0, 1008.0, 1106.0, 1056.0]  # its own promoter knows of all
    monkeypatch.setattr(waker_module, "MOST_ANNOUNCED", 2)
    assert all(wake(now + 10, f"q{number}") for number in range(10))  # more queues than are remembered


# --- Random fates

MOST = 3
CRASHES = 4
FATES = (
    "succeed",
    "fail",
    "fail_at_once",
    "snooze",
    "stop",
    "crash",
    "cancel",
    "hand_retry",
    "expire",
    "zombie",
)


class Fate:
    """One task, what happens to it, and what must be true of its row afterwards."""

    def __init__(self, store: Store, conn: asyncpg.Connection, id: UUID) -> None:
        self._store = store
        self._conn = conn
        self._id = id
        self.attempts = 0
        self.errors = 0
        self.crashes = 0
        self.failures = 0
        self.snoozes = 0
        self.former: list[Job] = []

    async def happen(self, what: str) -> None:
        await getattr(self, f"_{what}")()
        await self.check()

    async def _claim(self) -> Job | None:
        await self._conn.execute(
            "UPDATE aiotasks_task SET run_after = clock_timestamp() WHERE status = 'SCHEDULED'"
        )
        await self._store.promote_due_jobs("default", 10)
        self._worker = await worker(self._store)
        jobs = await claim(self._store, self._worker) or await self._store.claim_suspect(
            self._worker, uuid4(), "default", "loop", None
        )
        if not jobs:
            return None
        (job,) = jobs
        self.attempts += 1
        assert (job.failures or 0, len(job.worker_ids)) == (self.failures, self.attempts)
        self.former.append(job)
        return job

    async def _succeed(self) -> None:
        if job := await self._claim():
            finished = await self._store.finish_jobs([Finish(*claim_of(job), Status.SUCCESSFUL, "1", None)])
            assert finished.at

    async def _fail(self, delay: float = 5.0) -> None:
        if not (job := await self._claim()):
            return
        self.errors += 1
        if self.failures + 1 < MOST:
            released = await self._store.release_jobs([Release(*claim_of(job), delay, error=ERROR)])
            if released[job.id].queue_name is not None:
                self.failures += 1
                return
        assert (await self._store.finish_jobs([Finish(*claim_of(job), Status.FAILED, None, ERROR)])).at

    async def _fail_at_once(self) -> None:
        await self._fail(0.0)

    async def _snooze(self) -> None:
        if job := await self._claim():
            released = await self._store.release_jobs([Release(*claim_of(job), 5.0, snoozes=True)])
            if released[job.id].queue_name is not None:
                self.attempts -= 1
                self.snoozes += 1
                return
            self.errors += 1
            assert (await self._store.finish_jobs([Finish(*claim_of(job), Status.FAILED, None, ERROR)])).at

    async def _stop(self) -> None:
        if job := await self._claim():
            await self._store.release_jobs([Release(*claim_of(job), 0.0)])
            self.attempts -= 1

    async def _crash(self) -> None:
        if await self._claim():
            await expire(self._conn, self._worker)
            assert await rescue(self._store, CRASHES)
            self.errors += 1
            self.crashes += 1

    async def _cancel(self) -> None:
        if await self._store.cancel_jobs([self._id], "default", CANCELLED):
            self.errors += 1

    async def _hand_retry(self) -> None:
        """As an operator's retry does: attempts and crashes anew, the history stays."""
        changed = await self._store.retry_jobs([self._id], Meant("default", [Status.FAILED]))
        if changed:
            self.failures = self.crashes = 0

    async def _expire(self) -> None:
        """From here on no attempt may begin: not one that is due later."""
        await self._conn.execute(
            "UPDATE aiotasks_task SET expires_at = clock_timestamp() + interval '2 s' WHERE id = $1"
            " AND status IN ('READY', 'SCHEDULED')",
            self._id,
        )

    async def _zombie(self) -> None:
        """All former owners write once more, whatever they like."""
        before = await row(self._conn, self._id)
        for job in self.former:
            await self._store.release_jobs([Release(*claim_of(job), 5.0, error=ERROR)])
            await self._store.finish_jobs([Finish(*claim_of(job), Status.SUCCESSFUL, "2", None)])
        assert await row(self._conn, self._id) == before

    async def check(self) -> None:
        stored = await row(self._conn, self._id)
        assert len(stored["worker_ids"]) == self.attempts
        assert len(stored["errors"]) <= 41
        assert len(stored["errors"]) + (stored["errors_omitted"] or 0) == self.errors
        assert (stored["failures"] or 0) == self.failures < MOST
        assert stored["crashes"] == self.crashes <= CRASHES
        assert (stored["snoozes"] or 0) == self.snoozes
        assert (stored["finished_at"] is not None) == (stored["status"] in ("SUCCESSFUL", "FAILED"))
        assert (stored["ready_at"] is None) == (stored["status"] == "SCHEDULED") or stored["finished_at"]
        assert (stored["started_at"] is not None) == (self.attempts > 0)
        if stored["status"] in ("READY", "SCHEDULED"):
            assert (stored["claim_id"], stored["worker_id"]) == (None, None)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=14))
def test_whatever_happens_to_a_task_its_attempts_are_counted(database: str, fates: Sequence[str]) -> None:
    async def live() -> None:
        conn = await asyncpg.connect(database)
        try:
            await conn.execute("TRUNCATE aiotasks_task, aiotasks_worker")
            store = resources(Options()).store
            (id,) = await insert(store)
            fate = Fate(store, conn, id)
            for what in fates:
                await fate.happen(what)
        finally:
            with suppress(Exception):
                await conn.close()
            await close_pools()

    asyncio.run(live())


async def test_a_long_life_keeps_its_errors_bounded(store: Store, conn: asyncpg.Connection) -> None:
    (id,) = await insert(store)
    fate = Fate(store, conn, id)
    for _ in range(25):
        for what in ("fail", "crash", "fail_at_once", "snooze", "fail", "hand_retry", "zombie"):
            fate.former = fate.former[-3:]
            await getattr(fate, f"_{what}")()
    stored = await row(conn, id)
    assert len(stored["errors"]) <= 41
    assert len(stored["errors"]) + stored["errors_omitted"] == fate.errors > 80
    assert WORKER_LOST in stored["errors"]


def test_the_log_has_no_part_in_it() -> None:
    """EventLog leaves retries to the finisher, which has their traceback."""
    assert EventLog.retried is Observer.retried
