"""A worker that claims nothing, though tasks wait that it could run, says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiotasks.rows import Job
from aiotasks.store.store import Store
from aiotasks.worker.events import Observer
from aiotasks.worker.stalls import PATIENCE
from aiotasks.worker.worker import Worker
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, until

POLL = 0.05


class Stalled(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def stalled(self, seconds: float, queue_name: str) -> None:
        assert seconds >= PATIENCE * POLL
        self.seen.append(queue_name)

    def unstalled(self) -> None:
        self.seen.append("over")


@asynccontextmanager
async def running(**arguments: Any) -> AsyncIterator[tuple[Worker, Stalled, list[str | None]]]:
    """A worker, its observer, and what its looks for waiting tasks have found."""
    worker, observer, found = Worker(**arguments), Stalled(), []
    worker.events.subscribe(observer)
    original = Store.has_claimable

    async def has_claimable(self: Store, *args: Any) -> str | None:
        found.append(await original(self, *args))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "has_claimable", has_claimable)
        async with worker, asyncio.timeout(60):
            yield worker, observer, found


async def test_claims_that_bring_nothing_are_noticed_and_their_end(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(POLL_INTERVAL=POLL, LEASE_TIMEOUT=1.5)
    original = Store.claim_jobs
    held = True

    async def claim_jobs(self: Store, *args: Any, **kwargs: Any) -> list[Job]:
        return [] if held else await original(self, *args, **kwargs)

    monkeypatch.setattr(Store, "claim_jobs", claim_jobs)
    async with running(metrics=True) as (worker, observer, _):
        result = await tasks.add.using(queue_name="mail").aenqueue(1, 2)
        await until(lambda: observer.seen)
        seconds = worker.engine.stalls.seconds()
        assert seconds is not None
        assert seconds >= PATIENCE * POLL
        shown = {one.name: one.value for each in worker.families() for one in each.samples}
        assert shown["aiotasks_worker_stalled_seconds"] >= seconds
        await until(lambda: ledger.value("SELECT report->>'stalled' FROM aiotasks_worker"))
        held = False
        await until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
        await until(lambda: len(observer.seen) > 1)
        assert worker.engine.stalls.seconds() is None
    assert observer.seen == ["mail", "over"]
    assert caplog.text.count("Tasks wait, and the worker claims none") == 1
    assert "The worker claims tasks again, or none waits" in caplog.text


async def test_tasks_that_may_not_run_stall_no_worker(configure: Configure, ledger: Ledger) -> None:
    """Paused ones, by queue and by path; and locked ones."""
    configure(POLL_INTERVAL=POLL)
    for kind, name in (("queue", "paused"), ("task", tasks.add_sync.module_path)):
        ledger.connection.execute(
            "INSERT INTO aiotasks_pause (backend, kind, name, reason, paused_at) "
            "VALUES ('default', %s, %s, '', now())",
            [kind, name],
        )
    await tasks.add.using(queue_name="paused").aenqueue(1, 2)
    await tasks.add_sync.aenqueue(1, 2)
    locked = await tasks.add.using(queue_name="locked").aenqueue(1, 2)
    ledger.connection.execute("UPDATE aiotasks_task SET ready_at = now() - interval '1 hour'")
    with ledger.connection.transaction():
        ledger.connection.execute("SELECT FROM aiotasks_task WHERE id = %s FOR UPDATE", [locked.id])
        async with running() as (worker, observer, found):
            await until(lambda: len(found) >= 4)
            assert worker.engine.stalls.seconds() is None
    assert {*found} == {None}
    assert observer.seen == []


async def test_a_full_worker_and_one_at_its_limit_do_not_look(configure: Configure) -> None:
    configure(["default", "limited"], POLL_INTERVAL=POLL)
    tasks.seen.clear()
    await default_task_backend.aenqueue_many(tasks.wait_for_release, [((str(n),), {}) for n in range(3)])
    await default_task_backend.aenqueue_many(
        tasks.wait_for_release.using(queue_name="limited"), [((str(n),), {}) for n in range(3)]
    )
    async with running(queues={"default": None, "limited": 1}, concurrency=2, threads=0, grace=0) as parts:
        worker, observer, found = parts
        await until(lambda: len(tasks.seen) >= 2)
        found.clear()  # it may have looked before its first claim
        since = worker.engine.claimer.poll.at
        await until(lambda: worker.engine.claimer.poll.at > since + (PATIENCE + 2) * POLL)
    assert (found, observer.seen) == ([], [])
    tasks.seen.clear()
    async with running(queues={"limited": 1}, grace=0) as (worker, observer, found):
        await until(lambda: len(tasks.seen) >= 1)
        found.clear()
        since = worker.engine.claimer.poll.at
        await until(lambda: worker.engine.claimer.poll.at > since + (PATIENCE + 2) * POLL)
    assert (found, observer.seen) == ([], [])
