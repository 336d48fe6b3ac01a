"""What wakes a worker, and what leaves it asleep."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import utils
from django.utils import timezone

import aiotasks
from aiotasks.backend import PostgresBackend
from aiotasks.rows import Lane
from aiotasks.store import notifier
from aiotasks.store.store import Store
from aiotasks.store.wakeups import ANY_QUEUE, CHANNEL, Wakeup
from aiotasks.worker.build import Builder
from aiotasks.worker.claiming import budget as budget_module
from aiotasks.worker.claiming import doubts as doubts_module
from aiotasks.worker.claiming import loop as claimer_module
from aiotasks.worker.claiming import overclaim as surplus_module
from aiotasks.worker.claiming import prefetch as prefetch_module
from aiotasks.worker.claiming.loop import Claimer
from aiotasks.worker.events import Observer
from aiotasks.worker.fleet import Fleet
from aiotasks.worker.lease.lease import Lease, boottime
from aiotasks.worker.maintenance.promoter import Promoter
from aiotasks.worker.slots import Slots
from tests.site import default_task_backend, running_store
from tests.store import rows
from tests.store.rows import insert

from . import tasks
from .harness import Configure, Ledger, Start, until, wait_until

HOUR = 3600


def in_future(seconds: float) -> Any:
    return timezone.now() + timedelta(seconds=seconds)


def test_an_enqueue_wakes_an_idle_worker(start_worker: Start, ledger: Ledger) -> None:
    """From another process, over NOTIFY alone: the next poll would be an hour away. So is a promotion."""
    worker = start_worker(options={"POLL_INTERVAL": HOUR})
    for number in range(5):
        result = tasks.work.using(queue_name=f"new {number}").enqueue()
        wait_until(lambda result=result: ledger.task(result.id).status == "SUCCESSFUL")
    many = default_task_backend.enqueue_many(tasks.work, [((), {})] * 150)  # more than there are slots
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 155})
    assert len(many) == 150
    tasks.work.using(run_after=in_future(HOUR)).enqueue()
    soon = tasks.work.using(run_after=in_future(1.5)).enqueue()
    sooner = tasks.work.using(run_after=in_future(0.7), queue_name="promoted").enqueue()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 157, "SCHEDULED": 1})
    for result in (soon, sooner):
        row = ledger.task(result.id)
        late = row.started_at - row.run_after
        assert (
            timedelta(0) <= late < timedelta(seconds=5)
        )  # some milliseconds, on a machine with nothing else to do
    assert ledger.task(sooner.id).started_at < ledger.task(soon.id).started_at
    assert worker.stop() == 0


def test_without_notify_the_poll_finds_it(start_worker: Start, ledger: Ledger) -> None:
    worker = start_worker(options={"NOTIFY": False, "POLL_INTERVAL": 0.3})
    assert "wake-ups: none, polling within 0.3 s" in worker.log
    at_once = tasks.work.enqueue()
    later = tasks.work.using(run_after=in_future(0.5)).enqueue()
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    assert ledger.task(later.id).started_at >= ledger.task(later.id).run_after
    assert ledger.task(at_once.id).status == "SUCCESSFUL"
    assert ledger.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'") == 0
    assert worker.stop() == 0


async def test_far_future_rows_cost_nothing(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker with a thousand of them asks nothing but what renews its lease and sweeps."""
    configure(POLL_INTERVAL=HOUR, LEASE_TIMEOUT=0.6)
    await default_task_backend.aenqueue_many(
        tasks.add.using(run_after=in_future(HOUR)), [((1, 2), {})] * 1000
    )
    async with aiotasks.Worker() as worker:
        await until(lambda: worker.engine.promoter.waiting_for is not None)
        asked: list[str] = []
        fetch = worker.engine.resources.driver.fetch

        async def watch(statement: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(statement.name)
            return await fetch(statement, *args, **kwargs)

        monkeypatch.setattr(worker.engine.resources.driver, "fetch", watch)
        sweep = {"rescue_jobs", "remove_dead_workers"}
        # It calms down, to ten sweeps in a row, 0.1 s apart, with nothing else in between.
        await until(lambda: len(asked) >= 20 and set(asked[-20:]) == sweep)


async def test_a_poll_is_one_claim(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(["default"], POLL_INTERVAL=0.1)
    async with aiotasks.Worker() as worker:
        claimer = worker.engine.claimer
        # The look for tasks that are claimed apart is another, every ten seconds.
        await until(lambda: claimer.quarantine.has_looked and not claimer.quarantine.lanes())
        claims = 0
        claim_jobs = worker.engine.resources.store.claim_jobs

        async def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal claims
            claims += 1
            return await claim_jobs(*args, **kwargs)

        monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", count)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: claims >= 5)
        assert loop.time() - began >= 4 * 0.02  # 0.2 of the interval at least
        before = claims
        await tasks.add.aenqueue(1, 2)
        await worker.wait_until_empty()
        assert claims > before


async def test_a_wake_up_of_an_earlier_task_shortens_the_wait(configure: Configure, ledger: Ledger) -> None:
    configure(POLL_INTERVAL=HOUR)
    tasks.seen.clear()
    async with aiotasks.Worker() as worker:
        await tasks.note.using(run_after=in_future(HOUR)).aenqueue("late")
        await until(lambda: worker.engine.promoter.waiting_for is not None)
        await tasks.note.using(run_after=in_future(0.3)).aenqueue("early")
        await until(lambda: tasks.seen == ["early"])
    assert ledger.statuses() == {"SUCCESSFUL": 1, "SCHEDULED": 1}


async def test_due_already_is_ready_at_once(configure: Configure, ledger: Ledger) -> None:
    configure(POLL_INTERVAL=HOUR)
    tasks.seen.clear()
    async with aiotasks.Worker():
        result = await tasks.note.using(run_after=in_future(-5)).aenqueue("past")
        await until(lambda: tasks.seen == ["past"])
    assert result.status == "READY"


async def test_the_scheduler_promotes_and_says_when_to_look_again(
    database: str, conn: asyncpg.Connection
) -> None:
    woken: list[Any] = []
    places: list[float] = []
    store = running_store()

    def wake(wakeups: Any, *, since: float | None = None) -> None:
        woken.extend(wakeups)
        places.extend([] if since is None else [since])

    waker: Any = SimpleNamespace(wake=wake)
    scheduler = Promoter(store, backend="default", waker=waker, peers=Fleet())
    assert await scheduler.run_once() == inf
    await default_task_backend.aenqueue_many(tasks.add.using(run_after=in_future(HOUR)), [((1, 2), {})] * 3)
    assert HOUR - 60 < await scheduler.run_once() <= HOUR
    await conn.execute(
        "UPDATE aiotasks_task SET run_after = now() - interval '1 s' "
        "WHERE id IN (SELECT id FROM aiotasks_task LIMIT 2)"
    )
    await conn.execute(
        "UPDATE aiotasks_task SET run_after = now() + interval '20 s' "
        "WHERE run_after > now() + interval '1 s'"
    )
    assert 15 < await scheduler.run_once() <= 20
    assert [(wakeup.backend, wakeup.queue_name, wakeup.due) for wakeup in woken] == [
        ("default", "default", None)
    ]
    statuses = await conn.fetch("SELECT status, count(*) FROM aiotasks_task GROUP BY 1")
    assert dict(statuses) == {"READY": 2, "SCHEDULED": 1}
    earliest = await conn.fetchval("SELECT min(run_after) FROM aiotasks_task")
    assert places == [pytest.approx(earliest.timestamp(), abs=1e-3)]
    await conn.execute(
        "UPDATE aiotasks_task SET run_after = now() + interval '0.2 s' WHERE status = 'SCHEDULED'"
    )
    assert 0.001 <= await scheduler.run_once() <= 0.2


async def test_promotion_goes_in_batches(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotasks.worker.maintenance.promoter.PROMOTE_LIMIT", 10)
    await default_task_backend.aenqueue_many(tasks.add.using(run_after=in_future(HOUR)), [((1, 2), {})] * 35)
    await conn.execute("UPDATE aiotasks_task SET run_after = now()")
    scheduler = Promoter(
        running_store(),
        backend="default",
        waker=SimpleNamespace(wake=lambda wakeups, since=None: None),
        peers=Fleet(),
    )
    assert await scheduler.run_once() == inf
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task WHERE status = 'READY'") == 35


class Doubles(Slots):
    """Stand in for slots and runner. A job keeps its slot until the test takes it out of ``started``; if
    ``at_once`` says so, for no time.
    """

    def __init__(self, slots: dict[str, int], started: list[Any], at_once: Callable[[Any], bool]) -> None:
        super().__init__(loop=slots["loop"], threads=slots["thread"])
        self.running: set[Any] = set()
        self._slots = slots
        self._started = started
        self._at_once = at_once
        self._kept: list[Any] = []

    def start(self, job: Any) -> bool:
        self._started.append(job)
        if self._at_once(job):
            return True
        self._kept.append(job)
        return False

    def free(self, lane: str) -> int:
        used = [job for job in self._kept if job.lane == lane and job in self._started]
        return self._slots[lane] - len(used)


def make_claimer(
    started: list[Any],
    slots: dict[str, int],
    queues: list[str],
    worker_id: Any,
    *,
    at_once: Callable[[Any], bool] = lambda job: False,
    drop: Callable[[Any], None] = lambda job: None,
    poll: float = HOUR,
    others: Any = None,
) -> Claimer:
    """``at_once`` says which jobs are over when they have been started; the others keep their slot."""
    options = default_task_backend.config
    doubles: Any = Doubles(slots, started, at_once)
    finisher: Any = SimpleNamespace(pending=set(), crowded=False, announcer=SimpleNamespace(pending=set()))
    ownership: Any = SimpleNamespace(give_back=drop)
    lease = Lease(HOUR)
    lease.registered(worker_id, boottime())
    claimer = Builder(
        backend="default", sender=PostgresBackend, options=replace(options, poll_interval=poll)
    ).claimer(
        running_store(),
        queues=queues,
        peers=Fleet(),
        lease=lease,
        slots=doubles,
        runner=doubles,
        finisher=finisher,
        ownership=ownership,
        beyond_slots=True,
        others=others,
        resolve=no_import,
    )
    return claimer


async def no_import(task_path: str) -> object:
    """These tasks have no limits."""
    raise AssertionError(task_path)


async def register() -> Any:
    return await rows.worker(running_store())


async def test_a_claim_takes_what_fits_by_priority(database: str) -> None:
    for priority in (0, 5, -5, 100):
        await tasks.add.using(priority=priority).aenqueue(1, priority)
        await tasks.add_sync.using(priority=priority).aenqueue(1, priority)
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 3, "thread": 1}, ["default"], await register())
    assert await claimer.run_once() == 4
    assert [(job.lane, job.priority) for job in started if job.lane == "loop"] == [
        ("loop", p) for p in (100, 5, 0)
    ]
    assert [job.priority for job in started if job.lane == "thread"] == [100]
    assert await claimer.run_once() == 0
    started.clear()
    assert await claimer.run_once() == 2


async def test_queues_take_turns(database: str) -> None:
    """None starves: each claim begins with another one."""
    for name in ("a", "b", "c"):
        await default_task_backend.aenqueue_many(tasks.add.using(queue_name=name), [((1, 2), {})] * 20)
    worker_id = await register()
    for queues in (["a", "b", "c"], []):
        order = []
        started: list[Any] = []
        claimer = make_claimer(started, {"loop": 1, "thread": 0}, queues, worker_id)
        for _ in range(6):
            started.clear()
            assert await claimer.run_once() == 1
            order.append(started[0].queue_name)
        assert sorted(order[:3]) == ["a", "b", "c"]
        assert order[:3] == order[3:]


async def test_a_flood_in_one_queue_holds_another_up_for_one_claim(database: str) -> None:
    """However many queues are served: who has filled a claim comes last in the next."""
    names = ["flooded", *"abcdefgh", "trickle"]
    await default_task_backend.aenqueue_many(tasks.add.using(queue_name="flooded"), [((1, 2), {})] * 200)
    worker_id = await register()
    for queues in (names, []):
        started: list[Any] = []
        claimer = make_claimer(started, {"loop": 5, "thread": 0}, queues, worker_id)
        for _ in range(5):
            started.clear()
            assert await claimer.run_once() == 5  # the flood alone
            await tasks.add.using(queue_name="trickle").aenqueue(1, 2)
            claimer.wake(Wakeup("default", "trickle"))
            started.clear()
            assert await claimer.run_once() == 5
            assert [job.queue_name for job in started].count("trickle") == 1


async def test_a_queue_that_got_the_rest_of_a_claim_begins_the_next(database: str) -> None:
    for name, number in (("a", 3), ("b", 20), ("c", 20)):
        await default_task_backend.aenqueue_many(tasks.add.using(queue_name=name), [((1, 2), {})] * number)
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 4, "thread": 0}, ["a", "b", "c"], await register())
    orders = []
    for _ in range(4):
        started.clear()
        assert await claimer.run_once() == 4
        orders.append("".join(sorted(job.queue_name for job in started)))
    assert orders == ["aaab", "bbbb", "cccc", "bbbb"]


async def test_only_the_queues_served(database: str) -> None:
    for name in ("mine", "other"):
        await tasks.add.using(queue_name=name).aenqueue(1, 2)
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 9, "thread": 9}, ["mine"], await register())
    assert await claimer.run_once() == 1
    assert started[0].queue_name == "mine"
    assert await claimer.run_once() == 0


async def test_a_new_queue_heard_of_while_queues_are_listed_is_not_missed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any name is served: a wake-up counts at once, whatever the list says."""
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 9, "thread": 9}, [], await register())
    list_queues = running_store().list_queues

    async def slow(*args: Any) -> Any:
        queues = await list_queues(*args)
        await tasks.add.using(queue_name="new").aenqueue(1, 2)
        claimer.wake(Wakeup("default", "new"))
        return queues

    monkeypatch.setattr(running_store(), "list_queues", slow)
    assert await claimer.run_once() == 1
    assert await claimer.run_once() == 0


async def fill_queues(conn: asyncpg.Connection, *, number: int = 10_000, lane: str = "thread") -> None:
    """Have a task wait in each of so many queues."""
    await tasks.note.using(run_after=in_future(HOUR)).aenqueue("filled")
    await conn.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at
        )
        SELECT gen_random_uuid(), backend, 'tenant ' || n, task_path, $2, priority, 'READY', args, kwargs,
            errors, worker_ids, crashes, enqueued_at, now()
        FROM aiotasks_task, generate_series(1, $1::integer) AS n
        """,
        number,
        lane,
    )


async def insert_unannounced(conn: asyncpg.Connection, queue_name: str) -> None:
    """Add a coroutine task without a NOTIFY."""
    await conn.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at
        )
        SELECT gen_random_uuid(), backend, $1, task_path, 'loop', priority, 'READY', args, kwargs, errors,
            worker_ids, crashes, enqueued_at, now()
        FROM aiotasks_task WHERE status = 'SCHEDULED'
        """,
        queue_name,
    )


async def test_the_last_of_many_queues_is_found_by_a_poll(
    configure: Configure, database: str, conn: asyncpg.Connection
) -> None:
    """Ten thousand others come before it, whose tasks have no slot here."""
    configure([], POLL_INTERVAL=0.3)
    await fill_queues(conn)
    tasks.seen.clear()
    async with aiotasks.Worker(threads=0):
        await tasks.note.using(queue_name="first").aenqueue("told")
        await until(lambda: tasks.seen == ["told"])
        for number in range(3):
            await insert_unannounced(conn, "zzz")
            await until(lambda number=number: tasks.seen == ["told", *["filled"] * (number + 1)])


async def test_a_wake_ups_claim_asks_for_its_queue_first(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand that have tasks, and in any of its claims for a bounded number."""
    await fill_queues(conn, number=1000, lane="loop")
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 5, "thread": 1}, [], await register())
    asked: list[list[str]] = []
    claim_jobs = running_store().claim_jobs

    async def watch(*args: Any, loop: Any, thread: Any, **kwargs: Any) -> Any:
        asked.append(loop.queues)
        return await claim_jobs(*args, loop=loop, thread=thread, **kwargs)

    monkeypatch.setattr(running_store(), "claim_jobs", watch)
    assert await claimer.run_once() == 5
    for number in range(3):
        started.clear()
        await tasks.note.using(queue_name=f"new {number}").aenqueue("x")
        claimer.wake(Wakeup("default", f"new {number}"))
        assert await claimer.run_once() == 5
        assert asked[-1][0] == f"new {number}"
        assert started[0].queue_name == f"new {number}"
    assert max(map(len, asked)) <= 200


async def test_all_of_many_queues_are_drained(database: str, conn: asyncpg.Connection) -> None:
    await fill_queues(conn, number=1000, lane="loop")
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 10, "thread": 1}, [], await register(), at_once=lambda job: True)
    while await claimer.run_once():
        pass
    assert len({job.queue_name for job in started}) == len(started) == 1000


async def test_a_flood_in_one_of_many_queues_holds_another_up_for_one_claim(
    database: str, conn: asyncpg.Connection
) -> None:
    """Although a thousand wait for threads, and wake-ups tell of the flood all the time."""
    await fill_queues(conn, number=1000)
    await default_task_backend.aenqueue_many(tasks.add.using(queue_name="flooded"), [((1, 2), {})] * 200)
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 5, "thread": 0}, [], await register())
    for number in range(5):
        claimer.wake(Wakeup("default", "flooded"))
        started.clear()
        assert await claimer.run_once() == 5
        await tasks.add.using(queue_name=f"trickle {number}").aenqueue(1, 2)
        claimer.wake(Wakeup("default", f"trickle {number}"))
        started.clear()
        assert await claimer.run_once() == 5
        assert [job.queue_name for job in started].count(f"trickle {number}") == 1


async def test_what_becomes_visible_below_the_watermark_is_found_by_a_poll(
    configure: Configure, database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that stays open for longer than the margin commits a row that looks old."""
    configure(POLL_INTERVAL=0.3)
    tasks.seen.clear()
    marks: list[Any] = []
    async with aiotasks.Worker() as worker:
        rotation = worker.engine.claimer.rotation
        learn = rotation.learn

        def watched(lane: Any, *args: Any) -> bool:
            fell_short = learn(lane, *args)
            marks.extend(filter(None, [rotation.marks.of(lane, "default")]))
            return fell_short

        monkeypatch.setattr(rotation, "learn", watched)
        await tasks.note.aenqueue("new")
        await until(lambda: tasks.seen == ["new"])
        await until(lambda: marks)
        await tasks.note.using(run_after=in_future(HOUR)).aenqueue("old")
        await conn.execute(
            "UPDATE aiotasks_task SET status = 'READY', ready_at = now() - interval '1 h' "
            "WHERE status = 'SCHEDULED'"
        )
        await until(lambda: tasks.seen == ["new", "old"])


async def test_older_tasks_of_a_lower_priority_follow_a_flood_at_once(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full claims begin behind the tasks that they have passed; a short one looks before them."""
    configure(POLL_INTERVAL=3600)
    monkeypatch.setattr("aiotasks.worker.claiming.watermarks.PASSED_FOR", 3600)
    monkeypatch.setattr("aiotasks.worker.claiming.loop.FORGET_INTERVAL", 3600)
    tasks.seen.clear()
    await default_task_backend.aenqueue_many(tasks.note, [(("old",), {})] * 30)
    await default_task_backend.aenqueue_many(tasks.note.using(priority=50), [(("flood",), {})] * 300)
    await conn.execute("UPDATE aiotasks_task SET ready_at = ready_at - interval '1 h' * (51 - priority)")
    since: list[datetime] = []
    async with aiotasks.Worker(concurrency=10) as worker:
        marks = worker.engine.claimer.rotation.marks
        request = marks.request

        def watched(*args: Any, **options: Any) -> tuple[list[datetime], list[int]]:
            found = request(*args, **options)
            since.extend(found[0])
            return found

        monkeypatch.setattr(marks, "request", watched)
        await until(lambda: len(tasks.seen) == 330)
    assert tasks.seen == ["flood"] * 300 + ["old"] * 30
    assert len(set(since)) > 1


async def test_what_is_promoted_late_is_not_hidden_by_the_watermark(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place in the queue is as of the time that it was due at."""
    configure(POLL_INTERVAL=3600)
    monkeypatch.setattr("aiotasks.worker.claiming.loop.FORGET_INTERVAL", 3600)
    tasks.seen.clear()
    async with aiotasks.Worker() as worker:

        async def emptied() -> bool:
            """The first look after a wake-up forgets what claims have found before it."""
            await tasks.note.aenqueue("new")
            claimer = worker.engine.claimer
            return claimer.quarantine.has_looked and claimer.rotation.marks.of("loop", "default") is not None

        await until(emptied)
        await tasks.note.using(run_after=in_future(HOUR)).aenqueue("late")
        await conn.execute(
            "UPDATE aiotasks_task SET run_after = now() - interval '1 h' WHERE status = 'SCHEDULED'"
        )
        await conn.execute("SELECT pg_notify('aiotasks', '[\"default\", \"default\", 0.0]')")
        await until(lambda: "late" in tasks.seen)


async def test_enqueued_inside_a_transaction_block_that_has_ended(
    configure: Configure, ledger: Ledger
) -> None:
    """56: the background task's enqueue is refused, whoever has the connection by then."""
    async with aiotasks.Worker() as worker:
        result = await tasks.enqueue_after_transaction.aenqueue()
        await worker.wait_until_empty()
    await result.arefresh()
    assert result.return_value == "refused"
    assert ledger.statuses() == {"SUCCESSFUL": 1}


def watch_claims(
    claimer: Claimer, monkeypatch: pytest.MonkeyPatch, watch: Callable[[Any, int], None]
) -> None:
    """Have ``watch`` told of each claim when it is sent: its id, and its limit."""
    claim_jobs = running_store().claim_jobs

    async def watched(*args: Any, loop: Any, thread: Any, **kwargs: Any) -> Any:
        watch(args[1], loop.limit + thread.limit)
        return await claim_jobs(*args, loop=loop, thread=thread, **kwargs)

    monkeypatch.setattr(running_store(), "claim_jobs", watched)


def claim_far_beyond_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine, once tasks have ended at once."""
    monkeypatch.setattr(surplus_module, "AT_ONCE_TIME", HOUR)
    monkeypatch.setattr(surplus_module, "AT_ONCE_FACTOR", 1000)
    monkeypatch.setattr(surplus_module, "AT_ONCE_GROWTH", 1000)
    monkeypatch.setattr("aiotasks.worker.claiming.intake.PATIENCE", HOUR)


async def test_tasks_that_are_over_at_once_let_claims_be_larger_than_the_slots(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_far_beyond_the_slots(monkeypatch)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 600)
    started: list[Any] = []
    limits: list[int] = []
    slots = {"loop": 10, "thread": 0}
    claimer = make_claimer(started, slots, ["default"], await register(), at_once=lambda job: True)
    watch_claims(claimer, monkeypatch, lambda claim_id, limit: limits.append(limit))
    assert await claimer.run_once() == 10
    assert await claimer.run_once() == 590
    most = surplus_module.AT_ONCE_LIMIT
    assert limits == [10, most, most, most]
    assert len(started) == len({job.id for job in started}) == 600
    # One that came up short says nothing of the next: back to the slots.
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 20)
    assert await claimer.run_once() == 10
    assert limits[4:] == [10]


async def test_a_claim_for_threads_alone_shows_nothing_of_the_loop(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the turn by the slots one is under way while tasks of the loop are started."""
    claim_far_beyond_the_slots(monkeypatch)
    monkeypatch.setattr(surplus_module, "AT_ONCE_LIMIT", 20)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 200)
    limits: list[tuple[int, int]] = []
    claim_jobs = running_store().claim_jobs

    async def watched(*args: Any, loop: Any, thread: Any, **kwargs: Any) -> Any:
        limits.append((loop.limit, thread.limit))
        return await claim_jobs(*args, loop=loop, thread=thread, **kwargs)

    monkeypatch.setattr(running_store(), "claim_jobs", watched)
    claimer = make_claimer(
        [], {"loop": 2, "thread": 1}, ["default"], await register(), at_once=lambda job: True
    )
    while await claimer.run_once():
        pass
    assert limits[:11] == [(2, 1), *[(20, 1)] * 4, (0, 1), (2, 1), *[(20, 1)] * 4]


async def test_what_finds_no_slot_after_all_is_dropped(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a claim of no-ops come others, which stay."""
    claim_far_beyond_the_slots(monkeypatch)
    await default_task_backend.aenqueue_many(tasks.note, [(("quick",), {})] * 10)
    await default_task_backend.aenqueue_many(tasks.note, [(("slow",), {})] * 300)
    started: list[Any] = []
    dropped: list[Any] = []
    limits: list[int] = []
    claimer = make_claimer(
        started,
        {"loop": 10, "thread": 0},
        ["default"],
        await register(),
        at_once=lambda job: "quick" in job.args,
        drop=dropped.append,
    )
    watch_claims(claimer, monkeypatch, lambda claim_id, limit: limits.append(limit))
    assert await claimer.run_once() == 10
    assert await claimer.run_once() == 300
    assert (len(started), len(dropped)) == (20, 290)
    assert len({job.id for job in [*started, *dropped]}) == 310
    assert not claimer.budget.limit("loop")
    before = len(limits)
    assert await claimer.run_once() == 0
    assert len(limits) == before  # nothing is asked for where there is no slot
    # And one that stays among no-ops is enough to go by the slots.
    started.clear()
    await default_task_backend.aenqueue_many(tasks.note, [(("slow",), {}), *[(("quick",), {})] * 30])
    assert (await claimer.run_once(), await claimer.run_once()) == (10, 9)
    assert limits[before:] == [10, 9]


async def test_tasks_beyond_the_slots_do_not_wait_for_long_ones(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a claim of no-ops come tasks that keep the loop busy: others may have what waits for them."""
    claim_far_beyond_the_slots(monkeypatch)
    await default_task_backend.aenqueue_many(tasks.note, [(("quick",), {})] * 10)
    await default_task_backend.aenqueue_many(tasks.note, [(("busy",), {})] * 200)
    started: list[Any] = []
    dropped: list[Any] = []

    def end_at_once(job: Any) -> bool:
        if "busy" in job.args:  # from now on the time is always over
            monkeypatch.setattr("aiotasks.worker.claiming.intake.TURN_TIME", -HOUR)
            monkeypatch.setattr("aiotasks.worker.claiming.intake.PATIENCE", -HOUR)
        return True

    claimer = make_claimer(
        started,
        {"loop": 10, "thread": 0},
        ["default"],
        await register(),
        at_once=end_at_once,
        drop=dropped.append,
    )
    assert await claimer.run_once() == 10
    assert await claimer.run_once() == 200
    assert len(started) == 10 + 1 + 10  # one is under way when the time is over, and ten have slots
    assert len({job.id for job in [*started, *dropped]}) == 210
    assert claimer.budget.limit("loop") == 10


async def test_what_a_crash_would_harm_is_claimed_within_the_slots(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed has begun what it has claimed, or hasn't: only the slots' worth may matter."""
    claim_far_beyond_the_slots(monkeypatch)
    started: list[Any] = []
    slots = {"loop": 10, "thread": 0}
    claimer = make_claimer(started, slots, ["default"], await register(), at_once=lambda job: True)
    await insert(running_store(), 10)
    fragile = await insert(running_store(), 5, max_crashes=0)
    await insert(running_store(), 40)
    assert [await claimer.run_once() for _ in range(3)] == [10, 40, 5]
    assert [job.id for job in started[50:]] == fragile
    # In a flood they have their turn after a few claims.
    monkeypatch.setattr(surplus_module, "AT_ONCE_LIMIT", 20)
    started.clear()
    limits: list[int] = []
    watch_claims(claimer, monkeypatch, lambda claim_id, limit: limits.append(limit))
    await insert(running_store(), 10)
    fragile = await insert(running_store(), 25, max_crashes=0)
    await insert(running_store(), 200)
    while await claimer.run_once() or claimer.lanes_to_claim >= {"loop"}:
        pass
    assert limits[:6] == [10, 20, 20, 20, 20, 10]
    assert {job.id for job in started[90:100]} == set(fragile[:10])
    assert {job.id for job in started} >= set(fragile)
    assert len(started) == 235


async def test_short_sync_tasks_are_claimed_ahead_but_what_a_crash_would_harm(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "PATIENCE", HOUR)
    started: list[Any] = []
    limits: list[int] = []
    claimer = make_claimer(started, {"loop": 0, "thread": 4}, ["default"], await register())
    watch_claims(claimer, monkeypatch, lambda claim_id, limit: limits.append(limit))
    await insert(running_store(), 4, lane="thread")
    fragile = await insert(running_store(), 6, lane="thread", max_crashes=1)
    await insert(running_store(), 100, lane="thread")
    seen: list[Any] = []

    def end() -> None:
        """All threads come free."""
        seen.extend(started)
        started.clear()
        claimer.slot_freed()

    assert await claimer.run_once() == 4
    assert await claimer.run_once() == 0  # nobody knows how long they take
    end()
    claimer.prefetch.took(0.001)
    for expected in (20, 16, 12, 12):
        assert await claimer.run_once() == expected
        assert len(started) == 4
        assert started[0].claim_id in claimer.intake.claiming
        assert await claimer.run_once() == 0  # there is enough
        for _ in range(3):
            end()
    assert not {job.id for job in [*seen, *started]} & set(fragile)
    assert limits == [4, 20, 16, 12, 12]
    # After so many claims of that kind there is one of as many as threads are free.
    assert await claimer.run_once() == 0
    while claimer.prefetch.claim_ids:
        end()
    end()
    assert await claimer.run_once() == 4
    assert [job.id for job in started] == fragile[:4]
    assert not claimer.intake.claiming
    while await claimer.run_once() or started:
        end()
    assert len({job.id for job in seen}) == len(seen) == 110


async def test_what_comes_soon_after_a_wake_up_needs_none(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enqueue doesn't tell again what it has told a moment ago."""
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 9, "thread": 9}, ["default"], await register())
    claim_jobs = running_store().claim_jobs
    claims = 0

    async def enqueue_behind(*args: Any, **kwargs: Any) -> Any:
        nonlocal claims
        jobs = await claim_jobs(*args, **kwargs)
        claims += 1
        if claims == 2:  # the first is the claim that a worker starts with
            await insert(running_store())
        return jobs

    monkeypatch.setattr(running_store(), "claim_jobs", enqueue_behind)
    running = asyncio.ensure_future(claimer.run())
    await until(lambda: claims == 1 and not claimer.lanes_to_claim)
    claimer.wake(Wakeup("default", "default"))
    await until(lambda: started)
    await claimer.stop()
    await running


async def test_the_next_claim_is_sent_while_the_jobs_of_one_are_started(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "CLAIM_LIMIT", 3)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 15)
    events: list[Any] = []

    def look(job: Any) -> bool:
        events.append("start")
        return False

    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 10, "thread": 0}, ["default"], await register(), at_once=look)
    watch_claims(claimer, monkeypatch, lambda claim_id, limit: events.append(limit))
    assert await claimer.run_once() == 10
    assert events == [3, 3, *["start"] * 3, 3, *["start"] * 3, 1, *["start"] * 4]


async def test_claims_are_held_until_all_of_their_jobs_are_started(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever isn't held is given back by the sweep."""
    monkeypatch.setattr(budget_module, "CLAIM_LIMIT", 3)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 6)
    held: list[bool] = []

    def look(job: Any) -> bool:
        held.append(job.claim_id in claimer.intake.claiming)
        return False

    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 10, "thread": 0}, ["default"], await register(), at_once=look)
    watch_claims(
        claimer, monkeypatch, lambda claim_id, limit: held.append(claim_id in claimer.intake.claiming)
    )
    assert await claimer.run_once() == 6
    assert held == [True] * 9
    assert not claimer.intake.claiming


async def test_a_claim_that_fails_is_held_no_longer_and_harms_no_other(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "CLAIM_LIMIT", 3)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 6)
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 10, "thread": 0}, ["default"], await register())
    claims = 0

    def fail(claim_id: Any, limit: int) -> None:
        nonlocal claims
        claims += 1
        if claims in (1, 3):
            raise utils.OperationalError("no room")

    watch_claims(claimer, monkeypatch, fail)
    with pytest.raises(utils.OperationalError):
        await claimer.run_once()
    assert not claimer.intake.claiming
    with pytest.raises(utils.OperationalError):  # the one behind, while these are started
        await claimer.run_once()
    assert len(started) == 3
    assert not claimer.intake.claiming
    assert await claimer.run_once() == 3


async def test_of_two_sync_enqueues_one_tells_and_both_start(
    configure: Configure, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes when the claim for the first is over."""
    monkeypatch.setattr(notifier, "INTERVAL", 1.5)
    monkeypatch.setattr(claimer_module, "LOOK_AGAIN_DELAY", 1.6)
    configure(POLL_INTERVAL=HOUR)
    told: list[str] = []
    async with aiotasks.Worker() as worker:
        await until(partial(conn.fetchval, "SELECT bool_and(listening) FROM aiotasks_worker"))
        await conn.add_listener(worker.engine.waker.channel, lambda *args: told.append(args[-1]))
        claimer = worker.engine.claimer
        for _ in range(20):
            tasks.seen.clear()
            told.clear()
            task = tasks.note.using(queue_name=str(uuid4()))  # of which nothing was told yet
            enqueued: list[float] = []
            for name in ("first", "second"):
                await until(lambda: not claimer.lanes_to_claim)
                enqueued.append(time.monotonic())
                await sync_to_async(task.enqueue)(name)
                enqueued.append(time.monotonic())
                await until(lambda name=name: name in tasks.seen)
            if enqueued[-1] - enqueued[0] < notifier.INTERVAL:
                break  # else two wake-ups are right: a busy machine was too slow
    assert tasks.seen == ["first", "second"]
    assert len(told) == 1
    await conn.reset()


@pytest.mark.parametrize("queues", [[], ["default"]])
@pytest.mark.parametrize("is_backlog", [False, True])
async def test_tasks_whose_rows_were_locked_for_a_moment_are_found(
    configure: Configure,
    conn: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    queues: list[str],
    is_backlog: bool,
) -> None:
    """A join marks them as awaited, say. The end of such a lock wakes nobody."""
    monkeypatch.setattr(doubts_module, "DELAYS", (0.05,) * 1000)  # the lock lasts while the test wants it
    configure(queues, POLL_INTERVAL=HOUR)
    tasks.seen.clear()
    async with aiotasks.Worker(concurrency=2) as worker:
        claimer = worker.engine.claimer
        await until(worker.engine.waker.is_woken)
        if is_backlog:
            await default_task_backend.aenqueue_many(tasks.wait_for_release, [(["a"], {}), (["b"], {})])
            await until(lambda: sorted(tasks.seen) == ["a", "b"])
        full = {"loop"} if is_backlog else set()
        await until(lambda: claimer.lanes_to_claim <= full and not claimer.intake.claiming)
        claims = 0
        is_locked = asyncio.Event()
        claim_jobs = worker.engine.resources.store.claim_jobs

        async def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal claims
            await is_locked.wait()
            claims += 1
            return await claim_jobs(*args, **kwargs)

        monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", count)
        path = tasks.note.module_path
        await insert(running_store(), task_path=path, args='["locked"]', queue_name="default")
        async with conn.transaction():
            await conn.execute("SELECT FROM aiotasks_task WHERE status = 'READY' FOR UPDATE")
            is_locked.set()
            if is_backlog:
                for name in "ab":
                    tasks.waiting[name].set_result(None)
            else:
                claimer.wake(Wakeup("default", "default", lane="loop", place=1))
            # At the wake-up, 6 ms later, and within a second: all have found nothing.
            await until(lambda: claims > 4)
        await until(lambda: "locked" in tasks.seen)


class Outages(Observer):
    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []

    def outage_began(self, part: str, error: Exception) -> None:
        self.began.append(part)

    def outage_ended(self, part: str, seconds: float) -> None:
        self.ended.append(part)


async def test_claims_survive_errors_of_the_database(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(POLL_INTERVAL=HOUR)
    outages = Outages()
    async with aiotasks.Worker() as worker:
        worker.events.subscribe(outages)
        claim_jobs = worker.engine.resources.store.claim_jobs
        failures = 0

        async def fail(*args: Any, **kwargs: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures <= 3:
                raise utils.OperationalError("no room")
            return await claim_jobs(*args, **kwargs)

        monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", fail)
        await tasks.add.aenqueue(1, 2)
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
    assert outages.began == outages.ended == ["claims"]


async def test_a_stop_does_not_wait_for_the_next_try(
    configure: Configure, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(POLL_INTERVAL=HOUR)
    monkeypatch.setattr("aiotasks.db.outage.backoff", lambda failures, **_: 60.0)
    async with aiotasks.Worker(grace=0) as worker:
        failed = asyncio.Event()

        async def fail(*args: Any, **kwargs: Any) -> Any:
            failed.set()
            raise utils.OperationalError("no room")

        monkeypatch.setattr(worker.engine.resources.store, "claim_jobs", fail)
        await tasks.add.aenqueue(1, 2)
        await failed.wait()
        stopping = asyncio.ensure_future(worker.engine.claimer.stop())
        await asyncio.wait_for(stopping, 20)


async def test_what_a_cancelled_claimer_has_claimed_goes_back(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the claim whose jobs it is starting, and of the next, which is under way."""
    monkeypatch.setattr(budget_module, "CLAIM_LIMIT", 5)
    monkeypatch.setattr("aiotasks.worker.claiming.intake.TURN_TIME", 0.0)
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 15)
    started: list[Any] = []
    dropped: list[Any] = []
    claiming: list[asyncio.Task[int]] = []

    def look(job: Any) -> bool:
        claiming[0].cancel()
        return False

    worker_id = await register()
    slots = {"loop": 20, "thread": 0}
    claimer = make_claimer(started, slots, ["default"], worker_id, at_once=look, drop=dropped.append)
    claiming.append(asyncio.ensure_future(claimer.run_once()))
    with pytest.raises(asyncio.CancelledError):
        await claiming[0]
    await until(lambda: len(started) + len(dropped) >= 10)
    assert len(started) == 1
    assert len({job.id for job in [*started, *dropped]}) == 10
    assert not claimer.intake.claiming


async def test_who_has_been_in_two_crashes_is_claimed_apart(database: str, conn: asyncpg.Connection) -> None:
    """7: nothing new is beside it, so that whoever brings workers down takes no other task with it."""
    await default_task_backend.aenqueue_many(tasks.add, [((1, 2), {})] * 7)
    ids = [row["id"] for row in await conn.fetch("SELECT id FROM aiotasks_task ORDER BY id")]
    suspects = {ids[3], ids[4]}
    await conn.execute("UPDATE aiotasks_task SET crashes = 2 WHERE id = ANY($1)", list(suspects))
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 20, "thread": 5}, ["default"], await register())
    claimer.suspect()
    running = asyncio.ensure_future(claimer.run())
    await until(lambda: started and not claimer.intake.claiming)
    claimer.wake()
    for _ in range(10):  # it sees that, and waits all the same
        await asyncio.sleep(0)
    assert [job.id in suspects for job in started] == [True]
    claimer.slot_freed(started[0])
    await until(lambda: len(started) >= 7)
    # The others have their turn in between.
    assert [job.id in suspects for job in started] == [True, *[False] * 5, True]
    await claimer.stop()
    await running


async def test_who_is_told_of_during_a_look_is_looked_for_again(
    database: str, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rescue goes on beside it, and what that brings may be there just after the look. Nor is a look
    that has failed forgotten.
    """
    started: list[Any] = []
    claimer = make_claimer(started, {"loop": 20, "thread": 5}, ["default"], await register())
    claim_suspect = Store.claim_suspect
    looks: list[str] = []

    async def look(
        store: Store, worker_id: UUID, claim_id: UUID, backend: str, lane: Lane, queues: Any
    ) -> Any:
        looks.append(lane)
        if looks == ["loop"]:
            raise utils.OperationalError("no room")
        jobs = await claim_suspect(store, worker_id, claim_id, backend, lane, queues)
        if lane == "loop" and looks.count("loop") == 2:
            await tasks.add.aenqueue(1, 2)
            await conn.execute("UPDATE aiotasks_task SET crashes = 2")
            claimer.suspect()
        return jobs

    monkeypatch.setattr(Store, "claim_suspect", look)
    claimer.suspect()
    running = asyncio.ensure_future(claimer.run())
    await until(lambda: started)
    await claimer.stop()
    await running


class Turns:
    """Stands for the other workers."""

    def __init__(self) -> None:
        self.passed_on = 0
        self.wakeups: list[Wakeup] = []

    def pass_on(self, wakeup: Wakeup) -> None:
        self.wakeups.append(wakeup)

    def pass_turn_on(self) -> None:
        self.passed_on += 1


async def test_a_claim_that_is_given_up_passes_its_wake_ups_on(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps it has taken nothing, and the second worker that was woken is full."""
    others = Turns()
    claimer = make_claimer([], {"loop": 1, "thread": 1}, ["default"], await register(), others=others)
    running = asyncio.ensure_future(claimer.run())
    await until(lambda: not claimer.lanes_to_claim)
    sent = asyncio.Event()

    async def hang(*args: Any, **kwargs: Any) -> Any:
        sent.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(running_store(), "claim_jobs", hang)
    wakeup = Wakeup("default", "default", lane="loop", place=1)
    claimer.wake(wakeup)
    await sent.wait()
    stopping = asyncio.ensure_future(claimer.stop())
    await asyncio.sleep(0)
    assert others.wakeups == []
    claimer.abort()
    await stopping
    await running
    assert others.wakeups == [wakeup]
    claimer.wake(wakeup)  # the worker LISTENs for a moment longer
    assert others.wakeups == [wakeup, wakeup]


@pytest.mark.parametrize("slots", [{"loop": 1, "thread": 1}, {"loop": 1, "thread": 0}])
async def test_a_full_worker_passes_its_turn_at_the_poll_on(database: str, slots: dict[str, int]) -> None:
    """Of a fleet of full workers the one with a free slot would have its own turn much later."""
    turns = Turns()
    started: list[Any] = []
    claimer = make_claimer(started, slots, ["default"], await register(), poll=0.05, others=turns)
    running = asyncio.create_task(claimer.run())
    await until(lambda: claimer.quarantine.has_looked)  # it has had a turn
    assert turns.passed_on == 0
    await tasks.add.aenqueue(1, 2)
    await until(lambda: len(started) == 1)
    await until(lambda: turns.passed_on >= 2)
    await claimer.stop()
    await running


async def test_a_turn_that_is_passed_on_has_an_idle_worker_look(
    configure: Configure, ledger: Ledger, conn: asyncpg.Connection
) -> None:
    configure(POLL_INTERVAL=HOUR)
    async with aiotasks.Worker() as worker:
        await until(worker.engine.waker.is_woken)
        await until(lambda: not worker.engine.claimer.lanes_to_claim)
        (id,) = await insert(
            running_store(), task_path=tasks.add.module_path, args="[1, 2]", queue_name="any"
        )
        payload = Wakeup("default", ANY_QUEUE).payload()
        await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)
        await until(lambda: ledger.task(str(id)).status == "SUCCESSFUL")
