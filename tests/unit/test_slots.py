"""Slots that tasks take again after they have waited for others."""

import asyncio

from aiotasks.worker.slots import Slots


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_free_slot_is_taken_at_once() -> None:
    slots = Slots(loop=1, threads=0)
    await slots.take_again("loop")
    assert slots.free("loop") == 0


async def test_those_that_wait_come_before_all_others_in_their_order() -> None:
    slots = Slots(loop=2, threads=1)
    for _ in range(3):  # one more than there are: a body that was cancelled, say
        slots.take("loop")
    gone_on: list[int] = []

    async def take(number: int) -> None:
        await slots.take_again("loop")
        gone_on.append(number)

    waiting = [asyncio.create_task(take(number)) for number in range(3)]
    await turns()
    slots.release("loop")
    slots.take("thread")
    slots.release("thread")
    await turns()
    assert gone_on == []  # as many run as there are slots
    for number in range(3):
        slots.release("loop")
        assert slots.free("loop") == 0  # it is nobody else's
        await turns()
        assert gone_on == [*range(number + 1)]
    await asyncio.wait(waiting)
    slots.release("loop")
    assert slots.free("loop") == 1


async def test_who_waits_no_more_gets_none() -> None:
    slots = Slots(loop=1, threads=0)
    slots.take("loop")
    first, second = (asyncio.create_task(slots.take_again("loop")) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    slots.release("loop")
    await turns()
    assert (first.cancelled(), second.done(), slots.free("loop")) == (True, True, 0)
    # Cancelled at the moment of its turn: the slot is free again.
    third = asyncio.create_task(slots.take_again("loop"))
    await turns()
    slots.release("loop")
    third.cancel()
    await turns()
    assert (third.cancelled(), slots.free("loop")) == (True, 1)
