"""Runs that restart the database, or cut connections to it."""

import bisect
import signal
import time
from collections.abc import Sequence
from random import Random

from tests.faults.away import LISTENERS
from tests.worker import tasks as bodies
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["listener", "restart", "terminate", "unflushed"]

_POOL = 10  # connections: POOL_MAX_SIZE, and as many tasks of the loop lane

_OURS = "datname = current_database() AND application_name = 'aiotasks'"
_FINISHING = f"{_OURS} AND state = 'active' AND query LIKE '%%SELECT held.ctid AS place, outcome.%%'"

# LIMIT inside: one session is chosen, and only that one ended.
_CUT = """
    SELECT pg_terminate_backend(pid) AS ended
    FROM (SELECT pid FROM pg_stat_activity WHERE {where} ORDER BY random() LIMIT 1) AS session
"""

# Finishes that take long enough to be hit in the middle.
_SLOW_FINISHES = """
    CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(0.005);
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow_finish BEFORE UPDATE ON aiotasks_task FOR EACH ROW
    WHEN (NEW.status IN ('SUCCESSFUL', 'FAILED')) EXECUTE FUNCTION take_time();
"""
_FAST_FINISHES = "DROP FUNCTION take_time CASCADE"


def restart(arena: Arena, rng: Random, report: Report, *, tasks: int, restarts: int) -> None:
    """``pg_ctl restart -m immediate`` at random points of the progress."""
    report.load = f"{tasks} tasks of 0.2 s, 2 workers, {restarts} restarts"
    options = {"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 1, "COMMAND_TIMEOUT": 5}
    # One slot in five is a thread, as one task in five is sync: both lanes are busy to the end.
    workers = arena.fleet(2, "--concurrency", "8", "--threads", "2", options=options)
    ids = arena.enqueue_work(rng, tasks, (0.2, 0.2))
    began = time.time()
    calm = max(300, tasks // 10)  # for some seconds, in which the full rate is measured
    share = (tasks * 0.95 - calm) / restarts
    back: list[float] = []
    for number in range(restarts):
        point = calm + int((number + rng.uniform(0.0, 0.4)) * share)
        if not arena.wait_until_finished(point):
            break
        if not back:
            calm_until = time.time()
        arena.restart()
        back.append(time.time())
    arena.wait_until_finished(tasks)
    judged = arena.judge(ids)
    ends = [
        float(row.at)
        for row in arena.ledger.rows(
            "SELECT extract(epoch FROM at) AS at FROM ledger WHERE event = 'end' ORDER BY at"
        )
    ]
    full = _count(ends, began + 1.0, calm_until) / (calm_until - began - 1.0)
    recovered = [_full_rate_after(ends, at, full) for at in back]
    alive = sum(worker.is_alive() for worker in workers)
    codes = arena.stop(workers)
    report.figure(
        lost=judged.lost,
        repeats=judged.repeats,
        overwrites=judged.overwrites,
        crashes_counted=judged.crashes,
        full_rate_per_s=full,
        rate_is_back_within_s=max(recovered),
        workers_alive=alive,
    )
    report.expect(len(back) == restarts, f"{len(back)} restarts")
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(alive == 2 and codes == [0, 0], f"{alive} workers alive, exit codes {codes}")
    report.expect(max(recovered) <= 5, f"full rate after {max(recovered):.2f} s")


def _count(moments: Sequence[float], since: float, until: float) -> int:
    return bisect.bisect_left(moments, until) - bisect.bisect_left(moments, since)


def _full_rate_after(ends: Sequence[float], at: float, full: float) -> float:
    """Seconds from ``at`` to the first second with four fifths of the full rate (its noise is a tenth)."""
    for moment in ends[bisect.bisect_left(ends, at) :]:
        if _count(ends, moment, moment + 1.0) >= 0.8 * full:
            return moment - at
    return float("inf")


def unflushed(arena: Arena, rng: Random, report: Report, *, crashes: int) -> None:
    """The server is killed between a claim and the flush of its commit. Another worker claims the row,
    and the first, which has run it, comes back.

    The claim's worker and the other are held by SIGSTOP, so that no other commit flushes the claim's.
    """
    report.load = f"2 workers of 1 slot, {crashes} crashes with wal_writer_delay 10 s"
    options = {"LEASE_TIMEOUT": 15, "POLL_INTERVAL": 1}
    arena.database.rows("ALTER SYSTEM SET wal_writer_delay = '10s'")
    try:
        arena.server.restart("fast")
        workers = arena.fleet(2, "--concurrency", "1", "--threads", "1", options=options)
        ids: list[str] = []
        claims_lost = 0
        for _ in range(4 * crashes):
            if claims_lost == crashes:
                break
            first, second = rng.sample(workers, 2)
            second.send(signal.SIGSTOP)
            (id,) = arena.enqueue(bodies.work, [(0.7,)])
            ids.append(id)
            wait_until(lambda id=id: arena.ledger.events("start", id) >= 1, TIMEOUT)
            first.send(signal.SIGSTOP)
            arena.restart()
            is_lost = arena.database.value("SELECT claim_id IS NULL FROM aiotasks_task WHERE id = %s", id)
            if not is_lost:  # a renewal came in between
                first.send(signal.SIGCONT)
                second.send(signal.SIGCONT)
                wait_until(lambda: arena.finished() == len(ids), TIMEOUT)
                continue
            claims_lost += 1
            second.send(signal.SIGCONT)
            wait_until(lambda id=id: arena.ledger.events("start", id) >= 2, TIMEOUT)
            if rng.random() < 0.5:  # else it comes back while the other is still running
                wait_until(lambda: arena.finished() == len(ids), TIMEOUT)
            first.send(signal.SIGCONT)
            wait_until(lambda id=id: arena.ledger.events("end", id) >= 2, TIMEOUT)
            wait_until(lambda: arena.finished() == len(ids), TIMEOUT)
        codes = arena.stop(workers)  # whatever is late has been tried by now
    finally:
        arena.database.rows("ALTER SYSTEM RESET wal_writer_delay")
        arena.server.restart("fast")
    judged = arena.judge(ids)
    report.figure(
        claims_lost=claims_lost,
        late_ends=judged.late,
        fenced=arena.said("Result rejected (fenced)"),
        overwrites=judged.overwrites,
        lost=judged.lost,
    )
    report.expect(claims_lost == crashes, f"only {claims_lost} claims were lost")
    report.expect(judged.late == claims_lost, f"{judged.late} late ends of {claims_lost} lost claims")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(codes == [0, 0], f"exit codes {codes}")


def terminate(arena: Arena, rng: Random, report: Report, *, cuts: int) -> None:
    """``pg_terminate_backend`` of one of the workers' connections, every other in the middle of a finish."""
    report.load = f"2 workers, {cuts} cuts"
    options = {"LEASE_TIMEOUT": 5, "POLL_INTERVAL": 1, "COMMAND_TIMEOUT": 5}
    workers = arena.fleet(2, "--concurrency", str(_POOL), "--threads", "4", options=options)
    ids: list[str] = []
    in_finish = 0

    def finished() -> int:
        """Keep the workers busy; returns how many tasks are finished."""
        number = arena.finished()
        if len(ids) - number < 100:
            ids.extend(arena.enqueue_work(rng, 300, (0.0, 0.05)))
        return number

    def cut(where: str) -> bool:
        """End one session for which ``where`` holds, by the statement that finds it; False if none is."""
        finished()
        return any(row.ended for row in arena.database.rows(_CUT.format(where=where)))

    arena.database.rows(_SLOW_FINISHES)
    try:
        for number in range(cuts):
            time.sleep(rng.uniform(0.01, 0.1))  # load
            if number % 2 == 0:
                wait_until(lambda: cut(_OURS), TIMEOUT)
                continue
            wait_until(lambda: cut(_FINISHING), TIMEOUT)
            in_finish += 1
            # After each failure in a row a worker waits longer, and its batch has grown meanwhile: without a
            # success in between, all the cuts would meet the same few finishes.
            before = finished()
            wait_until(lambda before=before: finished() > before, TIMEOUT)
    finally:
        arena.database.rows(_FAST_FINISHES)
    arena.wait_until_finished(len(ids))
    # The pools are whole: tasks have all connections of both at once, and the last are few.
    judged = arena.judge(ids)
    felt = arena.said("Outage began: outcomes wait for the database")
    held = _most_held(arena, 2 * _POOL)
    backends = int(arena.database.value(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS}"))
    listeners = len(wait_until(lambda: arena.database.rows(LISTENERS)))
    alive = sum(worker.is_alive() for worker in workers)
    codes = arena.stop(workers)
    wait_until(lambda: arena.database.value(f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS}") == 0)
    most = 2 * (_POOL + 1 + 2)  # pool, listener, heartbeat with one that it has given up
    report.figure(
        tasks=len(ids),
        in_mid_finish=in_finish,
        outages_felt_by_finishes=felt,
        lost=judged.lost,
        repeats=judged.repeats,
        overwrites=judged.overwrites,
        in_use_at_once=f"{held} of {2 * _POOL}",
        backends_afterwards=f"{backends} of at most {most}",
        listeners=listeners,
        workers_alive=alive,
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    # Some cuts share an outage: two in a row may meet the same worker.
    report.expect(felt > cuts // 5, f"only {felt} outages of finishes after {in_finish} cuts")
    report.expect(held == 2 * _POOL, f"{held} connections of the pools could be used at once")
    report.expect(backends <= most and listeners == 2, f"{backends} backends, {listeners} listeners")
    report.expect(alive == 2 and codes == [0, 0], f"{alive} workers alive, exit codes {codes}")


def _most_held(arena: Arena, count: int) -> int:
    """How many connections were in use at once while so many tasks wanted one each."""
    end = time.monotonic() + TIMEOUT
    finished = arena.finished() + count
    arena.enqueue(bodies.hold_connection, [(2.0,)] * count)
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND state = 'idle in transaction'"
    most = 0
    while arena.finished() < finished and time.monotonic() < end:
        most = max(most, int(arena.database.value(query)))
        time.sleep(0.02)
    return most


def listener(arena: Arena, rng: Random, report: Report, *, cuts: int) -> None:
    """The connection that LISTENs is cut, alone; what is enqueued around that starts soon all the same."""
    poll = 2.0
    report.load = f"1 worker, {cuts} cuts, poll {poll:g} s"
    (worker,) = arena.fleet(1, "--concurrency", "10", "--threads", "1", options={"POLL_INTERVAL": poll})
    ids: list[str] = []
    enqueued: dict[str, float] = {}
    back: list[float] = []
    for _ in range(cuts):
        ((pid,),) = wait_until(lambda: arena.database.rows(LISTENERS))
        cut = time.monotonic()
        arena.database.rows("SELECT pg_terminate_backend(%s)", pid)
        time.sleep(rng.uniform(0.0, 0.05))  # load: while it reconnects, or just after
        at = time.time()
        (id,) = arena.enqueue(bodies.work, [(0.0,)])
        ids.append(id)
        enqueued[id] = at
        wait_until(lambda pid=pid: [row.pid for row in arena.database.rows(LISTENERS) if row.pid != pid])
        back.append(time.monotonic() - cut)
        arena.wait_until_finished(len(ids))
        time.sleep(rng.uniform(0.0, 0.3))  # load: anywhere between two polls
    judged = arena.judge(ids)
    started = {
        str(row.task_id): float(row.at)
        for row in arena.ledger.rows(
            "SELECT task_id, extract(epoch FROM at) AS at FROM ledger WHERE event = 'start'"
        )
    }
    latency = max(started.get(id, float("inf")) - at for id, at in enqueued.items())
    codes = arena.stop([worker])
    report.figure(
        lost=judged.lost,
        longest_latency_s=latency,
        latency_limit_s=poll + 0.5,
        LISTEN_back_within_s=max(back),
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(latency <= poll + 0.5, f"a latency of {latency:.2f} s")
    report.expect(max(back) <= 15, f"LISTEN back after {max(back):.2f} s")
    report.expect(codes == [0], f"exit codes {codes}")
