"""What aiotasks uses of asgiref, Django and asyncpg without a public name for it.

Each item has its reason and, by its section, the release in whose source it was read.
``tests/unit/test_compat.py`` has a test for each, which fails where another release takes it away. Where
something runs once a task it is an alias, and not a call around a call. `db/thread_sessions.py` overrides two
private methods, which have a test as well: ``CursorWrapper._execute`` and ``_executemany``.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar
from operator import attrgetter
from typing import Any

from asgiref import sync as asgiref_sync
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
from django.dispatch import Signal

__all__ = [
    "RETURN_VALUE",
    "call_coroutines_on",
    "connect_first",
    "connection_pools",
    "declare_array_types",
    "end_thread_of_context",
    "enter_thread_sensitive",
    "executor_in_context",
    "executor_of_loop",
    "forget_session",
    "has_only",
    "has_thread_of_context",
    "live_receivers",
    "log_robust_failure",
    "loop_of_sync_code",
    "mark_as_testcases",
    "new_on_commit_hooks",
    "on_commit_hooks",
    "restore_context",
    "savepoints",
    "set_frozen",
    "set_waiting_executor",
    "slot_setters",
    "sync_code_waits",
    "thread_sensitive_context",
    "transport_and_protocol",
    "waiting_executor",
]

# --- asgiref 3.13 -------------------------------------------------------------------------------------

# Sets the variables of a context in the current one, and brings along what asgiref's Local keeps there
# (a language, a time zone), as between a coroutine and its threads.
restore_context: Callable[[Context], None] = asgiref_sync._restore_context

# Decides which threads thread-sensitive calls go to. asgiref reads it by get(None), so None stands for "not
# set", for which it has no type.
thread_sensitive_context: ContextVar[ThreadSensitiveContext | None] = SyncToAsync.thread_sensitive_context  # type: ignore[assignment]


def waiting_executor() -> Executor | None:
    """The executor of the thread that waits in ``async_to_sync`` for the running coroutine, if it inherited
    that thread's context."""
    return getattr(AsyncToSync.executors, "current", None)


def set_waiting_executor(executor: Executor | None) -> None:
    """Have thread-sensitive calls in this context go to another executor than the waiting thread's.

    asgiref prefers the waiting thread to ``thread_sensitive_context``.
    """
    AsyncToSync.executors.current = executor


def executor_of_loop() -> Executor | None:
    """The executor of the thread that waits for the running loop, which ``async_to_sync`` has started."""
    return AsyncToSync.loop_thread_executors.get(asyncio.get_running_loop())


def sync_code_waits() -> bool:
    """Whether this coroutine runs below somebody's ``async_to_sync``.

    Then the waiting thread has a Django connection, perhaps with a transaction open on it, and our statements
    belong there: in an async view under WSGI, an async test of TestCase, a helper called inside ``atomic()``.
    An asyncio task that didn't inherit the context is known by its loop.
    """
    if getattr(AsyncToSync.executors, "current", None) is not None:
        return True
    return asyncio.get_running_loop() in AsyncToSync.loop_thread_executors


def executor_in_context(context: ThreadSensitiveContext | None) -> Executor:
    """The executor that a thread-sensitive call in ``context`` goes to where no thread waits.

    As ``SyncToAsync.__call__`` chooses it. Raises RuntimeError if the context has exited.
    """
    if context is None:
        return executor_of_loop() or SyncToAsync.single_thread_executor
    if context._exited:
        raise RuntimeError("The ThreadSensitiveContext around this code has exited.")
    executors = SyncToAsync.context_to_thread_executor
    if context not in executors:
        executors[context] = ThreadPoolExecutor(max_workers=1)
    return executors[context]


def has_thread_of_context() -> bool:
    """Whether a thread-sensitive call would find a thread that there is already: one of the running context
    (a request's, where sync code has run in it), or one that contexts share."""
    context = thread_sensitive_context.get(None)
    return context is None or context in SyncToAsync.context_to_thread_executor


def end_thread_of_context() -> None:
    """End the thread that the running context has to itself (a request's), once its calls are done. A later
    thread-sensitive call gets another one.

    asgiref ends it with the context, so one for each response that is a stream. A thread of a context whose
    executor was given belongs to who gave it.
    """
    context = thread_sensitive_context.get(None)
    if context is not None and context._executor is None:
        executor = SyncToAsync.context_to_thread_executor.pop(context, None)
        if isinstance(executor, ThreadPoolExecutor):
            executor.shutdown(wait=False)


def enter_thread_sensitive(executor: Executor) -> ThreadSensitiveContext:
    """Have thread-sensitive calls in the current context go to ``executor``, forever.

    ``ThreadSensitiveContext`` is for ``async with``. Its ``__aenter__`` suspends nowhere, so it can be run
    without a loop.
    """
    context = ThreadSensitiveContext(executor=executor)
    with suppress(StopIteration):
        context.__aenter__().send(None)  # type: ignore[no-untyped-call]  # asgiref's has no types
    return context


def call_coroutines_on(loop: asyncio.AbstractEventLoop) -> None:
    """Have ``async_to_sync`` in this thread use ``loop``, as in a thread that ``sync_to_async`` runs."""
    SyncToAsync.threadlocal.main_event_loop = loop
    SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()


def loop_of_sync_code() -> asyncio.AbstractEventLoop | None:
    """The running loop that waits for this thread's sync code, where that was called by ``sync_to_async`` or
    is a sync task: ``async_to_sync`` runs its coroutines there, too."""
    if getattr(SyncToAsync.threadlocal, "main_event_loop_pid", None) != os.getpid():
        return None
    loop: asyncio.AbstractEventLoop | None = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    return loop if loop is not None and loop.is_running() else None


# --- Django 6.1 ---------------------------------------------------------------------------------------

# The functions to call after the commit: (savepoint ids, function, robust), the latest last. connect()
# replaces the list as its last step.
on_commit_hooks: Callable[[Any], list[tuple[Any, ...]]] = attrgetter("run_on_commit")


def new_on_commit_hooks(connection: Any) -> list[tuple[Any, ...]]:
    """Give the connection another list of hooks, and return it: connect() is over when it is replaced."""
    hooks: list[tuple[Any, ...]] = []
    connection.run_on_commit = hooks
    return hooks


def savepoints(connection: Any) -> set[str | None]:
    """The ids of the savepoints that are open on the connection, as hooks are registered with them."""
    return set(connection.savepoint_ids)


def forget_session(connection: Any) -> Any:
    """Have ``connection`` connect again at its next query; returns the driver's connection, not closed.

    ``close()`` would end the session of the process that this one was forked from.
    """
    raw = connection.connection
    if raw is not None:
        connection.connection = None
        new_on_commit_hooks(connection)
        if connection.in_atomic_block:
            connection.closed_in_transaction = True
            connection.needs_rollback = True
    return raw


def connection_pools(connection: Any) -> dict[str, Any]:
    """The pools of connections by alias, which all connections of an engine's class share."""
    pools: dict[str, Any] = getattr(connection, "_connection_pools", {})
    return pools


def mark_as_testcases(block: Any) -> None:
    """Let durable blocks stand inside an ``atomic()`` block, as in that of a TestCase."""
    block._from_testcase = True


# The field that `TaskResult.return_value` reads; the property raises ValueError before success.
RETURN_VALUE = "_return_value"

# Sets a field of a Task or a TaskResult, which are frozen dataclasses.
set_frozen = object.__setattr__


def slot_setters(kind: type, names: Iterable[str]) -> list[Callable[[Any, Any], None]]:
    """Functions that set these fields of a frozen dataclass with slots.

    They take a quarter of the time of its ``__init__``.
    """
    return [getattr(kind, name).__set__ for name in names]


def live_receivers(signal: Signal, sender: type) -> tuple[list[Any], list[Any]]:
    """The sync and the async receivers of a signal.

    Not an alias, because monitoring tools replace the method.
    """
    sync_receivers, async_receivers, *_ = signal._live_receivers(sender)
    return sync_receivers, async_receivers


def has_only(signal: Signal, receiver_id: int) -> bool:
    """Whether the receiver with this ``id()`` is the signal's only one, by its key, which holds that id.

    Not the receiver itself, because ``id()`` raises an audit event, for which a worker has a hook in Python.
    """
    receivers = signal.receivers
    return len(receivers) == 1 and receivers[0][0][0] == receiver_id


def has_receiver(signal: Signal, receiver_id: int) -> bool:
    """Whether the receiver with this ``id()`` is connected to the signal, also where a monitoring tool wraps
    it when it is called.
    """
    return any(key[0] == receiver_id for key, *_ in signal.receivers)


def log_robust_failure(signal: Signal, receiver: Any, error: Exception) -> None:
    """Log what a receiver has raised, as ``send_robust`` does."""
    signal._log_robust_failure(receiver, error)  # type: ignore[attr-defined]  # not in the stubs


def connect_first(signal: Signal, receiver: Callable[..., Any], *, dispatch_uid: str) -> None:
    """Connect a receiver that is called before those that are connected already."""
    signal.connect(receiver, dispatch_uid=dispatch_uid)
    with signal.lock:
        signal.receivers.insert(0, signal.receivers.pop())


# --- asyncpg 0.32 -------------------------------------------------------------------------------------


def transport_and_protocol(connection: Any) -> tuple[Any, Any]:
    """The transport and the protocol of a connection, or of a pool's proxy for one; None where they have
    other names.

    An error that a server sends to an idle session can be seen there alone.
    """
    raw = getattr(connection, "_con", connection)
    return getattr(raw, "_transport", None), getattr(raw, "_protocol", None)


# Array types of our statements that asyncpg doesn't know from the start: type, and type of the elements.
# The numbers are the same in every PostgreSQL (src/include/catalog/pg_type.dat).
_ARRAY_TYPES = {
    199: 114,  # json
    1000: 16,  # boolean
    1005: 21,  # smallint
    1007: 23,  # integer
    1022: 701,  # double precision
    1185: 1184,  # timestamptz
    2951: 2950,  # uuid
}
_ARRAY_TYPE_ROWS = [
    {
        "oid": array,
        "name": "_",
        "ns": "pg_catalog",
        "kind": b"b",
        "elemtype": element,
        "elemdelim": ",",
        "basetype": None,
        "range_subtype": None,
        "attrtypoids": None,
    }
    for array, element in _ARRAY_TYPES.items()
]


def declare_array_types(connection: Any) -> None:
    """Have a connection know _ARRAY_TYPES; does nothing where asyncpg has other names.

    asyncpg looks up the types that it doesn't know by a query, for each new session and each statement that
    has some: of the server's CPU time, 7 ms for a claim's, and 2 ms for a finish's.
    """
    with suppress(AttributeError, KeyError, TypeError):
        connection._protocol.get_settings().register_data_types(_ARRAY_TYPE_ROWS)
