"""ThreadPool: threads of the worker, started as needed. They manage Django's connections: ThreadConnections.

ThreadStarts limits the starts where the machine refuses threads.
"""

import errno
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from ..db.connection_thread import IDLE_TIMEOUT, ThreadConnections
from .execution import NotStarted
from .free_descriptors import CONNECTION_DESCRIPTORS, SPARE_DESCRIPTORS, count_free_descriptors

__all__ = ["RETRY_DELAY", "ThreadPool", "ThreadStarts"]

logger = logging.getLogger("aiotasks.worker")

# Seconds after the machine has refused a thread until the next try.
RETRY_DELAY = 5.0

# Threads that were started within so many seconds may not have opened their connections yet.
CONNECT_TIME = 1.0


class ThreadStarts:
    """Starts threads, and pauses after the machine has refused one.

    what: the threads' purpose, for the log.
    connects: most calls need a database connection, so a thread starts only if there are descriptors for it.
    """

    _latest: ClassVar[deque[float]] = deque(maxlen=100)  # when threads with connections were started

    def __init__(self, what: str, *, connects: bool) -> None:
        self._what = what
        self._connects = connects
        self._retry_at = 0.0
        self.refused = False  # whether the last start was

    def may_start(self) -> bool:
        return not self.refused or time.monotonic() >= self._retry_at

    def start[Started](self, start: Callable[[], Started], running: int) -> Started | None:
        """Call ``start``; returns None if the machine refuses the thread."""
        if not self.may_start():
            return None
        try:
            if self._connects:
                now = time.monotonic()
                starting = sum(now - at < CONNECT_TIME for at in self._latest)
                if count_free_descriptors() < SPARE_DESCRIPTORS + CONNECTION_DESCRIPTORS * (starting + 1):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self._latest.append(now)
            started = start()
        except (RuntimeError, MemoryError, OSError) as error:
            if not self.refused:
                logger.warning(
                    "The machine refuses another thread for %s; continuing with fewer threads=%d retry=%g "
                    "error=%r",
                    self._what,
                    running,
                    RETRY_DELAY,
                    str(error),
                )
            self.refused = True
            self._retry_at = time.monotonic() + RETRY_DELAY
            return None
        self.refused = False
        return started


# A pool's call gets a function, which it calls after its work and before it notifies its caller.
type _Call = Callable[[Callable[[], None]], None]


class ThreadPool:
    """At most ``limit`` threads, started as needed, that run calls, each as a separate job.

    ``prepare`` is called in each thread at its start. ``spare``: how many more threads there may be, in the
    place of those that don't give their calls back.
    """

    def __init__(
        self,
        name: str,
        what: str,
        limit: int,
        *,
        spare: int = 0,
        daemon: bool = True,
        connects: bool = True,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.threads: list[threading.Thread] = []
        self._name = name
        self._base = self._limit = limit
        self.usable = limit  # the calls that can run at a time beside stuck ones, if no thread is refused
        self._spare = spare
        self.stuck = 0  # threads that don't give their calls back
        self._leaving = 0  # threads that end as soon as they are free
        self._daemon = daemon
        self._prepare = prepare
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._put = 0  # the number of calls so far
        # The number of calls that each thread has run: written by that thread alone.
        self._ended: dict[int, int] = {}
        self._started = 0
        # Not for a thread that ends a call, which must not wait for it, but for one that ends itself.
        self._lock = threading.Lock()
        self.starts = ThreadStarts(what, connects=connects)

    def capacity(self) -> int:
        """The number of calls that can run at a time: below the limit while the machine refuses threads."""
        if not self.starts.refused:
            return self.usable
        running = len(self.threads) - self._leaving - self.stuck
        return min(self.usable, max(0, running) + self.starts.may_start())

    def widen(self) -> None:
        """Have another thread in the place of one that doesn't give its call back, if a spare one is left.

        Without one fewer calls can run at a time.
        """
        with self._lock:
            self._set_stuck(self.stuck + 1)

    def narrow(self) -> None:
        """Note that such a thread gives its call back, and end one that isn't needed any more."""
        with self._lock:
            self._set_stuck(self.stuck - 1)
            surplus = len(self.threads) - self._leaving - self._limit
            for _ in range(surplus):
                self._leaving += 1
                self._calls.put(None)

    def _set_stuck(self, number: int) -> None:
        self.stuck = number
        self._limit = self._base + min(number, self._spare)
        self.usable = self._limit - number

    def put(self, call: _Call, *, may_wait: bool) -> None:
        """Have a thread run ``call``, which must not raise.

        Raises NotStarted if no thread is free and none can be started; with ``may_wait`` only if there is
        no thread at all.
        """
        with self._lock:
            running = len(self.threads) - self._leaving
            unended = self._put - sum(self._ended.values())
            started = running >= self._limit or running > unended or self._start()
            if not started and not (running and may_wait):
                raise NotStarted("can't start new thread")
            self._put += 1
        self._calls.put(call)

    def start(self) -> None:
        """Start the first thread now."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Let the threads end once their calls have."""
        for _ in self.threads:
            self._calls.put(None)

    def take_waiting(self) -> list[_Call]:
        """Remove and return the calls that no thread has begun."""
        taken: list[_Call] = []
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return taken
            if call is not None:
                taken.append(call)

    def _start(self) -> bool:
        number = self._started + 1
        name = f"{self._name}-{number}"

        def start() -> threading.Thread:
            thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=self._daemon)
            self._ended[number] = 0
            try:
                thread.start()
            except BaseException:
                del self._ended[number]
                raise
            return thread

        thread = self.starts.start(start, len(self.threads))
        if thread is not None:
            self._started = number
            self.threads.append(thread)
        return thread is not None

    def _work(self, number: int) -> None:
        if self._prepare is not None:
            self._prepare()
        django = ThreadConnections()

        def after() -> None:
            django.clean()
            self._ended[number] += 1

        while True:
            try:
                call = self._calls.get(timeout=IDLE_TIMEOUT)
            except queue.Empty:
                django.close_idle()
                continue
            if call is None:
                break
            django.check()
            call(after)
            del call  # its objects must not live until the next call
        django.close()
        with self._lock:
            if self._leaving:  # else all end
                self._leaving -= 1
                self._put -= self._ended.pop(number)
                self.threads.remove(threading.current_thread())
