"""LoopResources: the pool of connections of one event loop, and the calls that are coalesced over it.

asyncpg's connections belong to the loop that opened them, so everything here is keyed by the running loop, is
closed with it, and never crosses a fork.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
from django.db import utils

from ..conf import Options
from ..db.connect import connect
from ..db.drivers import AsyncpgDriver
from ..db.errors import constraint
from ..db.listener import Listener
from ..db.retry import repeat
from ..rows import Job, NewJob
from .admission import Admission
from .batcher import Batcher
from .block_threads import BlockSlots
from .changes import CHANNEL as CHANGED
from .changes import Teller, read_ids
from .enqueue import PRIMARY_KEY
from .joins import LINGER, Changes
from .notifier import Notifier
from .outbox import Outbox
from .states import TaskState
from .store import Store
from .unique import UniqueEnqueuer
from .wakeups import CHANNEL, read_payload, wakeups_of

__all__ = ["LoopResources", "close_pools", "resources"]

# Seconds for closing a pool: a connection that is still lent out makes asyncpg's Pool.close() wait forever
# (asyncpg#290).
CLOSE_TIMEOUT = 2.0

# Seconds for the last statements of cancelled asyncio tasks when a loop closes; they take milliseconds.
LOAN_TIMEOUT = 0.2

# Rows of one INSERT. 1,000 small rows take about 5 ms, long enough to share a commit among all callers that
# wait, and short enough that the last of them doesn't notice.
ENQUEUE_LIMIT = 1000

# Rows of one look-up, whose sizes aren't known before. 100 of 1 MB each fit into COMMAND_TIMEOUT over most
# networks, and into memory, where 1,000 are 1 GB. For small rows a larger limit gains nothing.
LOOKUP_LIMIT = 100

# The same of states, which have 64 KiB at most.
STATES_LIMIT = 500

# Connections that transaction() blocks leave to single statements. A block may last for any time, and a
# worker whose tasks have all connections couldn't claim, finish or rescue, nor run the task that a block
# waits for. Two, because a claim and a finish run side by side.
NOT_FOR_BLOCKS = 2


class LoopResources:
    """One loop's pool for one set of options, its Store, and its Batchers. Made on that loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        most_blocks = max(1, options.pool_max_size - NOT_FOR_BLOCKS)
        self.blocks = BlockSlots(
            most_blocks,
            name="aiotasks.transaction()",
            setting=f"POOL_MAX_SIZE ({options.pool_max_size})",
        )
        self.driver = AsyncpgDriver(self._new_pool, timeout=options.command_timeout)
        self.store = Store(self.driver)
        self.notifier = Notifier(self.store, options.database)
        self.teller = Teller(self.store, notifies=options.notify)
        self.listener = Listener(
            options.listen_database or options.database, self._probe, timeout=options.command_timeout
        )
        self.wakeups = self.listener.channel(CHANNEL, read_payload, own=True)
        changed = self.listener.channel(CHANGED, read_ids, linger=LINGER)
        self.changes = Changes(self.store, changed if options.notify else None)
        self.enqueuer: Batcher[NewJob, None] = Batcher(
            self.insert, limit=ENQUEUE_LIMIT, size=lambda job: len(job.args) + len(job.kwargs)
        )
        admission = Admission(self.blocks, limit=most_blocks, within=options.command_timeout)
        self.unique = UniqueEnqueuer(self.driver, self.store, admission, options)
        self.lookups: Batcher[tuple[str, UUID], Job | None] = Batcher(
            partial(self._look_up, self.store.select_jobs), limit=LOOKUP_LIMIT
        )
        self.states: Batcher[tuple[str, UUID], TaskState | None] = Batcher(
            partial(self._look_up, self.store.select_states), limit=STATES_LIMIT
        )
        self._closer = self._close_with_loop()
        with suppress(StopIteration):  # run up to its yield, which registers it in the loop
            self._closer.asend(None).send(None)

    @property
    def pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The driver's pool, which may be replaced until it has been opened."""
        return self.driver.pool

    def _new_pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        return asyncpg.create_pool(
            connect=self._connect,
            reset=_no_reset,
            min_size=self.options.pool_min_size,
            max_size=self.options.pool_max_size,
            statement_cache_size=self.options.statement_cache_size,
            command_timeout=self.options.command_timeout,
        )

    async def _connect(self, *args: Any, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
        options.pop("loop", None)
        return await connect(self.options.database, timeout=self.options.command_timeout, **options)

    async def _probe(self, channel: str, payloads: list[str]) -> None:
        await self.store.notify(channel, payloads, alone=True)

    async def insert(self, jobs: Sequence[NewJob]) -> Sequence[None]:
        """Store all of ``jobs`` or none; durable on return."""
        within = self.options.command_timeout
        # 10,000 rows or 5 MB a second is a twentieth of the speed of one disk.
        size = sum(len(job.args) + len(job.kwargs) for job in jobs)
        timeout = within + len(jobs) / 10_000 + size / 5_000_000
        tries = 0

        async def insert_once() -> None:
            nonlocal tries
            tries += 1
            try:
                await self.store.insert_jobs(jobs, timeout=timeout)
            except utils.IntegrityError as error:
                # Already stored, by a try whose reply was lost. (ON CONFLICT DO NOTHING would make every
                # first try a fifth slower.)
                if tries == 1 or constraint(error) != PRIMARY_KEY:
                    raise
                await self.store.wait_for_standbys(timeout=timeout)

        try:
            await repeat(insert_once, within=within)
        finally:
            # The rows may be stored even if this was cancelled or had no answer.
            if self.options.notify:
                self.notifier.notify(wakeups_of(jobs))
        return [None] * len(jobs)

    async def _look_up[Row: Job | TaskState](
        self, select: Callable[[list[UUID], str], Awaitable[list[Row]]], keys: list[tuple[str, UUID]]
    ) -> Sequence[Row | None]:
        found: dict[tuple[str, UUID], Row] = {}
        for backend in {backend for backend, _ in keys}:
            ids = [id for name, id in dict.fromkeys(keys) if name == backend]
            rows = await repeat(partial(select, ids, backend), within=self.options.command_timeout)
            found |= {(backend, row.id): row for row in rows}
        return [found.get(key) for key in keys]

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        """Its ``finally`` is run by ``loop.shutdown_asyncgens()``, which every runner calls."""
        try:
            yield
        finally:
            # Every asyncio task of the loop has been cancelled by now, so a wake-up may have been too, as in
            # asyncio.run(task.aenqueue()).
            await asyncio.gather(_send_what_is_left(self.notifier), _send_what_is_left(self.teller))
            await self._wait_for_loans(LOAN_TIMEOUT)
            await self.close()

    async def _wait_for_loans(self, timeout: float) -> None:
        """Wait until no connection is lent out; after ``timeout`` seconds the others are cut.

        A release that a closing loop has cancelled before its first step never returns its connection, and
        would keep Pool.close() waiting.
        """
        end = self.loop.time() + timeout
        while self.driver.cache.lent > 0:  # there is no event for it
            if self.loop.time() > end:
                self.pool.terminate()
                return
            await asyncio.sleep(0.01)

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close the pool; connections still lent out are cut after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                self.changes.close()
                await self.listener.close()
                await self.driver.cache.close()
                await self.pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            with suppress(asyncpg.InterfaceError):  # it was never opened
                self.pool.terminate()


async def _send_what_is_left(outbox: Outbox[Any]) -> None:
    with suppress(utils.Error, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT / 2):
            await outbox.send_what_is_left()


async def _no_reset(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Do nothing when a connection is released, because no setting has to be undone.

    asyncpg's own reset costs a round trip: 560–630 µs instead of 390–410 µs a statement.
    """


_lock = threading.Lock()
_by_loop: dict[asyncio.AbstractEventLoop, dict[Options, LoopResources]] = {}
_inherited: list[object] = []


def resources(options: Options) -> LoopResources:
    """The running loop's resources for these options, made at their first use."""
    loop = asyncio.get_running_loop()
    try:
        return _by_loop[loop][options]
    except KeyError:
        pass
    with _lock:
        for other in [other for other in _by_loop if other.is_closed()]:
            _drop(_by_loop.pop(other))
        of_loop = _by_loop.setdefault(loop, {})
        if options not in of_loop:
            of_loop[options] = LoopResources(options)
        return of_loop[options]


async def close_pools(timeout: float = CLOSE_TIMEOUT) -> None:
    """Close the resources of the running loop, each within so many seconds; the next use makes others."""
    with _lock:
        of_loop = _by_loop.pop(asyncio.get_running_loop(), {})
    for loop_resources in of_loop.values():
        await loop_resources.close(timeout)


def _drop(of_loop: dict[Options, LoopResources]) -> None:
    """Close the resources of a loop that was closed without shutting down its generators."""
    for loop_resources in of_loop.values():
        with suppress(Exception):  # calls that need the closed loop fail
            loop_resources.pool.terminate()


def _forget_in_child() -> None:
    """A forked child must not touch its parent's connections, so it keeps them from being deleted.

    asyncpg's ``Connection.__del__`` sends a farewell to the server, which ends the parent's session.
    """
    global _lock
    _lock = threading.Lock()
    _inherited.append(dict(_by_loop))
    _by_loop.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
