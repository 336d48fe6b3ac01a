"""Sync code on a running loop's thread (Playwright, notebooks): DJANGO_ALLOW_ASYNC_UNSAFE."""

import asyncio
import gc
import unittest
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.tasks import TaskResult, TaskResultStatus
from django.tasks.signals import task_enqueued
from django.test import TestCase

from aiotasks.models import Task, Worker
from aiotasks.rows import AnyResult
from aiotasks.testing import assert_enqueued, drain
from tests import tasks
from tests.site import default_task_backend

from .test_testcase import make_host

READY, SUCCESSFUL = TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL


@pytest.fixture
def _unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")


def use_it_all() -> None:
    """Sync code such as a test below Playwright: in a transaction on the thread of the loop."""
    with transaction.atomic():
        make_host()
        result = tasks.count_hosts.enqueue("mine")
        acounted = tasks.acount_hosts.enqueue("mine")
        found = assert_enqueued(tasks.count_hosts, args=["mine"])
        assert (type(found), found, found.id) == (type(found), result, result.id)
        assert (result == found, found == acounted) == (True, False)
        for wrong in ({"args": ["never"]}, {"kwargs": {"host": "mine"}}):
            with pytest.raises(AssertionError, match="not enqueued"):
                assert_enqueued(tasks.count_hosts, **wrong)
        cancelled = tasks.add.enqueue(1, 2)
        assert cancelled.cancel()
        (many,) = default_task_backend.enqueue_many(tasks.aadd, [((1, 2), {})])
        assert drain() == 3
        for one, value in ((result, 1), (acounted, 1), (many, 3), (found, 1)):
            one.refresh()
            assert (one.status, one.return_value) == (SUCCESSFUL, value)
        assert tasks.add.get_result(cancelled.id).is_finished
        assert drain() == 0
        transaction.set_rollback(True)
    assert (Task.objects.count(), Worker.objects.count()) == (0, 0)


@pytest.mark.usefixtures("_unsafe")
async def test_sync_code_on_the_loops_thread(database: str) -> None:
    use_it_all()
    assert asyncio.current_task() is not None  # the loop is as it was
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def call() -> None:  # Playwright's greenlets come from callbacks: there is no asyncio task around them
        try:
            use_it_all()
        except BaseException as error:
            called.set_exception(error)
        else:
            called.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await called
    connection.close()


@pytest.mark.usefixtures("_unsafe")
async def test_results_may_be_awaited_too(database: str) -> None:
    result = await tasks.aadd.aenqueue(1, 2)
    found = await assert_enqueued(tasks.aadd, args=[1, 2])
    assert found == result
    assert isinstance(found, TaskResult)
    assert not hasattr(found, "__await__")
    assert await drain() == 1
    assert list(await asyncio.gather(drain(), drain())) == [0, 0]
    await result.arefresh()
    assert result.return_value == 3
    connection.close()


@pytest.mark.usefixtures("_unsafe")
async def test_receivers_may_be_coroutines(database: str) -> None:
    heard = []

    async def receive(task_result: AnyResult, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        heard.append(task_result.id)

    task_enqueued.connect(receive)
    try:
        result = tasks.add.enqueue(1, 2)
    finally:
        task_enqueued.disconnect(receive)
    assert heard == [result.id]
    connection.close()


async def forget() -> None:
    assert_enqueued(tasks.add, args=["never"])


async def forget_and_go_on() -> None:
    drain()
    await asyncio.sleep(60)


async def forget_in_a_variable() -> None:
    unused = drain()  # noqa: F841


async def forget_in_a_cycle() -> None:
    cycle: list[Any] = [assert_enqueued(tasks.add, args=["never"])]
    cycle.append(cycle)
    del cycle
    gc.collect()


FORGETFUL = [forget, forget_and_go_on, forget_in_a_variable, forget_in_a_cycle]


@pytest.mark.parametrize("forgetful", FORGETFUL)
async def test_what_is_not_awaited_fails(database: str, forgetful: Callable[[], Any]) -> None:
    with pytest.raises(
        asyncio.CancelledError, match=r"did nothing, because it wasn't awaited: write `await "
    ):
        await asyncio.create_task(forgetful())


def test_test_runners_see_that(database: str) -> None:
    class Isolated(unittest.IsolatedAsyncioTestCase):
        test = staticmethod(forget)

    class OfDjango(TestCase):
        async def test(self) -> None:
            await forget()

    result = unittest.TestResult()
    for kind in (Isolated, OfDjango):
        kind("test")(result)
    assert len(result.errors + result.failures) == 2, result
    assert "`await assert_enqueued(…)`" in result.errors[0][1]


async def test_what_is_awaited_in_any_way_is_fine(database: str) -> None:
    await tasks.aadd.aenqueue(1, 2)
    draining = drain()
    assert "await" in repr(draining)
    assert await asyncio.create_task(draining) == 1
    ran, found = await asyncio.gather(drain(), assert_enqueued(tasks.aadd))
    assert (ran, found.args) == (0, [1, 2])
    assert await asyncio.wait_for(drain(), 20) == 0
    drain().close()
    async with asyncio.TaskGroup() as group:
        group.create_task(assert_enqueued(tasks.aadd))


async def test_outside_any_asyncio_task_it_says_so_at_once(database: str) -> None:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            assert_enqueued(tasks.add)
        except SynchronousOnlyOperation as error:
            answer.set_result(str(error))

    asyncio.get_running_loop().call_soon(call)
    assert "DJANGO_ALLOW_ASYNC_UNSAFE" in await asyncio.wait_for(answer, 20)


@pytest.mark.usefixtures("_unsafe", "database")
class TestBelowAsyncToSync:
    def test_the_thread_that_waits_has_the_connection(self) -> None:
        class OfDjango(TestCase):
            async def test(self) -> None:
                await tasks.aadd.aenqueue(1, 2)
                await assert_enqueued(tasks.aadd)
                self.assertEqual(await drain(), 1)  # noqa: PT009

        result = unittest.TestResult()
        OfDjango("test")(result)
        assert result.wasSuccessful(), result.errors + result.failures
