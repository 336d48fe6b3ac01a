"""Limits by key in real workers: what starts when, over wake-ups alone unless a test says otherwise."""

import asyncio
import signal
from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from django.utils import timezone

import aiotasks
from aiotasks.operations.pauses import apause, aresume
from aiotasks.store.limits import LimitSetting
from aiotasks.store.loop import resources
from aiotasks.store.wakeups import wakeup_in
from aiotasks.testing import drain
from aiotasks.worker.claiming import keys
from tests.site import default_task_backend, running_store
from tests.store.rows import insert
from tests.store.rows import worker as live_worker

from . import limit_tasks as tasks
from . import tasks as plain
from .harness import Configure, Ledger, Start, until, wait_until

HOUR = 3600

# No poll, no rescue and no end of a lease can help.
OPTIONS = {"POLL_INTERVAL": HOUR, "LEASE_TIMEOUT": 300}


@pytest.fixture(autouse=True)
def _forget() -> None:
    tasks.forget()


class Statements:
    """Counts the statements of a worker, by their names."""

    def __init__(self, worker: aiotasks.Worker) -> None:
        self.numbers = Counter[str]()
        store: Any = worker.engine.resources.store
        fetch = store._fetch

        async def count(name: str, *args: Any, **kwargs: Any) -> Any:
            self.numbers[name] += 1
            return await fetch(name, *args, **kwargs)

        store._fetch = count

    def keyed(self) -> dict[str, int]:
        names = (
            "claim_keyed",
            "list_keys",
            "recent_keys",
            "top_keys",
            "insert_limits",
            "list_keyed_suspects",
        )
        return {name: self.numbers[name] for name in names if self.numbers[name]}


async def many(task: Any, *calls: tuple[Any, ...], **kwargs: Any) -> list[Any]:
    return await default_task_backend.aenqueue_many(task, [(call, kwargs) for call in calls])


async def test_a_finish_starts_the_next_of_its_key(configure: Configure, ledger: Ledger) -> None:
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=10):
        for number in range(5):
            await tasks.one.aenqueue("a", f"a{number}", waits=True)
            await tasks.two.aenqueue("b", f"b{number}", waits=True)
        for number in range(5):
            await until(lambda number=number: f"a{number}" in tasks.seen)
            assert sum(name.startswith("a") for name in tasks.seen) == number + 1
            tasks.let_go(f"a{number}")
        await until(lambda: "b1" in tasks.seen)
        assert "b2" not in tasks.seen
        for number in range(5):
            await until(lambda number=number: f"b{number}" in tasks.seen)
            tasks.let_go(f"b{number}")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 10})
    assert tasks.most == {"a": 1, "b": 2}


async def test_a_key_is_one_over_lanes_and_queues(configure: Configure, ledger: Ledger) -> None:
    """A task that ends in one starts the next in the other."""
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=10, threads=4):
        await tasks.one.aenqueue("a", "loop0", waits=True)
        await until(lambda: tasks.seen)
        for number in range(1, 4):
            await tasks.one_sync.aenqueue("a", f"thread{number}")
            await tasks.one.using(queue_name="other").aenqueue("a", f"other{number}")
            await tasks.one.aenqueue("a", f"loop{number}")
        assert tasks.seen == ["loop0"]
        tasks.let_go("loop0")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 10})


async def test_a_rate_is_kept_by_a_timer(configure: Configure, ledger: Ledger) -> None:
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=10) as worker:
        statements = Statements(worker)
        await many(tasks.paced, *[("a", f"a{number}") for number in range(6)])
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 6})
    starts = sorted(tasks.times.values())
    assert starts[-1] - starts[0] >= 0.2  # of 5 times 0.05 s; a start may be late
    assert statements.keyed()["claim_keyed"] < 40


async def test_scheduled_and_retried_tasks(configure: Configure, ledger: Ledger) -> None:
    """They are promoted into the lane of their limit, and start without a poll."""
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=10):
        soon = timezone.now() + timedelta(seconds=0.3)
        await tasks.one.using(run_after=soon).aenqueue("a", "later")
        await many(tasks.in_line, ("x", "first", 2), ("x", "second", 0), ("y", "other", 0))
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 4})
    in_line = [name for name in tasks.seen if name in ("first", "second")]
    assert in_line == ["first"] * 3 + ["second"]


async def test_a_keyed_and_a_plain_flood_take_turns(configure: Configure, ledger: Ledger) -> None:
    """Neither holds the other up, in either lane."""
    configure(**OPTIONS)
    await many(plain.note, *[(f"p{number}", 0.001) for number in range(300)])
    await many(tasks.fair, *[(str(number % 7), f"k{number}", 0.001) for number in range(300)])
    plain.seen.clear()
    async with aiotasks.Worker(concurrency=2, threads=0):
        await until(lambda: len(plain.seen) + len(tasks.seen) > 200)
        assert len(plain.seen) > 40
        assert len(tasks.seen) > 40
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 600})


async def test_keys_share_the_slots(configure: Configure, ledger: Ledger) -> None:
    """A tenant that comes with one task waits for no backlog of another."""
    configure(**OPTIONS)
    await many(tasks.fair, *[("flood", "flood", 0.002) for _ in range(400)])
    async with aiotasks.Worker(concurrency=2):
        await until(lambda: len(tasks.seen) > 20)
        before = len(tasks.seen)
        await tasks.fair.aenqueue("small", "small")
        await until(lambda: "small" in tasks.seen)
        assert tasks.seen.index("small") - before < 100
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 401})


async def test_a_worker_without_keyed_tasks_looks_once_a_poll(configure: Configure, ledger: Ledger) -> None:
    configure(POLL_INTERVAL=0.2, LEASE_TIMEOUT=300)
    async with aiotasks.Worker(queues=["default", "other"]) as worker:
        statements = Statements(worker)
        for number in range(20):
            await plain.add.aenqueue(1, 2)
            await until(lambda number=number: ledger.statuses() == {"SUCCESSFUL": number + 1})
        polls = statements.numbers["list_keys"] // 2
        await until(lambda: statements.numbers["list_keys"] // 2 >= polls + 3)
        assert statements.keyed() == {"list_keys": statements.numbers["list_keys"]}
        assert statements.numbers["claim_jobs"] > statements.numbers["list_keys"] // 2


async def test_polls_find_what_no_wakeup_has_told(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    """Of named queues, and of any."""
    configure(POLL_INTERVAL=0.1, LEASE_TIMEOUT=300, NOTIFY=False)
    for queues in (["default"], None):
        async with aiotasks.Worker(queues=queues):
            await many(tasks.one, *[(str(number % 3), "x") for number in range(9)])
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 9})
            await conn.execute("DELETE FROM aiotasks_task")


# $1 keys with a task that runs under the worker $2, and one that waits.
FULL_KEYS = """
    INSERT INTO aiotasks_task (
        id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids, crashes,
        enqueued_at, ready_at, last_attempted_at, limit_key, limit_place, limit_held, worker_id, claim_id
    )
    SELECT
        gen_random_uuid(), 'default', 'default', 'tests.worker.limit_tasks.one', 'loop+', 0, state.status,
        '["a"]', '{}', '{}', '{}', 0, now(), now(), now(), key.name, now(),
        CASE WHEN state.status = 'RUNNING' THEN key.name END,
        CASE WHEN state.status = 'RUNNING' THEN $2::uuid END,
        CASE WHEN state.status = 'RUNNING' THEN gen_random_uuid() END
    FROM generate_series(1, $1::integer) AS number
    CROSS JOIN LATERAL (SELECT 'worker.one:' || number) AS key (name)
    CROSS JOIN (VALUES ('READY'), ('RUNNING')) AS state (status)
"""


async def test_many_full_keys_beside_some_with_room(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    """The worker finds those, by a bounded number of statements; and doesn't walk all the time."""
    configure(**OPTIONS)
    full = 5000
    await many(tasks.one, ("zz", "found"), ("zzz", "found"), ("zzzz", "found"))
    store = running_store()
    holder = await live_worker(store, 300.0)
    await conn.execute(FULL_KEYS, full, holder)
    await store.insert_limits("default", [f"worker.one:{number}" for number in range(1, full + 1)])
    async with aiotasks.Worker(concurrency=5, threads=0) as worker:
        statements = Statements(worker)
        await until(lambda: tasks.seen.count("found") == 3, timeout=60)
        numbers = statements.keyed()
        assert numbers["list_keys"] <= full / 64 + 10
        assert numbers["claim_keyed"] <= full / 64 + 20
        before = sum(statements.keyed().values())
        await tasks.one.aenqueue("new", "new")
        await until(lambda: "new" in tasks.seen)
        assert sum(statements.keyed().values()) - before < 40


# --- Several workers


async def test_several_workers_keep_a_limit_together(configure: Configure, ledger: Ledger) -> None:
    """Of named queues and of any; a stop in between gives tasks back."""
    configure(**OPTIONS)
    calls = [(str(number % 6), f"n{number}", 0.003) for number in range(300)]
    async with aiotasks.Worker(queues=["default"], concurrency=5), aiotasks.Worker(concurrency=5):
        async with aiotasks.Worker(concurrency=5, grace=0):
            await many(tasks.two, *calls[:150])
            await many(tasks.one, *calls[150:])
            await until(lambda: len(tasks.seen) > 50)
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 300})
    assert max(tasks.most.values()) <= 3  # a key of one limit is another's, too: 2 + 1


async def test_one_without_a_slot_wakes_another(configure: Configure, ledger: Ledger) -> None:
    """For a wake-up that comes to it, and for a key that a task of its own has left."""
    configure(**OPTIONS)
    plain.released.clear()
    try:
        async with aiotasks.Worker(queues=["default", "own"], concurrency=1, threads=1):
            await tasks.one_sync.aenqueue("z", "z")
            await tasks.one.aenqueue("a", "loop", waits=True)
            await until(lambda: sorted(tasks.seen) == ["loop", "z"])
            await plain.wait_in_thread.using(queue_name="own").aenqueue()
            await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1, "RUNNING": 2})
            async with aiotasks.Worker(queues=["default"], concurrency=0, threads=2):
                await tasks.one_sync.aenqueue("a", "thread")
                for number in range(10):
                    await tasks.one_sync.aenqueue("b", f"b{number}")
                    await until(lambda number=number: f"b{number}" in tasks.seen)
                assert "thread" not in tasks.seen
                tasks.let_go("loop")
                await until(lambda: "thread" in tasks.seen)
            plain.released.set()
    finally:
        plain.released.set()


def test_one_that_stops_wakes_another(start_worker: Start, ledger: Ledger) -> None:
    """It still runs a task of the key, for as long as its grace, and claims no more."""
    stopping = start_worker("--grace", "60", options=OPTIONS)
    tasks.ledgered.enqueue("a", 1.5)
    wait_until(lambda: ledger.events("start") == 1)
    tasks.ledgered.enqueue("a")
    stopping.send(signal.SIGTERM)
    stopping.wait_for("stopping")
    start_worker(options=OPTIONS)
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})


def test_a_key_is_free_once_its_workers_lease_is_over(start_worker: Start, ledger: Ledger) -> None:
    """It was killed; in both lanes."""
    options = {**OPTIONS, "LEASE_TIMEOUT": 2.0}
    killed = start_worker(options=options)
    for task in (tasks.ledgered, tasks.ledgered_sync):
        task.enqueue(task.name, 600.0)
    wait_until(lambda: ledger.events("start") == 2)
    start_worker(options=options)
    for task in (tasks.ledgered, tasks.ledgered_sync):
        task.enqueue(task.name)
    killed.kill()
    # The rescued ones are first in their lines.
    wait_until(lambda: ledger.events("start") == 4)
    assert ledger.statuses() == {"RUNNING": 2, "READY": 2}
    found = ledger.rows("SELECT crashes FROM aiotasks_task WHERE status = 'RUNNING'")
    assert [row.crashes for row in found] == [1, 1]


def test_until_empty(start_worker: Start, ledger: Ledger) -> None:
    """It waits for what a rate keeps closed, and not for what waits for an operator."""
    for number in range(8):
        tasks.paced.enqueue("a", f"a{number}")
        tasks.one.enqueue("b")
    paused = tasks.two.enqueue("paused")
    stopped = tasks.fair.enqueue("paused")
    tasks.stops.enqueue("x", "fails", fails=True)
    behind = tasks.stops.enqueue("x", "behind")

    async def pause() -> None:
        await running_store().set_limit("default", "worker.two:paused", LimitSetting(concurrency=0))
        await running_store().pause_limit("default", "worker.fair", "")

    asyncio.run(pause())
    worker = start_worker("--until-empty")
    assert worker.wait() == 3  # a task has failed
    assert ledger.statuses() == {"SUCCESSFUL": 16, "READY": 3, "FAILED": 1}
    assert {ledger.task(result.id).status for result in (paused, stopped, behind)} == {"READY"}


def test_until_empty_leaves_limits_that_the_code_does_not_know(start_worker: Start, ledger: Ledger) -> None:
    """They may wait for ever, if no other worker knows them."""

    async def enqueue() -> None:
        await insert(running_store(), 2, task_path="tests.worker.gone.task", limit_key="worker.gone:x")
        await insert(running_store(), 1, task_path="tests.worker.gone.task", limit_key="worker.set")
        await running_store().set_limit("default", "worker.set", LimitSetting(concurrency=1))
        await tasks.one.aenqueue("a", "a0")

    asyncio.run(enqueue())
    worker = start_worker("--until-empty")
    assert worker.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 1, "READY": 2, "SCHEDULED": 1}
    assert worker.log.count("No code here declares a limit") == 2


# --- What else there is to claiming


async def test_a_limit_that_is_not_imported_yet(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module of a task that has it is imported; where that doesn't help, its tasks are left to others,
    and run if an operator sets a number.
    """
    configure(**OPTIONS)
    monkeypatch.setattr(keys, "LONGEST_WAIT", 0.01)
    from aiotasks.policies import limits

    known = dict(limits.known_limits())
    await many(tasks.two, *[("a", f"a{number}") for number in range(4)], waits=True)
    await insert(
        running_store(), 3, task_path="tests.worker.gone.task", limit_key="worker.gone:x", args='["a"]'
    )
    monkeypatch.setattr(limits, "_known", {})
    found: list[tuple[str, str]] = []

    class Observer(aiotasks.worker.events.Observer):
        def limit_unknown(self, name: str, task_path: str, reason: str) -> None:
            found.append((name, reason))

    worker = aiotasks.Worker(concurrency=10)
    worker.events.subscribe(Observer())
    async with worker:
        # The module of tests is imported already, and declares nothing again.
        await until(lambda: {name for name, _ in found} == {"worker.two", "worker.gone"})
        await plain.add.aenqueue(1, 2)
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1, "READY": 7})
        await running_store().set_limit("default", "worker.two", LimitSetting(concurrency=2))
        await until(lambda: tasks.seen == ["a0"])  # one, because it might be a line
        assert ledger.statuses() == {"SUCCESSFUL": 1, "READY": 6, "RUNNING": 1}
        await running_store().set_limit("default", "worker.gone:x", LimitSetting(pace=0.001))
        await until(lambda: ledger.statuses().get("SCHEDULED") == 3)  # unknown tasks are snoozed, one by one
        monkeypatch.setattr(limits, "_known", known)
        tasks.let_go("a0")
        await until(lambda: len(tasks.seen) == 3)
        for number in range(1, 4):
            await until(lambda number=number: f"a{number}" in tasks.seen)
            tasks.let_go(f"a{number}")


async def test_pauses_and_operators_words(configure: Configure, ledger: Ledger) -> None:
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=10) as worker:
        store = running_store()
        await apause(queue="quiet")
        await apause(task=tasks.paced)
        await tasks.one.using(queue_name="quiet").aenqueue("a", "in queue")
        await tasks.paced.aenqueue("a", "by path")
        await store.set_limit("default", "worker.two:a", LimitSetting(concurrency=0))
        await tasks.two.aenqueue("a", "lowered", waits=True)
        await tasks.one.aenqueue("b", "other")
        await until(lambda: tasks.seen == ["other"])
        await aresume(queue="quiet")
        await aresume(task=tasks.paced)
        await until(lambda: sorted(tasks.seen) == ["by path", "in queue", "other"])
        await store.reset_limit("default", "worker.two:a")
        worker.engine.waker.pass_turn_on()
        await until(lambda: "lowered" in tasks.seen)
        tasks.let_go("lowered")


async def test_a_line_that_has_stopped_goes_on_once_it_may(configure: Configure, ledger: Ledger) -> None:
    """By an operator's word, or because the one that has stopped it is retried."""
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=5):
        for key in ("a", "b"):
            await many(tasks.stops, (key, f"{key} fails", True), (key, f"{key} behind"))
        await until(lambda: ledger.statuses() == {"FAILED": 2, "READY": 2})
        failed = dict(ledger.rows("SELECT limit_key, id FROM aiotasks_task WHERE status = 'FAILED'"))
        stopped, following = await running_store().release_line(failed["worker.stopping:a"], "default")
        assert stopped
        assert following is not None
        resources(default_task_backend.config).notifier.notify(
            [wakeup_in("default", following.queue_name, following.lane)]
        )
        await until(lambda: "a behind" in tasks.seen)
        better = 'UPDATE aiotasks_task SET args = \'["b", "b again"]\' WHERE id = %s'
        ledger.connection.execute(better, [failed["worker.stopping:b"]])
        await default_task_backend.aretry_many(aiotasks.TaskFilter(status="FAILED"))
        await until(lambda: "b behind" in tasks.seen)
        assert tasks.seen.index("b again") < tasks.seen.index("b behind")


async def test_a_limit_of_the_workers_queue_counts_too(configure: Configure, ledger: Ledger) -> None:
    configure(**OPTIONS)
    await many(tasks.fair.using(queue_name="few"), *[(str(n), f"few{n}", 0.005) for n in range(20)])
    await many(tasks.fair, *[(str(n), f"n{n}", 0.005) for n in range(20)])
    most = 0
    async with aiotasks.Worker(queues={"few": 2, "default": None}, concurrency=10) as worker:
        while ledger.statuses() != {"SUCCESSFUL": 40}:
            running = Counter(execution.job.queue_name for execution in worker.running())
            most = max(most, running["few"])
            await asyncio.sleep(0.001)
    assert 0 < most <= 2


async def test_a_task_that_was_in_two_crashes_is_claimed_apart(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    configure(**OPTIONS)
    await tasks.one.aenqueue("a", "suspect", waits=True)
    await conn.execute("UPDATE aiotasks_task SET crashes = 2, max_crashes = 9")
    await tasks.one.aenqueue("b", "other")
    async with aiotasks.Worker(concurrency=10):
        await until(lambda: "suspect" in tasks.seen)
        await tasks.one.aenqueue("a", "behind")
        assert ledger.value("SELECT count(*) FROM aiotasks_task WHERE status = 'RUNNING'") == 1
        tasks.let_go("suspect")
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 3})


async def test_a_stop_gives_keyed_tasks_back(configure: Configure, ledger: Ledger) -> None:
    configure(**OPTIONS)
    async with aiotasks.Worker(concurrency=2, grace=0):
        await many(tasks.one, ("a", "a"), ("b", "b"), waits=True)
        await until(lambda: len(tasks.seen) == 2)
    assert ledger.statuses() == {"READY": 2}
    assert ledger.rows("SELECT limit_held FROM aiotasks_task WHERE limit_held IS NOT NULL") == []


async def test_cancelled_and_expired_tasks_hold_up_nobody(configure: Configure, ledger: Ledger) -> None:
    configure(POLL_INTERVAL=0.2, LEASE_TIMEOUT=300)
    async with aiotasks.Worker(concurrency=5):
        running, _ = await many(tasks.one, ("a", "a0"), ("a", "a1"), waits=True)
        await tasks.one.using(expires=0.05).aenqueue("a", "expired")
        await until(lambda: tasks.seen == ["a0"])
        await running.acancel()
        await until(lambda: "a1" in tasks.seen)
        await until(lambda: ledger.statuses() == {"FAILED": 2, "RUNNING": 1})
        tasks.let_go("a1")
        await until(lambda: ledger.statuses() == {"FAILED": 2, "SUCCESSFUL": 1})


async def test_a_missing_privilege_stops_only_keyed_tasks(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    configure(POLL_INTERVAL=0.1, LEASE_TIMEOUT=300)
    await conn.execute("ALTER TABLE aiotasks_limit RENAME TO elsewhere")
    try:
        async with aiotasks.Worker(concurrency=5):
            await tasks.one.aenqueue("a", "keyed")
            for number in range(20):
                await plain.add.aenqueue(1, 2)
                await until(lambda number=number: ledger.statuses().get("SUCCESSFUL") == number + 1)
            assert tasks.seen == []
            await conn.execute("ALTER TABLE elsewhere RENAME TO aiotasks_limit")
            await until(lambda: tasks.seen == ["keyed"])
    finally:
        if await conn.fetchval("SELECT to_regclass('elsewhere')"):
            await conn.execute("ALTER TABLE elsewhere RENAME TO aiotasks_limit")


def test_drain_runs_keyed_tasks(database: str) -> None:
    """Rates count for nothing, so that tests don't wait; lines keep their order."""
    for number in range(5):
        tasks.paced.enqueue("a", f"p{number}")
        tasks.in_line.enqueue("x", f"l{number}")
        tasks.one.enqueue("a", "one")
        tasks.one_sync.enqueue("a", "one")
        plain.add.enqueue(1, 2)
    assert drain() == 25
    assert [name for name in tasks.seen if name.startswith("l")] == [f"l{number}" for number in range(5)]
