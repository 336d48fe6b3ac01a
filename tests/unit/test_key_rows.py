"""Rows of keys that are made beside the claims."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.worker.claiming.key_rows import KeyRows


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_key_can_be_asked_for_again_after_a_cancel(has_begun: bool) -> None:
    begun, made = asyncio.Event(), asyncio.Event()
    held = asyncio.Event()

    async def insert(backend: str, keys: list[str], *, lock_timeout: float) -> None:
        begun.set()
        await held.wait()

    store: Any = SimpleNamespace(insert_limits=insert)
    rows = KeyRows(store, backend="default")
    cancelled = asyncio.Event()
    rows.make("tenant:1", cancelled.set)
    if has_begun:
        await begun.wait()
    rows.close()
    await asyncio.wait_for(cancelled.wait(), 10)

    held.set()
    rows.make("tenant:1", made.set)
    await asyncio.wait_for(made.wait(), 10)
