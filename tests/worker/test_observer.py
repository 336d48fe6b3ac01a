"""What an Observer gets from the parts that run tasks and write their outcomes."""

from typing import Any

from django.tasks import TaskResult

import aiotasks
from aiotasks.rows import Job
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
    assert recorder.given_back == 2
    assert recorder.ended == {}
