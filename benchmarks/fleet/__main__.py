"""Measure fleets of workers: what a task costs them, how long it waits, and what faults do to both.

idle: nothing to do. trickle: tasks one by one. burst: 600 at once over 20 workers. faults: workers that
are killed, stopped, full, or without slots in the lane. drain: 40,000 no-ops by few and by many workers.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from . import cases
from .processes import OPTIONS, Enqueuers, Fleet
from .server import WORKERS, MeasuredServer

__all__: list[str] = []

# Workers of the bursts, and of the cases of faults.
BURST_WORKERS = 20
FAULT_RATE = 50.0

# Options of the workers that have no slots for sync tasks, and of the others there.
WITHOUT_THREADS = ("--concurrency", "10", "--threads", "0")
WITH_THREADS = ("--concurrency", "10", "--threads", "10")

QUICK = {
    "workers": [2],
    "rates": [20],
    "enqueuers": [2],
    "seconds": 0.5,
    "fault_workers": [2],
    "drains": "2x4",
    "drain_tasks": 400,
    "drain_rounds": 1,
}

PARTS = ("idle", "trickle", "burst", "faults", "drain")


class Table:
    """A table in Markdown. Its rows are shown on stderr as they come."""

    def __init__(self, title: str, *columns: str) -> None:
        self._title, self._columns = title, columns
        self._rows: list[list[str]] = []

    def add(self, *cells: object, figures: cases.Figures) -> None:
        self._header = [*self._columns, *figures]
        shown = [number if isinstance(number, str) else f"{number:,.3g}" for number in figures.values()]
        self._rows.append([*map(str, cells), *shown])
        print(self._title, dict(zip(self._header, self._rows[-1], strict=True)), file=sys.stderr, flush=True)

    def show(self) -> None:
        """Print the table, if it has rows."""
        if self._rows:
            lines = [self._header, ["---"] * len(self._header), *self._rows]
            print(
                f"\n**{self._title}**\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n", flush=True
            )


def main() -> None:
    """Do what the command line says."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # not without ending what has been started
    options = _options()
    with tempfile.TemporaryDirectory() as name, MeasuredServer() as server:
        directory = Path(name)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.contenders", "aiotasks", "prepare"],
            env={**os.environ, "AIOTASKS_BENCH_DSN": server.dsn(WORKERS)},
            check=True,
        )
        with Enqueuers(server, max(options.enqueuers)) as enqueuers:
            if {"idle", "trickle", "burst"} & {*options.parts}:
                _growing_fleet(server, enqueuers, directory, options)
            if "faults" in options.parts:
                for number in options.fault_workers:
                    _faults(server, enqueuers, directory, number, options.seconds)
        if "drain" in options.parts:
            _drains(server, directory, options)


def _options() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    add("--workers", type=numbers, default=[1, 5, 20, 50], metavar="N,…", help="(1,5,20,50)")
    add("--rates", type=numbers, default=[5, 50, 200], metavar="N,…", help="tasks a second (5,50,200)")
    add("--enqueuers", type=numbers, default=[1, 10], metavar="N,…", help="enqueuing processes (1,10)")
    add("--seconds", type=float, default=8.0, metavar="S", help="of each case (8)")
    add("--fault-workers", type=numbers, default=[5, 20], metavar="N,…", help="workers under faults (5,20)")
    add("--drains", default="1x4,50x4,1x200", metavar="WORKERSxSLOTS,…", help="(1x4,50x4,1x200)")
    add("--drain-tasks", type=int, default=40_000, metavar="N", help="(40000)")
    add("--drain-rounds", type=int, default=3, metavar="N", help="of each drain (3)")
    add("--quick", action="store_true", help="show that it runs: two workers, a few tasks")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    options.parts = options.parts or list(PARTS)
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _growing_fleet(
    server: MeasuredServer, enqueuers: Enqueuers, directory: Path, options: argparse.Namespace
) -> None:
    """Idle workers, to which more are added from row to row."""
    idle = Table("Idle, a second", "workers")
    trickle = Table("Tasks one by one", "workers", "tasks/s", "processes")
    burst = Table("600 tasks at once from one process", "workers", "each sleeps s")
    with Fleet(server, directory) as fleet:
        for number in sorted({*options.workers, *([BURST_WORKERS] if "burst" in options.parts else [])}):
            fleet.grow(number)
            if number in options.workers:
                if "idle" in options.parts:
                    idle.add(number, figures=cases.idle(server, fleet, options.seconds))
                for rate, processes in _cells(options):
                    figures = cases.trickle(
                        server, fleet, enqueuers, rate=rate, processes=processes, seconds=options.seconds
                    )
                    trickle.add(number, rate, processes, figures=figures)
            if number == BURST_WORKERS and "burst" in options.parts:
                for sleep in (0.0, cases.BURST_SLEEP):
                    burst.add(number, sleep, figures=cases.burst(server, enqueuers, sleep=sleep))
    for table in (idle, trickle, burst):
        table.show()


def _cells(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    if "trickle" in options.parts:
        yield from ((rate, processes) for processes in options.enqueuers for rate in options.rates)


def _faults(
    server: MeasuredServer, enqueuers: Enqueuers, directory: Path, number: int, seconds: float
) -> None:
    table = Table(f"{number} workers, {FAULT_RATE:g} tasks/s from one process", "workers that")
    chosen = random.Random(number)

    def measure(label: str, happen: Callable[[], None] | None = None, task: str = "now") -> None:
        figures = cases.fault(server, enqueuers, rate=FAULT_RATE, seconds=seconds, happen=happen, task=task)
        table.add(label, figures=figures)

    with Fleet(server, directory) as fleet:
        fleet.grow(number)
        measure("are all there")
        measure("are stopped for 1 s, one after another", lambda: cases.stopped(fleet, chosen))
        for label, full in (("are full: half", number // 2), ("are full: all but one", number - 1)):
            already = 0 if full == number // 2 else number // 2
            cases.fill(server, enqueuers, fleet.workers[already:full], fleet.workers[full:])
            measure(label)
    with Fleet(server, directory) as fleet:
        fleet.grow(number)
        measure("are killed, one after another", lambda: cases.killed(fleet, chosen))
    with Fleet(server, directory) as fleet:
        fleet.grow(number // 2, WITHOUT_THREADS)
        fleet.grow(number, WITH_THREADS)
        measure("have no thread: half; sync tasks", task="sync_now")
    table.show()


def _drains(server: MeasuredServer, directory: Path, options: argparse.Namespace) -> None:
    table = Table(f"{options.drain_tasks:,} no-ops", "workers", "slots of each")
    for name in options.drains.split(","):
        workers, slots = map(int, name.split("x"))
        with Fleet(server, directory) as fleet:
            fleet.grow(workers, ("--concurrency", str(slots), *OPTIONS[2:]))
            for _ in range(options.drain_rounds):
                figures = cases.drain(server, fleet, options.drain_tasks)
                table.add(workers, slots, figures=figures)
    table.show()


if __name__ == "__main__":
    main()
