"""Waker: passes wake-ups on, from NOTIFY to the parts of the worker, and from them to the other workers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio

from ..store.loop import LoopResources, resources
from ..store.wakeups import Wakeup
from .protocols import Claims, LooksForCancelled, LooksForDue

__all__ = ["Waker"]

# Seconds by which clocks may differ: a wake-up for a task that is due so soon may be for one that is READY.
CLOCK_SKEW = 5.0


class Waker:
    """Passes wake-ups on. ``connect`` must be called before anything else.

    listens: whether the worker uses LISTEN. If it doesn't, it finds tasks by its polls.
    """

    def __init__(self, loop_resources: LoopResources, backend: str, *, listens: bool) -> None:
        self.listens = listens
        self._options = loop_resources.options
        self._listener = loop_resources.listener
        self._backend = backend

    def connect(self, claimer: Claims, promoter: LooksForDue, canceller: LooksForCancelled) -> None:
        """Name the parts that are to be woken."""
        self._claimer = claimer
        self._promoter = promoter
        self._canceller = canceller

    def is_woken(self) -> bool:
        """Return whether NOTIFY wakes the worker at the moment. May be called in any thread."""
        return self.listens and self._listener.listening.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive notifications while the block lasts, if the worker uses LISTEN."""
        if not self.listens:
            yield
            return
        with self._listener.subscribed(self.receive):
            yield

    async def wait_until_woken(self, timeout: float) -> None:
        """Wait until NOTIFY wakes the worker, if it uses LISTEN, for at most ``timeout`` seconds."""
        if self.listens:
            with anyio.move_on_after(timeout):
                await self._listener.listening.wait()

    def receive(self, wakeup: Wakeup | None) -> None:
        """Wake the parts that ``wakeup`` concerns; all of them if it is None: some may have been missed."""
        if wakeup is None:
            self._claimer.wake()
            self._promoter.look()
            self._canceller.look()
        elif wakeup.backend == self._backend:
            if wakeup.cancel:
                self._canceller.look()
                return
            if wakeup.due is not None:
                self._promoter.look(wakeup.due)
            if wakeup.due is None or wakeup.due <= time.time() + CLOCK_SKEW:
                self._claimer.wake(wakeup)

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        """Wake this worker and the others; ``since``: the earliest place of the tasks in their queues (epoch
        seconds), where that is in the past.
        """
        if since is not None:
            self._claimer.look_back(since)
        for wakeup in wakeups:
            self.receive(wakeup)
        self.notify(wakeups)

    def notify(self, wakeups: Sequence[Wakeup]) -> None:
        """Wake the other workers only, over a connection of the running loop: it may be the heartbeat's."""
        if self._options.notify and wakeups:
            resources(self._options).notifier.notify(wakeups)

    def wake_after_rescue(self, wakeups: Sequence[Wakeup]) -> None:
        """Wake this worker and the others, for tasks that may have been in crashes."""
        if wakeups:
            self._claimer.suspect()
            self.wake(wakeups)
