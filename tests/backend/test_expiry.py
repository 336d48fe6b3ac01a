"""``expires`` with workers and ``drain()``: what becomes of a task that wasn't started in time."""

# ruff: noqa: PT009 (the tests of sites are written so)
import asyncio
from typing import Any

import asyncpg
import pytest
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished
from django.test import TestCase

import aiotasks
from aiotasks.models import Task
from aiotasks.testing import drain
from tests import tasks
from tests.examples import example
from tests.site import default_task_backend
from tests.worker.harness import Configure, configure, until

__all__ = ["configure"]

EXPIRED = "aiotasks.exceptions.TaskExpired"


@pytest.fixture
def finished() -> Any:
    """The ids of the tasks that ``task_finished`` was sent for, with the classes of their last errors."""
    seen: list[tuple[str, str]] = []

    def receive(*, task_result: Any, **kwargs: Any) -> None:
        seen.append((task_result.id, task_result.errors[-1].exception_class_path))

    task_finished.connect(receive)
    yield seen
    task_finished.disconnect(receive)


@pytest.mark.parametrize("task", [tasks.add, tasks.aadd])
async def test_a_task_that_expired_while_no_worker_ran(
    configure: Configure, conn: asyncpg.Connection, finished: list[Any], task: Any
) -> None:
    """It is never started, and the first worker ends it."""
    configure(POLL_INTERVAL=0.3)
    late = await task.using(expires=3600).aenqueue(1, 2)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp()")
    runs = await task.using(expires=3600).aenqueue(3, 4)

    async def is_finished(result: Any) -> bool:
        await result.arefresh()
        return bool(result.is_finished)

    async with aiotasks.Worker():
        await until(lambda: is_finished(late))
        await until(lambda: is_finished(runs))
        await until(lambda: finished)
    assert (late.status, late.attempts, late.started_at) == (TaskResultStatus.FAILED, 0, None)
    assert [error.exception_class_path for error in late.errors] == [EXPIRED]
    assert (runs.status, runs.return_value) == (TaskResultStatus.SUCCESSFUL, 7)
    assert finished == [(late.id, EXPIRED)]


async def test_workers_of_other_queues_sweep_and_each_task_is_told_of_once(
    configure: Configure, conn: asyncpg.Connection, finished: list[Any]
) -> None:
    """More than one batch, and two workers that both look all the time."""
    configure(["default", "served"], POLL_INTERVAL=0.05)
    results = await default_task_backend.aenqueue_many(tasks.aadd.using(expires=3600), [((1, 2), {})] * 600)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp()")

    async def are_failed() -> bool:
        number = await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'FAILED'")
        return bool(number == len(results))

    async with aiotasks.Worker(queues=["served"]), aiotasks.Worker(queues=["served"]):
        await until(are_failed)
        await until(lambda: len(finished) >= len(results))
    assert sorted(finished) == sorted((result.id, EXPIRED) for result in results)


async def test_a_hanging_receiver_holds_up_no_sweep(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotasks.worker.maintenance.expirer.LONGEST_PAUSE", 0.1)
    configure(POLL_INTERVAL=0.05)
    await default_task_backend.aenqueue_many(tasks.aadd.using(expires=3600), [((1, 2), {})] * 600)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp()")
    go_on = asyncio.Event()

    async def hang(**kwargs: Any) -> None:
        await go_on.wait()

    async def waiting() -> int:
        return int(await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'"))

    async def none_waits() -> bool:
        return await waiting() == 0

    task_finished.connect(hang)
    try:
        async with aiotasks.Worker(grace=0):
            await until(none_waits)
            go_on.set()
    finally:
        task_finished.disconnect(hang)


async def test_a_sweep_does_not_wait_for_a_few_receivers_that_hang(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be they of expired tasks or of others: each full batch would wait for them."""
    monkeypatch.setattr("aiotasks.worker.maintenance.expirer.LONGEST_PAUSE", 3600)
    configure(POLL_INTERVAL=3600)
    await default_task_backend.aenqueue_many(tasks.aadd.using(expires=3600), [((1, 2), {})] * 900)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp()")
    go_on, called = asyncio.Event(), []

    async def hang(**kwargs: Any) -> None:
        called.append(kwargs)
        if len(called) <= 5:
            await go_on.wait()

    async def are_failed() -> bool:
        number = await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'FAILED'")
        return bool(number == 900)

    task_finished.connect(hang)
    try:
        async with aiotasks.Worker(grace=0):
            await until(are_failed)
            go_on.set()
    finally:
        task_finished.disconnect(hang)


async def test_a_worker_sweeps_at_its_start(
    configure: Configure, conn: asyncpg.Connection, finished: list[Any]
) -> None:
    """What expired while all workers were down makes each claim slower."""
    configure(POLL_INTERVAL=3600)
    await default_task_backend.aenqueue_many(tasks.aadd.using(expires=3600), [((1, 2), {})] * 600)
    await conn.execute("UPDATE aiotasks_task SET expires_at = clock_timestamp()")

    async def are_failed() -> bool:
        number = await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'FAILED'")
        return bool(number == 600)

    async with aiotasks.Worker():
        await until(are_failed)


async def test_the_page_on_expiry(database: str, conn: asyncpg.Connection) -> None:
    with example("howto/expiry.md") as page:
        await page.run()
        await page.run()
        assert page.blocks == []
    rows = await conn.fetch(
        "SELECT extract(epoch FROM expires_at - ready_at)::float AS seconds FROM aiotasks_task ORDER BY id"
    )
    assert [row["seconds"] for row in rows] == [5.0, None]


class DrainTests(TestCase):
    def test_a_drain_fails_what_has_expired(self) -> None:
        late, runs = (tasks.add.using(expires=3600).enqueue(1, 2) for _ in range(2))
        row = Task.objects.get(pk=late.id)
        row.expires_at = row.enqueued_at
        row.save()
        self.assertEqual(drain(timeout=20), 1)
        for result in (late, runs):
            result.refresh()
        self.assertEqual(late.errors[0].exception_class_path, EXPIRED)
        self.assertEqual(runs.return_value, 3)
