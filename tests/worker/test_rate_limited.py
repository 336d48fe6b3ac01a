"""What tasks with limits see of each other in workers: closed keys, turns, order, and the page about them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import transaction, utils
from django.utils import timezone

import aiotasks
from aiotasks.operations.limits import aresume_limit
from aiotasks.store.wakeups import Wakeup
from aiotasks.testing import drain as adrain
from tests import limited_tasks as tasks
from tests.examples import example
from tests.site import default_task_backend, postgres_result

from .harness import TIMEOUT, Configure, Ledger, until

OPTIONS = {"POLL_INTERVAL": 3600, "LEASE_TIMEOUT": 300}
A_MOMENT = timedelta(seconds=0.1)
BOTH = pytest.mark.parametrize("task", [tasks.slow_down, tasks.slow_down_sync], ids=["loop", "thread"])


@pytest.fixture(autouse=True)
def clean_slate(configure: Configure) -> None:
    configure(**OPTIONS)
    tasks.started.clear()
    tasks.ended.clear()
    tasks.gate.clear()


async def finished(*results: Any) -> None:
    """Wait until all have ended."""
    for result in results:
        await result.ajoin(TIMEOUT)


@BOTH
async def test_a_closed_key_starts_nothing(task: Any, conn: asyncpg.Connection, ledger: Ledger) -> None:
    """The task waits as if it had snoozed, other keys go on, and a second key of the same limit, too."""
    async with aiotasks.Worker(grace=5):
        first = postgres_result(await task.aenqueue("example.com", "first", 3600))
        await until(lambda: ledger.statuses() == {"SCHEDULED": 1})
        (row,) = await conn.fetch(
            "SELECT closed_until, run_after, now() AS now FROM aiotasks_task, aiotasks_limit AS own "
            "WHERE own.key = limit_key"
        )
        assert row["closed_until"] <= row["run_after"]
        assert (row["run_after"] - row["closed_until"]).total_seconds() < TIMEOUT
        assert 0 < (row["closed_until"] - row["now"]).total_seconds() <= 3600
        others = [await task.aenqueue(f"{number}.example.com", number) for number in range(3)]
        late = await task.aenqueue("example.com", "late")
        await finished(*others)
        await first.arefresh()
        assert (first.status, first.snoozes, first.errors, first.attempts) == ("READY", 1, [], 0)
        assert ledger.statuses() == {"SCHEDULED": 1, "READY": 1, "SUCCESSFUL": 3}
        assert await aresume_limit("tests.provider", "example.com")
        await finished(late)
        await conn.execute("UPDATE aiotasks_task SET run_after = now() WHERE status = 'SCHEDULED'")
        await conn.execute("SELECT pg_notify('aiotasks', $1)", Wakeup("default", "default", 1.0).payload())
        await finished(first)
    assert tasks.started.count("first") == 2


@BOTH
async def test_it_opens_by_itself(task: Any, conn: asyncpg.Connection) -> None:
    async with aiotasks.Worker(grace=5):
        first = postgres_result(await task.aenqueue("example.com", "first", 0.3))
        await until(lambda: conn.fetchval("SELECT max(closed_until) FROM aiotasks_limit"))
        others = [await task.aenqueue("example.com", number) for number in range(3)]
        await finished(first, *others)
    assert (first.return_value, first.snoozes, first.attempts, first.errors) == ("first", 1, 1, [])
    starts = await conn.fetchval(
        "SELECT min(task.last_attempted_at) - max(own.closed_until) FROM aiotasks_task AS task, "
        "aiotasks_limit AS own WHERE own.closed_until IS NOT NULL"
    )
    assert starts.total_seconds() > -0.001  # the claim has looked at the clock later than at its beginning
    assert tasks.started.count("first") == 2


async def test_a_task_without_a_limit_is_only_put_off(conn: asyncpg.Connection) -> None:
    async with aiotasks.Worker(grace=5):
        result = postgres_result(await tasks.unlimited.aenqueue("first", 0.05))
        await finished(result)
    assert (result.return_value, result.snoozes, result.errors) == ("first", 1, [])
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_limit") == 0


async def test_the_key_is_closed_before_the_task_is_released(
    conn: asyncpg.Connection, ledger: Ledger
) -> None:
    """Or another task of it might start between. A database that is away for that has it tried again."""
    seen = []
    async with aiotasks.Worker(grace=5) as worker:
        store: Any = worker.engine.finisher._store
        close = store.close_keys

        async def close_keys(*args: Any, **kwargs: Any) -> None:
            seen.append(ledger.statuses())
            if len(seen) == 1:
                raise utils.OperationalError("away")
            await close(*args, **kwargs)

        store.close_keys = close_keys
        await tasks.slow_down.aenqueue("example.com", "first", 3600)
        await until(lambda: ledger.statuses() == {"SCHEDULED": 1})
    assert seen == [{"RUNNING": 1}] * 2
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_limit WHERE closed_until > now()") == 1


async def test_a_drain_leaves_closed_keys_alone(conn: asyncpg.Connection, ledger: Ledger) -> None:
    for value in ("first", "second"):
        await tasks.slow_down.aenqueue("example.com", value, 3600 if value == "first" else 0)
    await tasks.slow_down.aenqueue("example.org", "other")
    first = await adrain()  # of the key that is closed, two may have been claimed together
    assert (first, ledger.statuses().get("SUCCESSFUL")) in ((2, 1), (3, 2))
    assert await adrain() == 0


async def test_each_way_of_enqueueing_wakes_a_worker(conn: asyncpg.Connection) -> None:
    """No poll would find the task within the test."""

    def in_atomic(task: Any, *args: Any) -> Any:
        with transaction.atomic():
            return task.enqueue(*args)

    async with aiotasks.Worker(grace=5) as worker:
        for number, ended in enumerate(
            [
                tasks.limited.aenqueue("a", 1),
                sync_to_async(tasks.limited.enqueue)("a", 2),
                sync_to_async(in_atomic)(tasks.slow_down_sync, "a", 3),
                tasks.both.aenqueue("a", "name", 4),
                tasks.limited.using(run_after=timezone.now() - timedelta(hours=1)).aenqueue("a", 5),
            ]
        ):
            await until(lambda: not worker.engine.claimer.keyed.is_looking)  # for the one before
            await finished(await ended)
            assert len(tasks.started) == number + 1
        await finished(await tasks.limited.using(run_after=timezone.now() + A_MOMENT).aenqueue("a", 6))
        async with aiotasks.atomic():
            last = await tasks.limited.aenqueue("a", 7)
        async with aiotasks.transaction():
            others = await default_task_backend.aenqueue_many(tasks.limited, [(("a",), {})] * 3)
        await finished(last, *others)


async def test_a_small_tenant_waits_for_a_turn(conn: asyncpg.Connection) -> None:
    """And not for the 5,000 tasks that a large one has enqueued before."""
    calls: Any = [(("large", number), {}) for number in range(5000)]
    await default_task_backend.aenqueue_many(tasks.fair, calls)
    async with aiotasks.Worker(concurrency=10, grace=0):
        await until(lambda: len(tasks.started) >= 100)
        small = await tasks.fair.aenqueue("small", "small")
        before = len(tasks.started)
        await until(lambda: "small" in tasks.started)
        between = tasks.started.index("small") - before
        await finished(small)
    assert between < 1000


@asynccontextmanager
async def two_workers() -> AsyncIterator[None]:
    async with aiotasks.Worker(concurrency=5, grace=5), aiotasks.Worker(concurrency=5, grace=5):
        yield


async def test_a_line_waits_for_attempts_to_come(conn: asyncpg.Connection) -> None:
    """Whatever worker takes the next, and beside other lines."""
    lines = {account: [f"{account}{number}" for number in range(5)] for account in "abc"}
    results = [
        await tasks.in_line.aenqueue(account, value, 2 if value.endswith("2") else 0)
        for values in zip(*lines.values(), strict=True)
        for account, value in zip(lines, values, strict=True)
    ]
    async with two_workers():
        await finished(*results)
    for account, (first, second, third, *rest) in lines.items():
        own = [value for value in tasks.started if str(value).startswith(account)]
        assert own == [first, second, third, third, third, *rest]


async def test_a_line_stops_at_a_failure(conn: asyncpg.Connection, ledger: Ledger) -> None:
    """If its limit says so; and goes on where somebody has the task run again."""
    failing = await tasks.or_stop.aenqueue("a", 1, fails=True)
    rest = [await tasks.or_stop.aenqueue("a", number) for number in (2, 3)]
    others = [await tasks.or_stop.aenqueue("b", number, fails=False) for number in (4, 5)]
    async with two_workers():
        await finished(failing, *others)
        assert ledger.statuses() == {"FAILED": 1, "READY": 2, "SUCCESSFUL": 2}
        counts = await default_task_backend.aretry_many([failing])
        assert counts.retried == 1
        await finished(failing, *rest)
    assert [value for value in tasks.started if value in (1, 2, 3)] == [1, 1, 2, 3]


async def test_starts_keep_to_the_rate(conn: asyncpg.Connection) -> None:
    """Over all workers: of any of them in a row, no more than the burst and what the time between allows."""
    results = [await tasks.paced.aenqueue("example.com", number) for number in range(12)]
    async with two_workers():
        await finished(*results)
    rows = await conn.fetch("SELECT last_attempted_at AS at FROM aiotasks_task ORDER BY at")
    starts = [row["at"].timestamp() for row in rows]
    for first, begin in enumerate(starts):
        for number, end in enumerate(starts[first:], 1):
            assert number <= 10 * (end - begin) + 2 + 1e-3, starts


async def test_the_page_on_limits(conn: asyncpg.Connection, ledger: Ledger) -> None:
    class Response:
        def __init__(self, status: int) -> None:
            self.status, self.headers, self.text = status, {"Retry-After": "0.05"}, "hello"

    responses = [Response(200), Response(429)]

    async def get(url: str) -> Response:
        return responses.pop()

    with example("howto/limits.md") as page:
        while page.blocks:
            await page.run(get=get)
        keys = await conn.fetch("SELECT limit_key FROM aiotasks_task ORDER BY 1")
        assert [each[0] for each in keys] == ["host:archive", "host:example.com", "smtp", "tenant:42", None]
        crawled = postgres_result(await page.crawl.aenqueue("https://example.com/b"))
        entries = [await page.post_entry.aenqueue(1, amount) for amount in (1, 2, 3)]
        async with aiotasks.Worker(grace=5):
            await finished(crawled, *entries)
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 9})
        assert (crawled.return_value, crawled.snoozes) == ("hello", 1)
