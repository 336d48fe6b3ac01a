"""Unique keys under many processes, and through PgBouncer."""

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import aiotasks
from tests import unique_tasks
from tests.site import default_task_backend
from tests.worker.harness import Configure

from .test_pgbouncer import POOLED, bouncer
from .test_pgbouncer import pytestmark as needs_pgbouncer

__all__ = ["bouncer"]

PROCESSES, CONNECTIONS = 5, 20


def enqueue_from_processes(path: Path, env: dict[str, str], keys: int, times: int) -> list[list[object]]:
    """Every key from every process; what each enqueue has returned."""
    numbers = [str(keys), str(times), str(CONNECTIONS)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.enqueuer", str(path), str(number), *numbers], env=env
        )
        for number in range(PROCESSES)
    ]
    assert [process.wait(300) for process in processes] == [0] * PROCESSES
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("keys", "times"), [(5, 8), pytest.param(500, 10, marks=pytest.mark.battery, id="many keys")]
)
async def test_processes_agree_on_who_has_a_key(
    tmp_path: Path, worker_env: dict[str, str], conn: asyncpg.Connection, keys: int, times: int
) -> None:
    """In transactions too, some of which are rolled back. No worker is there, so each key has one task."""
    lines = await asyncio.to_thread(enqueue_from_processes, tmp_path / "returned", worker_env, keys, times)
    by_key: defaultdict[object, list[Sequence[object]]] = defaultdict(list)
    for key, *result in lines:
        by_key[key].append(result)
    stored = await conn.fetch("SELECT id::text, unique_key FROM aiotasks_task")
    assert sorted(row["unique_key"] for row in stored) == sorted(map(str, by_key))
    assert len(by_key) == keys
    for id, key in stored:
        assert {result[0] for result in by_key[key]} == {id}
        assert [result[1] for result in by_key[key]].count(False) == 1
    assert len(lines) > PROCESSES * keys * times * 0.8


@needs_pgbouncer
async def test_keys_hold_through_a_pooler(bouncer: object, configure: Configure) -> None:
    """In transaction mode, where a setting that isn't put back would be another client's."""
    configure(**POOLED)
    results = await asyncio.gather(*(unique_tasks.once.aenqueue(n) for n in range(30)))
    assert len({result.id for result in results}) == 1
    async with aiotasks.transaction() as connection:
        assert (await unique_tasks.once.aenqueue()).is_duplicate
        assert not (await unique_tasks.follow.aenqueue(1)).is_duplicate
        assert (await unique_tasks.follow.aenqueue(1)).is_duplicate
        assert await connection.fetchval("SHOW lock_timeout") == "0"
    calls: Any = [((key,), {}) for key in (1, 2, 1)]
    many = await default_task_backend.aenqueue_many(unique_tasks.debounced, calls)
    assert [result.is_duplicate for result in many] == [False, False, True]  # type: ignore[attr-defined]  # ours
