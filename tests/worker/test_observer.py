"""What an Observer gets from the parts that run tasks and write their outcomes."""

import asyncio
from typing import Any

import pytest
from django.tasks import TaskResult

import aiotasks
from aiotasks.rows import Job
from aiotasks.store.store import Store
from aiotasks.worker.events import Observer
from aiotasks.worker.outcomes import Outcome
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, until


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
