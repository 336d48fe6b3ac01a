"""Heartbeat: renews the worker's lease from a thread of its own, so that a coroutine that blocks
the loop doesn't cost the worker its tasks.

The thread has an event loop and a connection to itself. (Code that holds the GIL stops any
thread; such a worker isn't protected, but fenced.)
"""

import asyncio
import logging
import os
import socket
import threading
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
from .lease import Lease, boottime

__all__ = ["Heartbeat", "Registration"]

logger = logging.getLogger("aiotasks.worker")

@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker enters of itself in ``aiotasks_worker``."""

    backend: str
    queues: Sequence[str]
    concurrency: int
    threads: int
    version: str


class Heartbeat:
    """Registers the worker and renews its lease until stopped.

    - ``changed`` is called on the worker's loop after every registration, and when renewals go
      through again after some that didn't; ``lost``, with its id, when the worker's row has gone; ``failed``
      after every try that failed; ``crowded`` when the server had no connection left for one.
    - Every renewal also says whether the worker is woken by NOTIFY, by ``listening``.
    - A lease whose row has gone is lost: the worker registers anew, under a new id.
    - The worker's loop may give the lease up (``renounce``): it enforces the deadline too, as a
      dead line can hang this thread.
    """

    def __init__(
        self,
        options: Options,
        lease: Lease,
        registration: Registration,
        *,
        listening: Callable[[], bool],
        changed: Callable[[], None],
        lost: Callable[[UUID], None],
        failed: Callable[[], None],
        crowded: Callable[[], None],
    ) -> None:
        self._options = options
        self._lease = lease
        self._registration = registration
        self._listening = listening
        self._changed = changed
        self._lost = lost
        self._failed_once = failed
        self._crowded = crowded
        self._worker_loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._stopping = False
        self._outage = Outage(
            logger, "lease", "the lease cannot be renewed", longest=max(0.1, lease.interval / 2)
        )
        self._locked = False  # the table of workers, when a renewal has last failed
        self._suspended = False
        self._last_words: Callable[[Store], Awaitable[None]] | None = None
        self._finished: asyncio.Future[None] = self._worker_loop.create_future()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="aiotasks-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def wait(self) -> None:
        """Return when the thread has ended. Raises RuntimeError if that was by a failure of its own."""
        await asyncio.shield(self._finished)
        if self._death is not None:
            raise RuntimeError("The heartbeat has died.") from self._death

    def renounce(self) -> None:
        """The lease is over for the loop: register under a new id as soon as it goes."""
        self._lease.end()
        self._poke()

    def stop(self, last_words: Callable[[Store], Awaitable[None]] | None = None) -> "asyncio.Future[None]":
        """Stop renewing; the future is done when the thread has ended.

        ``last_words`` is awaited on the heartbeat's loop first, with the lease still renewed
        meanwhile, even after the worker's own loop has gone.
        """
        self._last_words = last_words
        self._stopping = True
        self._poke()
        return self._finished

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread after ``stop()``, from any other thread, for so many seconds."""
        self._thread.join(timeout)

    def suspend(self) -> None:
        """Renew no more, so that the lease runs out, until ``resume()``. From any thread."""
        self._suspended = True

    def resume(self) -> None:
        self._suspended = False
        self._poke()

    def _poke(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(wake.set)

    def _main(self) -> None:
        try:
            asyncio.run(self._beat())
        except BaseException as error:  # whatever it was, the worker has to hear of it
            logger.critical("the heartbeat has died, this worker ends", exc_info=True)
            self._death = error
        self._on_worker_loop(self._end)

    def _end(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def _on_worker_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the worker's loop has closed: nobody is left to be told
            self._worker_loop.call_soon_threadsafe(call)

    async def _beat(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        # One connection, and one more for whatever its time-out leaves behind.
        store = resources(replace(self._options, pool_min_size=0, pool_max_size=2)).store
        last_words: asyncio.Task[None] | None = None
        while True:
            self._wake.clear()  # whoever pokes from now on gets another round
            if self._stopping and last_words is None:
                if self._last_words is None:
                    return
                last_words = asyncio.ensure_future(self._last_words(store))
                last_words.add_done_callback(lambda _: self._poke())
            if last_words is not None and last_words.done():
                if (error := last_words.exception()) is not None:
                    logger.error("tasks in threads could not be settled", exc_info=error)
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
        # A hung statement must not use up the lease: the next one may go over a better line.
        timeout = max(0.25, lease.interval)
        worker_id = lease.worker_id
        if worker_id is not None:
            listening = self._listening()
            renewed = await store.renew_lease(
                worker_id, lease.timeout, listening, remaining=lease.should_remain(), timeout=timeout
            )
            self._outage.ended()
            if renewed is False:
                # An outage, a pause of this process, or a step of the database's clock: others' leases
                # may be as stale, so this worker must not rescue before they have been renewed.
                logger.warning(
                    "The lease had expired, or ends too soon, by the database's clock worker_id=%s", worker_id
                )
                lease.unsteady()
                renewed = await store.renew_lease(
                    worker_id, lease.timeout, listening, even_expired=True, timeout=timeout
                )
            if renewed:
                if lease.renewed(worker_id, started):
                    self._on_worker_loop(self._changed)
                return
            if lease.end(worker_id) is not None:
                self._on_worker_loop(partial(self._lost, worker_id))
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
            timeout=timeout,
        )
        self._outage.ended()
        lease.registered(worker_id, started)
        self._on_worker_loop(self._changed)

    async def _is_locked_out(self, store: Store, error: utils.Error) -> bool:
        """Whether the renewal has failed because of a lock on the whole table, which moves the deadline on.

        Nobody else can renew a lease, and so rescue, until two intervals after the lock has gone.
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
                logger.warning(
                    "Somebody has locked the table of workers: no lease can be renewed until that is over"
                )
            self._lease.extend(asked + 2 * self._lease.interval)
        self._locked = locked
        return locked

    def _failed(self, error: utils.Error, started: float) -> None:
        lease = self._lease
        lease.unsteady()
        self._on_worker_loop(self._failed_once)
        if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
            self._on_worker_loop(self._crowded)
        if is_away(error):
            # Nobody can take our tasks while nobody can write, and nobody will until two
            # intervals after it is back (may_rescue). Silence is another matter: behind a dead
            # line the server may be well, and our lease running out.
            lease.extend(started + 2 * lease.interval)
