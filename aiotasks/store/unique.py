"""Unique keys: what an enqueue does that may meet another task with its key.

The unique index over all keys decides, and nothing else: what has been read before is only a guess. A
statement that meets the key of an open transaction waits for its end, on the server. A caller does so for
LOCK_SLICE, lets go of its connection, and comes again, so that the others have connections meanwhile. Calls
of one key on one loop go together, so that they take one connection.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

from django.db import connections, transaction, utils

from ..conf import Options
from ..db.drivers import MOST_TRIES, AsyncpgDriver, ConnectionDriver, pause_after_rollback
from ..db.errors import Code, constraint, is_transient, sqlstate, was_rolled_back
from ..db.retry import backoff
from ..rows import NewJob, UniqueJob
from .batcher import Batcher
from .block_threads import BlockSlots
from .enqueue import PRIMARY_KEY
from .settling import STORED, Duplicates, Limits, Settled, Settling
from .store import Store

__all__ = ["UniqueEnqueuer", "settle_in_transaction", "settle_over_django"]

# Seconds for which a statement waits on the server for a lock. Most transactions that enqueue end within it.
LOCK_SLICE = 0.1

# Seconds between two such statements, at first and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.25

# Calls of one key that share a statement.
CALLS_LIMIT = 1000


class UniqueEnqueuer:
    """Enqueues with unique keys over the pool of one loop, outside of transactions.

    ``slots`` are those of transaction() blocks: the statements here may wait for locks, and leave connections
    to those that don't.
    """

    def __init__(self, driver: AsyncpgDriver, store: Store, slots: BlockSlots, options: Options) -> None:
        self._driver = driver
        self._store = store
        self._slots = slots
        self._options = options
        self._by_key: dict[tuple[str, str], Batcher[UniqueJob, Settled]] = {}
        self._called: set[str] = set()  # ids of the tasks of single calls whose callers wait

    async def insert(self, jobs: Sequence[NewJob]) -> list[Settled]:
        """Settle the calls; durable on return. Of several all are stored or none.

        Raises OperationalError if a key stays locked for COMMAND_TIMEOUT, Duplicates if none is stored
        because one of several is refused.
        """
        job = jobs[0]
        if len(jobs) > 1 or not isinstance(job, UniqueJob):
            return await self._insert_many(jobs)
        return [await self._insert_one(job)]

    async def _insert_one(self, job: UniqueJob) -> Settled:
        name = (job.template.backend, job.key)
        batcher = self._by_key.get(name)
        if batcher is None:
            batcher = self._by_key[name] = Batcher(self._insert_of_one_key, limit=CALLS_LIMIT)
        self._called.add(job.id)
        try:
            if not batcher.flushing:
                return await batcher.call(job)
            try:
                # The calls before have time limits of their own, and this one waits for theirs.
                async with asyncio.timeout(self._options.command_timeout + LOCK_SLICE):
                    return await batcher.call(job)
            except TimeoutError:
                raise _key_is_locked([job], self._options.command_timeout) from None
        finally:
            self._called.discard(job.id)
            # Soon, because a flush that finds all callers gone ends in the next turn of the loop.
            asyncio.get_running_loop().call_soon(self._drop_if_idle, name)

    def _drop_if_idle(self, name: tuple[str, str]) -> None:
        batcher = self._by_key.get(name)
        if batcher is not None and not batcher.flushing and not len(batcher):
            del self._by_key[name]

    async def _insert_of_one_key(self, jobs: Sequence[UniqueJob]) -> list[Settled]:
        settling = Settling(jobs, Limits(LOCK_SLICE), self._options.moved_tasks, in_transaction=False)
        is_unsure = False  # whether a try's reply was lost, which may have stored a task

        async def settle() -> list[Settled]:
            nonlocal is_unsure
            settling.keep(self._called)  # a caller that has its error already must not be written
            job = settling.next
            if is_unsure and job is not None and await self._are_stored([job], [STORED]):
                settling.note_stored()  # it may be finished, and its key another's
            try:
                return await settling.run(self._store)
            except utils.IntegrityError as error:
                if not is_unsure or constraint(error) != PRIMARY_KEY:
                    raise
            except utils.Error as error:
                is_unsure = is_unsure or sqlstate(error) != Code.LOCK_TIMEOUT
                raise
            # The same, since the look.
            await self._store.wait_for_standbys()
            settling.note_stored()
            return await settling.run(self._store)

        name = (jobs[0].template.backend, jobs[0].key)
        try:
            return await self._repeat(settle, jobs)
        finally:
            # The callers may be gone already.
            asyncio.get_running_loop().call_soon(self._drop_if_idle, name)

    async def _insert_many(self, jobs: Sequence[NewJob]) -> list[Settled]:
        size = sum(len(job.args) + len(job.kwargs) for job in jobs)
        limits = Limits(
            LOCK_SLICE + len(jobs) / 10_000,
            self._options.command_timeout + len(jobs) / 10_000 + size / 5_000_000,
        )
        before_commit: list[Settled] = []  # by the last try that has sent a COMMIT

        async def settle() -> list[Settled]:
            nonlocal before_commit
            # The server may go through with a COMMIT at any time after its reply is lost. Another try can't
            # send one of its own before, because it inserts the same ids.
            if await self._are_stored(jobs, before_commit):
                return before_commit
            settling = Settling(jobs, limits, self._options.moved_tasks, in_transaction=False)
            try:
                async with self._driver.transaction() as driver:
                    before_commit = await settling.run_all_or_none(Store(driver))
            except (Duplicates, utils.IntegrityError):  # its own tasks may be in its way
                if await self._are_stored(jobs, before_commit):
                    return before_commit
                raise
            return before_commit

        return await self._repeat(settle, jobs)

    async def _are_stored(self, jobs: Sequence[NewJob], settled: Sequence[Settled]) -> bool:
        """Whether the rows are there, and on the standbys, that the calls have stored, if they have stored
        any. None of ``settled``: False."""
        for job, each in zip(jobs, settled, strict=False):
            if each.holder is None:
                if not await self._store.select_jobs([UUID(job.id)], job.template.backend):
                    return False
                await self._store.wait_for_standbys()
                return True
        return False

    async def _repeat(
        self, settle: Callable[[], Awaitable[list[Settled]]], jobs: Sequence[NewJob]
    ) -> list[Settled]:
        """As ``repeat()``, but each try takes a slot, and an error names a key that stays locked."""
        loop = asyncio.get_running_loop()
        within = self._options.command_timeout
        end = loop.time() + within
        failures = 0
        while True:
            await self._slots.take(max(0.0, end - loop.time()))
            try:
                return await settle()
            except utils.Error as error:
                failures += 1
                locked = sqlstate(error) == Code.LOCK_TIMEOUT
                pause = _pause(failures) if locked else backoff(failures, longest=1.0)
                if not is_transient(error):
                    raise
                if loop.time() + pause > end:
                    if locked:
                        raise _key_is_locked(jobs, within) from error.__cause__
                    raise
            finally:
                self._slots.release()
            await asyncio.sleep(pause)


async def settle_in_transaction(
    driver: ConnectionDriver, jobs: Sequence[NewJob], options: Options
) -> list[Settled]:
    """Settle calls inside of a caller's transaction over asyncpg.

    A lock that lasts for COMMAND_TIMEOUT ends the transaction, as any error in it does: a savepoint around
    every enqueue would take two statements more.
    """
    # The server gives up first, whose error says what it has waited for.
    limits = Limits(options.command_timeout, 2 * options.command_timeout)
    settling = Settling(jobs, limits, options.moved_tasks, in_transaction=True)
    try:
        if len(jobs) == 1:
            return await settling.run(Store(driver))
        async with driver.savepoint() as inner:
            return await settling.run_all_or_none(Store(inner))
    except utils.Error as error:
        raise _explained(error, jobs, options.command_timeout) from error.__cause__


async def settle_over_django(store: Store, jobs: Sequence[NewJob], options: Options) -> list[Settled]:
    """Settle calls over the calling thread's Django connection, without suspending.

    Inside of a transaction they have a savepoint, so that the transaction goes on after an error.
    """
    connection = connections[options.database]
    inside = connection.in_atomic_block or not connection.get_autocommit()
    limits = Limits(options.command_timeout)
    tries = 1
    while True:
        settling = Settling(jobs, limits, options.moved_tasks, in_transaction=inside)
        try:
            if not inside and len(jobs) == 1:
                return await settling.run(store)
            with transaction.atomic(options.database):
                return await (settling.run if len(jobs) == 1 else settling.run_all_or_none)(store)
        except utils.Error as error:
            # A single statement has been repeated by its driver.
            if inside or len(jobs) == 1 or tries >= MOST_TRIES or not was_rolled_back(error):
                raise _explained(error, jobs, options.command_timeout) from error.__cause__
        time.sleep(pause_after_rollback(tries))  # noqa: ASYNC251  # as the driver does
        tries += 1


def _explained(error: utils.Error, jobs: Sequence[NewJob], within: float) -> utils.Error:
    return _key_is_locked(jobs, within) if sqlstate(error) == Code.LOCK_TIMEOUT else error


def _pause(failures: int) -> float:
    """Seconds after so many lock time-outs, with jitter, because others wait for the same transaction."""
    return min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


def _key_is_locked(jobs: Iterable[NewJob], within: float) -> utils.OperationalError:
    """The error for a lock that lasts for longer than ``within`` seconds."""
    keys = {job.key for job in jobs if isinstance(job, UniqueJob)}
    what = (
        f"the unique key {next(iter(keys))!r:.200}" if len(keys) == 1 else f"one of {len(keys)} unique keys"
    )
    return utils.OperationalError(
        f"Another transaction that has enqueued, or locked, a task with {what} hasn't ended within "
        f"COMMAND_TIMEOUT ({within:g} s)."
    )
