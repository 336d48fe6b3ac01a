"""Runs that kill, stop and end the workers."""

import signal
import subprocess
import time
from random import Random

from tests.worker import tasks as bodies
from tests.worker.harness import wait_until

from .arena import TIMEOUT, Arena, Recoveries
from .report import Report

__all__ = ["kill", "pause", "poison", "sigterm"]

LEASE = 2.0
SWEEP = LEASE / 6


def kill(arena: Arena, rng: Random, report: Report, *, tasks: int, kills: int) -> None:
    """kill -9 at random points of the progress; three workers, each replaced at once."""
    report.load = f"{tasks} tasks, 3 workers, {kills} kills, lease {LEASE:g} s"
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 100}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    ids = arena.enqueue_work(rng, tasks, (0.0, 0.2))
    recoveries = Recoveries(arena)
    in_flight = hits = 0
    for point in sorted(rng.sample(range(tasks * 9 // 10), kills)):
        if not recoveries.watch(lambda point=point: arena.finished() >= point):
            break  # what is missing is counted as lost
        # So that there is always somebody to recover what is lost.
        recoveries.watch(lambda: all("connections: at most" in worker.log for worker in workers))
        if len(ids) - arena.finished() < 200:  # they went on while the last victim was replaced
            ids += arena.enqueue_work(rng, 200, (0.0, 0.2))
        victim = rng.choice(workers)
        recoveries.watch(lambda victim=victim: arena.running(arena.worker_ids(victim)) > 0)
        mine = arena.worker_ids(victim)
        arena.kill(victim)
        recoveries.lost(mine)
        hit = arena.running(mine)
        hits += hit > 0
        in_flight += hit
        workers[workers.index(victim)] = arena.start(*arguments, options=options)
    recoveries.watch(lambda: arena.finished() >= len(ids) and recoveries.all_over())
    judged = arena.judge(ids)
    limit = LEASE + SWEEP + 1
    report.figure(
        tasks=len(ids),
        lost=judged.lost,
        repeats=judged.repeats,
        kills_that_hit=hits,
        in_flight=in_flight,
        crashes_counted=judged.crashes,
        overwrites=judged.overwrites,
        recovered_within_s=recoveries.longest,
        limit_s=limit,
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(hits >= 0.8 * kills, f"something was in flight at {hits} of {kills} kills")
    report.expect(judged.repeats <= in_flight, f"{judged.repeats} repeats of {in_flight} in flight")
    report.expect(
        recoveries.all_over() and recoveries.longest <= limit, f"recovered after {recoveries.longest:.2f} s"
    )


def pause(arena: Arena, rng: Random, report: Report, *, pauses: int) -> None:
    """SIGSTOP for more than two leases, while others take over; then SIGCONT."""
    lease = 1.0
    report.load = f"3 workers, {pauses} pauses of more than 2 leases of {lease:g} s"
    options = {"LEASE_TIMEOUT": lease, "POLL_INTERVAL": 1, "MAX_CRASHES": 1000}
    workers = arena.fleet(3, "--concurrency", "6", "--threads", "6", options=options)
    ids: list[str] = []
    taken = 0
    for _ in range(pauses):
        if len(ids) - arena.finished() < 200:
            ids += arena.enqueue_work(rng, 200, (0.1, 1.0))
        zombie = rng.choice(workers)
        wait_until(lambda zombie=zombie: arena.running(arena.worker_ids(zombie)) > 0, TIMEOUT)
        time.sleep(rng.uniform(0.0, 0.2))  # load: anywhere in a task, a claim or a finish
        mine = arena.worker_ids(zombie)
        zombie.send(signal.SIGSTOP)
        stopped = time.monotonic()
        held = arena.running(mine)
        taken += held
        wait_until(lambda mine=mine: arena.running(mine) == 0, TIMEOUT)
        time.sleep(max(0.0, stopped + rng.uniform(2.1, 2.6) * lease - time.monotonic()))
        zombie.send(signal.SIGCONT)
        wait_until(lambda zombie=zombie, mine=mine: arena.worker_ids(zombie) - mine, TIMEOUT)
    arena.wait_until_finished(len(ids))
    judged = arena.judge(ids)
    codes = arena.stop(workers)
    report.figure(
        tasks=len(ids),
        taken_over=taken,
        late_ends=judged.late,
        fenced=arena.said("Result rejected (fenced)"),
        repeats=judged.repeats,
        overwrites=judged.overwrites,
        lost=judged.lost,
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(judged.late > 0, "no run came to its end too late")
    report.expect(judged.repeats <= taken, f"{judged.repeats} repeats of {taken} taken over")
    report.expect(codes == [0, 0, 0], f"exit codes {codes}")


def poison(arena: Arena, rng: Random, report: Report, *, tasks: int, killers: int) -> None:
    """Tasks that SIGKILL their worker, among others; the workers are replaced."""
    report.load = f"{killers} killers among {tasks} tasks, 3 workers"
    options = {"LEASE_TIMEOUT": 1, "POLL_INTERVAL": 1}
    arguments = ("--concurrency", "10", "--threads", "2")
    places = set(rng.sample(range(tasks), killers))
    bad: list[str] = []
    good: list[str] = []
    for number in range(tasks):  # one by one, as their order is the queue's
        if number in places:
            bad += arena.enqueue(bodies.kill_worker, [()])
        else:
            good += arena.enqueue(bodies.work, [(round(rng.uniform(0.0, 0.05), 3),)])
    workers = [arena.start(*arguments, options=options) for _ in range(3)]  # ready or dead soon
    deaths = 0
    end = time.monotonic() + 2 * TIMEOUT
    while arena.finished() < tasks and time.monotonic() < end:
        for number, worker in enumerate(workers):
            if not worker.is_alive():
                deaths += 1
                workers[number] = arena.start(*arguments, options=options)
        time.sleep(0.05)
    judged = arena.judge(good)
    failed = (
        "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s::uuid[]) AND status = 'FAILED' AND crashes = 3"
    )
    after_three = int(arena.database.value(failed, bad))
    started = "SELECT count(*) FROM ledger WHERE event = 'start' AND task_id = ANY(%s::uuid[])"
    executions = int(arena.ledger.value(started, bad))
    report.figure(
        killers_failed_after_3_crashes=after_three,
        their_runs=executions,
        others_succeeded=len(good) - judged.lost,
        others_repeated=judged.repeats - (executions - killers),
        worker_deaths=deaths,
        overwrites=judged.overwrites,
    )
    report.expect(after_three == killers, f"{after_three} of {killers} killers FAILED after 3 crashes")
    report.expect(executions <= 3 * killers, f"{executions} runs of {killers} killers")
    report.expect(judged.lost == 0, f"{judged.lost} others didn't succeed")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")


def sigterm(arena: Arena, rng: Random, report: Report, *, signals: int) -> None:
    """SIGTERM to one of two workers at a random moment under load; some tasks outlast the grace."""
    grace = 0.5
    report.load = f"{signals} SIGTERMs, 2 workers at a time, grace {grace:g} s"
    options = {"LEASE_TIMEOUT": 10, "POLL_INTERVAL": 1}
    arguments = ("--grace", str(grace), "--concurrency", "20", "--threads", "5")
    ids: list[str] = []
    slow = arena.enqueue(bodies.work, [(60.0,)] * 6) + arena.enqueue(bodies.work_sync, [(60.0,)] * 2)
    workers = arena.fleet(2, *arguments, options=options)
    longest = 0.0
    running = codes = 0
    for _ in range(signals):
        if len(ids) + len(slow) - arena.finished() < 300:
            ids += arena.enqueue_work(rng, 500, (0.0, 0.1))
        worker = workers.pop(0)
        worker.wait_for("connections: at most", TIMEOUT)
        workers.append(arena.start(*arguments, options=options))
        wait_until(lambda worker=worker: arena.running(arena.worker_ids(worker)) > 0, TIMEOUT)
        time.sleep(rng.uniform(0.0, 0.2))  # load
        mine = arena.worker_ids(worker)
        began = time.monotonic()
        worker.send(signal.SIGTERM)
        try:
            codes += worker.wait(30) != 0
        except subprocess.TimeoutExpired:
            codes += 1
        longest = max(longest, time.monotonic() - began)
        running += arena.running(mine)
    arena.stop(workers)
    spent = int(
        arena.database.value(
            "SELECT count(*) FROM aiotasks_task WHERE crashes > 0"
            " OR cardinality(worker_ids) <> CASE status WHEN 'SUCCESSFUL' THEN 1 ELSE 0 END"
        )
    )
    done = int(arena.database.value("SELECT count(*) FROM aiotasks_task WHERE status = 'SUCCESSFUL'"))
    limit = grace + 2
    report.figure(
        tasks=len(ids) + len(slow),
        successful=done,
        exits_other_than_0=codes,
        longest_exit_s=longest,
        limit_s=limit,
        left_RUNNING=running,
        attempts_spent=spent,
    )
    report.expect(codes == 0, f"{codes} exits other than 0")
    report.expect(longest <= limit, f"an exit took {longest:.2f} s")
    report.expect(running == 0, f"{running} left RUNNING")
    report.expect(spent == 0, f"{spent} attempts spent")
