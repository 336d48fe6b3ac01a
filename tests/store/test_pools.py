"""What belongs to a loop: made at first need, closed with it, and never shared with another or a child."""

import asyncio
import gc
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import uvloop
from django.db import utils

import aiotasks
from aiotasks.conf import Options
from aiotasks.db import cache as cache_module
from aiotasks.db.statement import Statement
from aiotasks.rows import NewJob
from aiotasks.store import loop as pools
from aiotasks.store import transaction as transaction_module
from aiotasks.store.changes import CHANNEL as CHANGED
from aiotasks.store.loop import LoopResources, close_pools, resources
from aiotasks.store.store import Store
from aiotasks.store.wakeups import Wakeup
from tests.proxy import Proxy
from tests.site import default_task_backend
from tests.worker.harness import until

from .rows import insert, new_job

ONE = Statement("one", "SELECT $1::integer", "SELECT %(p1)s::integer")
type LoopFactory = Callable[[], asyncio.AbstractEventLoop]

FACTORIES: list[LoopFactory] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def sessions(database: str) -> Iterator[asyncpg.Connection]:
    """A count of the sessions that aiotasks has open, for tests that run loops themselves."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as observer:

        def count() -> int:
            ((number,),) = observer.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'aiotasks'"
            )
            return int(number)

        yield count


async def fetch_one(held: LoopResources, number: int = 1) -> int:
    ((found,),) = await held.driver.fetch(ONE, number)
    return int(found)


async def test_one_for_a_loop_and_its_options(database: str) -> None:
    first = resources(Options())
    assert resources(Options()) is first
    other = resources(Options(pool_max_size=3))
    assert other is not first
    assert other.pool.get_max_size() == 3
    elsewhere = await asyncio.to_thread(lambda: asyncio.run(_itself()))
    assert elsewhere not in (first, other)
    await close_pools()
    assert resources(Options()) is not first
    await close_pools()


async def _itself() -> LoopResources:
    return resources(Options())


async def test_nothing_connects_before_the_first_statement(proxy: Proxy) -> None:
    held = resources(Options())
    assert proxy.connections == 0
    assert await fetch_one(held) == 1
    assert proxy.connections > 0
    await close_pools()


async def test_the_pool_stays_within_its_size(held: LoopResources) -> None:
    assert await asyncio.gather(*(fetch_one(held, n) for n in range(200))) == list(range(200))
    assert held.pool.get_size() <= Options().pool_max_size


@pytest.mark.parametrize("factory", FACTORIES)
def test_it_closes_with_its_loop(factory: LoopFactory, sessions: Callable[[], int]) -> None:
    """By shutdown_asyncgens(), which every runner calls."""

    async def main() -> LoopResources:
        held = resources(Options())
        await asyncio.gather(*(fetch_one(held) for _ in range(5)))
        assert sessions() > 0
        with held.wakeups.subscribed(lambda wakeup: None):
            await held.wakeups.listening.wait()
            return held

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(loop_factory=factory) as runner:
            held = runner.run(main())
        gc.collect()
    assert held.pool.is_closing()
    asyncio.run(until(lambda: sessions() == 0))


@pytest.mark.parametrize("factory", FACTORIES)
def test_one_that_never_connected_closes_quietly(
    factory: LoopFactory, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_itself())
    assert caplog.text == ""


@pytest.mark.parametrize("factory", FACTORIES)
def test_at_its_end_it_tells_of_changes_though_no_wake_up_can_be_sent(
    factory: LoopFactory, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on the table of workers keeps wake-ups back, and those that await tasks need no such table."""
    told: list[object] = []

    async def wake_workers(*args: object) -> None:
        raise utils.OperationalError("no workers")

    async def notify(store: Store, channel: str, payloads: list[str], *, alone: bool) -> bool:
        told.append(channel)
        return True

    async def main() -> None:
        held = resources(Options())
        held.notifier.notify([Wakeup("default", "default", lane="loop")])
        held.teller.tell([uuid4()])

    monkeypatch.setattr(pools, "CLOSE_TIMEOUT", 1.0)
    monkeypatch.setattr(Store, "wake_workers", wake_workers)
    monkeypatch.setattr(Store, "notify", notify)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert told == [CHANGED]


def test_what_a_dead_loop_left_behind_is_swept(sessions: Callable[[], int]) -> None:
    """(uvloop's close() itself hangs over open connections.)"""
    loop = asyncio.new_event_loop()
    held = loop.run_until_complete(_itself())
    loop.run_until_complete(fetch_one(held))
    loop.close()  # without shutdown_asyncgens()
    left = weakref.ref(held)

    async def main() -> None:
        assert await fetch_one(resources(Options())) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the loop's owner didn't close it properly
        asyncio.run(main())
        del held
        gc.collect()
        assert left() is None  # though its loop is there still
        del loop
        asyncio.run(until(lambda: sessions() == 0))


def test_a_connection_that_is_out_does_not_hang_the_end(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg's close() would wait for it for ever."""
    monkeypatch.setattr(pools, "CLOSE_TIMEOUT", 0.05)

    async def main() -> asyncpg.Pool:
        held = resources(Options())
        await fetch_one(held)
        await held.pool.acquire()
        return held.pool

    pool = asyncio.run(main())
    assert pool.is_closing()
    assert pool.get_size() == 0


async def test_closing_behind_a_dead_line_ends(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 14 of docs/faults.md: closing a connection hangs in a partition."""
    monkeypatch.setattr(pools, "CLOSE_TIMEOUT", 0.05)
    held = resources(Options())
    await fetch_one(held)
    proxy.mode = "blackhole"
    async with asyncio.timeout(20):
        await close_pools()
    assert held.pool.is_closing()


FORK = """
import asyncio, os, signal, sys, traceback, warnings
import django
django.setup()
from aiotasks.conf import Options
from aiotasks.store.loop import resources
from aiotasks.db.statement import Statement

ONE = Statement("one", "SELECT pg_backend_pid()", "")

async def pids(held):
    rows = await asyncio.gather(*(held.driver.fetch(ONE) for _ in range(5)))
    return {row[0] for (row,) in rows}

def child(parents):
    # As gunicorn's or multiprocessing's children do: a loop of its own.
    async def main():
        held = resources(Options())
        return await pids(held)
    mine = asyncio.run(main())
    assert not mine & parents, (mine, parents)

async def main():
    loop = asyncio.get_running_loop()
    held = resources(Options())
    before = await pids(held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are no other threads yet
        pid = os.fork()
    if not pid:
        code = 1
        try:
            asyncio._set_running_loop(loop)  # even where a child goes on with it
            assert resources(Options()) is not held, "the parent's, with its connections"
            asyncio._set_running_loop(None)
            child(before)
            code = 0
        except BaseException:
            traceback.print_exc()
        # A child that ends as Python does, with everything it inherited collected.
        import gc
        del held
        gc.collect()
        sys.stdout.flush()
        os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    after = await pids(held)
    assert after <= before | after and after & before, (before, after)
    assert resources(Options()) is held

asyncio.run(main())
print("both are well")
"""


def test_a_forked_child_makes_its_own_and_leaves_the_parents(worker_env: dict[str, str]) -> None:
    """Fault 33 of docs/faults.md: a pool crosses loops or a fork."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        env=worker_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "both are well\n", ""), run.stderr


CANCELS = 5000  # twice: once a loop


async def test_thousands_of_random_cancels_leave_the_pool_whole(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    """Fault 34 of docs/faults.md: in acquire, query or release. No caller gets another's answer."""
    rng = random.Random(0)
    loop = asyncio.get_running_loop()
    slow = Statement("slow", "SELECT $1::integer FROM pg_sleep(0.001)", "")
    cancelled = 0

    async def some(number: int) -> None:
        nonlocal cancelled
        for n in range(number * 1000, number * 1000 + CANCELS // 25):
            task = loop.create_task(held.driver.fetch(rng.choice([ONE, slow]), n))
            loop.call_later(rng.expovariate(1) * 0.002, task.cancel)
            try:
                ((found,),) = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:
                assert found == n

    await asyncio.gather(*(some(number) for number in range(25)))
    assert cancelled > CANCELS / 10
    await until(lambda: held.pool.get_idle_size() == held.pool.get_size())
    assert await asyncio.gather(*(fetch_one(held, n) for n in range(100))) == list(range(100))
    assert held.pool.get_size() <= Options().pool_max_size
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'aiotasks' AND state <> 'idle'"
    )

    async def nobody_is_busy() -> bool:
        return bool(await conn.fetchval(busy) == 0)

    await until(nobody_is_busy)


async def test_cancelled_callers_of_the_batcher_harm_nobody(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    """Fault 55 of docs/faults.md, with the real INSERT: every caller that wasn't cancelled has its row."""
    rng = random.Random(1)
    loop = asyncio.get_running_loop()
    jobs = [new_job() for _ in range(1000)]

    async def enqueue(job: NewJob) -> str:
        await held.enqueuer.submit(job)
        return job.id

    tasks = [loop.create_task(enqueue(job)) for job in jobs]
    for task in tasks:
        if rng.random() < 0.5:
            loop.call_later(rng.random() * 0.05, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    stored = {str(id) for (id,) in await conn.fetch("SELECT id FROM aiotasks_task")}
    told = {result for result in results if not isinstance(result, BaseException)}
    assert all(isinstance(result, asyncio.CancelledError) for result in results if result not in told)
    assert told <= stored
    assert len(held.enqueuer) == 0


async def test_enqueues_are_repeated_over_a_line_that_breaks(proxy: Proxy, conn: asyncpg.Connection) -> None:
    """The INSERT went through, its reply was lost: repeating it stores no second row."""
    held = resources(Options(command_timeout=2.0))
    await insert(held.store)
    proxy.mode = "mute"
    enqueue = asyncio.ensure_future(held.enqueuer.submit(new_job()))

    async def stored() -> bool:
        return bool(await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 2)

    await until(stored)
    proxy.mode = "pass"
    proxy.cut()
    await enqueue
    assert await stored()
    await close_pools()


async def test_lookups_are_coalesced_by_backend(held: LoopResources) -> None:
    (mine,) = await insert(held.store)
    (theirs,) = await insert(held.store, backend="other")
    asked = [("default", mine), ("other", theirs), ("default", theirs), ("other", mine)] * 5
    found = await asyncio.gather(*(held.lookups.submit(key) for key in asked))
    assert [job and job.id for job in found] == [mine, theirs, None, None] * 5


# --- ConnectionCache ---------------------------------------------------------------------------------------

PID = Statement("pid", "SELECT pg_backend_pid()", "")


async def pids(held: LoopResources, number: int = 1) -> set[int]:
    answers = await asyncio.gather(*(held.driver.fetch(PID) for _ in range(number)))
    return {pid for ((pid,),) in answers}


async def keep(held: LoopResources, number: int) -> list[bool]:
    """Have so many connections come back; which of them are kept."""
    await held.driver.open()
    connections = [await held.driver.cache.acquire(timeout=20) for _ in range(number)]
    kept = []
    for connection in connections:
        before = len(held.driver.cache.kept)
        await held.driver.cache.release(connection, keep=True)
        kept.append(len(held.driver.cache.kept) > before)
    return kept


async def test_one_statement_after_another_uses_one_connection(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await pids(held)
    with monkeypatch.context() as patch:
        patch.setattr(held.driver.cache, "_pool", None)  # which isn't asked
        assert [await pids(held) for _ in range(5)] == [first] * 5
    assert await keep(held, cache_module.KEPT + 2) == [*[True] * cache_module.KEPT, False, False]
    assert held.pool.get_size() - held.pool.get_idle_size() == cache_module.KEPT
    assert held.driver.cache.lent == 0
    assert await pids(held, 8) >= first


async def test_a_kept_connection_that_the_server_has_closed_is_replaced(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    (pid,) = await pids(held)
    (kept,) = held.driver.cache.kept
    connection = kept._con
    await conn.execute("SELECT pg_terminate_backend($1)", pid)
    await until(connection.is_closed)
    assert held.driver.cache.lent == 0
    (other,) = await pids(held)
    assert other != pid
    assert held.driver.cache.lent == 0
    assert len(await pids(held, 50)) <= Options().pool_max_size


async def test_what_is_not_repeated_survives_kept_connections_that_were_closed(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    """A server that was restarted while nobody asked for anything, say."""
    assert await keep(held, 3) == [True] * 3
    killed = [kept.get_server_pid() for kept in held.driver.cache.kept]
    connections = [kept._con for kept in held.driver.cache.kept]
    await conn.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", killed)
    await until(lambda: all(connection.is_closed() for connection in connections))
    async with aiotasks.transaction() as mine:
        assert await mine.fetchval("SELECT pg_backend_pid()") not in killed
    assert await held.store.cancel_jobs([], "default", "{}") == []


async def test_a_block_that_waits_gets_the_next_that_comes_back(database: str, settings: Any) -> None:
    """While others do one statement after another, and could keep both connections for themselves."""
    settings.TASKS = {
        "default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POOL_MAX_SIZE": 2}}
    }
    held = resources(default_task_backend.config)
    slow = Statement("slow", "SELECT pg_sleep(0.01)", "")
    done = asyncio.Event()

    async def go_on() -> None:
        while not done.is_set():
            await held.driver.fetch(slow)

    others = [asyncio.ensure_future(go_on()) for _ in range(2)]
    await until(lambda: held.driver.cache.lent == 2)
    async with asyncio.timeout(20):
        for _ in range(3):
            async with aiotasks.transaction() as mine:
                assert await mine.fetchval("SELECT 1") == 1
    done.set()
    await asyncio.gather(*others)
    await close_pools()


async def test_idle_connections_go_back_to_the_pool(
    held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "IDLE_TIMEOUT", 0.05)
    assert await keep(held, 3) == [True] * 3
    await until(lambda: not held.driver.cache.kept)
    await until(lambda: held.pool.get_idle_size() == held.pool.get_size())
    assert await fetch_one(held) == 1
    assert len(held.driver.cache.kept) == 1


# --- insert() over a line that breaks ----------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3])
async def test_stored_by_a_try_whose_reply_was_lost_is_stored(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    jobs = [new_job() for _ in range(number)]
    insert_jobs = held.store.insert_jobs
    tries = 0

    async def lose_the_reply(*args: Any, **kwargs: Any) -> None:
        nonlocal tries
        tries += 1
        await insert_jobs(*args, **kwargs)
        raise utils.OperationalError("the line broke")

    wait_for_standbys = held.store.wait_for_standbys
    waits = 0

    async def wait(**kwargs: Any) -> None:
        nonlocal waits
        waits += 1
        await wait_for_standbys(**kwargs)

    monkeypatch.setattr(held.store, "insert_jobs", lose_the_reply)
    monkeypatch.setattr(held.store, "wait_for_standbys", wait)
    assert await held.insert(jobs) == [None] * number
    assert tries == 2
    assert waits == 1  # what can be seen needn't be durable: the first try's own wait may have been cut short
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == number


async def test_a_duplicate_at_the_first_try_is_an_error(
    held: LoopResources, conn: asyncpg.Connection
) -> None:
    (mine,) = jobs = [new_job()]
    await held.insert(jobs)
    for again in (jobs, [new_job(), mine]):
        with pytest.raises(utils.IntegrityError):
            await held.insert(again)
    assert await conn.fetchval("SELECT count(*) FROM aiotasks_task") == 1


async def test_another_constraint_is_an_error_at_any_try(
    held: LoopResources, conn: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the site's own, say."""
    await conn.execute(
        "ALTER TABLE aiotasks_task ADD CONSTRAINT no_thirteen CHECK (args::text <> '[13]') NOT VALID"
    )
    insert_jobs = held.store.insert_jobs
    tries = 0

    async def fail_first(*args: Any, **kwargs: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise utils.OperationalError("the line broke")
        await insert_jobs(*args, **kwargs)

    monkeypatch.setattr(held.store, "insert_jobs", fail_first)
    try:
        with pytest.raises(utils.IntegrityError, match="no_thirteen"):
            await held.insert([new_job(args="[13]")])
    finally:
        await conn.execute("ALTER TABLE aiotasks_task DROP CONSTRAINT no_thirteen")
    assert tries == 2


async def test_sessions_of_a_server_that_became_read_only_are_dropped(held: LoopResources) -> None:
    """24: after a failover; whoever connects anew finds the primary."""
    await insert(held.store)
    pid = Statement("pid", "SELECT pg_backend_pid()", "")
    first = await held.driver.fetch(pid)
    connection = await held.driver.cache.acquire(timeout=5)
    await connection.execute("SET default_transaction_read_only = on")
    await held.driver.cache.release(connection, keep=True)
    with pytest.raises(utils.InternalError):
        await insert(held.store)
    await insert(held.store)
    assert await held.driver.fetch(pid) != first


async def test_a_transaction_block_drops_them_too(held: LoopResources) -> None:
    async with aiotasks.transaction() as connection:
        first = await connection.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):  # noqa: PT012
        async with aiotasks.transaction() as connection:
            await connection.execute("SET TRANSACTION READ ONLY")
            await connection.execute("DELETE FROM aiotasks_task")
    async with aiotasks.transaction() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") != first


@pytest.mark.parametrize("cancelled", [False, True])
async def test_sessions_that_lead_nowhere_are_dropped_with_the_first(
    proxy: Proxy, held: LoopResources, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """An address that has moved on: each of them would cost a time-out, one after another."""
    monkeypatch.setattr(cache_module, "CANCEL_TIMEOUT", 0.1)
    stranded = await pids(held, 10)
    assert len(stranded) > cache_module.KEPT
    proxy.strand()
    with pytest.raises(TimeoutError if cancelled else utils.OperationalError):
        async with asyncio.timeout(0.2 if cancelled else 20):
            await held.driver.fetch(PID, timeout=60.0 if cancelled else 0.1)
    await until(lambda: not held.driver.cache.returning)
    async with asyncio.timeout(5):
        assert not await pids(held, 10) & stranded


async def test_a_pool_that_could_not_be_opened_is_opened_later(proxy: Proxy) -> None:
    """With POOL_MIN_SIZE, asyncpg closes it for good where the server is away, or its first user gives up."""
    held = resources(Options(pool_min_size=3, command_timeout=1.0))
    proxy.mode = "refuse"
    with pytest.raises(utils.OperationalError):
        await fetch_one(held)
    proxy.mode = "blackhole"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fetch_one(held)
    proxy.mode = "pass"
    assert await asyncio.gather(*(fetch_one(held) for _ in range(5))) == [1] * 5
    assert held.pool.get_size() >= 3
    await close_pools()


async def test_a_committed_block_says_so_whatever_becomes_of_its_session(
    proxy: Proxy, held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line dies just then: it can't be reset, and others that lead nowhere aren't used any more."""
    reset = transaction_module._reset

    async def strand_and_reset(*args: Any, **kwargs: Any) -> None:
        proxy.strand()
        await reset(*args, **kwargs)

    monkeypatch.setattr(transaction_module, "RESET_TIMEOUT", 0.2)
    monkeypatch.setattr(transaction_module, "_reset", strand_and_reset)
    stranded = await pids(held, 10)
    async with aiotasks.transaction() as connection:
        await connection.execute("SELECT 1")
    async with asyncio.timeout(5):
        assert not await pids(held, 10) & stranded
