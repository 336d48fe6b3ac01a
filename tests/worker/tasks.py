"""Tasks for the tests, of every kind that a worker has to survive."""

import asyncio
import atexit
import contextvars
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

import psycopg
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.db import connection

from aiotasks import PostgresTaskContext, task, transaction
from aiotasks.store.loop import resources
from aiotasks.worker.execution import Execution
from tests.site import Context, default_task_backend

# --- The ledger: what a task says of itself, over a connection that has nothing to do with the worker's.

_lock = threading.Lock()
_connection: psycopg.Connection | None = None


def held_claim() -> UUID | None:
    """The claim that the calling task runs under, as its worker has it: the row may say otherwise."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        execution = frame.f_locals.get("execution")
        if isinstance(execution, Execution):
            return execution.job.claim_id
        frame = frame.f_back
    return None


def record(event: str, task_id: str, claim_id: UUID | None = None) -> None:
    """Write an event with the claim that the task runs under; waits for a server that is away.

    LEDGER_DSN names another server for the ledger than the tasks' own.
    """
    global _connection
    claim_id = claim_id or held_claim()
    with _lock:
        while True:
            try:
                if _connection is None:
                    _connection = psycopg.connect(**_ledger(), application_name="ledger", autocommit=True)
                _connection.execute(
                    "INSERT INTO ledger (task_id, event, claim_id, pid) VALUES (%s, %s, %s, %s)",
                    [task_id, event, claim_id, os.getpid()],
                )
                return
            except psycopg.OperationalError:
                _connection = None
                time.sleep(0.05)


def _ledger() -> dict[str, Any]:
    if dsn := os.environ.get("LEDGER_DSN"):
        return {"conninfo": dsn}
    params = connection.settings_dict
    return {
        "host": params["HOST"],
        "port": params["PORT"],
        "user": params["USER"],
        "password": params["PASSWORD"] or None,
        "dbname": params["NAME"],
    }


def close_ledger() -> None:
    global _connection
    if _connection is not None:
        _connection.close()
        _connection = None


async def arecord(event: str, context: Context) -> None:
    await asyncio.to_thread(record, event, context.task_result.id, held_claim())


# What tasks leave behind in this process, for tests whose worker runs in it.
seen: list[Any] = []
released = threading.Event()


@task
async def noop() -> None:
    pass


@task
def print_something() -> None:
    print("something", flush=True)  # noqa: T201


@task
async def add(a: int, b: int) -> int:
    return a + b


@task
def add_sync(a: int, b: int) -> int:
    return a + b


@task(takes_context=True)
async def work(context: Context, seconds: float = 0.0) -> int:
    """Write start and end, with a sleep in between."""
    await arecord("start", context)
    await asyncio.sleep(seconds)
    await arecord("end", context)
    return os.getpid()


@task(takes_context=True)
def work_sync(context: Context, seconds: float = 0.0) -> int:
    record("start", context.task_result.id)
    time.sleep(seconds)
    record("end", context.task_result.id)
    return os.getpid()


@task(takes_context=True)
def work_longer_again(context: Context, first: float, later: float) -> int:
    record("start", context.task_result.id)
    time.sleep(first if len(context.task_result.worker_ids) == 1 else later)
    return os.getpid()


@task(takes_context=True)
async def block(context: Context, seconds: float) -> str:
    """Block the event loop."""
    record("start", context.task_result.id)
    time.sleep(seconds)  # noqa: ASYNC251
    record("end", context.task_result.id)
    return "done"


@task(takes_context=True)
async def hold_gil(context: Context, seconds: float) -> str:
    """Stop every thread but this one, at the first run: nobody is asked to give way for so long."""
    record("start", context.task_result.id)
    if len(context.task_result.worker_ids) > 1:
        return "done again"
    sys.setswitchinterval(1000)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    sys.setswitchinterval(0.005)
    return "done"


@task(takes_context=True)
async def kill_worker(context: Context) -> None:
    record("start", context.task_result.id)
    os.kill(os.getpid(), signal.SIGKILL)


@task(takes_context=True)
async def kill_worker_once(context: Context) -> str:
    record("start", context.task_result.id)
    if len(context.task_result.worker_ids) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@task(takes_context=True, max_crashes=0)
async def kill_worker_fatally(context: Context) -> None:
    record("start", context.task_result.id)
    os.kill(os.getpid(), signal.SIGKILL)


# --- What tasks may raise


class Custom(Exception):
    pass


EXCEPTIONS: dict[str, BaseException] = {
    "ValueError": ValueError("no"),
    "Custom": Custom("no"),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError("mine"),
    "StopIteration": StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration(1),
    "BaseException": BaseException("base"),
    "TimeoutError": TimeoutError("late"),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError(),
    "ExceptionGroup": ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    "BaseExceptionGroup": BaseExceptionGroup("several", [SystemExit(1), KeyboardInterrupt()]),
}


def _raise(name: str) -> None:
    if name == "sys.exit":
        sys.exit("bye")
    raise EXCEPTIONS[name]


@task
async def fail(name: str) -> None:
    await asyncio.sleep(0)
    _raise(name)


@task
async def fail_at_once(name: str) -> None:
    _raise(name)


@task
def fail_sync(name: str) -> None:
    _raise(name)


async def _child(name: str) -> None:
    await asyncio.sleep(0)
    _raise(name)


@task
async def fail_in_gather(name: str) -> None:
    await asyncio.gather(_child(name), asyncio.sleep(0.01))


@task
async def fail_in_group(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_child(name))


_background: set[asyncio.Task[None]] = set()


@task
async def fail_in_background(name: str) -> str:
    """A child that nobody awaits exits after its parent has returned."""
    child = asyncio.get_running_loop().create_task(_child(name))
    _background.add(child)
    child.add_done_callback(_background.discard)
    child.add_done_callback(lambda child: child.cancelled() or child.exception())
    return "done"


@task
async def cancel_itself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)


@task
async def cancel_itself_last() -> str:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    return "returned all the same"


@task(takes_context=True)
async def swallow_cancellation(context: Context) -> None:
    await arecord("start", context)
    seen.append("begun")
    while not released.is_set():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("swallowed")


@task(takes_context=True)
async def clean_up_when_cancelled(context: Context) -> None:
    await arecord("start", context)
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0.05)
        record("cleaned", context.task_result.id)


@task
async def unserialisable() -> object:
    return object()


@task
async def refused_by_the_database() -> str:
    return "refused by the database"


# --- Where tasks run, and what they see of each other


@task
async def where() -> list[Any]:
    task = asyncio.current_task()
    assert task is not None
    return [threading.current_thread().name, task.get_name()]


@task
def where_sync() -> list[Any]:
    return [threading.current_thread().name, None]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@task
async def set_variable(value: str) -> str:
    before = variable.get()
    variable.set(value)
    await asyncio.sleep(0)
    return before


@task
def set_variable_sync(value: str) -> str:
    before = variable.get()
    variable.set(value)
    return before


@task
def call_async() -> list[Any]:
    """async_to_sync inside a sync task: on the worker's loop, while this thread waits."""

    async def inner() -> int:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return threading.get_ident()

    return [async_to_sync(inner)(), threading.get_ident()]


@task
def enqueue_from_sync() -> str:
    return add.enqueue(1, 2).id


@task
async def enqueue_from_async() -> str:
    return (await add.aenqueue(1, 2)).id


@task
async def wait_for_release(name: str = "") -> str:
    """Runs until the test says so, or until nobody holds it any more."""
    seen.append(name)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting[name] = future
    await future
    return name


# Weakly, so that the only strong reference to a waiting task is the worker's.
waiting: "weakref.WeakValueDictionary[str, asyncio.Future[None]]" = weakref.WeakValueDictionary()

_busy = 0
_busy_lock = threading.Lock()


@task
async def count_parallel(seconds: float) -> int:
    """How many of these ran at a time when this one began."""
    global _busy
    _busy += 1
    try:
        seen.append(_busy)
        await asyncio.sleep(seconds)
    finally:
        _busy -= 1
    return 0


@task
def count_parallel_sync(seconds: float) -> int:
    global _busy
    with _busy_lock:
        _busy += 1
        seen.append(_busy)
    time.sleep(seconds)
    with _busy_lock:
        _busy -= 1
    return 0


@task
def wait_in_thread(name: str = "") -> str:
    """A sync task that the test lets go of."""
    seen.append(name)
    released.wait(60)
    return name


@task
async def swallow_cancellation_again(name: str) -> None:
    """Goes on, however often it is cancelled, until the test lets go of it."""
    seen.append(name)
    while not released.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)


@task
async def note(name: str, seconds: float = 0.0) -> str:
    seen.append(name)
    await asyncio.sleep(seconds)
    return name


# --- The ORM


@task
def count_rows() -> int:
    from aiotasks.models import Worker

    return Worker.objects.count()


def _backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _pg_sleep(seconds: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
    return _backend_pid()


@task
async def query(seconds: float, times: int = 1) -> list[int]:
    """Ask the database through Django, as the async ORM does; returns the server processes that answered."""
    from aiotasks.models import Worker

    assert await Worker.objects.acount() >= 0
    return [await sync_to_async(_pg_sleep)(seconds) for _ in range(times)]


@task
def query_sync() -> int:
    return _backend_pid()


@task
async def query_in_executor() -> int:
    return await asyncio.to_thread(_backend_pid)


@task
async def stick(name: str) -> str:
    """Hold up the thread of one's ORM calls."""
    seen.append(name)
    await sync_to_async(lambda: released.wait(60))()
    return threading.current_thread().name


@task
async def enqueue_after_transaction() -> str:
    """A child born inside a transaction block enqueues when the block has ended."""
    import aiotasks

    async with aiotasks.transaction():
        child = asyncio.get_running_loop().create_task(_enqueue_later())
    try:
        await child
    except aiotasks.TransactionClosed:
        return "refused"
    return "accepted"


async def _enqueue_later() -> None:
    await asyncio.sleep(0.05)
    await add.aenqueue(1, 2)


@task
async def never_end() -> None:
    """Whatever is done about it."""
    seen.append("begun")
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


@task
async def sleep_in_executor() -> None:
    """A thread that isn't the worker's own, and is waited for when a process ends."""
    seen.append("begun")
    await asyncio.to_thread(time.sleep, 3600)


@task
async def hold_connection(seconds: float) -> None:
    """Keep one connection of the worker's pool for so long; transaction() blocks can't have them all."""
    cache = resources(default_task_backend.config).driver.cache
    connection = await cache.acquire(timeout=60)
    try:
        async with connection.transaction():
            await asyncio.sleep(seconds)
    finally:
        await cache.release(connection, keep=True)


@task
async def hold_block() -> None:
    """Have a transaction() block open until all are released."""
    async with transaction():
        seen.append("block")
        while not released.is_set():  # noqa: ASYNC110  # a threading.Event, for all kinds of tasks
            await asyncio.sleep(0.01)


# --- What tasks do to the worker that they run in


@task(max_crashes=0)
async def wait_for_file(path: str) -> int:
    """A neighbour, which ends once the test has made the file."""
    while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240  # nobody can tell it from another process
        await asyncio.sleep(0.02)
    return os.getpid()


@task
async def environment() -> list[str]:
    """The names of the environment variables that a task's processes inherit."""
    return list(os.environ)


@task(takes_context=True)
async def block_until_file(context: Context, path: str) -> None:
    """Block the event loop until the test has made the file."""
    record("start", context.task_result.id)
    while not os.path.exists(path):  # noqa: ASYNC240
        time.sleep(0.02)  # noqa: ASYNC251


@task(max_crashes=0)
def wait_for_file_sync(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.02)
    return os.getpid()


@task(takes_context=True)
async def reach_for_loop(context: Context, way: str) -> Any:
    """Do one of the functions of ``loop_ways``; a way that kills the worker does so at the first run only."""
    from . import loop_ways

    assert context.attempt == 1, "the worker has died of it"
    outcome = getattr(loop_ways, way)(asyncio.get_running_loop())
    if inspect.isawaitable(outcome):
        await outcome
    await asyncio.sleep(0.05)  # what was put into the loop has its turn
    return os.getpid()


@task(takes_context=True)
def reach_for_loop_sync(context: Context, way: str) -> int:
    """The same from a thread."""
    from . import loop_ways

    assert context.attempt == 1, "the worker has died of it"
    outcome = getattr(loop_ways, way)(SyncToAsync.threadlocal.main_event_loop)
    if inspect.iscoroutine(outcome):
        async_to_sync(lambda: outcome)()
    time.sleep(0.05)
    return os.getpid()


# --- What a task may do to the process


@task(takes_context=True, max_crashes=0)
async def work_once(context: Context, seconds: float) -> None:
    """What may not be run again after a crash."""
    await arecord("start", context)
    await asyncio.sleep(seconds)


@task
async def use_alarm() -> str:
    """A handler of its own for a signal that the worker otherwise ignores."""
    rung = asyncio.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    await asyncio.wait_for(rung.wait(), 20)
    signal.signal(signal.SIGALRM, before)
    return "rung"


@task
async def take_signals() -> None:
    """Everything that would keep a worker from hearing of its end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


@task(takes_context=True)
async def hang(context: Context, way: str = "lock") -> str:
    """Block the event loop for good, at the first run."""
    record("start", context.task_result.id)
    if len(context.task_result.worker_ids) > 1:
        return "done"
    if way == "lock":
        lock = threading.Lock()
        lock.acquire()

        async def deadlock() -> None:  # as a child, to be found all the same
            lock.acquire()

        await asyncio.gather(deadlock())
    while True:
        pass


@task
async def leave_behind(way: str, path: str) -> None:
    """Something that Python would wait for at its end, or that its end waits for."""
    forever = threading.Event()
    atexit.register(lambda: Path(path).touch())
    match way:
        case "a thread":
            threading.Thread(target=forever.wait, name="left-thread").start()
            threading.Timer(3600, print).start()
        case "executors":
            ThreadPoolExecutor(thread_name_prefix="left-pool").submit(forever.wait)
            daemons = ThreadPoolExecutor(thread_name_prefix="left-daemons")
            thread = threading.Thread(target=daemons.submit, args=[forever.wait], daemon=True)
            thread.start()
            thread.join()
            asyncio.get_running_loop().run_in_executor(None, forever.wait)
        case "an asyncio task":
            _background.add(asyncio.get_running_loop().create_task(never_end.func(), name="left-task"))
        case "a child":
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[600])
            child.start()
            Path(f"{path}.pid").write_text(str(child.pid))  # noqa: ASYNC240
        case "atexit":
            atexit.register(forever.wait)
        case "nothing":
            ThreadPoolExecutor().submit(print)  # it idles, and ends when it is told to


@task(takes_context=True)
async def print_much(context: Context) -> None:
    """Until nobody reads it any more."""
    record("start", context.task_result.id)
    while True:
        print("x" * 100_000)  # noqa: T201


@task
def kill(target: str, number: int) -> None:
    """Send a signal to the supervisor, or to the worker's process group, which a supervisor makes for it."""
    assert os.getpgrp() == os.getpid()
    if target == "supervisor":
        os.kill(os.getppid(), number)
    elif target == "group":
        os.kill(0, number)
    else:
        os.killpg(os.getpgrp(), number)


@task
async def leave_process(code: int) -> None:
    os._exit(code)


@task
def fork_in_thread(way: str) -> Any:
    """Do one of the functions of ``fork_ways``."""
    from . import fork_ways

    return getattr(fork_ways, way)()


@task
async def fork_on_loop(way: str, *args: str) -> Any:
    from . import fork_ways

    outcome = getattr(fork_ways, way)(*args)
    return await outcome if inspect.isawaitable(outcome) else outcome


@task(takes_context=True)
async def notes_steps(context: PostgresTaskContext, path: str, number: int) -> None:
    """Saves another key when each of the files is there, and ends with the last without another change."""
    for step in range(number):
        context.metadata[f"step {step}"] = True
        context.save_metadata()
        while not Path(f"{path}{step}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.005)
