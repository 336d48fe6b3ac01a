"""Pauses with workers: what starts, what doesn't, and what wakes them afterwards."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils import timezone

import aiotasks
from aiotasks.operations import pauses
from aiotasks.operations.pauses import alist_pauses, apause, aresume, list_pauses, pause, resume
from aiotasks.testing import drain
from tests.examples import example
from tests.site import default_task_backend

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until

HOUR = 3600

# No poll can help.
OPTIONS = {"POLL_INTERVAL": HOUR, "LEASE_TIMEOUT": 300}


def test_what_is_paused_waits_and_starts_once_resumed(start_worker: Start, ledger: Ledger) -> None:
    """In both lanes, in workers of named queues and of any, over NOTIFY alone."""
    start_worker(options=OPTIONS)
    start_worker("--queue", "default", "--queue", "reports", options=OPTIONS)
    pause(queue="reports")
    pause(task=tasks.add)
    reports = [tasks.note.using(queue_name="reports").enqueue(str(n)) for n in range(3)]
    sums = [tasks.add.enqueue(1, 2) for _ in range(3)]
    sums.append(tasks.add.using(queue_name="other").enqueue(1, 2))
    others = [tasks.add_sync.enqueue(1, 2) for _ in range(20)]
    wait_until(lambda: ledger.statuses() == {"READY": 7, "SUCCESSFUL": len(others)})
    assert resume(queue="reports")
    wait_until(lambda: all(ledger.task(result.id).status == "SUCCESSFUL" for result in reports))
    assert all(ledger.task(result.id).status == "READY" for result in sums)
    assert resume(task=tasks.add.module_path)
    assert not resume(task=tasks.add.module_path)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 27})


def test_a_pause_ends_by_itself(start_worker: Start, ledger: Ledger) -> None:
    """Without a poll: the workers wait for that time, and a scheduled task in between changes nothing."""
    start_worker(options=OPTIONS)
    start_worker(options=OPTIONS)
    pause(queue="default", until=timedelta(hours=1))
    until = timezone.now() + timedelta(seconds=1.5)
    found = pause(queue="default", until=until)
    assert found.until == until
    result = tasks.add.enqueue(1, 2)
    between = tasks.add.using(run_after=until - timedelta(seconds=0.5), queue_name="other").enqueue(1, 2)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    assert ledger.task(result.id).started_at >= until
    assert ledger.task(between.id).started_at < until + timedelta(seconds=5)


def test_a_worker_that_hears_nothing_obeys(start_worker: Start, ledger: Ledger) -> None:
    found = pause(queue="default", reason="before it starts", until=3)
    start_worker(options={"NOTIFY": False, "POLL_INTERVAL": 0.1})
    paused = tasks.add.enqueue(1, 2)
    free = tasks.add.using(queue_name="other").enqueue(1, 2)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    assert found.until is not None
    assert ledger.task(paused.id).started_at >= found.until
    assert ledger.task(free.id).status == "SUCCESSFUL"


def test_until_empty_does_not_wait_for_what_is_paused(start_worker: Start, ledger: Ledger) -> None:
    pause(queue="reports")
    pause(task=tasks.add)
    tasks.note.using(queue_name="reports").enqueue("x")
    tasks.add.enqueue(1, 2)
    tasks.note.enqueue("y")
    worker = start_worker("--until-empty", ready=False)
    assert worker.wait() == 0
    assert ledger.statuses() == {"READY": 2, "SUCCESSFUL": 1}


@pytest.mark.parametrize("what", ["queue", "task"])
async def test_a_pause_holds_from_its_commit_on(
    configure: Configure, conn: asyncpg.Connection, ledger: Ledger, what: str
) -> None:
    """Under load, with claims beyond the slots: by the database's clock nothing is claimed later."""
    configure()
    paused: dict[str, Any] = {"queue": "a"} if what == "queue" else {"task": tasks.add}
    is_paused = "queue_name = 'a'" if what == "queue" else f"task_path = '{tasks.add.module_path}'"
    enqueuing = True

    async def enqueue() -> None:
        while enqueuing:
            for task in (tasks.add, tasks.add_sync):
                for queue in ("a", "b"):
                    await default_task_backend.aenqueue_many(
                        task.using(queue_name=queue), [((1, 2), {})] * 50
                    )

    async def count(condition: str, *args: Any) -> int:
        query = f"SELECT count(*) FROM aiotasks_task WHERE {condition}"
        return int(await conn.fetchval(query, *args))

    async def started_since(at: Any, condition: str) -> bool:
        return await count(f"last_attempted_at > $1 AND {condition}", at) > 500

    async def all_ended() -> bool:
        return await count("status <> 'SUCCESSFUL'") == 0

    async with aiotasks.Worker(concurrency=20), aiotasks.Worker(concurrency=5, threads=3):
        enqueuer = asyncio.ensure_future(enqueue())
        begun = await conn.fetchval("SELECT clock_timestamp()")
        await until(lambda: started_since(begun, is_paused))
        await apause(**paused)
        committed = await conn.fetchval("SELECT clock_timestamp()")
        await until(lambda: started_since(committed, f"NOT {is_paused}"))
        assert await count(f"last_attempted_at > $1 AND {is_paused}", committed) == 0
        assert await aresume(**paused)
        await until(lambda: started_since(committed, is_paused))
        enqueuing = False
        await enqueuer
        await until(all_ended, 120)


async def test_claims_of_what_is_paused_are_not_repeated(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wake-up is answered by a claim or two, and passed on to nobody."""
    configure(**OPTIONS)
    await apause(queue="default")
    async with aiotasks.Worker() as worker, aiotasks.Worker() as other:
        claims: list[int] = []
        for one in (worker, other):
            claim_jobs = one.engine.resources.store.claim_jobs

            async def count(*args: Any, claim_jobs: Any = claim_jobs, **kwargs: Any) -> Any:
                jobs = await claim_jobs(*args, **kwargs)
                claims.append(len(jobs))
                return jobs

            monkeypatch.setattr(one.engine.resources.store, "claim_jobs", count)
        for number in range(1, 11):
            await tasks.add.aenqueue(1, 2)
            before = len(claims)
            await until(lambda before=before: len(claims) > before)
            await tasks.add.using(queue_name="other").aenqueue(1, 2)
            await until(lambda number=number: ledger.statuses() == {"READY": number, "SUCCESSFUL": number})
        assert len(claims) < 200  # some ten for each; a worker that spins makes as many in a second


async def test_a_pause_belongs_to_its_transaction(configure: Configure, ledger: Ledger) -> None:
    configure()
    with suppress(ZeroDivisionError):
        async with aiotasks.transaction():
            await apause(queue="default")
            raise ZeroDivisionError
    assert await alist_pauses() == []
    async with aiotasks.transaction():
        await apause(queue="default", reason="maintenance")
    (found,) = await alist_pauses()
    assert (found.kind, found.name, found.reason, found.until) == ("queue", "default", "maintenance", None)


@pytest.mark.django_db(transaction=True)
def test_sync_code_joins_atomic(database: str) -> None:
    with transaction.atomic():
        pause(queue="default")
        transaction.set_rollback(True)
    assert list_pauses() == []
    with transaction.atomic():
        pause(queue="default")
        tasks.add.enqueue(1, 2)
    assert drain() == 0
    assert resume(queue="default")
    assert drain() == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, TypeError, "either a queue or a task"),
        ({"queue": "a", "task": "b"}, TypeError, "either a queue or a task"),
        ({"queue": ""}, ValueError, "queue must be a name, not ''"),
        ({"task": 7}, ValueError, "task must be a name, not 7"),
        ({"queue": "a\0"}, ValueError, "queue must be a name"),
        ({"queue": "a", "reason": None}, ValueError, "reason must be a text of at most 1000 characters"),
        ({"queue": "a", "reason": "x" * 1001}, ValueError, "at most 1000 characters"),
        (
            {"queue": "a", "until": -1},
            ValueError,
            "until must be a time, or seconds or a timedelta, from 0 to",
        ),
        ({"queue": "a", "until": "soon"}, ValueError, "not 'soon'"),
        ({"queue": "a", "until": datetime(2030, 1, 1)}, ValueError, "must have a time zone"),
        ({"queue": "a", "backend": "none"}, ImproperlyConfigured, "no backend 'none'"),
    ],
)
async def test_wrong_arguments(database: str, arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        await apause(**arguments)


async def test_the_page_on_pausing(configure: Configure, ledger: Ledger) -> None:
    with example("howto/pausing.md") as page:
        await page.run()
        assert [(one.kind, one.name) for one in await alist_pauses()] == [("task", "shop.tasks.send_mail")]
        await page.run()
        await sync_to_async(page.stop_mails)()
        (found,) = await alist_pauses()
        assert (found.reason, found.until) == ("wrong template", None)
        assert await sync_to_async(page.go_on_with_mails)() == []
        assert page.blocks == []
    assert set(pauses.__all__) >= {"apause", "aresume", "pause", "resume", "list_pauses"}
