"""Run workloads on whatever is installed, and show how aiotasks compares.

Each is run in rounds, by every contender in turn, on a PostgreSQL that is started for it, with fsync and
synchronous_commit on. Figures of different runs or machines don't compare: the ratios of one run do.
Results go to benchmarks/results/, unless the run was too short to quote: fewer tasks, or fewer rounds.
"""

import argparse
import signal
import sys
from collections.abc import Mapping
from types import ModuleType

from aiotasks.demo.postgres import PostgresServer

from . import contenders, plot
from .results import Result
from .run import SERVER_SETTINGS, Databases, Entry, measure
from .workloads import WORKLOADS, Workload

__all__: list[str] = []

# Rounds of a run whose ratios may be quoted.
PAIRS = 7


def main() -> int:
    """Do what the command line says; returns the exit code: 1 if any measurement has failed."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # not without ending what has been started
    options = _options()
    modules = _installed(options.only)
    tables: list[str] = []
    has_failed = False
    with PostgresServer(settings=SERVER_SETTINGS) as server:
        databases = Databases(server)
        for name in options.workloads:
            workload = WORKLOADS[name]
            entries = _entries(name, workload, modules, options)
            if not entries:
                continue
            _say(f"{name}: {workload.measures}")
            found = measure(
                workload, entries, databases, pairs=options.pairs, say=lambda line: _say(f"  {line}")
            )
            result = Result(name, workload, entries, found, pairs=options.pairs)
            has_failed |= bool(found.failed)
            tables.append(result.table(with_targets=not options.quick))
            if options.writes:
                versions = {entry.contender: modules[entry.contender].versions() for entry in entries}
                result.write(versions, databases.server_settings())
    _say("\n" + "\n\n".join(tables))
    if options.writes and not options.no_plot:
        plot.write()
    return int(has_failed)


def _options() -> argparse.Namespace:
    names = contenders.names()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} (all)")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help=f"rounds ({PAIRS})")
    parser.add_argument("--only", metavar="CONTENDER,…", help=f"of {', '.join(names)} (all)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="of the numbers of tasks (1)")
    parser.add_argument("--quick", action="store_true", help="show that it runs: a few tasks, one round")
    parser.add_argument("--no-plot", action="store_true", help="leave benchmarks/results/drain.svg as it is")
    options = parser.parse_args()
    options.workloads = options.workloads or list(WORKLOADS)
    options.only = options.only.split(",") if options.only else names
    if unknown := {*options.workloads} - {*WORKLOADS}:
        parser.error(f"no workload is called {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    if unknown := {*options.only} - {*names}:
        parser.error(f"no contender is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.pairs < 1 or options.scale <= 0:
        parser.error("--pairs and --scale must be above 0")
    options.writes = not options.quick and options.scale >= 1.0 and options.pairs >= PAIRS
    options.pairs = 1 if options.quick else options.pairs
    return options


def _installed(names: list[str]) -> dict[str, ModuleType]:
    """Return the contenders that can be measured, and say which can't."""
    modules = {name: contenders.load(name) for name in names}
    for name, module in modules.items():
        if missing := contenders.missing(module):
            _say(f"{name} is left out: {', '.join(missing)} not installed")
    return {name: module for name, module in modules.items() if not contenders.missing(module)}


def _entries(
    name: str, workload: Workload, modules: Mapping[str, ModuleType], options: argparse.Namespace
) -> list[Entry]:
    """Return who takes part, with how many tasks."""

    def entry(label: str, contender: str, asked: str) -> Entry:
        module = modules[contender]
        count = int(getattr(module, "COUNTS", {}).get(name, workload.count) * options.scale)
        staged = asked in getattr(module, "STAGES", {})
        return Entry(
            label, contender, asked, workload.quick if options.quick else max(workload.quick, count), staged
        )

    entries = [entry(label, label, name) for label in modules if name in modules[label].WORKLOADS]
    if workload.baseline is not None and "aiotasks" in modules:
        entries.append(entry(workload.baseline, "aiotasks", workload.baseline))
    return entries


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
