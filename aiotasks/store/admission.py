"""Admission: how many statements about unique keys run at a time, and for how long each may wait for a lock.

A statement that meets the key of an open transaction waits for its end, on the server, and has a connection
meanwhile. So it does that for a fraction of a second, lets go of the connection, and comes again. Tries that
wait for locks have at most half of the turns: a call whose key is free finds the others.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from django.db import utils

from ..db.errors import Code, is_transient, sqlstate
from ..db.retry import backoff
from .block_threads import BlockSlots
from .settling import Duplicates

__all__ = ["Admission"]

# Seconds for which a patient try waits for a lock, on the server: most transactions that enqueue end sooner.
LOCK_SLICE = 0.1

# The same while other patient tries wait for a turn: each locked key is tried again within some seconds, also
# if there are hundreds of them.
CROWDED_SLICE = 0.02

# The same of a try that isn't patient. Its connection may be one of those that transaction() blocks leave to
# statements that don't wait.
SHORT_SLICE = 0.005

# Seconds between two tries of a locked key, at first and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.25

# Turns at most, whatever the size of the pool: with more the server's CPUs are busy, and nothing is faster.
MOST_TURNS = 32


class _Turn(NamedTuple):
    """A try's turn. ``lock``: for how many seconds its statements may wait for a lock."""

    lock: float
    is_patient: bool
    has_slot: bool  # of transaction() blocks


class Admission:
    """The turns of one loop's statements about unique keys; as many at a time as ``limit``.

    A turn is patient if fewer than half of the others are. A patient one waits for locks longer, provided
    that a slot of transaction() blocks (``blocks``) is free, which leave connections to statements that don't
    wait. A try that takes long anyway waits for such a slot, as a block does.

    within: seconds after which a caller gets an error if the server has answered none of the statements whose
        turn it was. While it does, a caller waits as long as it takes: memory stays bounded by its callers.
    """

    def __init__(self, blocks: BlockSlots, *, limit: int, within: float) -> None:
        self._blocks = blocks
        self._limit = min(limit, MOST_TURNS)
        self._within = within
        self._loop = asyncio.get_running_loop()
        self._turns = _Places(self._limit)
        self._patient = _Places(max(1, self._limit // 2))
        self._answered_at = 0.0  # by the loop's clock

    async def repeat[Result](
        self,
        attempt: Callable[[float], Awaitable[Result]],
        failed: Callable[[utils.Error, float, float], float],
        *,
        takes_long: bool = False,
    ) -> Result:
        """Call ``attempt`` with the seconds for which it may wait for a lock, until it succeeds, in a turn
        each time. Raises OperationalError if there is no turn for it, or no slot.

        failed: called after each transient error, with the error, the time at which the try began, and the
            time at which the next one would. It raises if that is too late, or returns the time until which
            the next one may begin. All times are by the loop's clock.
        takes_long: each turn must be patient, and have a slot of transaction() blocks.
        """
        failures = 0
        turn = await self._enter(takes_long=takes_long)
        while True:
            began = self._loop.time()
            is_answered = False
            try:
                result = await attempt(turn.lock)
                is_answered = True
                return result
            except Duplicates:
                is_answered = True
                raise
            except utils.Error as error:
                is_answered = sqlstate(error) is not None
                if not is_transient(error):
                    raise
                failures += 1
                is_locked = sqlstate(error) == Code.LOCK_TIMEOUT
                pause = _pause(failures) if is_locked else backoff(failures, longest=1.0)
                until = failed(error, began, self._loop.time() + pause)
            finally:
                self._leave(turn, is_answered=is_answered)
            await asyncio.sleep(pause)
            if is_locked:
                turn = await self._enter_again(until, takes_long=takes_long)
            else:
                turn = await self._enter(takes_long=takes_long)

    async def _enter(self, *, takes_long: bool) -> _Turn:
        """Wait for a turn. It is patient if there is room for that, or, if it must be, once there is.

        Raises OperationalError if the server answers no statement for COMMAND_TIMEOUT meanwhile, or if no
        slot comes free that it must have.
        """
        if takes_long:
            await self._blocks.take(self._within)
        since = self._loop.time()

        def left() -> float:
            return max(since, self._answered_at) + self._within - self._loop.time()

        turn = await self._take(left, patient=takes_long, has_slot=takes_long)
        if turn is None:
            raise utils.OperationalError(
                "Too many enqueues with unique keys are under way at once, or the database doesn't answer: "
                f"none of the {self._limit} that run at a time has had an answer within COMMAND_TIMEOUT "
                f"({self._within:g} s)."
            )
        return turn

    async def _enter_again(self, until: float, *, takes_long: bool) -> _Turn:
        """Wait for a patient turn, for a key that was locked. Raises OperationalError if there is none until
        that time of the loop's clock."""
        turn = None
        with suppress(TimeoutError):
            if takes_long:
                async with asyncio.timeout_at(until):
                    await self._blocks.take(self._within)
            turn = await self._take(lambda: until - self._loop.time(), patient=True, has_slot=takes_long)
        if turn is None:
            raise utils.OperationalError(
                "Too many enqueues with unique keys wait for other transactions at once: the key of this one "
                "was locked when it was last tried, and it has had no other turn within COMMAND_TIMEOUT "
                f"({self._within:g} s)."
            )
        return turn

    def _leave(self, turn: _Turn, *, is_answered: bool) -> None:
        """End a turn. ``is_answered``: whether the server has answered, if only with an error."""
        if is_answered:
            self._answered_at = self._loop.time()
        self._turns.release()
        if turn.is_patient:
            self._patient.release()
        if turn.has_slot:
            self._blocks.release()

    async def _take(self, left: Callable[[], float], *, patient: bool, has_slot: bool) -> _Turn | None:
        """Wait for a turn while there are seconds ``left``. ``has_slot``: the caller has a slot for it, which
        is released with it, or at once if there is none."""
        is_in = False
        try:
            is_in = await self._take_places(left, patient=patient)
        finally:
            if has_slot and not is_in:
                self._blocks.release()
        if not is_in:
            return None
        # Nothing suspends from here on.
        is_patient = patient or self._patient.take_free()
        has_slot = has_slot or (is_patient and await self._blocks.take_free())
        patience = CROWDED_SLICE if self._patient.has_waiters else LOCK_SLICE
        return _Turn(patience if has_slot else SHORT_SLICE, is_patient, has_slot)

    async def _take_places(self, left: Callable[[], float], *, patient: bool) -> bool:
        if patient and not await self._patient.take(left):
            return False
        is_in = False
        try:
            # Before the others, because few may wait for a patient turn.
            is_in = await self._turns.take(left, first=patient)
        finally:
            if patient and not is_in:
                self._patient.release()
        return is_in


def _pause(failures: int) -> float:
    """Seconds after so many lock time-outs, with jitter, because others wait for the same transaction."""
    return min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


class _Places:
    """A semaphore whose callers keep their place in the queue while their time limit is prolonged."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def has_waiters(self) -> bool:
        """Whether a caller waits for a place: there is none free then."""
        return any(not each.done() for each in self._waiters)

    def take_free(self) -> bool:
        """Take a place if one is free, and return whether it was."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def take(self, left: Callable[[], float], *, first: bool = False) -> bool:
        """Wait for a place; return False if the seconds that are ``left`` are over. first: before others."""
        if self.take_free():
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiters.appendleft if first else self._waiters.append)(waiter)
        try:
            while not waiter.done() and (seconds := left()) > 0:
                await asyncio.wait([waiter], timeout=seconds)
        except BaseException:
            if waiter.done():
                self.release()
            raise
        finally:
            is_in = waiter.done()
            waiter.cancel()  # or it has a result, and stays as it is
        return is_in

    def release(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
