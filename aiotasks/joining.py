"""Joins: wait for the ends of tasks, and have their results as soon as they are there.

The waiting is done outside of any transaction, over the pool of the running loop, because a transaction may
not see what others have done meanwhile, and would be open all the time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from uuid import UUID

from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, utils
from django.tasks.exceptions import TaskResultDoesNotExist

from .conf import Options
from .db.errors import is_transient
from .db.retry import backoff
from .executing import current
from .results import PostgresTaskResult, parse_id, refresh_from
from .rows import FINAL, Job
from .store.blocks import belongs_to_django
from .store.changes import AWAITED
from .store.joins import Watch
from .store.loop import resources
from .store.loop_thread import run_on_loop
from .store.transaction import current_transaction
from .sync import async_unsafe_allowed, running_loop_hidden

__all__ = ["ajoin", "as_completed", "gather_results", "join"]

# Seconds for which a task that waits for others keeps its slot: most look-ups of what has ended take less.
SLOT_IS_KEPT_FOR = 0.01


async def as_completed(
    results: Iterable[PostgresTaskResult], timeout: float | None = None
) -> AsyncIterator[PostgresTaskResult]:
    """Yield the results, each once its task has ended, refreshed, in the order of their ends.

    A result that is there twice is yielded twice. Raises TimeoutError ``timeout`` seconds after the begin,
    and else what ``PostgresTaskResult.ajoin()`` raises.
    """
    postgres: list[PostgresTaskResult] = []
    others: list[PostgresTaskResult] = []
    for result in results:
        (postgres if _options(result) is not None else others).append(result)
    for result in others:  # of a backend for tests, whose tasks have ended already
        yield await result.ajoin(timeout)
    async for ended in _ends(postgres, timeout):
        for result in ended:
            yield result


async def gather_results(
    results: Iterable[PostgresTaskResult], timeout: float | None = None
) -> list[PostgresTaskResult]:
    """Return the results, refreshed and in their order, once all of their tasks have ended.

    Tasks that have failed are among them: nothing is raised for these. Otherwise as ``as_completed()``.
    """
    wanted = list(results)
    async for _ in as_completed(wanted, timeout):
        pass
    return wanted


async def ajoin(result: PostgresTaskResult, timeout: float | None) -> None:
    """Wait for the end of one task; see ``PostgresTaskResult.ajoin()``."""
    async for _ in _ends([result], timeout):
        pass


async def _ajoin_outside(result: PostgresTaskResult, timeout: float | None) -> None:
    """The same for sync code that waits: it must not need the thread's Django connection."""
    async for _ in _ends([result], timeout, is_outside=True):
        pass


def join(result: PostgresTaskResult, timeout: float | None) -> None:
    """The same for sync code. Raises SynchronousOnlyOperation on an event loop's thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _join(result, timeout)
    else:
        if not async_unsafe_allowed():
            raise SynchronousOnlyOperation(
                "join() would block the event loop that runs here; use `await ajoin()`."
            )
        with running_loop_hidden():
            _join(result, timeout)


def _join(result: PostgresTaskResult, timeout: float | None) -> None:
    database = _options_of(result).database
    is_within = _is_in_transaction(database)
    if is_within:
        result.refresh()
        if result.is_finished:
            return
    execution = current.get()
    noted: AbstractContextManager[None] = nullcontext()
    if execution is not None and execution.joining is not None:
        noted = execution.joining.waiting_in_thread(execution, [result.task])
    try:
        with noted:
            run_on_loop(lambda: _ajoin_outside(result, timeout))
    except TaskResultDoesNotExist:
        if is_within:
            result.refresh()  # raises the same, unless the transaction sees the task
            raise _uncommitted(result.id) from None
        raise


def _is_in_transaction(database: str) -> bool:
    connection = connections[database]
    return connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)


def _uncommitted(id: str) -> RuntimeError:
    return RuntimeError(
        f"Task {id} was enqueued in the transaction that is open here: no worker sees it before the commit, "
        "so that a join inside would wait forever. Join after the end of the block. In a test that runs "
        "inside a transaction (TestCase), call aiotasks.testing.drain() first."
    )


# --- Waiting


def _options(result: PostgresTaskResult) -> Options | None:
    """The options of the result's backend, if that is PostgresBackend."""
    if not isinstance(result, PostgresTaskResult):
        raise TypeError(f"Results of aiotasks' backends are wanted, not {result!r:.100}.")
    options = getattr(result.task.get_backend(), "config", None)
    return options if isinstance(options, Options) else None


def _options_of(result: PostgresTaskResult) -> Options:
    options = _options(result)
    if options is None:  # the backends for tests join by themselves
        raise TypeError(f"A result of PostgresBackend is wanted, not {result!r:.100}.")
    return options


async def _ends(
    results: Sequence[PostgresTaskResult], timeout: float | None, *, is_outside: bool = False
) -> AsyncGenerator[list[PostgresTaskResult]]:
    """Yield results whose tasks have ended, until all have. ``is_outside``: whatever the context says, the
    caller is in no transaction.
    """
    by_backend: dict[str, list[PostgresTaskResult]] = {}
    for result in results:
        by_backend.setdefault(result.backend, []).append(result)
    watch = Watch(AWAITED)
    groups = [_Group(some, watch, is_outside=is_outside) for some in by_backend.values()]
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    try:
        async with AsyncExitStack() as stack:
            for group in groups:
                if ended := await group.begin(stack, once=timeout is not None and timeout <= 0):
                    yield ended
            while any(group.left for group in groups):
                changed = await _changed(watch, groups, deadline)
                for group in groups:
                    async with asyncio.timeout_at(deadline):
                        ended = await group.look_up(changed)
                    if ended:
                        yield ended
                    await group.raise_missing()
    except TimeoutError:
        number = sum(len(group.left) for group in groups)
        which = f"Task {results[0].id} hasn't" if len(results) == 1 else f"{number} tasks haven't"
        raise TimeoutError(f"{which} ended within {timeout:g} s.") from None


async def _changed(watch: Watch, groups: Iterable["_Group"], deadline: float | None) -> set[UUID]:
    """Wait until tasks may have changed. A worker's task that waits gives up its slot."""
    execution = current.get()
    if execution is None or execution.joining is None:
        async with asyncio.timeout_at(deadline):
            return await watch.changed()
    async with asyncio.timeout_at(deadline):
        changed = await watch.changed(SLOT_IS_KEPT_FOR)
    if not changed:
        joined = [results[0].task for group in groups for results in group.left.values()]
        # The slot is taken again after the time limit, not within it.
        async with execution.joining.waiting(execution, joined), asyncio.timeout_at(deadline):
            changed = await watch.changed()
    return changed


class _Group:
    """The results of one backend. ``left``: those of tasks that haven't ended, by the tasks' ids."""

    def __init__(self, results: Sequence[PostgresTaskResult], watch: Watch, *, is_outside: bool) -> None:
        self.left: dict[UUID, list[PostgresTaskResult]] = {}
        for result in results:
            id = parse_id(result.id)
            if id is None:
                raise TaskResultDoesNotExist(result.id)
            self.left.setdefault(id, []).append(result)
        self._alias = results[0].backend
        self._options = _options_of(results[0])
        self._watch = watch
        self._missing: list[PostgresTaskResult] = []
        database = self._options.database
        self._is_within = not is_outside and (
            belongs_to_django(database) or current_transaction(database) is not None
        )
        self._loop_resources = resources(self._options)

    async def begin(self, stack: AsyncExitStack, *, once: bool) -> list[PostgresTaskResult]:
        """Begin to wait. Returns results of tasks that have ended, as far as a transaction of the caller's
        sees, or, ``once``, as far as one look shows.
        """
        ended: list[PostgresTaskResult] = []
        if self._is_within:
            for id, results in list(self.left.items()):
                for result in results:
                    await result.arefresh()
                if results[0].is_finished:
                    ended += self.left.pop(id)
        if once:
            ended += await self.look_up(self.left.keys())
            await self.raise_missing()
        await stack.enter_async_context(
            self._loop_resources.changes.watching(self._alias, list(self.left), watch=self._watch)
        )
        return ended

    async def look_up(self, changed: AbstractSet[UUID]) -> list[PostgresTaskResult]:
        """Look tasks up, and return the results of those that have ended, refreshed."""
        ids = list(changed & self.left.keys())
        ended: list[PostgresTaskResult] = []
        for id, job in zip(ids, await self._jobs(ids), strict=True):
            if job is None:
                self._missing = self.left.pop(id)
            elif job.status in FINAL:
                for result in self.left.pop(id):
                    refresh_from(result, job)
                    ended.append(result)
        gone = [id for id in ids if id not in self.left]
        self._loop_resources.changes.forget(self._watch, self._alias, gone)
        return ended

    async def _jobs(self, ids: Sequence[UUID]) -> Sequence[Job | None]:
        """The rows of tasks. While the database is away they are waited for."""
        lookups = self._loop_resources.lookups
        failures = 0
        while True:
            try:
                if len(ids) == 1:
                    return [await lookups.call((self._alias, ids[0]))]
                return await asyncio.gather(*(lookups.submit((self._alias, id)) for id in ids))
            except utils.Error as error:
                if not is_transient(error):
                    raise
                failures += 1
                await asyncio.sleep(backoff(failures, longest=1.0))

    async def raise_missing(self) -> None:
        """Raise for a task that wasn't there."""
        if not self._missing:
            return
        result = self._missing[0]
        if self._is_within:
            await result.arefresh()  # raises the same, unless the transaction sees the task
            raise _uncommitted(result.id)
        raise TaskResultDoesNotExist(result.id)
