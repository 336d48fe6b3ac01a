"""Waker: passes wake-ups on, from NOTIFY to the parts of the worker, and from them to the other workers."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import anyio

from ..rows import Job
from ..store.loop import LoopResources, resources
from ..store.wakeups import ANY_QUEUE, Wakeup
from .events import NULL, Observer
from .protocols import Beats, Claims, LooksForCancelled, LooksForDue

__all__ = ["Waker"]

# Workers that pass a wake-up on before it goes to all. Each of them wakes two others, so that where half of
# the workers are full, one in eight wake-ups goes to all; and a burst reaches all within some milliseconds.
MOST_PASSES = 3

# Queues whose next due task is remembered; there may be any number of them. Chosen.
MOST_ANNOUNCED = 1000

# Seconds by which clocks may differ: a wake-up for a task that is due so soon may be for one that is READY.
CLOCK_SKEW = 5.0


class Waker:
    """Passes wake-ups on. ``connect`` must be called before anything else.

    listens: whether the worker uses LISTEN. If it doesn't, it finds tasks by its polls.
    """

    def __init__(
        self, loop_resources: LoopResources, backend: str, *, listens: bool, observer: Observer = NULL
    ) -> None:
        self.listens = listens
        self._observer = observer
        self._was_woken = False  # there was a LISTEN session
        self._options = loop_resources.options
        self._own_channel = loop_resources.listener.own_channel
        self._wakeups = loop_resources.wakeups
        self._backend = backend
        self._announced: dict[str, float] = {}  # by queue: the time (epoch seconds) that all look at next

    def connect(
        self, claimer: Claims, promoter: LooksForDue, canceller: LooksForCancelled, heartbeat: Beats
    ) -> None:
        """Name the parts that are to be woken."""
        self._claimer = claimer
        self._promoter = promoter
        self._canceller = canceller
        self._heartbeat = heartbeat

    @property
    def channel(self) -> str | None:
        """The channel on which this process alone LISTENs; None if the worker doesn't use LISTEN."""
        return self._own_channel if self.listens else None

    def is_woken(self) -> bool:
        """Return whether NOTIFY wakes the worker at the moment. May be called in any thread."""
        return self.listens and self._wakeups.listening.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive notifications while the block lasts, if the worker uses LISTEN."""
        if not self.listens:
            yield
            return
        self._was_woken = self.is_woken()  # by that of another worker of this loop
        with self._wakeups.subscribed(self.receive):
            yield

    async def wait_until_woken(self, timeout: float) -> None:
        """Wait until NOTIFY wakes the worker, if it uses LISTEN, for at most ``timeout`` seconds."""
        if self.listens:
            with anyio.move_on_after(timeout):
                await self._wakeups.listening.wait()

    def receive(self, wakeup: Wakeup | None) -> None:
        """Wake the parts that ``wakeup`` concerns; all of them if it is None: some may have been missed."""
        if wakeup is None:
            if self._was_woken:
                self._observer.reconnected("listener")
            self._was_woken = True
            self._heartbeat.beat_now()  # from now on enqueues can choose this worker
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
                self._claimer.wake(None if wakeup.queue_name == ANY_QUEUE else wakeup)

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        """Wake this worker and the others; ``since``: the earliest place of the tasks in their queues (epoch
        seconds), where that is in the past.
        """
        if since is not None:
            self._claimer.look_back(since)
        for wakeup in wakeups:
            if wakeup.due is None:
                self.receive(wakeup)
            else:  # it isn't READY: the promoter will wake the claimer
                self._promoter.look(wakeup.due)
        self.notify(wakeups)

    def wake_self(self) -> None:
        """Wake this worker alone, for tasks in all of its queues."""
        self._claimer.wake()

    def notify(self, wakeups: Sequence[Wakeup]) -> None:
        """Wake the other workers only, over a connection of the running loop: it may be the heartbeat's.

        Not for a task that is due after another one of its queue that they were woken for: they will look
        then, and find the next.
        """
        if self._options.notify and wakeups:
            news = [wakeup for wakeup in wakeups if wakeup.due is None or self._is_news(wakeup, wakeup.due)]
            if news:
                resources(self._options).notifier.notify(news)

    def tell(self, ids: Collection[UUID]) -> None:
        """Notify that these tasks, which somebody awaits, have changed; over a connection of the running
        loop, as ``notify()``.
        """
        if ids:
            resources(self._options).teller.tell(ids)

    def _is_news(self, wakeup: Wakeup, due: float) -> bool:
        now = time.time()
        if now < self._announced.get(wakeup.queue_name, 0.0) <= due:
            return False
        if len(self._announced) >= MOST_ANNOUNCED:
            self._announced = {name: at for name, at in self._announced.items() if at > now}
        if len(self._announced) < MOST_ANNOUNCED:
            self._announced[wakeup.queue_name] = due
        return True

    def pass_on(self, wakeup: Wakeup) -> None:
        """Wake two other workers for READY tasks of a lane; all, once enough workers have passed it on."""
        if wakeup.passed < MOST_PASSES:
            passed_on = replace(wakeup, passed=wakeup.passed + 1, sender=self.channel, place=0)
            if not wakeup.place:
                # It hasn't come from the channel, which other workers of this process share, and isn't sent
                # there.
                self._wakeups.pass_on(passed_on, sender=self.receive)
            self.notify([passed_on])
        else:
            self.notify([Wakeup(wakeup.backend, wakeup.queue_name, keyed=wakeup.keyed)])

    def pass_turn_on(self) -> None:
        """Have all workers look for tasks in all of their queues."""
        self.notify([Wakeup(self._backend, ANY_QUEUE)])

    def try_keys(self, jobs: Iterable[Job]) -> None:
        """Have this worker try the limits' keys of ``jobs``, which have ended or are READY again."""
        for job in jobs:
            self._claimer.try_key(job)

    def wake_after_rescue(self, wakeups: Sequence[Wakeup]) -> None:
        """Wake this worker and the others, for tasks that may have been in crashes."""
        if wakeups:
            self._claimer.suspect()
            self.wake(wakeups)
