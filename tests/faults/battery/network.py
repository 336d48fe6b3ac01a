"""The run that breaks the line between a worker and its database."""

import signal
import subprocess
import time
from random import Random
from typing import Literal

from tests.proxy import Mode, Proxy
from tests.worker.harness import Process, wait_until

from .arena import TIMEOUT, Arena
from .report import Report

__all__ = ["proxy"]

FAULTS: tuple[Mode | Literal["half-open"], ...] = ("blackhole", "half-open", "mute", "delay")
GRACE = 1.0


def proxy(arena: Arena, rng: Random, report: Report, *, episodes: int) -> None:
    """One worker behind the proxy, one not, which takes over what the lease of the other has lost.

    Every third episode ends the worker behind the proxy with SIGTERM while its line is broken.
    """
    lease = 4.0
    report.load = f"{episodes} episodes, 2 workers, one behind the proxy, lease {lease:g} s"
    options = {"LEASE_TIMEOUT": lease, "POLL_INTERVAL": 1, "COMMAND_TIMEOUT": 2, "MAX_CRASHES": 1000}
    arguments = ("--grace", str(GRACE), "--concurrency", "5", "--threads", "3")
    faults = [FAULTS[number % len(FAULTS)] for number in range(episodes)]
    rng.shuffle(faults)
    ids: list[str] = []
    exits: list[float] = []
    wedges: list[float] = []
    codes = []
    felt = 0
    with Proxy(arena.server.host, arena.server.port, delay=0.25) as line:
        behind = {"AIOTASKS_DB_PORT": str(line.port)}
        (direct,) = arena.fleet(1, *arguments, options=options)
        (worker,) = arena.fleet(1, *arguments, options=options, env=behind)
        for number, fault in enumerate(faults):
            if len(ids) - arena.finished() < 400:
                ids += arena.enqueue_work(rng, 800, (0.05, 0.3))
            wait_until(lambda worker=worker: _ended(arena, worker) > 0, TIMEOUT)
            hampered = line.hampered
            if fault == "half-open":
                line.strand()
            else:
                line.mode = fault
            time.sleep(rng.uniform(0.2, 1.5 * lease))  # load: shorter and longer than the lease
            if number % 3 == 2:
                took, code = _end(worker)
                exits.append(took)
                codes.append(code)
                line.mode = "pass"
                (worker,) = arena.fleet(1, *arguments, options=options, env=behind)
            else:
                line.mode = "pass"
            felt += line.hampered > hampered
            healed = time.monotonic()
            before = _accepted(arena, worker)
            wait_until(lambda worker=worker, before=before: _accepted(arena, worker) > before, TIMEOUT)
            wedges.append(time.monotonic() - healed)
        arena.wait_until_finished(len(ids))
        judged = arena.judge(ids)
        codes += arena.stop([direct, worker])
    limit = GRACE + 2
    report.figure(
        tasks=len(ids),
        episodes_felt=felt,
        lost=judged.lost,
        repeats=judged.repeats,
        overwrites=judged.overwrites,
        late_ends=judged.late,
        at_work_again_within_s=max(wedges),
        longest_shutdown_s=max(exits),
        limit_s=limit,
    )
    report.expect(felt == episodes, f"only {felt} episodes swallowed or held up anything")
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    # A statement that hangs is given up, then the lease is renewed or another one taken.
    report.expect(max(wedges) <= 2 * lease, f"at work again after {max(wedges):.2f} s")
    report.expect(max(exits) <= limit, f"a shutdown took {max(exits):.2f} s")
    report.expect(not any(codes), f"exit codes {codes}")


def _end(worker: Process) -> tuple[float, int | None]:
    """SIGTERM; how long it took to leave, and the exit code."""
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    try:
        code: int | None = worker.wait(30)
    except subprocess.TimeoutExpired:
        code = None
    return time.monotonic() - began, code


def _ended(arena: Arena, worker: Process) -> int:
    query = "SELECT count(*) FROM ledger WHERE event = 'end' AND pid = %s"
    return int(arena.ledger.value(query, worker.pid))


def _accepted(arena: Arena, worker: Process) -> int:
    """How many results of the worker's the table has."""
    query = "SELECT count(*) FROM aiotasks_task WHERE status = 'SUCCESSFUL' AND return_value::text = %s"
    return int(arena.database.value(query, str(worker.pid)))
