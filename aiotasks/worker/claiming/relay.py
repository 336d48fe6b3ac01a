"""Relay: passes wake-ups on to other workers, where this one can't take all of their tasks."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import islice

from ...rows import LANES, Job, Lane
from ...store.wakeups import Wakeup
from ..protocols import PassesOn

__all__ = ["Relay"]

type _Key = tuple[
    str, Lane | None, bool
]  # a wake-up's queue and lane, and whether it is for tasks with limits
type _Source = tuple[Lane, bool]

# Seconds within which wake-ups are passed on once. While all workers are full, each of them would pass on
# every enqueue's; and what is passed on to all workers needn't be said by many of them. Chosen: short beside
# a poll, and 50 NOTIFYs a second are a small part of what a server can do.
PASS_INTERVAL = 0.02

# Queues of a full claim whose wake-ups are passed on, at most. Chosen: where tasks of more queues wait, their
# own wake-ups have woken enough workers.
PASS_QUEUES = 10


class Relay:
    """A wake-up comes to two workers. The first passes it on

    - if it can't claim, or its claim fails;
    - after a claim that has taken as many tasks as it was for, and none of the wake-up's queue;
    - after one that has left tasks of the queue, because their limit isn't known here.

    After such a claim it also wakes others for the queues that it has taken tasks from, because there may be
    more: once, until a claim takes fewer.

    others: wakes other workers; None if there are none. backend: the backend of the tasks.
    """

    def __init__(self, others: PassesOn | None, *, backend: str) -> None:
        self._others = others
        self._backend = backend
        self._passed: dict[_Source, int] = {}  # by how many the lane's last wake-up had been passed on
        self._unanswered: dict[_Key, Wakeup] = {}  # no claim has been sent since
        self._asked: dict[_Key, Wakeup] = {}  # the claim under way answers them
        self._full: set[_Source] = set()  # lanes whose last claim has taken all that it was for
        self._waiting: dict[_Key, Wakeup] = {}
        self._quiet_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._claims = True  # for all that is known, a claim can be sent
        self._is_closed = False

    def woken(self, wakeup: Wakeup) -> None:
        """Note a wake-up of this worker."""
        if wakeup.lane is None:  # all workers have it
            self._quiet_until = asyncio.get_running_loop().time() + PASS_INTERVAL
            for lane in LANES:
                self._waiting.pop((wakeup.queue_name, lane, wakeup.keyed), None)
            return
        self._passed[wakeup.lane, wakeup.keyed] = wakeup.passed
        if wakeup.place == 1:
            self._unanswered[_key(wakeup)] = wakeup
            if not self._claims:
                self.pass_on()

    def claims(self, lanes: Iterable[Lane], *, without: Collection[str] = (), keyed: bool = False) -> None:
        """A claim for these lanes is sent, which answers their wake-ups, but those of the queues ``without``.
        There is no room in the others. ``keyed``: it is for tasks with limits, and the wake-ups for others
        have their turn, and the other way round.
        """
        self._claims = not self._is_closed
        self._asked = {}
        if self._unanswered:
            answered = set(lanes)
            self._asked = {
                key: wakeup
                for key, wakeup in self._unanswered.items()
                if key[1] in answered and key[0] not in without and key[2] == keyed
            }
            others = {key: wakeup for key, wakeup in self._unanswered.items() if key[2] != keyed}
            self._unanswered = {
                key: wakeup
                for key, wakeup in self._unanswered.items()
                if key not in self._asked and key not in others
            }
            self.pass_on()
            self._unanswered = others

    def claimed(self, lane: Lane, jobs: Collection[Job], limit: int, *, keyed: bool = False) -> None:
        """Note what a claim of at most ``limit`` tasks has brought in a lane."""
        source = (lane, keyed)
        if len(jobs) < limit:
            self._full.discard(source)
            return
        names = dict.fromkeys(job.queue_name for job in jobs)
        left = [wakeup for key, wakeup in self._asked.items() if key[1] == lane and key[0] not in names]
        if jobs and source not in self._full:
            self._full.add(source)
            passed = self._passed.get(source, 0)
            left += [
                Wakeup(self._backend, name, lane=lane, passed=passed, keyed=keyed)
                for name in islice(names, PASS_QUEUES)
            ]
        if left:
            self._pass_on(left)

    def left(self, lane: Lane, queues: Collection[str]) -> None:
        """Note that a claim has left tasks of these queues to workers that know their limits."""
        if queues:
            self._pass_on(
                wakeup for key, wakeup in self._asked.items() if key[1] == lane and key[0] in queues
            )

    def filled(self, queues: Iterable[str], lanes: Iterable[Lane]) -> None:
        """Wake others for queues that have reached their limits here: they may have more tasks."""
        names = list(islice(queues, PASS_QUEUES))
        if names:
            self._pass_on(
                Wakeup(self._backend, name, lane=lane, passed=self._passed.get((lane, False), 0))
                for name in names
                for lane in lanes
            )

    def wake_others(self, wakeups: Iterable[Wakeup]) -> None:
        """Wake others for tasks that this worker knows of, and won't take for now."""
        self._pass_on(wakeups)

    def pass_on(self) -> None:
        """Pass on the wake-ups that no claim has answered: this worker can't claim for now."""
        if self._unanswered:
            unanswered, self._unanswered = self._unanswered, {}
            self._pass_on(unanswered.values())

    def pass_turn_on(self) -> None:
        """Have others look for all tasks: it is this worker's turn, and it can't claim for now."""
        if self._others is not None:
            self._others.pass_turn_on()

    def failed(self) -> None:
        """A claim has failed, or is given up: pass on its wake-ups, and those that come before the next."""
        self._claims = False
        self._unanswered |= self._asked
        self._asked = {}
        self.pass_on()

    def close(self) -> None:
        """Pass on at once what waits, and what comes from now on: this worker claims no more."""
        self._is_closed = True
        self._claims = False
        self.pass_on()
        self._send()

    def _pass_on(self, wakeups: Iterable[Wakeup]) -> None:
        if self._others is None:
            return
        for wakeup in wakeups:
            key = _key(wakeup)
            passed = max(wakeup.passed, self._waiting.get(key, wakeup).passed)
            self._waiting[key] = replace(wakeup, passed=passed)
        loop = asyncio.get_running_loop()
        if self._is_closed or loop.time() >= self._quiet_until:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_at(self._quiet_until, self._send)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        if self._others is not None and waiting:
            self._quiet_until = asyncio.get_running_loop().time() + PASS_INTERVAL
            for wakeup in waiting.values():
                self._others.pass_on(wakeup)


def _key(wakeup: Wakeup) -> _Key:
    return wakeup.queue_name, wakeup.lane, wakeup.keyed
