"""Django's own test classes: what is enqueued is the test's, and goes with it.

Async test methods run below ``async_to_sync``, so they see their own uncommitted rows and leave none.
"""

# ruff: noqa: PT009, PT027 (the tests of sites are written so)
import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.tasks import TaskResultStatus
from django.test import SimpleTestCase, TestCase, TransactionTestCase
from django.utils import timezone

from aiotasks import PostgresTaskResult
from aiotasks.models import Task, Worker
from aiotasks.testing import assert_enqueued, drain
from tests import tasks, unique_tasks
from tests.site import default_task_backend

from .support import connections_left

FAILED, READY, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(pg: Any, django_db_setup: None) -> Iterator[None]:
    """The module's tests leave no rows, and no connection but Django's own."""
    dsn = pg.dsn(connection.settings_dict["NAME"])
    with psycopg.connect(dsn, autocommit=True) as observer:
        observer.execute("TRUNCATE aiotasks_task, aiotasks_worker")
        yield
        for table in ("aiotasks_task", "aiotasks_worker"):
            assert observer.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        assert len(connections_left(observer, allowed=1)) <= 1


def make_host(name: str = "mine") -> None:
    """A row of the site's own data."""
    now = timezone.now()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO aiotasks_worker (id, backend, host, pid, queues, concurrency, threads, version,
                started_at, lease_expires_at)
            VALUES (gen_random_uuid(), 'site', %s, 0, '{}', 0, 0, '', %s, %s)
            """,
            [name, now, now],
        )


class CommonTests:
    """For all classes whose tests have a database: sync and async methods of each."""

    assertEqual: Any
    assertIs: Any
    assertNumQueries: Any
    assertRaises: Any
    assertRaisesRegex: Any
    captureOnCommitCallbacks: Any

    def test_enqueue_and_refresh(self) -> None:
        self.assertEqual(Task.objects.count(), 0)  # nobody's from before
        result = tasks.add.enqueue(1, 2)
        self.assertEqual(Task.objects.count(), 1)
        result.refresh()
        self.assertIs(result.status, READY)
        self.assertEqual(tasks.add.get_result(result.id).id, result.id)

    async def test_enqueue_and_refresh_async(self) -> None:
        self.assertEqual(await Task.objects.acount(), 0)
        results = [
            *await asyncio.gather(*(tasks.add.aenqueue(1, n) for n in range(5))),
            *await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 5),
        ]
        self.assertEqual(await Task.objects.acount(), 10)
        await asyncio.gather(*(result.arefresh() for result in results))
        self.assertEqual({result.status for result in results}, {READY})
        await asyncio.create_task(tasks.add.aenqueue(1, 2))
        self.assertEqual(await Task.objects.acount(), 11)

    async def test_both_ways_see_each_other(self) -> None:
        result = await sync_to_async(tasks.add.enqueue)(1, 2)
        await result.arefresh()
        other = await tasks.add.aenqueue(1, 2)
        await sync_to_async(other.refresh)()

    def test_rolled_back(self) -> None:
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            transaction.set_rollback(True)
        self.assertEqual(Task.objects.count(), 0)

    def test_statements_are_counted(self) -> None:
        with transaction.atomic(), self.assertNumQueries(1):
            tasks.add.enqueue(1, 2)

    # --- aiotasks.testing --------------------------------------------------------------------

    def test_drain(self) -> None:
        results = [tasks.add.enqueue(1, 2), tasks.aadd.enqueue(3, 4)]
        self.assertEqual(drain(), 2)
        for result, value in zip(results, (3, 7), strict=True):
            result.refresh()
            self.assertIs(result.status, SUCCESSFUL)
            self.assertEqual(result.return_value, value)
            self.assertEqual(result.attempts, 1)
        self.assertEqual(drain(), 0)

    async def test_drain_async(self) -> None:
        results = [await tasks.add.aenqueue(1, 2), await tasks.aadd.aenqueue(3, 4)]
        self.assertEqual(await drain(), 2)
        for result, value in zip(results, (3, 7), strict=True):
            await result.arefresh()
            self.assertEqual(result.return_value, value)
        self.assertEqual(await drain(), 0)

    def test_drain_of_tasks_that_enqueue_tasks(self) -> None:
        for task in (tasks.chain, tasks.achain, tasks.bridge):
            task.enqueue(3)
        self.assertEqual(drain(), 4 + 4 + 5)
        self.assertEqual(Task.objects.exclude(status="SUCCESSFUL").count(), 0)

    async def test_drain_of_tasks_that_enqueue_tasks_async(self) -> None:
        for task in (tasks.chain, tasks.achain, tasks.bridge):
            await task.aenqueue(3)
        self.assertEqual(await drain(), 4 + 4 + 5)
        self.assertEqual(await Task.objects.exclude(status="SUCCESSFUL").acount(), 0)

    def test_the_orm_in_tasks_sees_the_tests_data(self) -> None:
        make_host()
        counted = [tasks.count_hosts.enqueue("mine"), tasks.acount_hosts.enqueue("mine")]
        drain()
        for result in counted:
            result.refresh()
            self.assertEqual(result.return_value, 1)
        tasks.rename_host.enqueue("mine", "once")
        drain()
        tasks.arename_host.enqueue("once", "twice")
        drain()
        self.assertEqual(Worker.objects.filter(host="twice").count(), 1)

    async def test_the_orm_in_tasks_sees_the_tests_data_async(self) -> None:
        await sync_to_async(make_host)()
        counted = [await tasks.count_hosts.aenqueue("mine"), await tasks.acount_hosts.aenqueue("mine")]
        await drain()
        for result in counted:
            await result.arefresh()
            self.assertEqual(result.return_value, 1)
        await tasks.rename_host.aenqueue("mine", "once")
        await drain()
        await tasks.arename_host.aenqueue("once", "twice")
        await drain()
        self.assertEqual(await Worker.objects.filter(host="twice").acount(), 1)

    def test_failing_tasks(self) -> None:
        results = [task.enqueue() for task in (tasks.fail, tasks.afail, tasks.exit_now, tasks.aexit_now)]
        after = tasks.add.enqueue(1, 2)
        self.assertEqual(drain(), 5)
        for result, kind in zip(results, (ValueError, ValueError, SystemExit, SystemExit), strict=True):
            result.refresh()
            self.assertIs(result.status, FAILED)
            self.assertIs(result.errors[0].exception_class, kind)
        after.refresh()
        self.assertEqual(after.return_value, 3)

    async def test_failing_tasks_async(self) -> None:
        results = [await task.aenqueue() for task in (tasks.fail, tasks.afail, tasks.aexit_now)]
        self.assertEqual(await drain(), 3)
        for result in results:
            await result.arefresh()
            self.assertIs(result.status, FAILED)

    def test_scheduled_tasks_wait_and_due_ones_run(self) -> None:
        hour = timedelta(hours=1)
        later = tasks.add.using(run_after=timezone.now() + hour).enqueue(1, 2)
        due = tasks.add.using(run_after=timezone.now() - hour).enqueue(1, 2)
        self.assertEqual(drain(), 1)
        later.refresh()
        due.refresh()
        self.assertEqual((later.status, due.status), (READY, SUCCESSFUL))
        Task.objects.filter(id=later.id).update(run_after=timezone.now() - hour)
        self.assertEqual(drain(), 1)

    async def test_scheduled_tasks_wait_async(self) -> None:
        await tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).aenqueue(1, 2)
        self.assertEqual(await drain(), 0)

    def test_priorities_hold(self) -> None:
        tasks.noted.clear()
        for priority in (0, 10, -5):
            tasks.note.using(priority=priority).enqueue(priority)
        drain()
        self.assertEqual(tasks.noted, [10, 0, -5])

    def test_drain_leaves_no_worker(self) -> None:
        tasks.add.enqueue(1, 2)
        drain()
        self.assertEqual(Worker.objects.count(), 0)

    def test_drain_of_another_backend(self) -> None:
        one = {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": []}
        with self.settings(TASKS={"default": one, "other": one}):  # type: ignore[attr-defined]
            tasks.add.using(backend="other").enqueue(1, 2)
            self.assertEqual(drain(), 0)
            self.assertEqual(drain(backend="other"), 1)

    def test_assert_enqueued(self) -> None:
        first = tasks.echo.enqueue(1, (2, 3), key="value")
        second = tasks.echo.enqueue(1)
        self.assertEqual(assert_enqueued(tasks.echo).id, second.id)
        for expected in (
            {"args": [1, [2, 3]], "kwargs": {"key": "value"}},
            {"args": (1, (2, 3))},
            {"kwargs": {"key": "value"}},
        ):
            self.assertEqual(assert_enqueued(tasks.echo, **expected).id, first.id)
        self.assertEqual(assert_enqueued(tasks.echo, args=[1], kwargs={}).id, second.id)
        drain()
        self.assertIs(assert_enqueued(tasks.echo, args=[1]).status, SUCCESSFUL)  # whatever came of it
        others: list[dict[str, Any]] = [
            {"args": [2]},
            {"args": []},
            {"kwargs": {"key": "other"}},
            {"args": [1, 2, 3]},
        ]
        for wrong in others:
            with self.assertRaises(AssertionError):
                assert_enqueued(tasks.echo, **wrong)

    def test_assert_enqueued_says_what_was_instead(self) -> None:
        with self.assertRaisesRegex(AssertionError, r"tests\.tasks\.echo .*not enqueued.*nothing"):
            assert_enqueued(tasks.echo)
        tasks.echo.enqueue(1, key=2)
        with self.assertRaisesRegex(
            AssertionError, r"args=\[5\].*not enqueued.*tests\.tasks\.echo args=\[1\] kwargs=\{'key': 2\}"
        ) as caught:
            assert_enqueued(tasks.echo, args=[5])
        self.assertIs(caught.exception.__context__, None)
        with self.assertRaisesRegex(AssertionError, r"tests\.tasks\.add .*not enqueued"):
            assert_enqueued(tasks.add)

    async def test_assert_enqueued_async(self) -> None:
        result = await tasks.echo.aenqueue(1, key="value")
        found = await assert_enqueued(tasks.echo, args=[1], kwargs={"key": "value"})
        self.assertEqual(found.id, result.id)
        with self.assertRaisesRegex(AssertionError, "not enqueued"):
            await assert_enqueued(tasks.echo, args=[2])


class TestCaseTests(CommonTests, TestCase):
    from_class: PostgresTaskResult

    @classmethod
    def setUpTestData(cls) -> None:
        cls.from_class = tasks.echo.enqueue("of the class")
        Task.objects.filter(id=cls.from_class.id).update(backend="put aside")

    def setUp(self) -> None:
        # The common tests count rows: only their own are under the alias that they use.
        Task.objects.filter(backend="put aside").delete()

    def test_callbacks_after_the_commit_are_the_wake_ups_alone(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            tasks.add.enqueue(1, 2)
        self.assertEqual(len(callbacks), 1)


class RowsOfTheClassTests(TestCase):
    """Rows of setUpTestData are there in each test, and what one test does to them is undone."""

    result: PostgresTaskResult

    @classmethod
    def setUpTestData(cls) -> None:
        cls.result = tasks.add.enqueue(1, 2)

    def test_one(self) -> None:
        self.result.refresh()
        self.assertIs(self.result.status, READY)
        self.assertEqual(drain(), 1)

    async def test_two(self) -> None:
        await self.result.arefresh()
        self.assertIs(self.result.status, READY)
        self.assertEqual(await drain(), 1)


class TransactionTestCaseTests(CommonTests, TransactionTestCase):
    def test_the_rows_are_committed(self) -> None:
        tasks.add.enqueue(1, 2)
        with psycopg.connect(**_params()) as other:
            self.assertEqual(other.execute("SELECT count(*) FROM aiotasks_task").fetchone(), (1,))

    def test_a_task_that_breaks_its_transaction_breaks_no_other(self) -> None:
        result = tasks.divide_by_zero.enqueue()
        after = tasks.add.enqueue(1, 2)
        self.assertEqual(drain(), 2)
        result.refresh()
        self.assertIs(result.status, FAILED)
        after.refresh()
        self.assertEqual(after.return_value, 3)

    async def test_the_rows_are_committed_async(self) -> None:
        await tasks.add.aenqueue(1, 2)

        def count() -> Any:
            with psycopg.connect(**_params()) as other:
                return other.execute("SELECT count(*) FROM aiotasks_task").fetchone()

        self.assertEqual(await sync_to_async(count)(), (1,))


def _params() -> dict[str, Any]:
    params = connection.get_connection_params()
    return {name: params[name] for name in ("host", "port", "user", "password", "dbname") if params.get(name)}


class NoDatabaseTests(SimpleTestCase):
    """SimpleTestCase forbids queries, ours too."""

    def test_enqueue_is_a_query(self) -> None:
        with self.assertRaisesRegex(Exception, "Database (queries|connections|access)"):
            tasks.add.enqueue(1, 2)

    async def test_aenqueue_is_one_too(self) -> None:
        with self.assertRaisesRegex(Exception, "Database (queries|connections|access)"):
            await tasks.add.aenqueue(1, 2)


class UniqueTests(TestCase):
    """Keys hold inside of the test's transaction, by savepoints."""

    def test_a_key_in_a_test(self) -> None:
        first = unique_tasks.once.enqueue(1)
        self.assertEqual(unique_tasks.once.enqueue(2).id, first.id)
        self.assertEqual(drain(timeout=20), 1)
        again = unique_tasks.once.enqueue(3)
        self.assertFalse(again.is_duplicate)
        self.assertEqual(Task.objects.get(pk=first.id).former_key, "once")

    async def test_a_key_in_an_async_test(self) -> None:
        first = await unique_tasks.debounced.aenqueue(1, "a")
        second = await unique_tasks.debounced.aenqueue(1, "b")
        self.assertEqual((second.id, second.args), (first.id, [1, "b"]))

    def test_a_unique_enqueue_in_a_transaction_has_a_savepoint(self) -> None:
        with self.assertNumQueries(3):
            unique_tasks.once.enqueue()
