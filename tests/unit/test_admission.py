"""Admission: which tries of enqueues with unique keys run, and for how long each may wait for a lock."""

import asyncio

import asyncpg
import pytest
from django.db import utils

from aiotasks.store import admission
from aiotasks.store.admission import CROWDED_SLICE, LOCK_SLICE, SHORT_SLICE, Admission
from aiotasks.store.block_threads import BlockSlots
from tests.worker.harness import until


def error(cause: BaseException | None) -> utils.OperationalError:
    made = utils.OperationalError("it failed")
    made.__cause__ = cause
    return made


class Tries:
    """Callers of an Admission, whose tries end when the test says so."""

    def __init__(self, *, limit: int, within: float = 3600.0, blocks: int = 100) -> None:
        self.blocks = BlockSlots(blocks)
        self.admission = Admission(self.blocks, limit=limit, within=within)
        self.under_way: list[asyncio.Future[BaseException | None]] = []
        self.locks: list[float] = []  # that were given to the tries, in their order
        self.began: list[asyncio.Task[None] | None] = []  # whose tries they were
        self.callers: list[asyncio.Task[None]] = []

    def call(self, *failures: Exception, until: float = 1e9, takes_long: bool = False) -> asyncio.Task[None]:
        """Begin a caller. Its first tries fail at once."""
        left = iter(failures)

        async def attempt(lock: float) -> None:
            self.locks.append(lock)
            self.began.append(asyncio.current_task())
            if (failure := next(left, None)) is not None:
                raise failure
            end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
            self.under_way.append(end)
            try:
                if (raised := await end) is not None:
                    raise raised
            finally:
                self.under_way.remove(end)

        caller = asyncio.ensure_future(
            self.admission.repeat(attempt, lambda *args: until, takes_long=takes_long)
        )
        self.callers.append(caller)
        return caller

    async def settle(self) -> None:
        """Let all callers come as far as they can without time."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self, failure: BaseException | None = None) -> None:
        """End the tries that are under way."""
        for each in self.under_way:
            if not each.done():
                each.set_result(failure)
        await self.settle()

    async def end_all(self) -> None:
        while any(not caller.done() for caller in self.callers):
            await self.end()
            await asyncio.sleep(0.001)


LOCKED = error(asyncpg.LockNotAvailableError("locked"))


async def test_half_of_the_turns_wait_for_locks() -> None:
    tries = Tries(limit=4)
    for _ in range(10):
        tries.call()
    await tries.settle()
    assert sorted(tries.locks) == [SHORT_SLICE, SHORT_SLICE, LOCK_SLICE, LOCK_SLICE]
    await tries.end_all()
    assert len(tries.locks) == 10


async def test_keys_that_are_locked_take_half_of_the_turns() -> None:
    """However many they are. They wait for less then, so that the turn of each comes."""
    tries = Tries(limit=4)
    for _ in range(10):
        tries.call(LOCKED)
    await until(lambda: len(tries.under_way) == 2 and len(tries.admission._patient._waiters) == 8)
    free = tries.call()
    await tries.settle()
    assert len(tries.under_way) == 3
    assert tries.locks[-1] == SHORT_SLICE
    tries.under_way[-1].set_result(None)
    await free
    await tries.end()
    assert tries.locks[-2:] == [CROWDED_SLICE] * 2
    assert len(tries.under_way) == 2
    await tries.end_all()


async def test_a_key_that_was_locked_comes_before_those_that_were_not_tried() -> None:
    """Or its time would be over while it waits behind thousands."""
    tries = Tries(limit=2)
    late = tries.call(LOCKED)
    for _ in range(6):
        tries.call()
    await until(lambda: len(tries.admission._patient._waiters) == 1)
    for _ in range(2):  # with the patient turn of the first one, and the next turn
        tries.under_way[0].set_result(None)
        await tries.settle()
    assert tries.began[-1] is late
    await tries.end_all()


@pytest.mark.parametrize("takes_long", [False, True])
async def test_a_caller_that_is_cancelled_leaves_its_turn_to_others(takes_long: bool) -> None:
    for turns in range(6):
        tries = Tries(limit=2, blocks=2)
        callers = [tries.call(takes_long=takes_long) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for caller in (callers[0], callers[2]):
            caller.cancel()
        await tries.end_all()
        tries.locks.clear()
        for _ in range(2):
            tries.call()
        await tries.settle()
        assert sorted(tries.locks) == [SHORT_SLICE, LOCK_SLICE]
        assert [await tries.blocks.take_free() for _ in range(2)] == [True, False]
        await tries.end_all()


async def test_a_patient_caller_that_is_cancelled_while_it_waits_for_a_turn_leaves_its_place() -> None:
    tries = Tries(limit=2)
    for _ in range(3):
        tries.call()
    caller = tries.call(takes_long=True)
    await tries.settle()
    tries.under_way[0].set_result(None)  # its turn is the third one's, its patience the caller's
    await tries.settle()
    caller.cancel()
    await tries.end_all()
    for _ in range(2):
        tries.call()
    await tries.settle()
    assert sorted(tries.locks[-2:]) == [SHORT_SLICE, LOCK_SLICE]
    await tries.end_all()


async def test_tries_leave_transaction_blocks_their_connections() -> None:
    tries = Tries(limit=4, blocks=1)
    for _ in range(2):
        tries.call()
    await tries.settle()
    assert sorted(tries.locks) == [SHORT_SLICE, LOCK_SLICE]
    assert not await tries.blocks.take_free()
    await tries.end_all()
    assert await tries.blocks.take_free()
    tries.call()
    await tries.settle()
    assert tries.locks[-1] == SHORT_SLICE
    await tries.end_all()


async def test_a_try_that_takes_long_waits_for_a_slot_of_blocks_and_holds_nobody_up() -> None:
    tries = Tries(limit=4, blocks=1)
    assert await tries.blocks.take_free()
    tries.call(takes_long=True)
    await tries.settle()
    for _ in range(4):  # it has none of the turns
        tries.call()
    await tries.settle()
    assert tries.locks == [SHORT_SLICE] * 4
    await tries.end()
    assert len(tries.locks) == 4
    tries.blocks.release()
    await tries.settle()
    assert tries.locks[4:] == [LOCK_SLICE]
    assert not await tries.blocks.take_free()
    await tries.end_all()
    assert await tries.blocks.take_free()
    assert not await tries.blocks.take_free()


async def test_a_try_that_takes_long_has_a_slot_each_time_and_none_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = Tries(limit=4, blocks=1)
    tries.call(LOCKED, takes_long=True)
    await until(lambda: len(tries.locks) == 2)
    assert tries.locks == [LOCK_SLICE] * 2
    assert not await tries.blocks.take_free()
    await tries.end_all()
    monkeypatch.setattr(admission, "_pause", lambda failures: 3600.0)
    pausing = tries.call(LOCKED, takes_long=True)
    await until(lambda: len(tries.locks) == 3)
    await tries.settle()
    assert await tries.blocks.take_free()
    pausing.cancel()


async def test_a_try_that_finds_no_slot_says_so() -> None:
    tries = Tries(limit=2, within=0.05, blocks=1)
    assert await tries.blocks.take_free()
    with pytest.raises(utils.OperationalError, match=r"No .* block has ended within COMMAND_TIMEOUT"):
        await tries.call(takes_long=True)
    tries.blocks.release()
    tries = Tries(limit=4, blocks=1)
    late = tries.call(LOCKED, takes_long=True, until=0.0)
    tries.call(takes_long=True)  # it has the slot while the first one pauses
    with pytest.raises(utils.OperationalError, match=r"locked when it was last tried, .* COMMAND_TIMEOUT"):
        await late
    assert len(tries.under_way) == 1
    tries.callers.remove(late)
    await tries.end_all()
    assert await tries.blocks.take_free()


async def test_a_caller_waits_as_long_as_others_have_answers() -> None:
    """And not longer: the database doesn't answer then, and the error says so."""
    tries = Tries(limit=1, within=0.05)
    tries.call()
    late = tries.call()
    with pytest.raises(utils.OperationalError, match=r"none of the 1 .* within COMMAND_TIMEOUT \(0.05 s\)"):
        await late
    assert len(tries.under_way) == 1
    for failure, is_answer in ((error(None), False), (LOCKED, True)):
        await until(lambda: len(tries.under_way) == 1)
        await tries.end(failure)
        assert (tries.admission._answered_at > 0) is is_answer
    await tries.end_all()


async def test_a_locked_key_that_has_no_other_turn_says_so() -> None:
    tries = Tries(limit=2)
    tries.call(takes_long=True)
    await tries.settle()
    kept = tries.under_way[0]
    late = tries.call(until=0.0)
    await tries.settle()
    tries.under_way[1].set_result(LOCKED)
    with pytest.raises(
        utils.OperationalError, match=r"locked when it was last tried, .* within COMMAND_TIMEOUT"
    ):
        await late
    kept.set_result(None)
    await tries.end_all()


async def test_an_error_that_is_final_is_raised_at_once() -> None:
    tries = Tries(limit=1)
    caller = tries.call()
    await tries.settle()
    await tries.end(utils.IntegrityError())
    with pytest.raises(utils.IntegrityError):
        await caller
    tries.callers.clear()
    tries.call()
    await tries.settle()
    assert len(tries.under_way) == 1
    await tries.end_all()
