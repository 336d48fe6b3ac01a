"""What an Observer gets from the parts that run tasks and write their outcomes."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from django.tasks import TaskResult

import aiotasks
from aiotasks.rows import Job
from aiotasks.store.store import Store
from aiotasks.worker.events import Observer
from aiotasks.worker.execution import Execution
from aiotasks.worker.outcomes import Outcome
from aiotasks.worker.waits import wait_of
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, until


class Recorder(Observer):
    def __init__(self) -> None:
        self.running: list[str] = []
        self.ended: dict[str, tuple[str, float | None, float | None]] = {}
        self.given_back = 0

    def started(self, job: Job) -> None:
        self.running.append(str(job.id))

    def finished(self, job: Job, outcome: Outcome, seconds: float | None, wait: float | None) -> None:
        self.ended[str(job.id)] = type(outcome).__name__, seconds, wait

    def released(self, number: int, reason: str) -> None:
        assert reason == "given back"
        self.given_back += number


async def test_each_task_is_reported_with_its_times(database: str) -> None:
    recorder = Recorder()
    results: list[TaskResult[Any, Any]] = [
        await tasks.add.aenqueue(1, 2),
        await tasks.add_sync.aenqueue(1, 2),
        await tasks.fail_sync.aenqueue("ValueError"),
    ]
    worker = aiotasks.Worker()
    worker.events.subscribe(recorder)
    async with worker:
        await worker.wait_until_empty()
        await until(lambda: len(recorder.ended) >= 3)
    ids = [result.id for result in results]
    assert sorted(recorder.running) == sorted(ids)
    assert [recorder.ended[id][0] for id in ids] == ["Succeeded", "Succeeded", "Failed"]
    for _, seconds, wait in recorder.ended.values():
        assert seconds is not None
        assert seconds >= 0
        assert wait is not None
        assert wait >= 0
    assert recorder.given_back == 0


class Batches(Observer):
    """Of all tasks together, and of what happens to the worker."""

    def __init__(self) -> None:
        self.claims: list[int] = []
        self.writes: list[list[Execution]] = []
        self.gone: dict[str, str] = {}
        self.ids: list[UUID] = []
        self.renewals: list[float] = []
        self.reconnections: list[str] = []

    def claimed(self, number: int, seconds: float) -> None:
        assert seconds >= 0
        self.claims.append(number)

    def wrote(self, executions: Sequence[Execution], seconds: float) -> None:
        assert seconds >= 0
        self.writes.append(list(executions))

    def lost(self, job: Job, error: str) -> None:
        self.gone[str(job.id)] = error

    def registered(self, worker_id: UUID) -> None:
        self.ids.append(worker_id)

    def renewed(self, seconds: float) -> None:
        self.renewals.append(seconds)

    def reconnected(self, part: str) -> None:
        self.reconnections.append(part)


async def test_outcomes_are_reported_once_for_all_that_were_written_together(configure: Configure) -> None:
    batches = Batches()
    results = await default_task_backend.aenqueue_many(tasks.add, [((1, n), {}) for n in range(50)])
    failing = await tasks.fail_sync.aenqueue("ValueError")
    expired = await tasks.add.using(expires=0.01).aenqueue(1, 2)
    await asyncio.sleep(0.02)  # what the task is given
    worker = aiotasks.Worker()
    worker.events.subscribe(batches)
    async with worker:
        await worker.wait_until_empty()
        await until(lambda: batches.gone and sum(map(len, batches.writes)) >= 51)
        assert worker.engine.lease.worker_id == batches.ids[-1]
    written = [execution for batch in batches.writes for execution in batch]
    outcomes = {str(one.job.id): type(one.outcome).__name__ for one in written}
    assert outcomes == {**dict.fromkeys((one.id for one in results), "Succeeded"), failing.id: "Failed"}
    assert len(written) == 51
    assert all(one.seconds is not None and (wait_of(one.job) or 0) > 0 for one in written)
    assert len(batches.writes) < 51
    assert sum(batches.claims) == 51
    assert "TaskExpired" in batches.gone.pop(expired.id)
    assert (batches.gone, len(batches.ids)) == ({}, 1)


async def test_renewals_and_new_connections_are_reported(configure: Configure, ledger: Ledger) -> None:
    configure(LEASE_TIMEOUT=1.5)
    batches = Batches()
    worker = aiotasks.Worker()
    worker.events.subscribe(batches)
    async with worker:
        await until(lambda: len(batches.renewals) >= 2)
        await until(worker.engine.waker.is_woken)
        assert batches.reconnections == []
        locks = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
        ledger.rows(f"SELECT pg_terminate_backend(pid) FROM ({locks}) AS listeners")
        await until(lambda: batches.reconnections)
    assert batches.reconnections == ["listener"]
    assert batches.ids == [batches.ids[0]]
    assert all(0 <= seconds < 1.5 for seconds in batches.renewals)


async def test_what_a_stop_gives_back_is_reported(configure: Configure) -> None:
    recorder = Recorder()
    tasks.seen.clear()
    await default_task_backend.aenqueue_many(tasks.wait_for_release, [(("a",), {}), (("b",), {})])
    worker = aiotasks.Worker(grace=0)
    worker.events.subscribe(recorder)
    async with worker:
        await until(lambda: len(tasks.seen) >= 2)
    assert recorder.given_back >= 2  # more if a claim was under way at the stop
    assert recorder.ended == {}


async def test_a_claim_that_outlasts_the_grace_starts_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may bring the very tasks that the stop has just given back: they would only be cancelled again."""
    recorder = Recorder()
    tasks.seen.clear()
    claim_jobs = Store.claim_jobs
    held = asyncio.Event()
    brought: list[Job] = []

    async def claim(self: Store, *args: Any, **kwargs: Any) -> list[Job]:
        if tasks.seen and not held.is_set():  # sent before the stop, answered after its cancel
            held.set()
            await until(lambda: recorder.given_back >= 1)
            brought.extend(jobs := await claim_jobs(self, *args, **kwargs))
            return jobs
        return await claim_jobs(self, *args, **kwargs)

    monkeypatch.setattr(Store, "claim_jobs", claim)
    await tasks.wait_for_release.aenqueue("a")
    worker = aiotasks.Worker(grace=0)
    worker.events.subscribe(recorder)
    async with worker:
        await until(lambda: len(tasks.seen) >= 1)
        await tasks.wait_for_release.aenqueue("b")
        await held.wait()
    assert brought
    assert len(recorder.running) == 1
    assert recorder.given_back == 1 + len(brought)
