"""The private parts of asgiref, Django and asyncpg are there and do what `aiotasks.compat` says."""

import asyncio
import inspect
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from dataclasses import fields
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from uuid import uuid4

import asgiref.local
import asyncpg
import pytest
from asgiref.sync import AsyncToSync, ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.dispatch import Signal
from django.tasks import TaskResult
from django.tasks.signals import task_enqueued

from aiotasks import compat
from aiotasks.store.statements import load
from tests.site import postgres_connection

local = asgiref.local.Local()
variable: ContextVar[str] = ContextVar("aiotasks_test")


class Recording(Executor):
    """Runs each call at once and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        future.set_result(call(*args, **kwargs))
        return future


def test_restore_context() -> None:
    def set_both() -> None:
        variable.set("there")
        local.language = "de"

    context = Context()
    context.run(set_both)
    here = Context()
    here.run(compat.restore_context, context)
    assert here[variable] == "there"
    assert here.run(lambda: local.language) == "de"


def test_the_waiting_thread_and_its_executor() -> None:
    async def look() -> tuple[bool, Executor | None, int]:
        waits, executor = compat.sync_code_waits(), compat.waiting_executor()
        assert executor is not None
        thread = await asyncio.wrap_future(executor.submit(threading.get_ident))
        return waits, executor, thread

    assert compat.waiting_executor() is None
    waits, _, thread = async_to_sync(look)()
    assert waits
    assert thread == threading.get_ident()


def test_a_task_without_the_context_knows_the_waiting_thread_by_its_loop() -> None:
    async def look() -> tuple[bool, Executor | None, Executor | None]:
        return compat.sync_code_waits(), compat.waiting_executor(), compat.executor_of_loop()

    async def outer() -> tuple[bool, Executor | None, Executor | None]:
        return await asyncio.get_running_loop().create_task(look(), context=Context())

    waits, inherited, by_loop = async_to_sync(outer)()
    assert waits
    assert inherited is None
    assert by_loop is not None
    assert async_to_sync(look)()[1:] != (None, None)
    assert asyncio.run(look()) == (False, None, None)


def test_another_executor_than_the_waiting_threads() -> None:
    executor = Recording()

    async def call() -> None:
        waiting = compat.waiting_executor()
        compat.set_waiting_executor(executor)
        await sync_to_async(int)()
        assert executor.calls == 1
        compat.set_waiting_executor(waiting)
        await sync_to_async(int)()
        assert executor.calls == 1

    async_to_sync(call)()


def test_thread_sensitive_calls_go_to_an_executor_forever() -> None:
    executor = Recording()
    context = Context()
    entered = context.run(compat.enter_thread_sensitive, executor)
    assert context[compat.thread_sensitive_context] is entered

    async def call() -> None:
        await sync_to_async(int)()

    async def both() -> None:
        await asyncio.get_running_loop().create_task(call(), context=context)
        assert executor.calls == 1
        outside = copy_context()
        outside.run(compat.restore_context, context)
        outside.run(compat.thread_sensitive_context.set, None)
        await asyncio.get_running_loop().create_task(call(), context=outside)
        assert executor.calls == 1

    asyncio.run(both())


async def test_the_executor_of_a_context_is_that_of_sync_to_async() -> None:
    async def thread_of(executor: Executor) -> int:
        return await asyncio.wrap_future(executor.submit(threading.get_ident))

    get_ident = sync_to_async(threading.get_ident)
    assert await thread_of(compat.executor_in_context(None)) == await get_ident()
    async with ThreadSensitiveContext() as context:
        assert await thread_of(compat.executor_in_context(context)) == await get_ident()
    with ThreadPoolExecutor(1) as executor:
        async with ThreadSensitiveContext(executor=executor) as context:
            assert compat.executor_in_context(context) is executor
        with pytest.raises(RuntimeError, match="has exited"):
            compat.executor_in_context(context)


async def test_a_context_has_a_thread_once_sync_code_has_run_in_it() -> None:
    assert compat.has_thread_of_context()
    async with ThreadSensitiveContext():
        assert not compat.has_thread_of_context()
        await sync_to_async(threading.get_ident, thread_sensitive=True)()
        assert compat.has_thread_of_context()


async def test_the_thread_of_a_context_ends_and_another_may_follow() -> None:
    async with ThreadSensitiveContext():
        thread = await sync_to_async(threading.current_thread, thread_sensitive=True)()
        compat.end_thread_of_context()
        await asyncio.to_thread(thread.join)
        assert not compat.has_thread_of_context()
        assert await sync_to_async(threading.current_thread, thread_sensitive=True)() is not thread
    with ThreadPoolExecutor(1) as executor:
        async with ThreadSensitiveContext(executor=executor):
            compat.end_thread_of_context()
            assert executor.submit(int).result() == 0  # somebody else's


async def test_coroutines_of_a_thread_run_on_the_loop() -> None:
    loop = asyncio.get_running_loop()

    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def in_thread() -> asyncio.AbstractEventLoop:
        assert compat.loop_of_sync_code() is None
        compat.call_coroutines_on(loop)
        assert compat.loop_of_sync_code() is loop
        return async_to_sync(where)()

    with ThreadPoolExecutor(1) as executor:
        assert await loop.run_in_executor(executor, in_thread) is loop
    assert await sync_to_async(compat.loop_of_sync_code)() is loop


def test_async_to_sync_keeps_its_function() -> None:
    async def function() -> None: ...

    assert AsyncToSync(function).awaitable is function


def test_hooks_and_savepoints_of_a_transaction(database: str) -> None:
    def hook() -> None: ...

    with transaction.atomic():
        with transaction.atomic():
            transaction.on_commit(hook)
            within, found, *_ = compat.on_commit_hooks(connection)[-1]
            assert found is hook
            assert within == compat.savepoints(connection)
            assert len(within) == 1
        assert compat.savepoints(connection) == set()
        transaction.set_rollback(True)


def test_connect_replaces_the_list_of_hooks(database: str) -> None:
    connection.close()
    before = compat.new_on_commit_hooks(connection)
    assert compat.on_commit_hooks(connection) is before
    connection.ensure_connection()
    assert compat.on_commit_hooks(connection) is not before


def test_a_forgotten_session_stays_open_and_another_takes_its_place(database: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    raw = compat.forget_session(connection)
    try:
        assert not raw.closed
        assert compat.forget_session(connection) is None
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            assert cursor.fetchone() != (pid,)
    finally:
        raw.close()


def test_pools_by_alias(database: str) -> None:
    pools = compat.connection_pools(connection)
    assert isinstance(pools, dict)
    assert pools is type(postgres_connection())._connection_pools  # type: ignore[attr-defined]  # Django's private


def test_a_durable_block_stands_in_one_marked_as_a_testcases(database: str) -> None:
    block = transaction.atomic()
    compat.mark_as_testcases(block)
    with block, transaction.atomic(durable=True):
        pass
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):  # noqa: SIM117
        with transaction.atomic(durable=True):
            pass


def test_fields_of_a_frozen_result() -> None:
    assert compat.RETURN_VALUE in {field.name for field in fields(TaskResult)}
    result = object.__new__(TaskResult)
    (set_id,) = compat.slot_setters(TaskResult, ["id"])
    set_id(result, "1")
    assert result.id == "1"
    compat.set_frozen(result, "id", "2")
    assert result.id == "2"
    compat.set_frozen(result, "status", "SUCCESSFUL")
    compat.set_frozen(result, compat.RETURN_VALUE, 3)
    assert result.return_value == 3


def test_receivers_of_a_signal() -> None:
    signal = Signal()
    calls: list[str] = []

    def first(**kwargs: Any) -> None:
        calls.append("first")

    def second(**kwargs: Any) -> None:
        calls.append("second")

    async def third(**kwargs: Any) -> None: ...

    signal.connect(second)
    assert compat.has_only(signal, id(second))
    assert not compat.has_only(signal, id(first))
    compat.connect_first(signal, first, dispatch_uid="tests.first")
    assert not compat.has_only(signal, id(second))
    assert compat.has_receiver(signal, id(second))
    assert not compat.has_receiver(signal, id(third))
    signal.send(None)
    assert calls == ["first", "second"]
    signal.connect(third)
    assert compat.live_receivers(signal, type(None)) == ([first, second], [third])


def test_django_itself_connects_one_receiver_to_each_signal_of_tasks() -> None:
    assert len(task_enqueued.receivers) >= 1


def test_what_a_receiver_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def receiver(**kwargs: Any) -> None: ...

    compat.log_robust_failure(Signal(), receiver, ValueError("why"))
    (record,) = caplog.records
    assert record.name == "django.dispatch"
    assert "why" in caplog.text


def test_cursors_execute_through_the_overridden_methods(database: str) -> None:
    assert list(inspect.signature(vars(CursorWrapper)["_execute"]).parameters)[:3] == [
        "self",
        "sql",
        "params",
    ]
    called: list[str] = []

    class Observed(CursorWrapper):
        def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
            called.append("_execute")
            return super()._execute(sql, params, *ignored)  # type: ignore[misc]  # Django's private

        def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any:
            called.append("_executemany")
            return super()._executemany(sql, param_list, *ignored)  # type: ignore[misc]

    with connection.cursor() as cursor:
        cursor.__class__ = Observed
        cursor.execute("SELECT 1")
        cursor.executemany("SELECT %s", [(1,)])
    assert called == ["_execute", "_executemany"]


async def test_the_transport_and_the_protocol_of_a_connection(database: str) -> None:
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool, pool.acquire() as proxy:
        transport, protocol = compat.transport_and_protocol(proxy)
        assert transport.get_protocol() is protocol
        assert callable(transport.set_protocol)
        assert callable(protocol.data_received)
        assert callable(protocol.connection_lost)
    assert compat.transport_and_protocol(object()) == (None, None)


async def test_declared_array_types_are_not_looked_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[Any] = []
    look_up = asyncpg.Connection._introspect_types

    async def watched(self: Any, oids: Any, timeout: Any) -> Any:
        looked_up.extend(oids)
        return await look_up(self, oids, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", watched)
    values = (
        ("json", ['{"a": 1}', None]),
        ("boolean", [True, None]),
        ("smallint", [1, None]),
        ("integer", [2]),
        ("double precision", [0.5]),
        ("timestamptz", [datetime(2026, 1, 1, tzinfo=UTC)]),
        ("uuid", [uuid4(), None]),
    )
    connection = await asyncpg.connect(database)
    try:
        compat.declare_array_types(connection)
        for kind, value in values:
            assert await connection.fetchval(f"SELECT $1::{kind}[]", value) == value
        for file in (files("aiotasks.store") / "queries").iterdir():
            await connection.prepare(load(file.name.removesuffix(".sql")).sql)
        assert not looked_up  # else the type belongs in compat's _ARRAY_TYPES
    finally:
        await connection.close()
    compat.declare_array_types(object())


def test_every_name_has_a_test() -> None:
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert [name for name in compat.__all__ if f"compat.{name}" not in text] == []
