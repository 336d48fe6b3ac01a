"""Joins: wait for the ends of tasks, and have their results as soon as they are there.

The waiting is done outside of any transaction, over the pool of the running loop, because a transaction may
not see what others have done meanwhile, and would be open all the time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from math import inf
from operator import attrgetter
from uuid import UUID

from django.core.exceptions import SynchronousOnlyOperation
from django.db import utils
from django.tasks.exceptions import TaskResultDoesNotExist

from .conf import Options
from .db.errors import is_transient
from .db.retry import backoff, repeat
from .executing import current
from .results import PostgresTaskResult, parse_id
from .row_results import refresh_from
from .rows import FINAL, Job
from .store.ends import Ends
from .store.loop import resources
from .store.loop_thread import run_on_loop
from .store.within import look_within, look_within_django
from .sync import async_unsafe_allowed, running_loop_hidden

__all__ = ["ajoin", "as_completed", "gather_results", "join"]

# Seconds for which a task that waits for others keeps its slot: most look-ups of what has ended take less.
SLOT_IS_KEPT_FOR = 0.01

# Seconds for the look after the time limit, which is the only one where that is 0. It takes milliseconds, and
# comes to nothing while the database is away.
LAST_LOOK = 2.0


async def as_completed(
    results: Iterable[PostgresTaskResult], timeout: float | None = None
) -> AsyncIterator[PostgresTaskResult]:
    """Yield the results, each once its task has ended, refreshed, in the order of their ends.

    A result that is there twice is yielded twice. Raises TimeoutError ``timeout`` seconds after the begin,
    once all are yielded whose tasks have ended by then, and else what ``PostgresTaskResult.ajoin()`` raises.
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
    if (id := parse_id(result.id)) is None:
        raise TaskResultDoesNotExist(result.id)
    seen = look_within_django(_options_of(result).database, result.backend, [id])
    if seen is not None and seen.missing:
        raise TaskResultDoesNotExist(result.id)
    if seen is not None and seen.ended:
        refresh_from(result, seen.ended[0])
        return
    is_held = seen is not None and id in seen.held
    execution = current.get()
    noted: AbstractContextManager[Callable[[Callable[[], object]], None] | None] = nullcontext()
    if execution is not None and execution.joining is not None:
        noted = execution.joining.waiting_in_thread(execution, [result.task])
    try:
        with noted as cancelled_by:
            run_on_loop(lambda: _ajoin_outside(result, 0 if is_held else timeout), cancelled_by)
    except TaskResultDoesNotExist:
        if seen is not None:
            result.refresh()  # raises the same, unless the transaction sees the task
            raise _uncommitted(result.id) from None
        raise
    except TimeoutError:
        if is_held:
            raise _held(result.id) from None
        raise


def _uncommitted(id: str) -> RuntimeError:
    return RuntimeError(
        f"Task {id} was enqueued in the transaction that is open here: no worker sees it before the commit, "
        "so that a join inside would wait forever. Join after the end of the block. In a test that runs "
        "inside a transaction (TestCase), call aiotasks.testing.drain() first."
    )


def _held(id: str) -> RuntimeError:
    return RuntimeError(
        f"Task {id} was changed or locked in the transaction that is open here: no worker can end it before "
        "the commit, so that a join inside would wait forever. Join after the end of the block."
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
    groups = [_Group(some) for some in by_backend.values()]
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    if not is_outside:
        if ended := [result for group in groups for result in await group.look_within()]:
            yield _in_order(ended)
        for group in groups:
            await group.raise_held()
    if timeout is None or timeout > 0:
        ends = Ends()
        try:
            for group in groups:
                group.watch(ends)
            while ended := await _next(ends, groups, deadline):
                yield _in_order(ended)
        finally:
            ends.close()
    # The ends that nobody has told of yet, and those while the caller was busy with other results.
    if any(group.left for group in groups) and (ended := await _last(groups)):
        yield _in_order(ended)
    for group in groups:
        await group.raise_missing()
    if number := sum(len(group.left) for group in groups):
        which = f"Task {results[0].id} hasn't" if len(results) == 1 else f"{number} tasks haven't"
        raise TimeoutError(f"{which} ended within {timeout:g} s.")


async def _next(ends: Ends, groups: Sequence["_Group"], deadline: float | None) -> list[PostgresTaskResult]:
    """Wait until tasks have ended. None if none is left, or at the deadline."""
    ended: list[PostgresTaskResult] = []
    while not ended and not ends.is_over:
        for group in groups:
            await group.raise_missing()
        if not await _changed(ends, groups, deadline):
            break
        rows = ends.take()
        ended = [result for group in groups for result in group.ended(rows)]
    return ended


async def _last(groups: Iterable["_Group"]) -> list[PostgresTaskResult]:
    """Look once at the tasks that are left."""
    looks = await asyncio.gather(*(group.look_once() for group in groups if group.left))
    return [result for ended in looks for result in ended]


def _in_order(ended: Iterable[PostgresTaskResult]) -> list[PostgresTaskResult]:
    """The results in the order of their tasks' ends."""
    return sorted(ended, key=attrgetter("finished_at"))


async def _changed(ends: Ends, groups: Iterable["_Group"], deadline: float | None) -> bool:
    """Wait until tasks may have ended; returns False at the deadline. A worker's task that waits gives up its
    slot.
    """
    loop = asyncio.get_running_loop()
    rest = None if deadline is None else deadline - loop.time()
    execution = current.get()
    if execution is None or execution.joining is None:
        return bool(await ends.changed(rest))
    if await ends.changed(SLOT_IS_KEPT_FOR if rest is None else min(rest, SLOT_IS_KEPT_FOR)):
        return True
    if rest is not None and rest <= SLOT_IS_KEPT_FOR:  # another task would have the slot, for any time
        return False
    joined = [results[0].task for group in groups for results in group.left.values()]
    # The slot is taken again after the time limit, not within it.
    async with execution.joining.waiting(execution, joined):
        return bool(await ends.changed(None if deadline is None else deadline - loop.time()))


class _Group:
    """The results of one backend. ``left``: those of tasks that haven't ended, by the tasks' ids."""

    def __init__(self, results: Sequence[PostgresTaskResult]) -> None:
        self.left: dict[UUID, list[PostgresTaskResult]] = {}
        for result in results:
            id = parse_id(result.id)
            if id is None:
                raise TaskResultDoesNotExist(result.id)
            self.left.setdefault(id, []).append(result)
        self._alias = results[0].backend
        self._options = _options_of(results[0])
        self._missing: list[PostgresTaskResult] = []
        self._held: AbstractSet[UUID] = frozenset()
        self._is_within = False
        self._loop_resources = resources(self._options)

    async def look_within(self) -> list[PostgresTaskResult]:
        """Return the results of tasks that have ended as far as a transaction of the caller's sees. No time
        limit cuts its statement, which would undo the transaction.
        """
        seen = await look_within(self._options.database, self._alias, self.left.keys())
        if seen is None:
            return []
        self._is_within = True
        self._held = seen.held
        for id in seen.missing:
            self._missing = self.left.pop(id)
        return [result for job in seen.ended for result in self._refreshed(job)]

    async def raise_held(self) -> None:
        """Raise for a task that can't end before the caller's transaction does."""
        await self.raise_missing()
        if not (held := sorted(self._held)):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_LOOK):
                for id, job in zip(held, await self._jobs(held), strict=True):
                    if job is None:  # outside
                        raise _uncommitted(str(id))
        raise _held(str(held[0]))

    def watch(self, ends: Ends) -> None:
        """Have ``ends`` await these tasks."""
        ends.watch(self._loop_resources, self._alias, self.left.keys())

    async def look_once(self) -> list[PostgresTaskResult]:
        """Look all tasks up that are left, and return the results of those that have ended, refreshed. None
        after LAST_LOOK seconds.
        """
        try:
            async with asyncio.timeout(LAST_LOOK):
                ids = list(self.left)
                if len(ids) > 1:
                    look = partial(self._loop_resources.store.select_ended_jobs, ids, self._alias)
                    found = await repeat(look, within=inf)  # small, where the rows of all may not be
                    ids = list(self.left.keys() - found.unmarked)
                jobs = await self._jobs(ids)
        except TimeoutError:
            return []
        return self.ended({(self._alias, id): job for id, job in zip(ids, jobs, strict=True)})

    def ended(self, rows: Mapping[tuple[str, UUID], Job | None]) -> list[PostgresTaskResult]:
        """Return the results of those of these tasks that have ended, refreshed. rows: by backend and id;
        None: the task is gone.
        """
        ended: list[PostgresTaskResult] = []
        for (alias, id), job in rows.items():
            if alias != self._alias or id not in self.left:
                continue
            if job is None:
                self._missing = self.left.pop(id)
            elif job.status in FINAL:
                ended += self._refreshed(job)
        return ended

    def _refreshed(self, job: Job) -> list[PostgresTaskResult]:
        """The results of a task that has ended, which nobody awaits any more."""
        results = self.left.pop(job.id)
        for result in results:
            refresh_from(result, job)
        return results

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
