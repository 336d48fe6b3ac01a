"""Measure tasks with limits: what drains by the statements alone reach of drains without limits, what claims
cost by the server's own EXPLAIN ANALYZE, and how long tasks with room wait behind others whose keys are full.

``python -m benchmarks.limits [--quick]``. Figures of different runs or machines don't compare.
"""

import argparse
import os
import signal
import subprocess
import sys
from functools import partial
from uuid import UUID, uuid4

import asyncpg

from aiotasks.db.connect import connect
from aiotasks.demo.postgres import PostgresServer
from aiotasks.rows import LaneRequest
from aiotasks.store.limits import KeyRequest, LimitRule
from aiotasks.store.store import Store

from ..contenders.aiotasks.support import TIMEOUT, aiotasks_worker, connection
from ..contenders.common import run
from ..contenders.site import insert_rows, set_up
from ..run import SERVER_SETTINGS
from .drains import CASES, EVER, enter_worker, shares
from .explain import Cost, Explainer

__all__: list[str] = []

# Slots of each claim.
SLOTS = 100

# Keys of which a claim names so many at the most.
MOST_NAMED = 250


def main() -> int:
    """Do what the command line says; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # not without ending what has been started
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="show that it runs: a hundredth of the rows")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with PostgresServer(settings=SERVER_SETTINGS) as server:
        os.environ["AIOTASKS_BENCH_DSN"] = server.dsn()
        subprocess.run([sys.executable, "-m", "benchmarks.contenders", "aiotasks", "prepare"], check=True)
        set_up()
        for part in options.parts or PARTS:
            PARTS[part](100 if options.quick else 1)
    return 0


def _drains(share: int) -> None:
    _say("| claimed and finished, by one connection | tasks/s | without limits | share | to be |")
    _say("|---|---|---|---|---|")
    for case in CASES:
        keyed, plain, reached = run(shares(case, quick=share > 1))
        _say(f"| {case.name} | {keyed:,.0f} | {plain:,.0f} | {reached:.2f} | {case.wanted} |")
    _say("")


def _claims(share: int) -> None:
    _say("| waiting | statement | ms | buffers |")
    _say("|---|---|---|---|")
    run(_spread(10_000 // share, 1_000 // share))
    run(_spread(1_000_000 // share, 100_000 // share))
    _say("")


def _full(share: int) -> None:
    _say("| waiting | statement | ms | buffers |")
    _say("|---|---|---|---|")
    run(_full_keys(100_000 // share, 1_000 // share))
    _say("")
    _say(run(_behind_full_keys(share)))


# drains: by the statements alone. claims: among up to a million tasks. full: beside keys without room.
PARTS = {"drains": _drains, "claims": _claims, "full": _full}


async def _spread(tasks: int, keys: int) -> None:
    """Tasks of many keys of which each has a place, and as many without limits."""
    async with connection() as opened:
        me = await enter_worker(opened)
        await insert_rows(opened, tasks, key="each", keys=keys)
        await insert_rows(opened, tasks, queue="plain")
        await _make_keys(opened, keys)
        explainer = await _explainer()
        named = [f"each:{number * max(1, keys // SLOTS)}" for number in range(min(SLOTS, keys))]
        what = f"{tasks:,} of {keys:,} keys"
        for number in (1, 10, SLOTS):
            cost = await explainer.cost(partial(_claim, me=me, keys=named[:number], slots=number))
            _row(what, f"claim_keyed of {number}, one a key", cost)
        for number in (1, 10, SLOTS):
            cost = await explainer.cost(partial(_claim_plain, me=me, number=number))
            _row(f"{tasks:,} without limits", f"claim_jobs of {number}", cost)
        walk = await explainer.cost(lambda store: store.list_keys("default", "loop", [("default", "")], 64))
        _row(what, "list_keys of 64", walk)
        top = await explainer.cost(lambda store: store.top_keys("default", "loop", ["default"], 100))
        _row(what, "top_keys of 100 tasks", top)


async def _full_keys(tasks: int, keys: int) -> None:
    """Tasks of keys whose places are taken."""
    async with connection() as opened:
        me = await enter_worker(opened)
        await _fill_keys(opened, me, tasks, keys)
        explainer = await _explainer()
        what = f"{tasks:,} of {keys:,} full keys, and 100 with room"
        for number in (10, 100, MOST_NAMED):
            named = [f"each:{n}" for n in range(min(number, keys))]
            cost = await explainer.cost(partial(_claim, me=me, keys=named, slots=SLOTS))
            _row(what, f"claim_keyed that finds {len(named)} full keys", cost)
        room = [f"each:room {n}" for n in range(SLOTS)]
        cost = await explainer.cost(partial(_claim, me=me, keys=room, slots=SLOTS))
        _row(what, f"claim_keyed of {SLOTS}, one a key", cost)
        everywhere = [("default", "")]
        cost = await explainer.cost(lambda store: store.list_keys("default", "loop", everywhere, 2 * keys))
        _row(what, "list_keys of all", cost)


async def _behind_full_keys(share: int) -> str:
    """How long after a worker's start the tasks with room begin, beside those of full keys."""
    tasks, keys = 100_000 // share, 1_000 // share
    async with connection() as opened:
        me = await enter_worker(opened)
        await _fill_keys(opened, me, tasks, keys)
        with aiotasks_worker() as process:

            async def all_started() -> bool:
                return not await opened.fetchval(
                    """
                    SELECT count(*) FROM aiotasks_task
                    WHERE limit_key LIKE 'each:room %' AND started_at IS NULL
                    """
                )

            await process.until(all_started, TIMEOUT)
            first, last = await opened.fetchrow(
                """
                SELECT
                    extract(epoch FROM min(task.started_at) - min(worker.started_at))::float8,
                    extract(epoch FROM max(task.started_at) - min(worker.started_at))::float8
                FROM aiotasks_task AS task, aiotasks_worker AS worker
                WHERE task.limit_key LIKE 'each:room %' AND worker.id <> $1
                """,
                me,
            )
    return (
        f"A worker starts beside {tasks:,} tasks of {keys:,} full keys: of 100 tasks with room the first "
        f"begins after {first * 1000:,.0f} ms, the last after {last * 1000:,.0f} ms."
    )


async def _fill_keys(opened: asyncpg.Connection, me: UUID, tasks: int, keys: int) -> None:
    """Tasks that wait of so many keys, each with one that runs; and one of each of 100 other keys."""
    await insert_rows(opened, tasks + keys, key="each", keys=keys)
    await opened.execute(
        """
        UPDATE aiotasks_task SET status = 'RUNNING', worker_id = $1, limit_held = limit_key, claim_id = $1
        WHERE id = ANY(ARRAY(SELECT DISTINCT ON (limit_key) id FROM aiotasks_task ORDER BY limit_key, id))
        """,
        me,
    )
    await insert_rows(opened, SLOTS, key="each:room", keys=SLOTS)
    await opened.execute("UPDATE aiotasks_task SET limit_key = replace(limit_key, 'room:', 'room ')")
    await _make_keys(opened, keys)
    await opened.execute(
        """
        INSERT INTO aiotasks_limit (backend, key, claimed_at)
        SELECT 'default', 'each:room ' || n, now() FROM generate_series(0, 99) AS n
        """
    )
    await opened.execute("VACUUM (ANALYZE) aiotasks_task, aiotasks_limit", timeout=TIMEOUT)


async def _make_keys(opened: asyncpg.Connection, keys: int) -> None:
    await opened.execute(
        """
        INSERT INTO aiotasks_limit (backend, key, claimed_at)
        SELECT 'default', 'each:' || n, now() FROM generate_series(0, $1::integer - 1) AS n
        """,
        keys,
    )
    await opened.execute("VACUUM (ANALYZE) aiotasks_task, aiotasks_limit", timeout=TIMEOUT)


async def _explainer() -> Explainer:
    """One with a new connection, as a worker's: plans must not be those of an emptier table."""
    return Explainer(await connect("default", timeout=600.0, statement_cache_size=0))


async def _claim(store: Store, *, me: UUID, keys: list[str], slots: int) -> object:
    requests = [KeyRequest("default", key) for key in keys]
    return await store.claim_keyed(
        me, uuid4(), "default", "loop", slots, requests, [LimitRule("each", concurrency=1)]
    )


async def _claim_plain(store: Store, *, me: UUID, number: int) -> object:
    loop = LaneRequest(["plain"], [EVER], number)
    return await store.claim_jobs(me, uuid4(), "default", loop=loop, thread=LaneRequest([], [], 0))


def _row(waiting: str, statement: str, cost: Cost) -> None:
    _say(f"| {waiting} | {statement} | {cost.ms:.2f} | {cost.buffers:,} |")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
