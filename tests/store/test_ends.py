"""Ends: a waiter wakes once, with the rows of what has ended, and misses nothing where a look-up fails."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import utils

from aiotasks.conf import Options
from aiotasks.rows import Job, Status
from aiotasks.store import joins
from aiotasks.store.batcher import Batcher
from aiotasks.store.ends import Ends
from aiotasks.store.loop import LOOKUP_LIMIT, LoopResources, close_pools, resources
from aiotasks.store.store import Store
from tests.worker.harness import until

from .rows import claimed, finish, insert

type Select = Callable[[Store, Sequence[UUID], str], Any]


@pytest.fixture
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "POLL_SHORTEST", 0.05)
    monkeypatch.setattr(joins, "POLL_LONGEST", 0.1)


async def next_ends(ends: Ends) -> dict[tuple[str, UUID], Job | None]:
    async with asyncio.timeout(30):
        while True:
            await ends.changed()
            if found := ends.take():
                return found


async def test_what_has_ended_together_is_reported_together(held: LoopResources) -> None:
    """In more statements than one."""
    _, jobs = await claimed(held.store, 3 * LOOKUP_LIMIT)
    await finish(held.store, *jobs)
    gone = uuid4()
    (waits,) = await insert(held.store)
    ends = Ends()
    ends.watch(held, "default", [*(job.id for job in jobs), gone, waits])
    found = await next_ends(ends)
    assert found.pop(("default", gone)) is None
    assert {id: job.status for (_, id), job in found.items() if job} == {
        job.id: Status.SUCCESSFUL for job in jobs
    }
    assert held.changes.number == 1
    assert not ends.is_over
    ends.close()
    assert ends.is_over
    assert held.changes.number == 0


class Source:
    """Look-ups that the test answers."""

    def __init__(self) -> None:
        self.lookups = self.changes = self
        self.asked: list[tuple[UUID, Any]] = []
        self.forgotten: list[tuple[str, UUID]] = []

    def add(self, key: tuple[str, UUID], caller: Any) -> None:
        self.asked.append((key[1], caller))

    def watch(self, *args: Any) -> None:
        pass

    def forget(self, ends: Ends, backend: str, ids: Collection[UUID]) -> None:
        self.forgotten += [(backend, id) for id in ids]


async def test_what_ends_during_a_round_belongs_to_the_next() -> None:
    """So that new ends don't delay the others, however many come."""
    source: Any = Source()
    first, second, later = [uuid4() for _ in range(3)]
    ends = Ends()
    ends.watch(source, "default", [first, second, later])
    ends.report("default", first)
    ends.report("default", second)
    (_, first_caller), (_, second_caller) = source.asked
    first_caller.set_result(None)
    ends.report("default", later)
    assert len(source.asked) == 2
    assert await ends.changed(0.01) == set()
    second_caller.set_result(None)
    assert await ends.changed() == {first, second}
    assert ends.take() == {("default", first): None, ("default", second): None}
    (*_, (id, caller)) = source.asked
    assert id == later
    assert not caller.done()
    ends.close()
    assert caller.done()  # nobody waits for it


async def test_a_task_is_looked_up_once_at_a_time() -> None:
    """However often it is reported meanwhile, by polls, where the look-ups of many large rows take long."""
    source: Any = Source()
    first, second = uuid4(), uuid4()
    ends = Ends()
    ends.watch(source, "default", [first, second])
    for id in (first, second, first, second):
        ends.report("default", id)
    assert [id for id, _ in source.asked] == [first, second]
    (_, first_caller), (_, second_caller) = source.asked
    first_caller.set_exception(utils.OperationalError("away"))
    ends.report("default", second)
    second_caller.set_result(None)
    assert [id for id, _ in source.asked] == [first, second, first]  # the end of the second one is known
    ends.report("default", second)
    assert len(source.asked) == 3
    assert ends.take() == {("default", second): None}
    source.asked[2][1].set_result(None)
    assert ends.take() == {("default", first): None}
    assert ends.is_over


async def test_a_backend_whose_database_is_away_delays_no_other() -> None:
    """Not even of a task with the same id."""
    here: Any = Source()
    away: Any = Source()
    id = uuid4()
    ends = Ends()
    ends.watch(away, "away", [id])
    ends.watch(here, "default", [id])
    ends.report("away", id)
    ends.report("default", id)
    (_, caller), *_ = here.asked
    caller.set_result(None)
    assert ends.take() == {("default", id): None}
    assert not ends.is_over
    ends.close()
    assert (here.forgotten, away.forgotten) == ([("default", id)], [("away", id)])


async def test_a_call_that_an_answer_adds_is_not_lost() -> None:
    """While the flusher is cancelled, as code does that cancels all other asyncio tasks."""
    waiting: asyncio.Queue[asyncio.Future[Sequence[None]]] = asyncio.Queue()

    async def flush(items: list[int]) -> Sequence[None]:
        future: asyncio.Future[Sequence[None]] = asyncio.get_running_loop().create_future()
        waiting.put_nowait(future)
        return await future

    batcher: Batcher[int, None] = Batcher(flush, limit=1)
    first = batcher.submit(1)
    added: list[asyncio.Future[None]] = []

    class Adding:
        def done(self) -> bool:
            return False

        def set_result(self, result: None) -> None:
            raise AssertionError

        def set_exception(self, error: BaseException) -> None:
            added.append(batcher.submit(3))

    batcher.add(2, Adding())
    (await waiting.get()).cancel()
    with pytest.raises(utils.InterfaceError, match="interrupted"):
        await first
    last = batcher.submit(4)
    async with asyncio.timeout(30):
        for future in (*added, last):
            (await waiting.get()).set_result([None])
            await future
    assert len(added) == 1


async def patched(monkeypatch: pytest.MonkeyPatch, select_jobs: Select) -> LoopResources:
    monkeypatch.setattr(Store, "select_jobs", select_jobs)
    return resources(Options(notify=False, command_timeout=0.2))


@pytest.mark.usefixtures("fast_polls")
async def test_a_look_up_that_fails_for_the_time_being_is_repeated(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (job,) = await claimed(held.store)
    await finish(held.store, job)
    select_jobs = Store.select_jobs
    is_away = True
    failures = 0

    async def select(self: Store, ids: Sequence[UUID], backend: str) -> list[Job]:
        nonlocal failures
        if is_away:
            failures += 1
            raise utils.OperationalError("away") from ConnectionResetError()
        return await select_jobs(self, ids, backend)

    others = await patched(monkeypatch, select)
    ends = Ends()
    ends.watch(others, "default", [job.id])
    await until(lambda: failures >= 8)  # more than belong to one look-up
    is_away = False
    assert (await next_ends(ends)).keys() == {("default", job.id)}
    await close_pools()


@pytest.mark.usefixtures("fast_polls")
async def test_an_error_that_no_waiting_helps_against_is_raised(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (job,) = await claimed(held.store)
    await finish(held.store, job)

    async def fail(self: Store, ids: Sequence[UUID], backend: str) -> list[Job]:
        raise utils.ProgrammingError("no such table")

    others = await patched(monkeypatch, fail)
    ends = Ends()
    ends.watch(others, "default", [job.id])
    for _ in range(2):
        with pytest.raises(utils.ProgrammingError, match="no such table"):
            await next_ends(ends)
    ends.close()
    await close_pools()
