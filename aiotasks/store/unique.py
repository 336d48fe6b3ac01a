"""Unique keys: what an enqueue does that may meet another task with its key.

The unique index over all keys decides, and nothing else: what has been read before is only a guess. A
statement that meets the key of an open transaction waits for its end, on the server, for as long as its turn
allows (``admission.py``), and is sent again until COMMAND_TIMEOUT is over.
"""

import time
from collections.abc import Sequence
from functools import partial

from django.db import connections, transaction, utils

from ..conf import Options
from ..db.drivers import MOST_TRIES, AsyncpgDriver, ConnectionDriver, pause_after_rollback
from ..db.errors import was_rolled_back
from ..rows import NewJob, UniqueJob
from .admission import Admission
from .one_key import CallsOfKey, are_stored
from .settling import Duplicates, Limits, Settled, Settling, explained
from .store import Store

__all__ = ["UniqueEnqueuer", "settle_in_transaction", "settle_over_django"]


class UniqueEnqueuer:
    """Enqueues with unique keys over the pool of one loop, outside of transactions."""

    def __init__(self, driver: AsyncpgDriver, store: Store, admission: Admission, options: Options) -> None:
        self._driver = driver
        self._store = store
        self._admission = admission
        self._options = options
        self._by_key: dict[tuple[str, str], CallsOfKey] = {}

    async def insert(self, jobs: Sequence[NewJob]) -> list[Settled]:
        """Settle the calls; durable on return. Of several all are stored or none.

        Raises OperationalError if a key stays locked for COMMAND_TIMEOUT or too many calls are under way at
        once, Duplicates if none is stored because one of several is refused.
        """
        job = jobs[0]
        if len(jobs) > 1 or not isinstance(job, UniqueJob):
            return await self._insert_many(jobs)
        return [await self._insert_one(job)]

    async def _insert_one(self, job: UniqueJob) -> Settled:
        name = (job.template.backend, job.key)
        calls = self._by_key.get(name)
        if calls is None:
            idle = partial(self._drop_if_idle, name)
            calls = self._by_key[name] = CallsOfKey(self._store, self._admission, self._options, idle)
        settled = await calls.insert(job)
        if settled.error is not None:
            raise settled.error
        return settled

    def _drop_if_idle(self, name: tuple[str, str]) -> None:
        calls = self._by_key.get(name)
        if calls is not None and calls.is_idle:
            del self._by_key[name]

    async def _insert_many(self, jobs: Sequence[NewJob]) -> list[Settled]:
        size = sum(len(job.args) + len(job.kwargs) for job in jobs)
        within = self._options.command_timeout
        answer = within + len(jobs) / 10_000 + size / 5_000_000
        before_commit: list[Settled] = []  # by the last try that has sent a COMMIT
        end: float | None = None

        async def settle(lock: float) -> list[Settled]:
            nonlocal before_commit
            # The server may go through with a COMMIT at any time after its reply is lost. Another try can't
            # send one of its own before, because it inserts the same ids.
            if await are_stored(self._store, jobs, before_commit):
                return before_commit
            settling = Settling(jobs, self._options.moved_tasks, in_transaction=False)
            limits = Limits(lock + len(jobs) / 10_000, answer)
            try:
                async with self._driver.transaction() as driver:
                    before_commit = await settling.run_all_or_none(Store(driver), limits)
            except (Duplicates, utils.IntegrityError):  # its own tasks may be in its way
                if await are_stored(self._store, jobs, before_commit):
                    return before_commit
                raise
            return before_commit

        def failed(error: utils.Error, began: float, next_try: float) -> float:
            nonlocal end
            end = began + within if end is None else end
            if next_try > end:
                raise explained(error, jobs, within) from error.__cause__
            return end

        # A transaction as those of blocks: single calls find the other turns, claims the other connections.
        return await self._admission.repeat(settle, failed, takes_long=True)


async def settle_in_transaction(
    driver: ConnectionDriver, jobs: Sequence[NewJob], options: Options
) -> list[Settled]:
    """Settle calls inside of a caller's transaction over asyncpg.

    A lock that lasts for COMMAND_TIMEOUT ends the transaction, as any error in it does: a savepoint around
    every enqueue would take two statements more.
    """
    # The server gives up first, whose error says what it has waited for.
    limits = Limits(options.command_timeout, 2 * options.command_timeout)
    settling = Settling(jobs, options.moved_tasks, in_transaction=True)
    try:
        if len(jobs) == 1:
            return await settling.run(Store(driver), limits)
        async with driver.savepoint() as inner:
            return await settling.run_all_or_none(Store(inner), limits)
    except utils.Error as error:
        raise explained(error, jobs, options.command_timeout) from error.__cause__


async def settle_over_django(store: Store, jobs: Sequence[NewJob], options: Options) -> list[Settled]:
    """Settle calls over the calling thread's Django connection, without suspending.

    Inside of a transaction they have a savepoint, so that the transaction goes on after an error.
    """
    connection = connections[options.database]
    inside = connection.in_atomic_block or not connection.get_autocommit()
    limits = Limits(options.command_timeout)
    tries = 1
    while True:
        settling = Settling(jobs, options.moved_tasks, in_transaction=inside)
        try:
            if not inside and len(jobs) == 1:
                return await settling.run(store, limits)
            with transaction.atomic(options.database):
                return await (settling.run if len(jobs) == 1 else settling.run_all_or_none)(store, limits)
        except utils.Error as error:
            # A single statement has been repeated by its driver.
            if inside or len(jobs) == 1 or tries >= MOST_TRIES or not was_rolled_back(error):
                raise explained(error, jobs, options.command_timeout) from error.__cause__
        time.sleep(pause_after_rollback(tries))  # noqa: ASYNC251  # as the driver does
        tries += 1
