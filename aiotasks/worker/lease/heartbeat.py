"""Heartbeat: renews the worker's lease in a thread of its own, so that a coroutine that blocks the loop
doesn't cost the worker its tasks.

The thread has an event loop and connections of its own. (Code that holds the GIL stops every thread. Such a
worker isn't protected, but fenced.)
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID, uuid4

from django.db import utils

from ...conf import Options
from ...db.errors import Code, is_away, sqlstate, waited_too_long
from ...db.outage import Outage
from ...store.loop import resources
from ...store.store import Store
from ..events import NULL, Observer
from ..protocols import KeepsLease
from .lease import Lease, boottime

__all__ = ["Heartbeat", "Registration"]

logger = logging.getLogger("aiotasks.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The columns of a worker's row in ``aiotasks_worker`` that it fills itself."""

    backend: str
    queues: Sequence[str]
    concurrency: int
    threads: int
    version: str
    channel: str | None
    queue_limits: Sequence[int | None] | None


class Heartbeat:
    """Registers the worker and renews its lease until stopped.

    - ``keeper`` is called on the worker's loop with what becomes of the lease.
    - Every renewal stores whether NOTIFY wakes the worker, how many of its threads are stuck, and its report.
    - A lease whose row has gone is lost: the worker registers again, under a new id.
    - The worker's loop may end the lease (``renounce``). It enforces the deadline too, because a dead
      connection can hang this thread.
    """

    def __init__(
        self,
        options: Options,
        lease: Lease,
        registration: Registration,
        keeper: KeepsLease,
        observer: Observer = NULL,
    ) -> None:
        self._options = options
        self._lease = lease
        self._registration = registration
        self._keeper = keeper
        self._worker_loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._stopping = False
        self._observer = observer
        self._outage = Outage(
            logger,
            "lease",
            "the lease cannot be renewed",
            longest=max(0.1, lease.interval / 2),
            observer=observer,
        )
        self._locked = False  # the table of workers, when a renewal has last failed
        self._suspended = False
        self._last_words: Callable[[Store], Awaitable[None]] | None = None
        self._finished: asyncio.Future[None] = self._worker_loop.create_future()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="aiotasks-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def wait(self) -> None:
        """Wait until the thread has ended. Raises RuntimeError if it has failed."""
        await asyncio.shield(self._finished)
        if self._death is not None:
            raise RuntimeError("The heartbeat has died.") from self._death

    def renounce(self) -> UUID | None:
        """End the lease, and register under a new id as soon as that is possible.

        Returns the id of the lease that was ended; None if there was none.
        """
        ended = self._lease.end()
        self.beat_now()
        return ended

    def stop(self, last_words: Callable[[Store], Awaitable[None]] | None = None) -> "asyncio.Future[None]":
        """Stop renewing; the future is done when the thread has ended.

        Before that ``last_words`` is run on the heartbeat's loop, even if the worker's own has closed. The
        lease is renewed meanwhile.
        """
        self._last_words = last_words
        self._stopping = True
        self.beat_now()
        return self._finished

    def join(self, timeout: float) -> None:
        """Wait in another thread until this one has ended after ``stop()``, for at most so many seconds."""
        self._thread.join(timeout)

    def suspend(self) -> None:
        """Let the lease run out: renew it no more until ``resume()``. May be called in any thread."""
        self._suspended = True

    def resume(self) -> None:
        """Renew the lease again. May be called in any thread."""
        self._suspended = False
        self.beat_now()

    def beat_now(self) -> None:
        """Renew the lease now, because what is stored with it has changed. May be called in any thread."""
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(wake.set)

    def _main(self) -> None:
        try:
            asyncio.run(self._beat())
        except BaseException as error:  # the worker must know of any
            logger.critical("The heartbeat has died; the worker ends", exc_info=True)
            self._death = error
        self._on_worker_loop(self._end)

    def _end(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def _on_worker_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the worker's loop has closed
            self._worker_loop.call_soon_threadsafe(call)

    async def _beat(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        # One connection, and another while a statement that has timed out holds the first.
        store = resources(replace(self._options, pool_min_size=0, pool_max_size=2)).store
        last_words: asyncio.Task[None] | None = None
        while True:
            self._wake.clear()  # a poke from here on gets another round
            if self._stopping and last_words is None:
                if self._last_words is None:
                    return
                last_words = asyncio.ensure_future(self._last_words(store))
                last_words.add_done_callback(lambda _: self.beat_now())
            if last_words is not None and last_words.done():
                if (error := last_words.exception()) is not None:
                    logger.error("Could not settle the tasks in threads", exc_info=error)
                return
            started = boottime()
            pause = self._lease.interval
            try:
                if not self._suspended:
                    await self._renew(store, started, may_register=not self._stopping)
                self._locked = False
            except utils.Error as error:
                pause = self._outage.failed(error)
                self._failed(error, started)
                if await self._is_locked_out(store, error):
                    pause = 0.0  # the renewal may as well wait for the lock itself
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _renew(self, store: Store, started: float, *, may_register: bool) -> None:
        lease = self._lease
        # A statement that hangs must not use up the lease: the next may go over a better connection.
        timeout = max(0.25, lease.interval)
        worker_id = lease.worker_id
        if worker_id is not None:
            is_woken, stuck = self._keeper.is_woken(), self._keeper.stuck_threads()
            renewed = await store.renew_lease(
                worker_id,
                lease.timeout,
                is_woken,
                stuck_threads=stuck,
                report=self._keeper.report(),
                remaining=lease.should_remain(),
                timeout=timeout,
            )
            self._outage.ended()
            if renewed is not None and not renewed.renewed:
                # After an outage, a pause of this process, or a step of the database's clock the leases of
                # other workers may be as stale: this worker must not rescue before they have been renewed.
                logger.warning(
                    "The lease had expired, or ends too soon, by the database's clock worker_id=%s",
                    worker_id,
                )
                lease.unsteady()
                renewed = await store.renew_lease(
                    worker_id,
                    lease.timeout,
                    is_woken,
                    stuck_threads=stuck,
                    even_expired=True,
                    timeout=timeout,
                )
            if renewed is not None and renewed.renewed:
                self._observer.renewed(boottime() - started)
                if lease.renewed(worker_id, started):
                    self._on_worker_loop(self._keeper.registered)
                self._on_worker_loop(partial(self._keeper.renewed, renewed, renewed.clock - time.monotonic()))
                return
            if lease.end(worker_id) is not None:
                self._on_worker_loop(partial(self._keeper.lost, worker_id))
        if may_register:
            await self._register(store, started, timeout)

    async def _register(self, store: Store, started: float, timeout: float) -> None:
        lease, mine = self._lease, self._registration
        worker_id = uuid4()
        await store.register_worker(
            worker_id,
            mine.backend,
            socket.gethostname(),
            os.getpid(),
            mine.queues,
            mine.concurrency,
            mine.threads,
            mine.version,
            lease.timeout,
            mine.channel,
            mine.queue_limits,
            timeout=timeout,
        )
        self._outage.ended()
        lease.registered(worker_id, started)
        self._observer.registered(worker_id)
        self._on_worker_loop(self._keeper.registered)
        if self._keeper.is_woken():
            self.beat_now()  # LISTEN works since before the row, which says so from its first renewal on

    async def _is_locked_out(self, store: Store, error: utils.Error) -> bool:
        """Return whether the renewal has failed because the table is locked; then the deadline moves on.

        No other worker can renew its lease either, and so none rescues until two intervals after the lock.
        """
        if not waited_too_long(error):
            return False
        asked = boottime()
        try:
            locked = await store.are_leases_locked(timeout=max(0.25, self._lease.interval / 2))
        except utils.Error:
            return False
        if locked:
            if not self._locked:
                logger.warning("The table of workers is locked: no lease can be renewed until it is unlocked")
            self._lease.extend(asked + 2 * self._lease.interval)
        self._locked = locked
        return locked

    def _failed(self, error: utils.Error, started: float) -> None:
        lease = self._lease
        lease.unsteady()
        self._on_worker_loop(self._keeper.failed)
        if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
            self._on_worker_loop(self._keeper.crowded)
        if is_away(error):
            # No worker can take our tasks while no worker can write, and none will until two intervals after
            # the server is back (may_rescue). Silence is another matter: behind a dead connection the server
            # may be well, and our lease about to expire.
            lease.extend(started + 2 * lease.interval)
