"""``drain()`` where tasks break the test's transaction, never end, or look at the clock."""

# ruff: noqa: PT009, PT027 (the tests of sites are written so)
import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.tasks import TaskResultStatus
from django.tasks.signals import task_finished, task_started
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

import aiotasks
from aiotasks.models import Task, Worker
from aiotasks.testing import drain
from tests import tasks

from . import draining_tasks as broken

FAILED, READY, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL

REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE 'the site refuses'; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON aiotasks_task FOR EACH ROW
    WHEN (NEW.return_value::text = '"refused by the site"') EXECUTE FUNCTION refuse();
"""


def hosts() -> int:
    return Worker.objects.filter(host="twice").count()


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def receiving(signal: Any, receiver: Any) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


class BrokenTransactionTests(TestCase):
    """Each task has a savepoint: what it breaks is undone, and the next one runs."""

    def outcomes(self, *results: Any) -> list[Any]:
        for result in results:
            result.refresh()
        return [result.status for result in results]

    def test_a_database_error_outside_atomic(self) -> None:
        first = [task.enqueue() for task in (broken.insert_twice, broken.ainsert_twice)]
        survived = broken.insert_twice_and_go_on.enqueue()
        after = tasks.add.enqueue(1, 2)
        self.assertEqual(drain(timeout=20), 4)
        self.assertEqual(self.outcomes(*first, survived, after), [FAILED, FAILED, SUCCESSFUL, SUCCESSFUL])
        self.assertIn("IntegrityError", first[0].errors[0].exception_class_path)
        self.assertEqual(hosts(), 0)

    async def test_a_database_error_outside_atomic_async(self) -> None:
        results = [await broken.insert_twice.aenqueue(), await broken.ainsert_twice.aenqueue()]
        results.append(await tasks.aadd.aenqueue(1, 2))
        self.assertEqual(await drain(timeout=20), 3)
        for result in results:
            await result.arefresh()
        self.assertEqual([result.status for result in results], [FAILED, FAILED, SUCCESSFUL])
        self.assertEqual(await sync_to_async(hosts)(), 0)

    def test_rollback_and_blocks_left_open(self) -> None:
        marked = broken.mark_for_rollback.enqueue()
        left = [broken.leave_atomic_open.enqueue(), broken.aleave_atomic_open.enqueue()]
        after = tasks.add.enqueue(1, 2)
        with self.assertLogs("aiotasks.testing", "WARNING") as logs:
            self.assertEqual(drain(timeout=20), 4)
        self.assertEqual(len(logs.output), 4)
        self.assertIn("leave_atomic_open left an atomic() block open", logs.output[0])
        self.assertEqual(self.outcomes(marked, *left, after), [SUCCESSFUL] * 4)
        self.assertEqual(hosts(), 0)
        self.assertFalse(connection.needs_rollback)

    def test_what_does_no_harm_is_kept(self) -> None:
        """As in a worker: durable blocks are no matter of the test's, and a failure undoes nothing."""
        durable = broken.durably.enqueue()
        with transaction.atomic():
            self.assertEqual(drain(timeout=20), 1)
        durable.refresh()
        self.assertEqual((durable.return_value, hosts()), (1, 1))
        Worker.objects.all().delete()
        broken.fail_after_insert.enqueue()
        self.assertEqual((drain(timeout=20), hosts()), (1, 1))

    def test_a_receiver_that_breaks_the_transaction(self) -> None:
        for signal in (task_started, task_finished):
            with receiving(signal, broken.break_transaction):
                result, after = tasks.add.enqueue(1, 2), tasks.aadd.enqueue(1, 2)
                self.assertEqual(drain(timeout=20), 2)
            self.outcomes(result, after)
            # A receiver of task_started is within its task's savepoint, which a sync body finds broken.
            self.assertEqual(after.status, SUCCESSFUL)
        self.assertEqual((result.status, hosts()), (SUCCESSFUL, 0))

    def test_callbacks_after_the_commit_go_with_what_is_undone(self) -> None:
        def enqueue_and_break(**kwargs: Any) -> None:
            transaction.on_commit(lambda: None)
            broken.insert_twice.func()

        with self.captureOnCommitCallbacks() as callbacks:
            tasks.add.enqueue(1, 2)
        with receiving(task_started, enqueue_and_break), self.captureOnCommitCallbacks() as broken_callbacks:
            self.assertEqual(drain(timeout=20), 1)
        self.assertEqual((len(callbacks), len(broken_callbacks)), (1, 0))

    def test_an_outcome_that_the_site_refuses(self) -> None:
        execute(REFUSE)
        results = [broken.refused.enqueue(), broken.arefused.enqueue(), tasks.add.enqueue(1, 2)]
        self.assertEqual(drain(timeout=20), 3)
        self.assertEqual(self.outcomes(*results), [FAILED, FAILED, SUCCESSFUL])
        self.assertIn("the site refuses", results[0].errors[0].traceback)

    def test_times_go_by_the_clock(self) -> None:
        results = [tasks.add.enqueue(1, 2), tasks.aadd.enqueue(1, 2)]
        seen: list[Any] = []
        cancelled = tasks.add.enqueue(1, 2)
        self.assertTrue(cancelled.cancel())
        with receiving(task_finished, lambda task_result, **kwargs: seen.append(task_result)) as _:
            drain()
        for result in [*results, *seen]:
            if result not in seen:
                result.refresh()
            times = [result.enqueued_at, result.started_at, result.finished_at, timezone.now()]
            self.assertEqual(times, sorted(times))
        cancelled.refresh()
        assert cancelled.enqueued_at is not None
        assert cancelled.finished_at is not None
        self.assertGreaterEqual(cancelled.finished_at, cancelled.enqueued_at)

    def test_an_unknown_task_is_put_off_from_now_on(self) -> None:
        """Not from when the transaction began, or it would be due again at once, for ever."""
        result = tasks.add.enqueue(1, 2)
        Task.objects.update(task_path="nowhere.at_all")
        before = timezone.now()
        self.assertEqual(drain(timeout=20), 1)
        row = Task.objects.get()
        assert row.run_after is not None
        self.assertGreater((row.run_after - before).total_seconds(), 9)
        self.assertEqual(str(row.pk), result.id)


class EndlessTests(TestCase):
    """A drain ends within its limit, and says what it has waited for."""

    def test_a_coroutine(self) -> None:
        result = broken.astubborn.enqueue()
        tasks.noted.clear()
        with self.assertRaisesRegex(
            TimeoutError, rf"(?s)waits for the task .*astubborn \(id {result.id}\).*sleep\(60\)"
        ):
            drain(timeout=0.5)
        self.assertEqual(tasks.noted, ["cancelled"])
        result.refresh()
        self.assertEqual((result.status, result.attempts), (READY, 0))
        self.assertEqual(Worker.objects.count(), 0)

    async def test_a_coroutine_async(self) -> None:
        await broken.astubborn.aenqueue()
        with self.assertRaisesRegex(TimeoutError, "astubborn"):
            await drain(timeout=0.5)
        self.assertEqual(await Worker.objects.acount(), 0)

    def test_a_statement(self) -> None:
        """The thread that waits for the database is the test's own, so the statement is ended."""
        broken.sleep_in_database.enqueue(60)
        with (
            self.assertLogs("aiotasks.testing", "ERROR") as logs,
            self.assertRaisesRegex(TimeoutError, r"(?s)sleep_in_database .*pg_sleep"),
        ):
            drain(timeout=0.5)
        self.assertIn("pg_sleep", logs.output[0])

    def test_a_task_that_enqueues_itself(self) -> None:
        broken.enqueue_itself.enqueue()
        with self.assertRaisesRegex(
            TimeoutError, r"(?s)has run [1-9]\d* tasks in 1 s, and waits for .*`timeout`"
        ):
            drain(timeout=1)


class CancelledTests(TestCase):
    """A drain that is cancelled while its thread opens a savepoint, the first, the second, … one."""

    async def cancel_at_savepoint(self, number: int) -> bool:
        """Returns whether there was one."""
        result = await tasks.echo.aenqueue(number)
        draining = asyncio.create_task(self.drain())
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()
        savepoints = 0

        def cancel() -> None:
            draining.cancel()
            loop.call_soon(cancelled.set)

        def execute(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
            nonlocal savepoints
            if str(sql).startswith("SAVEPOINT"):
                savepoints += 1
                if savepoints == number:
                    loop.call_soon_threadsafe(cancel)
                    cancelled.wait(20)
            return execute(sql, params, many, context)

        @sync_to_async
        def blocks() -> list[Any]:
            return [*connection.atomic_blocks]

        before = await blocks()
        await sync_to_async(lambda: connection.execute_wrappers.append(execute))()
        try:
            await draining
        except asyncio.CancelledError:
            pass
        finally:
            await sync_to_async(lambda: connection.execute_wrappers.remove(execute))()
        assert await blocks() == before, number
        await result.arefresh()
        assert result.status in (READY, SUCCESSFUL)
        assert await Worker.objects.acount() == 0
        await Task.objects.all().adelete()
        return savepoints >= number

    async def drain(self) -> None:
        await drain()

    async def test_no_savepoint_stays_open(self) -> None:
        number = 1
        while await self.cancel_at_savepoint(number):
            number += 1
        assert number > 4


class ClosedConnectionTests(TransactionTestCase):
    def test_it_says_who_has_closed_the_tests_connection(self) -> None:
        with transaction.atomic():
            broken.close_connection.enqueue()
            with self.assertRaisesRegex(
                RuntimeError, r"close_connection has closed the connection 'default'"
            ):
                drain(timeout=20)
            transaction.set_rollback(True)
        broken.close_connection.enqueue()  # no transaction, no harm
        self.assertEqual(drain(timeout=20), 1)
        Task.objects.all().delete()

    def test_a_block_left_open_holds_nobody_up(self) -> None:
        broken.leave_atomic_open.enqueue()
        self.assertEqual(drain(timeout=20), 1)
        self.assertFalse(connection.in_atomic_block)
        self.assertEqual(hosts(), 0)


@pytest.mark.parametrize("inside", [False, True])
async def test_on_a_loop_of_its_own(database: str, inside: bool) -> None:
    """pytest-asyncio: sync tasks have asgiref's thread, whose connection others use afterwards."""
    results = [await task.aenqueue() for task in (broken.leave_atomic_open, broken.insert_twice)]
    results.append(await tasks.count_hosts.aenqueue("twice"))

    async def run() -> None:
        assert await drain(timeout=20) == 3

    if inside:
        async with aiotasks.transaction():
            await run()
    else:
        await run()
    for result in results:
        await result.arefresh()
    assert [result.status for result in results] == [SUCCESSFUL, FAILED, SUCCESSFUL]
    assert results[2].return_value == 1  # insert_twice's first: nothing undoes what is committed


async def test_a_sync_task_that_never_ends_says_so(database: str, caplog: pytest.LogCaptureFixture) -> None:
    result = await tasks.sleep.aenqueue(2)
    with pytest.raises(TimeoutError, match=r"(?s)tests\.tasks\.sleep .*time\.sleep\(seconds\)"):
        await drain(timeout=0.5)
    assert result.id in caplog.text
    await asyncio.to_thread(lambda: None)
    await sync_to_async(lambda: None)()  # the thread is free again
