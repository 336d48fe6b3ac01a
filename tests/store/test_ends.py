"""Ends: a waiter wakes once, with the rows of what has ended, and misses nothing where a look-up fails."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import utils

from aiotasks.conf import Options
from aiotasks.rows import Job, Status
from aiotasks.store import joins
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


async def next_ends(ends: Ends) -> dict[UUID, Job | None]:
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
    assert found.pop(gone) is None
    assert {id: job.status for id, job in found.items() if job} == {job.id: Status.SUCCESSFUL for job in jobs}
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

    def add(self, key: tuple[str, UUID], caller: Any) -> None:
        self.asked.append((key[1], caller))

    def watch(self, *args: Any) -> None:
        pass

    forget = watch


async def test_what_ends_during_a_round_belongs_to_the_next() -> None:
    """So that new ends don't delay the others, however many come."""
    source: Any = Source()
    first, second, later = [uuid4() for _ in range(3)]
    ends = Ends()
    ends.watch(source, "default", [first, second, later])
    ends.report(first)
    ends.report(second)
    (_, first_caller), (_, second_caller) = source.asked
    first_caller.set_result(None)
    ends.report(later)
    assert len(source.asked) == 2
    assert await ends.changed(0.01) == set()
    second_caller.set_result(None)
    assert await ends.changed() == {first, second}
    assert ends.take() == {first: None, second: None}
    (*_, (id, caller)) = source.asked
    assert id == later
    assert not caller.done()
    ends.close()
    assert caller.done()  # nobody waits for it


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
    assert (await next_ends(ends)).keys() == {job.id}
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
