"""Fleet: the workers that share something which one of them at a time has to do, and whose turn it is."""

import asyncio
import random
import time
from contextlib import suppress
from math import floor, inf

from ..store.workers import Place

__all__ = ["Fleet", "Turn"]

# Seconds from one turn of the fleet to the next, and those by which a worker is late at random, as parts of
# the interval: so no interval is without a turn, and fleets on one database don't act at the same moments.
STEP = 0.8
JITTER = 0.2


class Fleet:
    """This worker's place among the workers that share a work. There is no leader: each worker counts the
    rows of the others when it renews its lease, and their clock is the database's.

    Of an action that is due every ``interval`` seconds, each of N workers takes every Nth turn, in the order
    of their ids. A worker that has died misses its turns until the others count again, after its lease has
    expired.

    number: how many workers there are, this one included. Until the first count it is 1.
    rank: how many of them come before this one.
    """

    def __init__(self) -> None:
        self.number = 1
        self.rank = 0
        self._ahead = 0.0  # seconds by which the database's clock is ahead of time.monotonic()
        self._turns: list[Turn] = []

    @property
    def is_alone(self) -> bool:
        """Whether no other worker is known to share the work."""
        return self.number == 1

    def update(self, place: Place, ahead: float) -> None:
        """Note a count, and bring turns forward that the new one says are earlier.

        ``ahead``: seconds by which the database's clock is ahead of ``time.monotonic()``.
        """
        self._ahead = ahead
        if place != (self.number, self.rank):
            self.number, self.rank = place
            for turn in self._turns:
                turn.bring_forward()

    def turn(self, interval: float, *, earliest: float = STEP, moved: asyncio.Event | None = None) -> "Turn":
        """Return this worker's turn in what is due every ``interval`` seconds.

        A worker that is alone acts at random times, after ``earliest`` to 1 times the interval. ``moved``: is
        set when a turn that may be waited for has become earlier.
        """
        turn = Turn(self, interval, earliest, moved or asyncio.Event())
        self._turns.append(turn)
        return turn

    def seconds_to_turn(self, interval: float, earliest: float = STEP) -> float:
        """Return the seconds until this worker has its next turn."""
        if self.is_alone:
            return interval * random.uniform(earliest, 1.0)
        now = time.monotonic() + self._ahead
        step = interval * STEP
        number = floor(now / step) + 1
        number += (self.rank - number) % self.number
        return number * step - now + interval * random.uniform(0.0, JITTER)


class Turn:
    """This worker's turn in one action. Made by ``Fleet.turn()``.

    interval: seconds in which the fleet has one turn.
    at: when it is, by the running loop's clock; ``inf`` before the first ``next()``.
    """

    def __init__(self, fleet: Fleet, interval: float, earliest: float, moved: asyncio.Event) -> None:
        self.at = inf
        self._fleet = fleet
        self.interval = interval
        self._earliest = earliest
        self._moved = moved
        self._latest = inf  # of the turn that comes after the action under way

    def next(self) -> None:
        """Begin to wait for the next turn: set ``at``."""
        self.at = min(asyncio.get_running_loop().time() + self._seconds(), self._latest)
        self._latest = inf

    def take_within(self, seconds: float) -> None:
        """Have this worker act within so many seconds, whoever's turn it is; if it is acting, once more."""
        self._move(asyncio.get_running_loop().time() + seconds)

    def bring_forward(self) -> None:
        """Compute the turn again, and keep the earlier one: so that no change of the fleet delays it."""
        if self.at < inf:
            self._move(asyncio.get_running_loop().time() + self._seconds())

    def _move(self, at: float) -> None:
        if self.at == inf:
            self._latest = min(self._latest, at)
        elif at < self.at:
            self.at = at
            self._moved.set()

    async def wait(self) -> None:
        """Wait for the next turn."""
        self.next()
        while asyncio.get_running_loop().time() < self.at:
            self._moved.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self.at):
                    await self._moved.wait()
        self.at = inf

    def _seconds(self) -> float:
        return self._fleet.seconds_to_turn(self.interval, self._earliest)
