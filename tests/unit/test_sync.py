"""drive and SyncMethod: the sync side without twins."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation

from aiotasks.sync import SyncMethod, drive


class Owner:
    def run_over_django(
        self, logic: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
    ) -> Any:
        return drive(logic(self, "route", *args, **kwargs))

    async def _logic(self, route: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [self, route, args, kwargs]

    async def _failing(self, route: str) -> None:
        raise ValueError(route)

    async def _suspending(self, route: str) -> None:
        await asyncio.sleep(0)

    act = SyncMethod(_logic, name="aact")
    fail = SyncMethod(_failing, name="afail")
    suspend = SyncMethod(_suspending, name="asuspend")


def test_it_runs_the_logic_over_django() -> None:
    owner = Owner()
    assert owner.act(1, two=2) == [owner, "route", (1,), {"two": 2}]
    assert Owner.act(owner, 1) == [owner, "route", (1,), {}]
    with pytest.raises(ValueError, match="route"):
        owner.fail()


async def test_on_a_loops_thread_it_names_the_async_method() -> None:
    with pytest.raises(SynchronousOnlyOperation, match=r"^act\(\) would block .* use `await aact\(\)`\.$"):
        Owner().act()
    assert await asyncio.to_thread(Owner().act)


def test_what_suspends_is_refused_and_closed() -> None:
    with pytest.raises(RuntimeError, match="suspended"):
        Owner().suspend()


def test_run_now_returns_and_raises() -> None:
    async def value() -> int:
        return 5

    async def stop() -> None:
        raise KeyboardInterrupt

    assert drive(value()) == 5
    with pytest.raises(KeyboardInterrupt):
        drive(stop())
