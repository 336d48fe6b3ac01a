"""operations.failures: the latest FAILED tasks by task and error."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from aiotasks.operations.connection import reading
from aiotasks.operations.failures import FailureGroups, failure_groups
from aiotasks.operations.filters import read_filter
from aiotasks.store.store import Store
from aiotasks.worker.startup import backend_of
from tests.store.rows import new_job

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # what is counted is the server's


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with reading(backend_of("default"), timeout=30.0) as store:
        yield store


async def put(conn: asyncpg.Connection, store: Store, kind: str, number: int, **values: Any) -> None:
    """So many FAILED tasks with this error, one a second, half of them with a keep_result."""
    jobs = [new_job(**values) for _ in range(number)]
    await store.insert_jobs(jobs)
    text = json.dumps({"class": kind, "traceback": f"Traceback\n \0\n{kind}: no\n"})
    await conn.execute(
        """
        UPDATE aiotasks_task SET status = 'FAILED', errors = ARRAY[$2::json],
            finished_at = date_trunc('minute', now()) - interval '1 s' * one.n,
            keep_result = CASE WHEN one.n % 2 = 1 THEN 3600 END
        FROM (SELECT id, n - 1 AS n FROM unnest($1::uuid[]) WITH ORDINALITY AS each (id, n)) AS one
        WHERE aiotasks_task.id = one.id
        """,
        [job.id for job in jobs],
        text,
    )


def shown(found: FailureGroups) -> list[tuple[str, str, int]]:
    return [(group.task_path, group.error, group.number) for group in found.groups]


async def test_groups(store: Store, conn: asyncpg.Connection) -> None:
    assert await failure_groups(store, "default") == FailureGroups(groups=[], looked_at=0, complete=True)
    await put(conn, store, "builtins.ValueError", 2, task_path="shop.a", queue_name="q")
    await put(conn, store, "builtins.ValueError", 5, task_path="shop.b")
    await put(conn, store, "shop.Bad", 3, task_path="shop.b")
    await put(conn, store, "shop.Bad", 1, task_path="shop.b", backend="other")
    await store.insert_jobs([new_job()])
    found = await failure_groups(store, "default")
    assert shown(found) == [
        ("shop.b", "builtins.ValueError", 5),
        ("shop.b", "shop.Bad", 3),
        ("shop.a", "builtins.ValueError", 2),
    ]
    assert (found.looked_at, found.complete) == (10, True)
    first = found.groups[0]
    assert first.first is not None
    assert first.last is not None
    assert (first.last - first.first).total_seconds() == 4
    assert first.latest is not None
    assert (first.latest.error, first.latest.finished_at) == ("builtins.ValueError: no", first.last)


@pytest.mark.parametrize(
    ("texts", "number"),
    [
        ({"error": "Bad"}, 3),
        ({"queue": "q"}, 2),
        ({"task": "shop.b"}, 5),
        ({"since": "1d", "error": "Bad"}, 3),
    ],
)
async def test_groups_of_a_filter(
    store: Store, conn: asyncpg.Connection, texts: dict[str, Any], number: int
) -> None:
    await put(conn, store, "builtins.ValueError", 2, task_path="shop.a", queue_name="q")
    await put(conn, store, "builtins.ValueError", 5, task_path="shop.b")
    await put(conn, store, "shop.Bad", 3, task_path="shop.c")
    found = await failure_groups(store, "default", read_filter(**texts))
    assert [group.number for group in found.groups] == [number]


async def test_the_latest_are_looked_at(store: Store, conn: asyncpg.Connection) -> None:
    """Of those that have finished before a time, where the filter says one."""
    await put(conn, store, "shop.Old", 4, task_path="shop.a")
    await conn.execute(
        "UPDATE aiotasks_task SET finished_at = finished_at - interval '1 day', keep_result = NULL"
    )
    await put(conn, store, "shop.New", 4, task_path="shop.a")
    await conn.execute("UPDATE aiotasks_task SET keep_result = NULL")
    found = await failure_groups(store, "default", most=4)
    assert shown(found) == [("shop.a", "shop.New", 4)]
    assert (found.looked_at, found.complete) == (4, False)
    before = read_filter(until="12h", ends=True)
    assert shown(await failure_groups(store, "default", before, most=4)) == [("shop.a", "shop.Old", 4)]
    nothing = await failure_groups(store, "default", read_filter(task="no"), most=4)
    assert (nothing.groups, nothing.looked_at) == ([], 4)
