"""KeyCloser: what becomes of keys that are to be closed, whatever the database answers."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from django.db import utils

from aiotasks.worker.writing import key_closer
from aiotasks.worker.writing.key_closer import KeyCloser


class Cause(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


def error(code: str) -> utils.Error:
    raised = utils.OperationalError(code)
    raised.__cause__ = Cause(code)
    return raised


class Store:
    """Refuses statements with a key of ``refused``, by the code that stands there."""

    def __init__(self, **refused: str) -> None:
        self.refused = refused
        self.closed: list[dict[str, float]] = []
        self.tries = 0

    async def close_keys(
        self, backend: str, keys: Sequence[tuple[str, float]], *, lock_timeout: float
    ) -> None:
        self.tries += 1
        await asyncio.sleep(0)
        for key, _ in keys:
            if key in self.refused:
                raise error(self.refused[key])
        self.closed.append(dict(keys))


def closer(store: Any) -> KeyCloser:
    return KeyCloser(store, backend="default")


async def close(closer: KeyCloser, *keys: tuple[str, float]) -> list[str]:
    """Return the list to which the closed ones are added."""
    ended: list[str] = []
    for key, seconds in keys:
        closer.close(key, seconds, partial(ended.append, key))
    return ended


async def wait_for(ended: list[str], *keys: str) -> None:
    async with asyncio.timeout(10):
        while sorted(ended) != sorted(keys):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_many_are_closed_in_one_statement_for_the_longest_time_each() -> None:
    store = Store()
    ended = await close(closer(store), ("a", 3.0), ("a", 5.0), ("b", 2.0), ("a", 4.0))
    await wait_for(ended, "a", "a", "a", "b")
    assert store.closed == [{"a": 5.0, "b": 2.0}]


async def test_a_locked_key_is_tried_again_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_closer, "LOCKED_DELAY", 0.0)
    store = Store(b="55P03")
    ended = await close(closer(store), *[(key, 1.0) for key in "abcde"])
    await wait_for(ended, *"acde")
    assert {key for keys in store.closed for key in keys} == {*"acde"}
    del store.refused["b"]
    await wait_for(ended, *"abcde")


@pytest.mark.parametrize("code", ["42501", "23514"])
async def test_a_key_that_can_not_be_closed_holds_up_no_task(code: str) -> None:
    """Without a right none can be, of those that a constraint refuses the others."""
    store = Store(b=code)
    ended = await close(closer(store), *[(key, 1.0) for key in "abc"])
    await wait_for(ended, *"abc")
    closed = {key for keys in store.closed for key in keys}
    assert closed == (set() if code == "42501" else {"a", "c"})


async def test_an_outage_is_waited_for() -> None:
    store = Store(a="57P01")
    ended = await close(closer(store), ("a", 1.0))
    while store.tries < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert not ended
    del store.refused["a"]
    await wait_for(ended, "a")
