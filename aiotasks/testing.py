"""For the tests of sites that use aiotasks: run what was enqueued, and see that it was.

Both functions work in ``TestCase`` (they see the test's uncommitted rows and leave none),
``TransactionTestCase`` and pytest-asyncio; in a coroutine they are awaited, in sync code called.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, cast
from uuid import uuid4

import anyio
from asgiref.sync import async_to_sync, sync_to_async

from . import __version__, models
from .codec import normalize
from .conf import Options
from .job import AnyResult, AnyTask
from .store.drivers import DjangoDriver, Row
from .store.pools import resources
from .store.statement import Statement
from .store.store import Store
from .store.transaction import current_transaction
from .store.waiting import sync_code_waits
from .sync import run_now
from .worker.backlog import Backlog
from .worker.claimer import Claimer
from .worker.execution import Execution
from .worker.finisher import Finisher
from .worker.quarantine import Quarantine
from .worker.runner import Runner
from .worker.scheduler import Scheduler
from .worker.sources import Sources
from .worker.startup import backend_of
from .worker.surplus import Surplus

__all__ = ["assert_enqueued", "drain"]

# The lease of a drain's worker: it needn't be renewed, as no test takes an hour.
LEASE_TIMEOUT = 3600.0


def drain(backend: str = "default") -> Any:
    """Run the backend's tasks in this process until none is READY or due; returns how many ran.

    ``drain()`` in sync code, ``await drain()`` in coroutines. The tasks pass through the real
    claim, runner and finisher, one of each lane at a time; what they enqueue is run too, and
    what fails is FAILED, as its result says. Tasks scheduled for later are left alone. Raises
    ImproperlyConfigured for an alias that isn't a backend of aiotasks, or has a mistake in its settings.

    Sync tasks and ORM calls run where the test's own do, so that they see what it sees.
    """
    return _drain(backend) if _on_a_loop() else async_to_sync(_drain)(backend)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _drain(alias: str) -> int:
    backend = backend_of(alias)
    thread = _TestThread()
    store = _store(backend.config, thread)
    ran = 0
    all_done = asyncio.Event()

    def done(execution: Execution) -> None:
        nonlocal ran
        ran += 1
        finisher.finish(execution)
        if not runner.running:
            all_done.set()

    runner = Runner(
        sender=type(backend),
        options=backend.config,
        threads=thread,
        place=_TestPlace,
        done=done,
        closing=lambda: False,
    )
    finisher = Finisher(
        store,
        backend=alias,
        sender=type(backend),
        options=backend.config,
        place=_TestPlace,
        wake=lambda wakeups: None,
        written=lambda job: None,
    )
    worker_id = uuid4()
    claimer = Claimer(
        store,
        Sources(store, backend=alias, queues=[]),
        backend=alias,
        poll_interval=backend.config.poll_interval,
        worker_id=lambda: worker_id,
        free=lambda: 1 - runner.count("loop"),
        threads=Backlog(
            1, free=lambda: 1 - runner.count("thread"), start=runner.start, drop=lambda job: None
        ),
        surplus=Surplus(free=lambda: 0, ahead=lambda: 0, allowed=False),
        quarantine=Quarantine(busy=lambda: False),
        may_claim=lambda: True,
        start=runner.start,
        drop=lambda job: None,
    )
    scheduler = Scheduler(
        store, backend=alias, wake=lambda wakeups: claimer.wake(), look_back=claimer.look_back
    )
    await store.register_worker(worker_id, alias, "", 0, [], 1, 1, __version__, LEASE_TIMEOUT)
    try:
        while True:
            await scheduler.run_once()
            claimer.wake()
            if not await claimer.run_once():
                return ran
            while runner.running:
                all_done.clear()
                await all_done.wait()
            while not await finisher.flush(backend.config.command_timeout):
                pass
    finally:
        with anyio.CancelScope(shield=True):  # a drain that is cancelled gives back what it runs
            for execution in list(runner.running):
                runner.cancel(execution, "shutdown")
            with anyio.move_on_after(1.0):
                while runner.running:
                    all_done.clear()
                    await all_done.wait()
            await finisher.flush(1.0)
            await store.remove_worker(worker_id)


class _TestThread:
    """The thread that the test's own sync code runs in, as a place for statements and sync tasks."""

    def __init__(self) -> None:
        # asgiref finds the waiting thread by the context, which runner and Batcher don't inherit.
        self._context = copy_context()

    def run(self, call: Callable[[], Any]) -> "asyncio.Future[Any]":
        coroutine = sync_to_async(Context().run, thread_sensitive=True)(call)
        return asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())


class _TestPlace:
    """A fresh context for a task; its ORM calls go wherever asgiref sends the test's own."""

    def __init__(self) -> None:
        self.context = Context()

    def release(self) -> None:
        """It holds nothing."""


class _WaitingDriver:
    """DjangoDriver, on the thread that waits for the drain: inside its open transaction."""

    def __init__(self, alias: str, thread: _TestThread) -> None:
        self._driver = DjangoDriver(alias)
        self._thread = thread

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        rows = await self._thread.run(lambda: run_now(self._driver.fetch(statement, *args)))
        return cast(Sequence[Row], rows)


def _store(options: Options, thread: _TestThread) -> Store:
    if sync_code_waits():
        return Store(_WaitingDriver(options.database, thread))
    if (transaction := current_transaction(options.database)) is not None:
        return transaction.store
    return resources(options).store


def assert_enqueued(
    task: AnyTask, *, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Assert that ``task`` was enqueued, with these arguments where given, whatever came of it.

    ``assert_enqueued(…)`` in sync code, ``await assert_enqueued(…)`` in coroutines. Returns the
    latest such task's TaskResult. The AssertionError says what was enqueued instead.
    """
    if not _on_a_loop():
        return _assert_enqueued(task, args, kwargs)
    return sync_to_async(_assert_enqueued, thread_sensitive=True)(task, args, kwargs)


def _assert_enqueued(
    task: AnyTask, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> AnyResult:
    backend = backend_of(task.backend)
    rows = list(
        models.Task.objects.using(backend.config.database)
        .filter(backend=task.backend)
        .order_by("-enqueued_at", "-id")
        .only("task_path", "args", "kwargs")
    )
    wanted_args = None if args is None else normalize(list(args), "args")
    wanted_kwargs = None if kwargs is None else normalize(dict(kwargs), "kwargs")
    for row in rows:
        if (
            row.task_path == task.module_path
            and wanted_args in (None, row.args)
            and wanted_kwargs in (None, row.kwargs)
        ):
            return backend.get_result(str(row.pk))  # type: ignore[no-any-return]  # SyncMethod's descriptor
    asked = f"{task.module_path} with args={'any' if args is None else repr(wanted_args)}"
    asked += f" and kwargs={'any' if kwargs is None else repr(wanted_kwargs)}"
    found = [f"{row.task_path} args={row.args!r} kwargs={row.kwargs!r}" for row in rows]
    raise AssertionError(f"{asked} was not enqueued; this was: {'; '.join(found) or 'nothing'}.")
