"""The Batcher: every caller resumes exactly once with its own outcome, whatever happens (docs/faults.md, 55).

The schedules are hypothesis': submits, cancellations, flushes that fail, and turns of the loop between them.
Nothing waits for a clock, so a caller that is never resumed shows as one that isn't within so many turns.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import utils
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aiotasks.store import batcher as batcher_module
from aiotasks.store.batcher import Batcher

TURNS = 2000


class Broken(BaseException):
    """What no code expects."""


@dataclass
class Flush:
    """How one flush goes: after so many turns of the loop, it returns or raises."""

    turns: int = 0
    error: type[BaseException] | None = None


@dataclass
class World:
    """A Batcher, its callers, and what is seen of it."""

    limit: int
    bad: frozenset[int]
    flushes: list[Flush]
    by: str = "submit"  # how callers ask: the method's name
    callers: list["asyncio.Task[int]"] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    resumed: dict[int, int] = field(default_factory=dict)
    attempts: list[list[int]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)  # in a flush that failed as a whole, or wasn't begun
    under_way: int = 0
    interrupted: bool = False
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batcher: Batcher[int, int] = Batcher(self.flush, limit=self.limit)

    def submit(self) -> None:
        number = len(self.callers)
        self.callers.append(asyncio.get_running_loop().create_task(self.call(number)))

    async def call(self, number: int) -> int:
        self.interrupted = self.interrupted and self.batcher.flushing
        if self.interrupted:
            self.lost.add(number)  # the flusher that is about to end may still tell this one so
        try:
            return int(await getattr(self.batcher, self.by)(number))
        finally:
            self.resumed[number] = self.resumed.get(number, 0) + 1

    def cancel(self, number: int) -> None:
        if self.callers and self.callers[number % len(self.callers)].cancel():
            self.cancelled.add(number % len(self.callers))

    def interrupt(self) -> None:
        """What a loop does to every task when it closes."""
        flusher = self.batcher._flusher
        if flusher is not None and flusher.cancel():
            # Whoever has called so far may be told so; later callers may not.
            self.lost |= set(range(len(self.callers)))
            self.interrupted = True

    async def flush(self, items: list[int]) -> Sequence[int]:
        # Noted, not raised: the Batcher would take an exception for the flush's own.
        if self.under_way:
            self.violations.append("two flushes at once")
        if not 0 < len(items) <= self.limit:
            self.violations.append(f"{len(items)} items")
        seen = {item for attempt in self.attempts for item in attempt}
        if (set(items) - seen) & self.cancelled:
            self.violations.append("a caller that was cancelled before its flush")
        self.attempts.append(items)
        how = self.flushes.pop(0) if self.flushes else Flush()
        self.under_way += 1
        try:
            for _ in range(how.turns):
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if how.error is not None:
            self.lost |= set(items)
            if how.error is Broken:  # it ends the flusher, and all who wait
                self.lost |= set(range(len(self.callers)))
            raise how.error(f"flush of {items}")
        if bad := self.bad.intersection(items):
            raise utils.DataError(f"refused {sorted(bad)}")
        self.stored += items
        return [item * 10 for item in items]

    async def settle(self) -> None:
        for _ in range(TURNS):
            if all(caller.done() for caller in self.callers) and not self.batcher.flushing:
                return
            await asyncio.sleep(0)
        waiting = [number for number, caller in enumerate(self.callers) if not caller.done()]
        raise AssertionError(f"never resumed: {waiting}, in the buffer: {len(self.batcher)}")

    def check(self) -> None:
        assert self.violations == []
        errors = []
        for number, caller in enumerate(self.callers):
            assert self.resumed.get(number, 0) <= 1
            if caller.cancelled():
                assert number in self.cancelled
                continue
            assert self.resumed[number] == 1
            if (error := caller.exception()) is None:
                assert caller.result() == number * 10
                assert number in self.stored
                continue
            errors.append(error)
            assert number not in self.stored
            if isinstance(error, utils.DataError):
                assert number in self.bad
                assert str(error) == f"refused [{number}]"
            else:
                assert number in self.lost
                # Whoever flushes for itself hears what its flush has raised.
                own = [Broken] if self.by == "call" and [number] in self.attempts else []
                assert isinstance(error, (utils.OperationalError, utils.InterfaceError, *own))
        assert len({id(error) for error in errors}) == len(errors), "an exception that callers share"
        assert len(self.stored) == len(set(self.stored))
        first: list[int] = []
        for attempt in self.attempts:
            first += [item for item in attempt if item not in first]
        assert first == sorted(first), "in the order of their calls"


steps = st.lists(
    st.one_of(
        st.just("submit"),
        st.just("turn"),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.just("interrupt"),
    ),
    max_size=40,
)
flushes = st.lists(
    st.builds(
        Flush,
        turns=st.integers(0, 4),
        error=st.sampled_from([None, None, None, utils.OperationalError, Broken]),
    ),
    max_size=12,
)


def run_on_a_loop(main: Callable[[], Awaitable[None]], *, eager: bool = False) -> None:
    """Run ``main`` on a loop of its own, which is silent about tasks whose exception nobody wants."""

    async def quiet() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        if eager:
            loop.set_task_factory(asyncio.eager_task_factory)
        await main()

    asyncio.run(quiet())


@pytest.mark.parametrize("eager", [False, True], ids=["lazy tasks", "eager tasks"])
@hypothesis_settings(max_examples=300, deadline=None)
@given(
    limit=st.integers(1, 5),
    bad=st.frozensets(st.integers(0, 20), max_size=5),
    flushes=flushes,
    steps=steps,
    by=st.sampled_from(["submit", "call"]),
)
@example(
    limit=1, bad=frozenset(), flushes=[], steps=["submit", "turn", "submit", "turn", "submit"], by="submit"
)
@example(limit=5, bad=frozenset({1}), flushes=[], steps=["submit"] * 4, by="submit")
@example(
    limit=5, bad=frozenset(), flushes=[], steps=["submit", "turn", "interrupt", "turn", "submit"], by="submit"
)
@example(
    limit=1,
    bad=frozenset(),
    flushes=[Flush(turns=1), Flush(turns=4), Flush(turns=1)],
    steps=[*["submit"] * 2, *["turn"] * 6, *["submit"] * 2],
    by="call",
)
@example(
    limit=1,
    bad=frozenset(),
    flushes=[Flush(turns=1), Flush(turns=0), Flush(turns=1)],
    steps=["submit", "submit", "turn", "submit", "submit"],
    by="call",
)
def test_every_caller_resumes_once_with_its_own_outcome(
    eager: bool, limit: int, bad: frozenset[int], flushes: list[Flush], steps: list[Any], by: str
) -> None:
    async def main() -> None:
        world = World(limit, bad, list(flushes), by)
        for step in steps:
            match step:
                case "submit":
                    world.submit()
                case "turn":
                    await asyncio.sleep(0)
                case "interrupt":
                    world.interrupt()
                case ("cancel", number):
                    world.cancel(number)
        await world.settle()
        world.check()
        # And it is as good as new.
        world.bad, world.flushes = frozenset(), []
        number = len(world.callers)
        world.submit()
        await world.settle()
        assert world.callers[number].result() == number * 10

    run_on_a_loop(main, eager=eager)


async def test_a_single_call_goes_at_once_and_those_meanwhile_go_together() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    seen: list[list[int]] = []

    async def flush(items: list[int]) -> list[int]:
        seen.append(items)
        begun.set()
        await gate.wait()
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=3)
    first = batcher.submit(0)
    await begun.wait()
    others = [batcher.submit(number) for number in range(1, 6)]
    assert seen == [[0]]
    assert len(batcher) == 5
    gate.set()
    assert await asyncio.gather(first, *others) == [0, 1, 2, 3, 4, 5]
    assert seen == [[0], [1, 2, 3], [4, 5]]


async def test_calls_of_one_turn_share_a_flush_once_there_are_several() -> None:
    """The first is flushed by itself: nobody knows yet of the others."""
    seen: list[list[int]] = []

    async def flush(items: list[int]) -> list[int]:
        seen.append(items)
        await asyncio.sleep(0)
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=10)

    async def several() -> None:
        async with asyncio.timeout(20):
            assert await asyncio.gather(*(batcher.call(n) for n in range(4))) == [0, 1, 2, 3]

    await several()
    assert seen == [[0], [1, 2, 3]]
    await several()
    assert seen[2:] == [[0, 1, 2, 3]]


async def test_a_lone_caller_that_is_cancelled_strands_nobody() -> None:
    seen: list[list[int]] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    async def flush(items: list[int]) -> list[int]:
        seen.append(items)
        begun.set()
        await gate.wait()
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=10)
    alone = asyncio.ensure_future(batcher.call(0))
    await begun.wait()
    joined = [asyncio.ensure_future(batcher.call(1)), batcher.submit(2)]
    await asyncio.sleep(0)
    alone.cancel()
    gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*joined) == [1, 2]
    assert alone.cancelled()
    assert sorted(n for items in seen for n in items) == [0, 1, 2]


async def test_a_call_in_the_turn_in_which_a_flusher_ends_is_not_taken_for_a_flusher() -> None:
    """Its end is told a turn later, when somebody may be flushing for itself and others have joined."""
    under_way = most = 0

    async def flush(items: list[int]) -> list[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        under_way -= 1
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=10)
    ended = batcher.submit(0)
    joined: list[asyncio.Future[int]] = []

    def call_again(_: object) -> None:
        joined.extend(asyncio.eager_task_factory(loop, batcher.call(n)) for n in (1, 2))

    loop = asyncio.get_running_loop()
    ended.add_done_callback(call_again)
    await ended
    async with asyncio.timeout(20):
        assert await asyncio.gather(*joined) == [1, 2]
    assert most == 1


async def test_one_bad_item_fails_alone_in_few_flushes() -> None:
    sizes: list[int] = []

    async def flush(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if 77 in items:
            raise utils.DataError("77")
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=1000)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(256)), return_exceptions=True)
    assert isinstance(results.pop(77), utils.DataError)
    assert results == [n for n in range(256) if n != 77]
    assert len(sizes) == 17  # 1 + 2 for each halving


async def test_a_failure_of_the_line_is_not_bisected() -> None:
    """A batch of 500 on a dead line would wait for 500 timeouts."""
    calls = 0

    async def flush(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise utils.OperationalError("the server closed the connection")

    batcher: Batcher[int, int] = Batcher(flush, limit=1000)
    results = await asyncio.gather(*(batcher.submit(n) for n in range(100)), return_exceptions=True)
    assert calls == 1
    assert {type(error) for error in results} == {utils.OperationalError}
    assert len({id(error) for error in results}) == 100


async def test_errors_keep_their_cause_and_their_text() -> None:
    cause = ValueError("the driver's")

    async def flush(items: list[int]) -> list[int]:
        raise utils.OperationalError("gone") from cause

    batcher: Batcher[int, int] = Batcher(flush, limit=10)
    for error in await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True):
        assert isinstance(error, utils.OperationalError)
        assert (str(error), error.__cause__) == ("gone", cause)


async def test_an_exception_that_cannot_be_copied_is_told_in_its_words() -> None:
    class Odd(utils.OperationalError):
        def __init__(self, one: str, *, two: str) -> None:
            super().__init__(one + two)

    async def flush(items: list[int]) -> list[int]:
        raise Odd("o", two="dd")

    batcher: Batcher[int, int] = Batcher(flush, limit=10)
    for error in await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True):
        assert isinstance(error, utils.DatabaseError)
        assert str(error) == "odd"


async def test_a_flush_has_nobodys_context() -> None:
    """Faults 36 and 56 of docs/faults.md: least of all the first caller's, with its open transaction."""
    from contextvars import ContextVar

    mine: ContextVar[str] = ContextVar("mine", default="nobody's")

    async def flush(items: list[int]) -> list[str]:
        return [mine.get() for _ in items]

    mine.set("the caller's")
    batcher: Batcher[int, str] = Batcher(flush, limit=10)
    assert await batcher.submit(1) == "nobody's"


async def test_too_few_results_are_everybodys_error_and_wedge_nothing() -> None:
    answers = [[1], [3, 4]]

    async def flush(items: list[int]) -> list[int]:
        return answers.pop(0)

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    batcher: Batcher[int, int] = Batcher(flush, limit=10)
    results = await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], utils.InterfaceError)
    assert list(await asyncio.gather(batcher.submit(3), batcher.submit(4))) == [3, 4]


def test_a_closing_loop_leaves_nobody_waiting() -> None:
    """``asyncio.run`` cancels all tasks at its end, the flusher before its first step too; what callers
    then do in their ``finally`` must not hang it."""
    outcomes: list[object] = []

    async def flush(items: list[int]) -> list[int]:
        return items

    async def caller(batcher: Batcher[int, int]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                try:
                    outcomes.append(await batcher.submit(1))
                except utils.InterfaceError as error:
                    outcomes.append(error)

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(flush, limit=10)
        task = asyncio.get_running_loop().create_task(caller(batcher))
        await asyncio.sleep(0)
        batcher.submit(0)  # its flusher gets no turn before the loop closes
        outcomes.append(task)

    run_on_a_loop(main)
    assert outcomes[-1] == 1


async def test_a_flush_is_bounded_by_bytes_and_a_larger_item_goes_alone() -> None:
    seen: list[list[int]] = []

    async def flush(items: list[int]) -> list[int]:
        seen.append(items)
        await asyncio.sleep(0)
        return items

    third = batcher_module.FLUSH_SIZE // 3
    batcher: Batcher[int, int] = Batcher(flush, limit=100, size=lambda item: item)
    items = [third, third, third, third, 10 * third, 1, 2, third]
    first = batcher.submit(0)
    await asyncio.sleep(0)
    waiting = [batcher.submit(item) for item in items]
    assert await asyncio.gather(first, *waiting) == [0, *items]
    assert seen == [[0], [third] * 3, [third], [10 * third], [1, 2, third]]


async def test_callers_wait_for_room_in_their_order_holding_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "MOST_CALLS", 3)
    monkeypatch.setattr(batcher_module, "MOST_BYTES", 100)
    gate = asyncio.Event()
    added: list[int] = []
    most = 0

    async def flush(items: list[int]) -> list[int]:
        await gate.wait()
        await asyncio.sleep(0)
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=2, size=lambda item: 60 if item % 10 == 7 else 1)

    async def enqueue(number: int) -> int:
        nonlocal most
        await batcher.room()
        if number % 10 == 3:
            raise ValueError("refused before it was added")
        added.append(number)
        future = batcher.submit(number)
        most = max(most, len(batcher))
        return await future

    callers = [asyncio.ensure_future(enqueue(number)) for number in range(100)]
    await until_idle()
    assert len(added) < 7
    assert batcher.crowded
    cancelled = callers[50:60]
    for caller in cancelled:
        caller.cancel()
    gate.set()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*callers, return_exceptions=True)
    assert most <= 3 + 2  # what a flush has made room for is let in at once
    assert len(results) == 100
    for number, result in enumerate(results):
        if 50 <= number < 60:
            assert isinstance(result, asyncio.CancelledError)
        elif number % 10 == 3:
            assert isinstance(result, ValueError)
        else:
            assert result == number
    assert all(abs(added.index(number) - place) < 3 for place, number in enumerate(sorted(added)))
    async with asyncio.timeout(20):
        await batcher.room()  # nobody waits for it
    assert batcher._bytes == 0


async def until_idle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_room_is_made_where_all_who_were_let_in_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's flush wakes the next then."""
    monkeypatch.setattr(batcher_module, "MOST_CALLS", 1)
    gate = asyncio.Event()

    async def flush(items: list[int]) -> list[int]:
        await gate.wait()
        return items

    batcher: Batcher[int, int] = Batcher(flush, limit=1)
    first = [batcher.submit(0), batcher.submit(1)]
    await until_idle()
    assert batcher.crowded
    waiting = [asyncio.ensure_future(batcher.room()) for _ in range(20)]
    await until_idle()
    assert not any(caller.done() for caller in waiting)
    gate.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*first, *waiting)
