"""``aiotasks.testing`` under pytest-asyncio, whose tests have a loop of their own, and in plain pytest."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.tasks import TaskResultStatus
from django.utils import timezone

import aiotasks
from aiotasks.models import Task, Worker
from aiotasks.testing import assert_enqueued, drain
from tests import tasks
from tests.worker.harness import until

from .support import Heard
from .test_testcase import make_host

FAILED, READY, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL


async def test_drain_runs_both_kinds(database: str) -> None:
    results = [await tasks.add.aenqueue(1, 2), await tasks.aadd.aenqueue(3, 4)]
    assert await drain() == 2
    for result, value in zip(results, (3, 7), strict=True):
        await result.arefresh()
        assert result.return_value == value
        assert (result.attempts, result.status) == (1, SUCCESSFUL)
    assert await drain() == 0


async def test_drain_runs_what_the_tasks_enqueue(database: str, conn: asyncpg.Connection) -> None:
    for task in (tasks.chain, tasks.achain, tasks.bridge):
        await task.aenqueue(3)
    assert await drain() == 4 + 4 + 5
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status <> 'SUCCESSFUL'") == 0


async def test_drain_lets_tasks_use_the_orm(database: str) -> None:
    await sync_to_async(make_host)()
    counted = [await tasks.count_hosts.aenqueue("mine"), await tasks.acount_hosts.aenqueue("mine")]
    await tasks.arename_host.aenqueue("other", "another")
    await drain()
    for result in counted:
        await result.arefresh()
        assert result.return_value == 1


async def test_drain_fails_what_fails(database: str, heard: list[Heard]) -> None:
    results = [await task.aenqueue() for task in (tasks.fail, tasks.afail, tasks.exit_now, tasks.aexit_now)]
    bad = await tasks.areturn_bad.aenqueue("set")
    assert await drain() == 5
    for result in [*results, bad]:
        await result.arefresh()
        assert result.status is FAILED
    done = {one.fields["id"]: one for one in heard if one.signal == "task_finished"}
    assert [type(done[result.id].error) for result in results] == [
        ValueError,
        ValueError,
        SystemExit,
        SystemExit,
    ]


async def test_drain_leaves_what_is_scheduled(database: str) -> None:
    hour = timedelta(hours=1)
    later = await tasks.add.using(run_after=timezone.now() + hour).aenqueue(1, 2)
    due = await tasks.add.using(run_after=timezone.now() - hour).aenqueue(1, 2)
    assert await drain() == 1
    await later.arefresh()
    await due.arefresh()
    assert (later.status, due.status) == (READY, SUCCESSFUL)


async def test_drain_takes_all_queues_and_no_other_backend(database: str, settings: Any) -> None:
    one = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
    settings.TASKS = {"default": one, "other": one}
    await tasks.add.using(queue_name="some").aenqueue(1, 2)
    await tasks.add.using(queue_name="thing").aenqueue(1, 2)
    await tasks.add.using(backend="other").aenqueue(1, 2)
    assert await drain() == 2
    assert await drain("other") == 1


async def test_drain_leaves_no_worker_behind(database: str, conn: asyncpg.Connection) -> None:
    await tasks.add.aenqueue(1, 2)
    await drain()
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 0


async def test_drain_inside_a_transaction_block_runs_what_is_not_committed(
    database: str, conn: asyncpg.Connection
) -> None:
    async with aiotasks.transaction():
        result = await tasks.aadd.aenqueue(1, 2)
        assert await drain() == 1
        await result.arefresh()
        assert result.return_value == 3
        assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 0


async def test_drain_of_a_hundred(database: str) -> None:
    await asyncio.gather(*((tasks.aadd if n % 2 else tasks.add).aenqueue(n, 1) for n in range(100)))
    assert await drain() == 100


@pytest.mark.parametrize("backend", ["nowhere", "dummy"])
async def test_drain_of_a_backend_that_is_not_ours_says_so(settings: Any, backend: str) -> None:
    settings.TASKS = {**settings.TASKS, "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    with pytest.raises(Exception, match=rf"'{backend}'"):
        await drain(backend)


async def test_a_drain_that_is_cancelled_leaves_no_worker(database: str, conn: asyncpg.Connection) -> None:
    result = await tasks.asleep.aenqueue(60)
    draining = asyncio.ensure_future(drain())

    async def is_running() -> bool:
        return bool(await conn.fetchval("SELECT status FROM aiotasks_task") == "RUNNING")

    await until(is_running)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 0
    assert result.id


@pytest.mark.parametrize("turns", range(6))
async def test_a_drain_that_is_cancelled_when_a_task_has_just_ended(
    database: str, conn: asyncpg.Connection, turns: int
) -> None:
    await tasks.cancel_at_the_end.aenqueue("draining", turns)
    draining = asyncio.create_task(drain_all(), name="draining")
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert await conn.fetchval("SELECT status FROM aiotasks_task") == "SUCCESSFUL"
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_worker") == 0


async def drain_all() -> int:
    return int(await drain())


def test_drain_in_plain_sync_code(database: str) -> None:
    results = [tasks.add.enqueue(1, 2), tasks.aadd.enqueue(3, 4), tasks.bridge.enqueue(1)]
    assert drain() == 5
    for result in results:
        result.refresh()
        assert result.status is SUCCESSFUL


def test_drain_inside_atomic(database: str) -> None:
    with transaction.atomic():
        make_host()
        result = tasks.count_hosts.enqueue("mine")
        drain()
        result.refresh()
        assert result.return_value == 1
        transaction.set_rollback(True)
    assert (Task.objects.count(), Worker.objects.count()) == (0, 0)


@pytest.mark.django_db
def test_under_pytest_djangos_mark() -> None:
    assert Task.objects.count() == 0
    tasks.chain.enqueue(2)
    assert drain() == 3
    assert connection.in_atomic_block


async def test_assert_enqueued(database: str) -> None:
    first = await tasks.echo.aenqueue(1, (2,), key="value")
    second = await tasks.echo.aenqueue(1)
    assert (await assert_enqueued(tasks.echo)).id == second.id
    assert (await assert_enqueued(tasks.echo, args=(1, (2,)))).id == first.id
    assert (await assert_enqueued(tasks.echo, kwargs={"key": "value"})).id == first.id
    with pytest.raises(AssertionError, match=r"tests\.tasks\.add with args=any .*not enqueued"):
        await assert_enqueued(tasks.add)
    with pytest.raises(AssertionError, match=r"args=\[5\].*; this was: tests\.tasks\.echo args=\[1\]"):
        await assert_enqueued(tasks.echo, args=[5])
    with pytest.raises(AssertionError):
        await assert_enqueued(tasks.echo, args=[1], kwargs={"key": "value"})


async def test_assert_enqueued_over_another_backend_says_so(database: str, settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    with pytest.raises(ImproperlyConfigured, match="PostgresBackend"):
        await assert_enqueued(tasks.echo)
