"""Who may write what: claims, fences, rescues and releases, against the real tables."""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from math import inf
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from django.db import utils
from django.tasks import TaskResultStatus, task_backends
from django.tasks.signals import task_finished

import aiotasks
from aiotasks.backend import PostgresBackend
from aiotasks.codec import dump_json
from aiotasks.conf import Options
from aiotasks.exceptions import WorkerLost
from aiotasks.rows import Job
from aiotasks.store.store import Store
from aiotasks.worker.build import Builder
from aiotasks.worker.events import EventLog
from aiotasks.worker.execution import Execution
from aiotasks.worker.maintenance.rescuer import Rescued, Rescuer
from aiotasks.worker.outcomes import Failed, Succeeded
from aiotasks.worker.running import failures, unknown_tasks
from aiotasks.worker.running.orm_threads import OrmThreads
from aiotasks.worker.writing.finisher import Finisher
from tests.site import default_task_backend, running_store
from tests.store import rows
from tests.worker import tasks
from tests.worker.harness import Configure, until


@pytest.fixture
def backend(database: str) -> PostgresBackend:
    return default_task_backend


async def register(lease: float = 60.0) -> UUID:
    return await rows.worker(running_store(), lease)


async def claim(worker_id: UUID, limit: int = 100) -> list[Job]:
    """Claim at most ``limit`` of each lane."""
    return await rows.claim(
        running_store(), worker_id, loop=rows.lane(slots=limit), thread=rows.lane(slots=limit)
    )


def make_rescuer(
    options: Options,
    worker_id: UUID,
    *,
    may_rescue: bool = True,
    held: Sequence[UUID | None] = (),
    claimed_at: float = -inf,
    wake: Callable[[Any], None] = lambda wakeups: None,
) -> Rescuer:
    lease: Any = SimpleNamespace(
        worker_id=worker_id, may_rescue=lambda: may_rescue, should_remain=lambda: 0.0
    )
    ownership: Any = SimpleNamespace(held_claims=lambda: set(held), claimed_at=lambda: claimed_at)
    waker: Any = SimpleNamespace(wake_after_rescue=wake, tell=lambda ids: None, try_keys=lambda jobs: None)
    lost_tasks: Any = SimpleNamespace(announce=lambda job, error: None)
    return Rescuer(
        running_store(),
        backend="default",
        options=options,
        lease=lease,
        ownership=ownership,
        waker=waker,
        lost_tasks=lost_tasks,
        observer=EventLog(),
    )


async def sweep(options: Options, **changes: Any) -> Rescued:
    """One sweep by a worker that is there for this alone."""
    worker_id = await register()
    rescued = await make_rescuer(options, worker_id, **changes).run_once()
    await running_store().remove_worker(worker_id)
    return rescued


def make_finisher(options: Options) -> Finisher:
    builder = Builder(backend="default", sender=PostgresBackend, options=options, observer=EventLog())
    return builder.finisher(running_store(), make_context=OrmThreads(1, limit=1).session)


async def finish(finisher: Finisher, job: Job, value: Any = "mine") -> None:
    execution = Execution(job)
    execution.outcome = Succeeded(value, f'"{value}"')
    finisher.finish(execution)
    assert await finisher.wait_idle(10)


async def test_a_claim_demands_a_live_lease(backend: PostgresBackend) -> None:
    """5."""
    await tasks.add.aenqueue(1, 2)
    assert await claim(uuid4()) == []  # never registered
    dead = await register(lease=0.0)
    assert await claim(dead) == []
    assert len(await claim(await register())) == 1


async def test_every_claim_has_a_claim_id_of_its_own(
    backend: PostgresBackend, conn: asyncpg.Connection
) -> None:
    """8: nor does a row that was given back keep the old one."""
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 2)
    worker = await register()
    (first,) = await claim(worker, limit=1)
    (second,) = await claim(worker, limit=1)
    assert first.claim_id != second.claim_id
    store = running_store()
    await rows.release(store, first)
    assert await conn.fetchval("SELECT claim_id FROM aiotasks_task WHERE id = $1", first.id) is None
    (again,) = await claim(worker)
    assert again.id == first.id
    assert again.claim_id not in (first.claim_id, second.claim_id)
    assert len(again.worker_ids) == 1


async def test_rescue_touches_only_what_a_dead_worker_runs(
    backend: PostgresBackend, conn: asyncpg.Connection
) -> None:
    """2: a finished row of a dead worker stays as it is."""
    results = await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 5)
    dead, alive = await register(), await register()
    done, failed, lost = [(await claim(dead, limit=1))[0] for _ in range(3)]
    (running,) = await claim(alive, limit=1)
    finisher = make_finisher(backend.config)
    await finish(finisher, done)
    execution = Execution(failed)
    execution.outcome = Failed(ValueError(), '{"class": "builtins.ValueError", "traceback": ""}')
    finisher.finish(execution)
    assert await finisher.wait_idle(10)
    await conn.execute(
        "UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s' WHERE id = $1", dead
    )
    query = "SELECT * FROM aiotasks_task WHERE id <> $1 ORDER BY id"
    before = await conn.fetch(query, lost.id)
    assert await sweep(backend.config) == Rescued(ready=1, workers=1)
    assert await conn.fetch(query, lost.id) == before
    row = await conn.fetchrow("SELECT * FROM aiotasks_task WHERE id = $1", lost.id)
    assert (row["status"], row["crashes"], row["claim_id"], row["worker_id"]) == ("READY", 1, None, None)
    assert await sweep(backend.config) == Rescued()
    assert {str(job.id) for job in (done, failed, lost, running)} < {result.id for result in results}


async def test_a_late_finish_of_a_rescued_task_is_fenced(
    backend: PostgresBackend, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """1, 54: whether it is READY again, RUNNING elsewhere, or FAILED for good."""
    await tasks.add.aenqueue(1, 2)
    finisher = make_finisher(backend.config)
    for crash in range(1, 4):
        worker = await register()
        if crash < 3:
            (job,) = await claim(worker)
        else:
            (job,) = await running_store().claim_suspect(worker, uuid4(), "default", "loop", ["default"])
        await conn.execute("DELETE FROM aiotasks_worker")
        rescued = await sweep(backend.config)
        assert rescued == (Rescued(failed=1) if crash == 3 else Rescued(ready=1))
        before = await conn.fetch("SELECT * FROM aiotasks_task")
        await finish(finisher, job)
        assert await conn.fetch("SELECT * FROM aiotasks_task") == before
        assert finisher.fenced == crash
    assert before[0]["status"] == "FAILED"
    assert caplog.text.count("Result rejected (fenced)") == 3


async def test_a_finish_whose_reply_was_lost_is_a_success(
    backend: PostgresBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9: repeating it finds its own result, and it isn't taken for a stranger's."""
    result = await tasks.add.aenqueue(1, 2)
    (job,) = await claim(await register())
    finisher = make_finisher(backend.config)
    store = running_store()
    finish_jobs = store.finish_jobs

    async def lose_the_reply(finishes: Any) -> Any:
        await finish_jobs(finishes)
        monkeypatch.setattr(store, "finish_jobs", finish_jobs)
        raise utils.OperationalError("the connection was lost")

    monkeypatch.setattr(store, "finish_jobs", lose_the_reply)
    await finish(finisher, job, "first")
    assert finisher.fenced == 0
    assert "fenced" not in caplog.text
    await result.arefresh()
    assert result.return_value == "first"
    # The same outcome once more, without a loss in between, is a stranger's.
    await finish(finisher, job, "second")
    assert finisher.fenced == 1
    await result.arefresh()
    assert result.return_value == "first"


async def test_a_repeated_finish_of_a_rescued_task_is_fenced(
    backend: PostgresBackend, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9, 54: a row that a rescue has made FAILED meanwhile isn't taken for one's own finish."""
    await tasks.kill_worker_fatally.aenqueue()
    (job,) = await claim(await register())
    finisher = make_finisher(backend.config)
    store = running_store()
    finish_jobs = store.finish_jobs

    async def lose_the_lease(finishes: Any) -> Any:
        monkeypatch.setattr(store, "finish_jobs", finish_jobs)
        await conn.execute("DELETE FROM aiotasks_worker")
        assert await sweep(backend.config) == Rescued(failed=1)
        raise utils.OperationalError("the connection was lost")

    monkeypatch.setattr(store, "finish_jobs", lose_the_lease)
    await finish(finisher, job)
    assert finisher.fenced == 1
    assert await conn.fetchval("SELECT status FROM aiotasks_task") == "FAILED"


@pytest.mark.parametrize("late_first", [True, False])
async def test_two_claims_of_one_task_are_told_apart_in_a_batch(
    backend: PostgresBackend, conn: asyncpg.Connection, late_first: bool
) -> None:
    """1, 8: the worker that lost the task has claimed it again itself, and both runs end together."""
    result = await tasks.add.aenqueue(1, 2)
    (first,) = await claim(await register())
    await conn.execute("DELETE FROM aiotasks_worker")
    assert (await sweep(backend.config)).ready == 1
    (second,) = await claim(await register())
    finisher = make_finisher(backend.config)
    executions = [Execution(first), Execution(second)]
    for execution, value in zip(executions, ("late", "in time"), strict=True):
        execution.outcome = Succeeded(value, f'"{value}"')
    batch = executions if late_first else executions[::-1]
    written = dict(zip(batch, await finisher.write_batch(batch), strict=True))
    await result.arefresh()
    assert result.return_value == "in time"
    assert [written[execution] for execution in executions] == [None, result.finished_at]
    assert finisher.fenced == 1


async def test_a_claim_without_a_reply_is_given_back(backend: PostgresBackend) -> None:
    """51: by the worker's own sweep, once the reply can't come any more; what it holds it keeps."""
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 3)
    options = Options(command_timeout=0.2)
    worker = await register()
    (held,) = await claim(worker, limit=1)
    lost = await claim(worker)
    woken: list[Any] = []
    rescuer = make_rescuer(
        options,
        worker,
        held=[held.claim_id],
        wake=woken.extend,
    )

    async def released() -> bool:
        await rescuer.release_lost_claims()
        return bool(woken)

    await until(released)
    assert [wakeup.queue_name for wakeup in woken] == ["default"]
    again = await claim(worker)
    assert {job.id for job in again} == {job.id for job in lost}
    assert all(len(job.worker_ids) == 1 for job in again)


async def test_a_fresh_claim_is_not_taken_for_a_lost_one(
    backend: PostgresBackend, conn: asyncpg.Connection
) -> None:
    """51: as long as its reply may still be on the way."""
    await tasks.add.aenqueue(1, 2)
    worker = await register()
    await claim(worker)
    rescuer = make_rescuer(backend.config, worker)
    await rescuer.release_lost_claims()
    assert await conn.fetchval("SELECT status FROM aiotasks_task") == "RUNNING"


async def test_who_claims_nothing_looks_for_no_lost_claims(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """51: from a claim on until its rows would have been found, and twice more; then every ten minutes."""
    options = Options(command_timeout=10.0)
    looks = 0
    now = 1000.0

    async def look(*args: Any) -> list[Any]:
        nonlocal looks
        looks += 1
        return []

    async def looks_of(rescuer: Rescuer, until: float) -> int:
        nonlocal looks, now
        looks = 0
        while now < until:
            await rescuer.release_lost_claims()
            now += 5.0
        return looks

    monkeypatch.setattr(Store, "release_lost_claims", look)
    monkeypatch.setattr("aiotasks.worker.maintenance.rescuer.time.monotonic", lambda: now)
    rescuer = make_rescuer(options, uuid4())
    assert await looks_of(rescuer, 1100.0) == 3
    rescuer = make_rescuer(options, uuid4(), claimed_at=1101.0)
    # Until 1111 rows may be too young, 1115 is the first look that finds all, and two more follow.
    assert await looks_of(rescuer, 1200.0) == 6
    assert await looks_of(rescuer, 1700.0) == 0
    assert await looks_of(rescuer, 2200.0) == 1
    rescuer = make_rescuer(options, uuid4(), held=[uuid4()])
    assert await looks_of(rescuer, 2700.0) == 100


@pytest.mark.parametrize("lane", ["loop", "thread"])
async def test_a_running_worker_gives_back_what_it_does_not_hold(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    """51, all of it: the reply of a claim is lost, the tasks run all the same, once."""
    configure(LEASE_TIMEOUT=6, COMMAND_TIMEOUT=0.5, POLL_INTERVAL=0.2)
    async with aiotasks.Worker() as worker:
        store = worker.engine.resources.store
        claim_jobs = store.claim_jobs

        async def lose_the_reply(*args: Any, **kwargs: Any) -> Any:
            if jobs := await claim_jobs(*args, **kwargs):
                monkeypatch.setattr(store, "claim_jobs", claim_jobs)
                raise utils.OperationalError("the connection was lost")
            return jobs

        monkeypatch.setattr(store, "claim_jobs", lose_the_reply)
        tasks.seen.clear()
        result = await (tasks.add if lane == "loop" else tasks.add_sync).aenqueue(1, 2)

        async def is_done() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(is_done)
    assert result.return_value == 3
    assert result.attempts == 1
    assert store.claim_jobs == claim_jobs


async def test_a_worker_row_removed_under_a_claim(backend: PostgresBackend, conn: asyncpg.Connection) -> None:
    """52: rescue starts from the tasks, so it finds what a removed worker had just claimed."""
    await tasks.add.aenqueue(1, 2)
    worker = await register()
    (job,) = await claim(worker)
    await conn.execute("DELETE FROM aiotasks_worker")
    assert await sweep(backend.config) == Rescued(ready=1)
    assert await conn.fetchval("SELECT status FROM aiotasks_task WHERE id = $1", job.id) == "READY"


async def test_a_dead_workers_row_stays_while_a_task_names_it(
    backend: PostgresBackend, conn: asyncpg.Connection
) -> None:
    await tasks.add.aenqueue(1, 2)
    worker = await register()
    await claim(worker)
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s'")
    store = running_store()
    assert await store.remove_dead_workers("default") == []
    # An outage is nobody's crash: a lease whose row still stands may be renewed.
    refused = await store.renew_lease(worker, 60.0)
    assert refused is not None
    assert not refused.renewed
    renewal = await store.renew_lease(worker, 60.0, even_expired=True)
    assert renewal is not None
    assert renewal.renewed
    assert await sweep(backend.config) == Rescued()


async def test_nobody_rescues_before_its_own_renewals_are_steady(
    backend: PostgresBackend, conn: asyncpg.Connection
) -> None:
    """53."""
    await tasks.add.aenqueue(1, 2)
    await claim(await register())
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s'")
    assert await sweep(backend.config, may_rescue=False) == Rescued()
    assert await conn.fetchval("SELECT status FROM aiotasks_task") == "RUNNING"


@pytest.mark.parametrize("number", [1, 3])
async def test_a_step_of_the_databases_clock_takes_no_task_away(
    configure: Configure, conn: asyncpg.Connection, number: int
) -> None:
    """11: all leases look expired at once, and the workers are well."""
    configure(LEASE_TIMEOUT=6, POLL_INTERVAL=0.2)
    tasks.seen.clear()
    names = [str(n) for n in range(number)]
    async with AsyncExitStack() as stack:
        workers = []
        for name in names:
            workers.append(await stack.enter_async_context(aiotasks.Worker(grace=5, concurrency=1)))
            await tasks.wait_for_release.using(max_crashes=0).aenqueue(name)
            await until(lambda: len(tasks.seen) >= len(workers))
        engines = [worker.engine for worker in workers]
        await until(lambda: all(engine.lease.may_rescue() for engine in engines))

        async def move(leases: str) -> None:
            """Move the leases' ends, between renewals: one that is under way as the clock steps writes a
            lease by the clock before, and here it would write one by the clock after.
            """
            await conn.execute(
                "LOCK TABLE aiotasks_worker IN SHARE ROW EXCLUSIVE MODE;"
                f"UPDATE aiotasks_worker SET lease_expires_at = clock_timestamp() + {leases}"
            )

        async def noticed(leases: str) -> bool:
            if any(not engine.lease.may_rescue() for engine in engines):
                return True
            await move(leases)
            return False

        step = "interval '-1 h'"
        await move(step)
        for engine in engines:  # before any renewal, after the first, and once all have renewed
            assert await engine.rescuer.run_once() == Rescued()
        await until(lambda: noticed(step))
        for engine in engines:
            assert await engine.rescuer.run_once() == Rescued()
        await until(lambda: all(engine.lease.may_rescue() for engine in engines))
        for engine in engines:
            assert await engine.rescuer.run_once() == Rescued()
        for engine in reversed(engines):  # a smaller step, which one of the leases has outlasted
            step = f"CASE WHEN id = '{engine.lease.worker_id}' THEN interval '1 s' ELSE interval '-1 s' END"
            await move(step)
            assert await engine.rescuer.run_once() == Rescued()
        await until(lambda: noticed(step))
        for engine in engines:
            assert await engine.rescuer.run_once() == Rescued()
        for name in names:
            tasks.waiting[name].set_result(None)
        await workers[0].wait_until_empty()
    rows = await conn.fetch("SELECT status, crashes, cardinality(worker_ids) FROM aiotasks_task")
    assert [tuple(row) for row in rows] == [("SUCCESSFUL", 0, 1)] * number


async def test_a_worker_whose_row_is_gone_registers_again(
    configure: Configure, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """52, 4: it cancels what it ran under the lost lease, and runs it again under the new one."""
    configure(LEASE_TIMEOUT=6, POLL_INTERVAL=0.2)
    tasks.seen.clear()
    async with aiotasks.Worker(grace=0) as worker:
        first = worker.engine.lease.worker_id
        result = await tasks.wait_for_release.aenqueue("removed")
        await until(lambda: tasks.seen)
        await conn.execute("DELETE FROM aiotasks_worker")
        await until(lambda: len(tasks.seen) >= 2)
        assert worker.engine.lease.worker_id not in (None, first)
        tasks.waiting["removed"].set_result(None)

        async def is_done() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(is_done)
        assert result.status == TaskResultStatus.SUCCESSFUL
        assert result.worker_ids[-1] == str(worker.engine.lease.worker_id)
    assert "reason=removed" in caplog.text


async def test_a_lease_that_can_not_be_renewed_is_given_up(
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4: the loop enforces the deadline while the heartbeat hangs; nothing is claimed without a lease."""
    configure(LEASE_TIMEOUT=3, POLL_INTERVAL=0.1)
    tasks.seen.clear()
    hang = False

    async def renew(self: Any, *args: Any, **kwargs: Any) -> Any:
        while hang:  # noqa: ASYNC110  # on the heartbeat's loop, not the test's
            await asyncio.sleep(0.01)
        return await original(self, *args, **kwargs)

    original = Store.renew_lease
    monkeypatch.setattr(Store, "renew_lease", renew)
    async with aiotasks.Worker(grace=0) as worker:
        await tasks.wait_for_release.aenqueue("held")
        await until(lambda: tasks.seen == ["held"])
        hang = True
        await until(lambda: worker.engine.lease.worker_id is None)
        await until(lambda: not worker.engine.runner.running)
        await until(lambda: "reason=expired" in caplog.text)
        await tasks.note.aenqueue("without a lease")
        for _ in range(5):
            assert await worker.engine.claimer.run_once() == 0
        assert tasks.seen == ["held"]
        hang = False
        await until(lambda: tasks.seen.count("held") >= 2 and "without a lease" in tasks.seen)


async def test_jobs_that_arrive_after_the_lease_are_dropped(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4: a claim whose reply took longer than the lease starts nothing."""
    configure(POLL_INTERVAL=0.1)
    tasks.seen.clear()
    async with aiotasks.Worker() as worker:
        lease = worker.engine.lease
        store = worker.engine.resources.store
        claim_jobs = store.claim_jobs
        seen = []

        async def late(*args: Any, **kwargs: Any) -> Any:
            jobs = await claim_jobs(*args, **kwargs)
            if jobs:
                seen.extend(jobs)
                if len(seen) == 1:
                    deadline, lease.deadline = lease.deadline, 0.0
                    asyncio.get_running_loop().call_later(0.2, setattr, lease, "deadline", deadline)
            return jobs

        monkeypatch.setattr(store, "claim_jobs", late)
        result = await tasks.note.aenqueue("late")
        await until(lambda: len(seen) >= 2)
        await until(lambda: tasks.seen == ["late"])

        async def is_done() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(is_done)
        assert result.attempts == 1
    assert tasks.seen == ["late"]


async def test_one_bad_value_fails_alone(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13: what PostgreSQL refuses fails its own task; the others of the batch finish."""

    def dump(value: Any, **keywords: Any) -> Any:
        plain, text = dump_json(value, **keywords)
        return plain, "no JSON at all" if value == "refused by the database" else text

    monkeypatch.setattr(failures, "dump_json", dump)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 20)
    await default_task_backend.aenqueue_many(tasks.refused_by_the_database, [((), {})] * 2)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 20)
    async with aiotasks.Worker() as worker:
        await worker.wait_until_empty()
        await tasks.add.aenqueue(3, 4)  # it is still alive
        await worker.wait_until_empty()
    assert dict(await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1")) == {
        "SUCCESSFUL": 41,
        "FAILED": 2,
    }
    errors = await conn.fetch("SELECT errors[1]::text AS error FROM aiotasks_task WHERE status = 'FAILED'")
    assert all("DataError" in row["error"] and "json" in row["error"] for row in errors)


async def test_a_claim_never_exceeds_the_free_slots(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10: nothing waits inside a worker."""
    tasks.seen.clear()
    await default_task_backend.aenqueue_many(tasks.count_parallel, [((0.01,), {})] * 60)
    await default_task_backend.aenqueue_many(tasks.count_parallel_sync, [((0.01,), {})] * 20)
    claimed = []
    async with aiotasks.Worker(concurrency=7, threads=3) as worker:
        store = worker.engine.resources.store
        claim_jobs = store.claim_jobs

        async def watch(*args: Any, **kwargs: Any) -> Any:
            running = {lane: worker.engine.slots.taken(lane) for lane in ("loop", "thread")}
            jobs = await claim_jobs(*args, **kwargs)
            claimed.append(max(sum(job.lane == lane for job in jobs) + running[lane] for lane in running))
            assert sum(job.lane == "loop" for job in jobs) <= 7 - running["loop"]
            assert sum(job.lane == "thread" for job in jobs) <= 3 - running["thread"]
            return jobs

        monkeypatch.setattr(store, "claim_jobs", watch)
        await worker.wait_until_empty()
    assert len(tasks.seen) == 80
    assert max(tasks.seen) <= 10


async def test_the_rescuer_sends_task_finished(
    configure: Configure, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """7: for the task that it fails, with the stored result and the error. Nobody knows how long it ran."""
    configure(LEASE_TIMEOUT=1)
    result = await tasks.kill_worker_fatally.aenqueue()
    await claim(await register())
    await conn.execute("UPDATE aiotasks_worker SET lease_expires_at = now() - interval '1 s'")
    told = []

    def receiver(sender: type, task_result: Any, **kwargs: Any) -> None:
        told.append((sender, task_result.id, task_result.status, task_result.finished_at, sys.exc_info()[0]))

    task_finished.connect(receiver)
    try:
        async with aiotasks.Worker():
            await until(lambda: told)
    finally:
        task_finished.disconnect(receiver)
    await result.arefresh()
    assert told == [(PostgresBackend, result.id, TaskResultStatus.FAILED, result.finished_at, WorkerLost)]
    assert f"{result.task.module_path} failed id={result.id} queue=default attempt=1 wait=" in caplog.text


async def test_a_rescue_that_only_loggers_hear_is_logged(
    configure: Configure, conn: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    configure(LEASE_TIMEOUT=1)
    result = await tasks.kill_worker_fatally.aenqueue()
    await claim(await register())
    await conn.execute("DELETE FROM aiotasks_worker")
    with caplog.at_level(logging.INFO, "django.tasks"):
        async with aiotasks.Worker():
            await until(lambda: f"id={result.id}" in caplog.text and "state=FAILED" in caplog.text)


async def test_an_unknown_task_is_put_off_and_fails_after_its_window(
    configure: Configure,
    conn: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """43: no attempt is spent while a deploy may still bring it."""
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_DELAY", 0.1)
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_WINDOW", 0.5)
    result = await tasks.add.aenqueue(1, 2)
    await conn.execute("UPDATE aiotasks_task SET task_path = 'tests.worker.tasks.of_the_next_release'")
    async with aiotasks.Worker():

        async def is_put_off() -> bool:
            row = await conn.fetchrow("SELECT * FROM aiotasks_task")
            return row["status"] == "SCHEDULED" and row["unknown_since"] is not None and not row["worker_ids"]

        await until(is_put_off)

        async def status() -> bool:
            return bool(await conn.fetchval("SELECT status FROM aiotasks_task") == "FAILED")

        await until(status)
    row = await conn.fetchrow(
        "SELECT *, errors[1]::text AS error FROM aiotasks_task WHERE id = $1", UUID(result.id)
    )
    assert len(row["worker_ids"]) == 1
    assert row["finished_at"] - row["unknown_since"] >= timedelta(seconds=0.5)
    assert "UnknownTask" in row["error"]
    assert "of_the_next_release" in row["error"]
    assert caplog.text.count("Task cannot be imported here; snoozing it") == 1


async def test_an_unknown_task_runs_when_the_deploy_has_come(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """43."""
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_DELAY", 0.1)
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_WINDOW", 60)
    result = await tasks.add.aenqueue(1, 2)
    await conn.execute("UPDATE aiotasks_task SET task_path = 'tests.worker.tasks.of_the_next_release'")
    async with aiotasks.Worker():

        async def is_put_off() -> bool:
            return bool(await conn.fetchval("SELECT unknown_since IS NOT NULL FROM aiotasks_task"))

        await until(is_put_off)
        await conn.execute("UPDATE aiotasks_task SET task_path = 'tests.worker.tasks.add'")

        async def is_done() -> bool:
            await result.arefresh()
            return result.is_finished

        await until(is_done)
    assert (result.return_value, result.attempts) == (3, 1)


@pytest.mark.parametrize(
    "path", ["subprocess.call", "tests.worker.tasks.record", "os.system", "nowhere.at.all", "x"]
)
async def test_a_stored_path_runs_nothing_but_a_task(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """44."""
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_DELAY", 0.05)
    monkeypatch.setattr(unknown_tasks, "UNKNOWN_WINDOW", 0.0)
    await tasks.add.aenqueue(1, 2)
    await conn.execute("UPDATE aiotasks_task SET task_path = $1", path)
    async with aiotasks.Worker():

        async def status() -> bool:
            return bool(await conn.fetchval("SELECT status FROM aiotasks_task") == "FAILED")

        await until(status)
    assert "UnknownTask" in await conn.fetchval("SELECT errors[1]::text FROM aiotasks_task")


async def test_a_batch_that_takes_too_long_is_halved(configure: Configure, conn: asyncpg.Connection) -> None:
    """12: repeated as it is, it would run into the time-out for ever."""
    configure(COMMAND_TIMEOUT=0.5)
    backend = task_backends["default"]
    assert isinstance(backend, PostgresBackend)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 8)
    jobs = await claim(await register())
    await conn.execute("""
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END';
        CREATE TRIGGER slow BEFORE UPDATE ON aiotasks_task FOR EACH ROW EXECUTE FUNCTION slow();
    """)
    try:
        finisher = make_finisher(backend.config)
        for job in jobs:
            execution = Execution(job)
            execution.outcome = Succeeded("mine", '"mine"')
            finisher.finish(execution)
        assert await finisher.wait_idle(20)
    finally:
        await conn.execute("DROP FUNCTION slow CASCADE")
    assert await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1") == [("SUCCESSFUL", 8)]
    assert finisher.fenced == 0


async def test_the_half_that_was_written_is_ones_own_when_the_other_is_refused(
    backend: PostgresBackend, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9, 13: the batch is tried again row by row, and finds the first as it has left it."""
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 2)
    jobs = await claim(await register())
    store = running_store()
    finish_jobs = store.finish_jobs

    async def take_too_long(finishes: Any) -> Any:
        monkeypatch.setattr(store, "finish_jobs", finish_jobs)
        raise utils.OperationalError("no answer") from TimeoutError()

    monkeypatch.setattr(store, "finish_jobs", take_too_long)
    finisher = make_finisher(backend.config)
    executions = [Execution(job) for job in jobs]
    executions[0].outcome = Succeeded("mine", '"mine"')
    executions[1].outcome = Succeeded("\0", '"\\u0000 isn\'t text", nor is this JSON')
    told = []
    monkeypatch.setattr(finisher.announcer, "announce", lambda execution, _: told.append(execution))
    for execution in executions:
        finisher.finish(execution)
    assert await finisher.wait_idle(20)
    assert finisher.fenced == 0
    assert set(told) == set(executions)
    statuses = await conn.fetch("SELECT id, status FROM aiotasks_task")
    assert dict(statuses) == {jobs[0].id: "SUCCESSFUL", jobs[1].id: "FAILED"}
