"""Runs in which the tasks themselves, or the callers, are the fault; and the soak."""

import asyncio
import time
from contextlib import suppress
from random import Random
from typing import Any

import psutil
import uvloop

import aiotasks
from aiotasks.store.loop import LoopResources, close_pools, resources
from tests import tasks as hostile_bodies
from tests.site import default_task_backend
from tests.worker import tasks as bodies
from tests.worker.harness import until

from .arena import Arena
from .report import Report

__all__ = ["blocked", "cancel", "hostile", "soak"]

# What a site's own constraint may do: the database refuses a value that is valid JSON.
_REFUSALS = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'refused';
    END $$;
    CREATE TRIGGER refusal BEFORE UPDATE ON aiotasks_task FOR EACH ROW
    WHEN (NEW.return_value::text LIKE '%%refused by%%') EXECUTE FUNCTION refuse();
"""
_NO_REFUSALS = "DROP FUNCTION refuse CASCADE"


def blocked(arena: Arena, rng: Random, report: Report, *, blocks: int) -> None:
    """Coroutines that block their loop for three leases, beside others on the same loop."""
    lease = 1.0
    report.load = f"{blocks} blocks of {3 * lease:g} s, 3 workers, lease {lease:g} s"
    workers = arena.fleet(
        3, "--concurrency", "2", "--threads", "2", options={"LEASE_TIMEOUT": lease, "POLL_INTERVAL": 1}
    )
    calls = ["block"] * blocks + ["beside"] * (2 * blocks)
    rng.shuffle(calls)
    blocking: list[str] = []
    beside: list[str] = []
    for call in calls:
        if call == "block":
            blocking += arena.enqueue(bodies.block, [(3 * lease,)])
        else:
            beside += arena.enqueue_work(rng, 1, (0.0, 1.0))
    arena.wait_until_finished(len(calls))
    judged = arena.judge(beside)  # the repeats are everybody's
    codes = arena.stop(workers)
    done = "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s::uuid[]) AND status = 'SUCCESSFUL'"
    succeeded = int(arena.database.value(done, blocking))
    stalls = arena.said("The event loop is blocked")
    stacks = arena.said("time.sleep(seconds)")
    report.figure(
        blocks_succeeded=succeeded,
        repeats=judged.repeats,
        crashes_counted=judged.crashes,
        lost=judged.lost,
        stalls_logged=stalls,
        with_their_stack=stacks,
    )
    report.expect(
        succeeded == blocks and judged.lost == 0, f"{blocks - succeeded} blocks, {judged.lost} lost"
    )
    report.expect(
        judged.repeats == judged.crashes == 0, f"{judged.repeats} repeats, {judged.crashes} crashes"
    )
    report.expect(stalls == stacks == blocks, f"{stalls} stalls logged, {stacks} with their stack")
    report.expect(codes == [0, 0, 0], f"exit codes {codes}")


def hostile(arena: Arena, rng: Random, report: Report, *, values: int) -> None:
    """Return values and exceptions that can't be stored as they are, among tasks that share their batches."""
    report.load = f"{values} hostile values among {2 * values} others, 1 worker"
    kinds: list[tuple[Any, tuple[Any, ...]]] = [
        *((body, (name,)) for name in hostile_bodies.BAD_VALUES for body in _both("return_bad")),
        *((body, (name,)) for name in hostile_bodies.BAD_EXCEPTIONS for body in _both("raise_bad")),
        (bodies.refused_by_the_database, ()),
    ]
    calls = [kinds[number % len(kinds)] for number in range(values)] + [(bodies.work, (0.0,))] * (2 * values)
    rng.shuffle(calls)
    bad: list[str] = []
    good: list[str] = []
    for task, args in calls:
        (bad if task is not bodies.work else good).extend(arena.enqueue(task, [args]))
    arena.database.rows(_REFUSALS)
    try:
        (worker,) = arena.fleet(1, "--concurrency", "50", "--threads", "10", options={"POLL_INTERVAL": 1})
        arena.wait_until_finished(len(calls))
    finally:
        arena.database.rows(_NO_REFUSALS)
    judged = arena.judge(good)
    failed = "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s::uuid[]) AND status = 'FAILED'"
    stored = int(arena.database.value(failed, bad))
    longest = int(arena.database.value("SELECT max(length(errors[1]::text)) FROM aiotasks_task"))
    alive = worker.is_alive()
    codes = arena.stop([worker])
    report.figure(
        kinds=len(kinds),
        FAILED=stored,
        neighbours_succeeded=len(good) - judged.lost,
        longest_error_bytes=longest,
        crashes_counted=judged.crashes,
        worker_alive=alive,
    )
    report.expect(stored == values, f"{values - stored} of {values} aren't FAILED")
    report.expect(judged.lost == 0, f"{judged.lost} neighbours lost")
    report.expect(
        judged.repeats == judged.crashes == 0, f"{judged.repeats} repeats, {judged.crashes} crashes"
    )
    report.expect(alive and codes == [0], f"alive: {alive}, exit codes {codes}")


def _both(name: str) -> tuple[Any, Any]:
    return getattr(hostile_bodies, name), getattr(hostile_bodies, f"a{name}")


def cancel(arena: Arena, rng: Random, report: Report, *, cancels: int) -> None:
    """Callers cancelled at random moments of enqueues, look-ups and transactions, on either loop."""
    report.load = f"{cancels} cancels, half of them on uvloop"
    told: list[str] = []
    cancelled = 0
    pools = []
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            some, size, idle = runner.run(_fuzz(rng, cancels // 2, told))
        cancelled += some
        pools.append((idle, size))
    stored = {str(row.id) for row in arena.database.rows("SELECT id FROM aiotasks_task")}
    missing = len(set(told) - stored)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiotasks'"
    left = int(arena.database.value(ours))
    report.figure(
        cancelled=cancelled,
        acknowledged_enqueues=len(told),
        missing=missing,
        idle_of_pool=", ".join(f"{idle}/{size}" for idle, size in pools),
        connections_left=left,
    )
    report.expect(cancelled >= cancels, f"only {cancelled} cancelled")
    report.expect(missing == 0, f"{missing} acknowledged enqueues aren't stored")
    report.expect(all(idle == size for idle, size in pools), f"idle of pool {pools}")
    report.expect(left == 0, f"{left} connections left")


async def _fuzz(rng: Random, cancels: int, told: list[str]) -> tuple[int, int, int]:
    """Returns how many were cancelled, and the pool's size and idle connections once all is over."""
    loop = asyncio.get_running_loop()
    cancelled = 0

    async def enqueue() -> None:
        told.append((await bodies.noop.aenqueue()).id)

    async def enqueue_many() -> None:
        results = await default_task_backend.aenqueue_many(bodies.noop, [((), {})] * 3)
        told.extend(result.id for result in results)

    async def look_up() -> None:
        result = await bodies.noop.aenqueue()
        await result.arefresh()
        told.append(result.id)

    async def in_transaction() -> None:
        async with aiotasks.transaction():
            id = (await bodies.noop.aenqueue()).id
        told.append(id)

    async def caller() -> None:
        nonlocal cancelled
        while cancelled < cancels:
            task = loop.create_task(rng.choice([enqueue, enqueue_many, look_up, in_transaction])())
            timer = loop.call_later(rng.expovariate(1) * 0.02, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
            timer.cancel()

    await asyncio.gather(*(caller() for _ in range(25)))
    held = resources(default_task_backend.config)
    with suppress(AssertionError):  # the figures say it
        await until(lambda: held.driver.cache.lent == 0)
    size = held.pool.get_size()
    idle = size - held.driver.cache.lent
    await _use_all(held)
    await close_pools()
    return cancelled, size, idle


async def _use_all(held: LoopResources) -> None:
    """Every connection that the pool may have answers, all of them at once."""

    async def ask(connection: Any) -> None:
        assert await connection.fetchval("SELECT 1") == 1

    cache = held.driver.cache
    connections = await asyncio.gather(
        *(cache.acquire(timeout=10) for _ in range(held.options.pool_max_size))
    )
    await asyncio.gather(*map(ask, connections))
    for connection in connections:
        await cache.release(connection, keep=True)


def soak(arena: Arena, rng: Random, report: Report, *, tasks: int) -> None:
    """No-ops, one after another, for as long as it takes; memory after a tenth of them and at the end."""
    report.load = f"{tasks} no-ops, 1 worker"
    (worker,) = arena.fleet(1, options={"POLL_INTERVAL": 0.5})
    process = psutil.Process(worker.pid)
    chunk = min(20_000, tasks // 10)
    backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiotasks'"
    ready = "SELECT count(*) FROM aiotasks_task WHERE status = 'READY'"
    warm = 0.0
    early: list[int] = []
    later: list[int] = []
    end = time.monotonic() + 100 + tasks / 1000
    fed = 0
    while time.monotonic() < end:
        left = int(arena.database.value(ready))
        (later if warm else early).append(int(arena.database.value(backends)))
        if not warm and fed - left >= tasks / 10:
            warm = process.memory_info().rss
        if fed < tasks and left < 2 * chunk:
            arena.database.enqueue("noop", count=chunk)
            fed += chunk
        elif fed >= tasks and left == 0:
            break
        else:
            time.sleep(0.1)
    finished = arena.wait_until_finished(tasks)
    rss = process.memory_info().rss
    growth = (rss / warm - 1) * 100 if warm else float("inf")
    succeeded = arena.database.statuses().get("SUCCESSFUL", 0)
    codes = arena.stop([worker])
    report.figure(
        succeeded=succeeded,
        RSS_warm_MB=warm / 1e6,
        RSS_at_the_end_MB=rss / 1e6,
        growth_percent=growth,
        most_backends_while_warming_up=max(early),
        most_backends_later=max(later, default=0),
    )
    report.expect(finished and succeeded == tasks, f"{succeeded} of {tasks} succeeded")
    report.expect(growth < 5, f"RSS grew by {growth:.1f} %")
    # One more where a sweep falls beside a claim, a finish and a renewal.
    report.expect(max(later, default=0) <= max(early) + 1, "more backends than during the warm-up")
    report.expect(codes == [0], f"exit codes {codes}")
