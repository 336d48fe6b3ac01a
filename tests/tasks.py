"""The task functions of the tests. A worker finds them by their path, so they stand at module level."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any
from uuid import uuid4

from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.utils import timezone

import aiotasks
from aiotasks.models import Worker
from tests.site import Context, task


@task
def add(a: int, b: int) -> int:
    return a + b


@task
async def aadd(a: int, b: int) -> int:
    return a + b


@task
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


@task
async def aecho(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


@task
def noop() -> None:
    pass


@task
async def anoop() -> None:
    pass


@task
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@task
async def asleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def fail(message: str = "no luck") -> None:
    raise ValueError(message)


@task
async def afail(message: str = "no luck") -> None:
    raise ValueError(message)


# --- Signatures ------------------------------------------------------------------------------


@task
def keyword_only(*, key: int, **others: int) -> int:
    return key


@task
def positional_only(a: int, /, b: int = 0) -> int:
    return a + b


@task(takes_context=True)
def greet(context: Context, name: str = "you") -> str:
    return name


def _with_a_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(connection, *args, **kwargs)

    return wrapper


@task
@_with_a_connection
def injected(handle: Any, number: int) -> int:
    return number


# --- What a worker can't tell by the function what it has to run -------------------------------


def _sync_wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
    """As decorators are written that know nothing of coroutines."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        noted.append(threading.current_thread().name)
        return function(*args, **kwargs)

    return wrapper


@task
@_sync_wrapper
async def wrapped(what: str) -> Any:
    """Returns what it has met: the name of its thread, and a row by the ORM."""
    noted.append(what)
    if what == "fail":
        raise ValueError("no luck")
    if what == "wait":
        await asyncio.Event().wait()
    return [threading.current_thread().name, await Worker.objects.acount()]


@task
def returns_coroutine() -> Any:
    return wrapped.func("inner")


@task
def returns_generator() -> Any:
    return (n for n in range(3))


@task
def generator() -> Any:
    yield 1


@task
async def async_generator() -> Any:
    yield 1


# --- The task context ------------------------------------------------------------------------


def _described(context: Context, values: tuple[Any, ...]) -> dict[str, Any]:
    result = context.task_result
    return {
        "attempt": context.attempt,
        "id": result.id,
        "status": str(result.status),
        "args": result.args,
        "kwargs": result.kwargs,
        "worker_ids": result.worker_ids,
        "values": values,
    }


@task(takes_context=True)
def describe(context: Context, *values: Any) -> dict[str, Any]:
    return _described(context, values)


@task(takes_context=True)
async def adescribe(context: Context, *values: Any) -> dict[str, Any]:
    return _described(context, values)


# --- What they run in ------------------------------------------------------------------------

# The order in which `note` ran, in this process.
noted: list[Any] = []


@task
def note(value: Any) -> None:
    noted.append(value)


@task
async def anote(value: Any) -> None:
    noted.append(value)


@task
def where() -> list[Any]:
    """The name of the thread, and whether it has a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return [threading.current_thread().name, False]
    return [threading.current_thread().name, True]


@task
async def awhere() -> list[Any]:
    return [threading.current_thread().name, asyncio.get_running_loop() is not None]


# --- Tasks that enqueue tasks, and tasks that use the ORM --------------------------------------


@task
def chain(left: int) -> int:
    """Enqueue itself until nothing is left."""
    if left:
        chain.enqueue(left - 1)
    return left


@task
async def achain(left: int) -> int:
    if left:
        await achain.aenqueue(left - 1)
    return left


@task
def bridge(left: int) -> int:
    """Enqueue a coroutine task from sync code by the async way."""
    async_to_sync(achain.aenqueue)(left)
    return left


# The tests' own data: the one table of ours that no statement of the backend's writes.
@task
def count_hosts(host: str) -> int:
    return Worker.objects.filter(host=host).count()


@task
async def acount_hosts(host: str) -> int:
    return await Worker.objects.filter(host=host).acount()


@task
def rename_host(old: str, new: str) -> int:
    return Worker.objects.filter(host=old).update(host=new)


@task
async def arename_host(old: str, new: str) -> int:
    return await Worker.objects.filter(host=old).aupdate(host=new)


@task
def backend_pid() -> int:
    """Which server process Django's connection of the task's thread has."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


# --- What tasks return and raise to spite a worker ----------------------------------------------


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


# Each isn't JSON, or isn't exactly: the task FAILED with the error of that class.
BAD_VALUES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "object": (object, TypeError),
    "set": (lambda: {1, 2}, TypeError),
    "bytes": (lambda: b"\xff\xfe", TypeError),
    "nan": (lambda: float("nan"), ValueError),
    "infinity": (lambda: {"a": [float("-inf")]}, ValueError),
    "huge integer": (lambda: 10**5000, ValueError),
    "too deep": (lambda: _deep(100_000), ValueError),
    "cycle": (_cycle, ValueError),
    "colliding keys": (lambda: {1: "a", "1": "b"}, ValueError),
    "key": (lambda: {(1, 2): "a"}, TypeError),
    "too big": (lambda: "x" * 2_000_000, ValueError),
    "coroutine function": (lambda: asleep.func, TypeError),
}


@task
def return_bad(name: str) -> Any:
    return BAD_VALUES[name][0]()


@task
async def areturn_bad(name: str) -> Any:
    return BAD_VALUES[name][0]()


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class BrokenRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("nor a repr")


def _local_class() -> BaseException:
    class Local(Exception):
        pass

    return Local("of a class that can't be imported")


def _with_notes() -> BaseException:
    error = ValueError("with notes")
    error.add_note("a note with \x00 and \ud800")
    return error


def _broken_notes() -> BaseException:
    error = ValueError("with broken notes")
    error.__notes__ = 5  # type: ignore[assignment]
    return error


def _group() -> BaseException:
    return ExceptionGroup("several", [ValueError("one"), BrokenStr(), TypeError("two")])


def _caused_by_itself() -> BaseException:
    error = ValueError("its own cause")
    error.__cause__ = error
    return error


BAD_EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "broken str": BrokenStr,
    "broken repr": lambda: BrokenRepr("x"),
    "local class": _local_class,
    "10 MB": lambda: ValueError("ä" * 10_000_000),
    "NUL and surrogate": lambda: ValueError("\x00 \ud800 \udfff"),
    "group": _group,
    "notes": _with_notes,
    "broken notes": _broken_notes,
    "own cause": _caused_by_itself,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "BaseException": lambda: BaseException("bare"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("bare", [SystemExit(1), KeyboardInterrupt()]),
    "StopAsyncIteration": lambda: StopAsyncIteration("early"),
    "RecursionError": lambda: RecursionError("deep"),
}


@task
def raise_bad(name: str) -> None:
    raise BAD_EXCEPTIONS[name]()


@task
async def araise_bad(name: str) -> None:
    raise BAD_EXCEPTIONS[name]()


@task
def exit_now() -> None:
    sys.exit(3)


@task
async def aexit_now() -> None:
    sys.exit(3)


# --- With aiotasks' own decorator, and what no worker could run ---------------------------------


@aiotasks.task(max_crashes=0, priority=5)
async def fragile() -> str:
    return "whole"


def plain_function() -> None:
    pass


@task
def replaced() -> str:
    return "the first of the name"


first_replaced = replaced


@task  # type: ignore[no-redef]  # as a careless author does
def replaced() -> str:
    return "the second of the name"


def hidden() -> None:
    pass


# Its module path is tests.tasks.hidden, where a plain function stands.
hidden_task = task(hidden)


class RolledBack(Exception):
    pass


@task
def enqueue_in_atomic(way: str, commit: bool) -> None:
    """Enqueue inside a transaction, and roll it back unless told to commit."""
    with transaction.atomic():
        if way == "enqueue":
            echo.enqueue(way, commit)
        else:
            async_to_sync(echo.aenqueue)(way, commit)
        if not commit:
            raise RolledBack


@task
def raise_stop_iteration() -> None:
    raise StopIteration("early")


@task
def divide_by_zero() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1/0")


@task
async def sign_up(name: str, *, fail: bool) -> None:
    """A row and a task in one transaction, which fails where asked to."""
    now = timezone.now()
    row = {"id": uuid4(), "backend": "site", "host": name, "pid": 0, "queues": "{}", "concurrency": 0}
    async with aiotasks.atomic():
        await Worker.objects.acreate(**row, threads=0, version="", started_at=now, lease_expires_at=now)
        await anoop.aenqueue()
        await asyncio.sleep(0.005)
        if fail:
            raise ValueError("after both")


@task
async def cancel_at_the_end(name: str, turns: int) -> None:
    """Cancel the asyncio task of that name so many turns of the loop after this one's end."""
    loop = asyncio.get_running_loop()
    (found,) = [one for one in asyncio.all_tasks() if one.get_name() == name]
    call: Callable[[], object] = found.cancel
    for _ in range(turns):
        call = partial(loop.call_soon, call)
    call()
