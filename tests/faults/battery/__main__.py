"""The command line: which runs, how large, from which seed; then the table."""

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.worker.settings"
django.setup()

from .arena import Arena  # noqa: E402  # its tasks need the settings
from .report import Report, table  # noqa: E402
from .runs import RUNS, Run  # noqa: E402


def main() -> int:
    names = [run.name for run in RUNS]
    parser = argparse.ArgumentParser(prog="python -m tests.faults.battery", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="all runs, but small")
    parser.add_argument("--seed", type=int, default=1, help="which random moments (default: 1)")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(names)}")
    parser.add_argument("--logs", type=Path, help="a folder that keeps what the workers have said")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no run is called {', '.join(sorted(unknown))}")
    # As Ctrl-C does: servers and workers go with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # asyncpg has the loop log a connection that was cut under a caller that has been cancelled.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        logs = options.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        with Arena(logs) as arena:
            reports = [
                _report(arena, run, options.seed, quick=options.quick) for run in RUNS if run.name in wanted
            ]
    print(table(reports))
    return 0 if all(report.passed for report in reports) else 1


def _report(arena: Arena, run: Run, seed: int, *, quick: bool) -> Report:
    report = Report(run.name, seed, run.passes_when)
    arena.clean()
    began = time.monotonic()
    try:
        run.function(arena, random.Random(f"{seed} {run.name}"), report, **(run.quick if quick else run.long))
    except Exception as error:
        traceback.print_exc()
        report.failures.append(f"{type(error).__name__}: {error}")
    arena.kill_all()
    report.seconds = time.monotonic() - began
    print(" | ".join(report.row().values()), flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
