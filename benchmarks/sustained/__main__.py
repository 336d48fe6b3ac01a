"""Enqueue and run tasks at a steady rate, with results that are soon deleted, and see whether anything grows.

One process enqueues no-ops by aenqueue_many in small batches, whether or not the worker follows; one worker
runs them, and deletes their rows. Figures of the run's end are compared with those of its beginning: of 20
minutes, the last with the third. Curves and figures go to benchmarks/results/sustained.svg and .json, unless
the run was too short to quote.
"""

import argparse
import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from aiotasks.demo.postgres import PostgresServer

from ..contenders.aiotasks.support import aiotasks_worker, registered
from ..contenders.common import MeasurementFailed, WorkerProcess
from ..results import RESULTS
from ..run import SERVER_SETTINGS
from . import curves
from .report import findings, write
from .sampler import Sample, Sampler

__all__: list[str] = []

# The run whose results are kept.
RATE, MINUTES, KEEP = 3_000.0, 20.0, 30.0

# Seconds between two looks.
INTERVAL = 5.0

# Seconds for which the first task may take.
START_TIMEOUT = 60.0

# Rows stay for a minute, whatever is asked for.
SHORTEST_KEEP = 60.0

SETTINGS = {**SERVER_SETTINGS, "shared_preload_libraries": "pg_stat_statements"}
SHOWN = ["server_version", "fsync", "synchronous_commit", "full_page_writes", "autovacuum_naptime"]


def main() -> int:
    """Do what the command line says; returns the exit code: 1 if a target was missed."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # not without ending what has been started
    options = _options()
    with PostgresServer(settings=SETTINGS) as server:
        os.environ["AIOTASKS_BENCH_DSN"] = server.dsn()
        os.environ["AIOTASKS_BENCH_KEEP"] = str(options.keep)
        subprocess.run([sys.executable, "-m", "benchmarks.contenders", "aiotasks", "prepare"], check=True)
        try:
            samples, settings = asyncio.run(_measure(server, options))
        except MeasurementFailed as error:
            print(error, file=sys.stderr)
            return 1
    found = findings(samples)
    print("\n".join(map(str, found)))
    if options.output is not None:
        arguments = {name: getattr(options, name) for name in ("rate", "minutes", "keep", "processes")}
        write(options.output, samples, arguments, settings)
        title = f"{options.minutes:g} minutes at {options.rate:,.0f} tasks/s"
        (options.output / "sustained.svg").write_text(curves.draw(samples, title), "utf-8")
    return 0 if options.quick else int(not all(finding.reached for finding in found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sustained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=RATE,
        metavar="N",
        help=f"tasks/s ({RATE:,.0f}); 0: as many as the worker runs",
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help=f"({MINUTES:g})")
    parser.add_argument(
        "--keep", type=float, default=KEEP, metavar="SECONDS", help=f"KEEP_SUCCESSFUL ({KEEP:g})"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the worker (1)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for the results of a run of any size")
    parser.add_argument("--quick", action="store_true", help="show that it runs: some seconds")
    options = parser.parse_args()
    if options.quick:
        options.rate, options.minutes = 200.0, 0.1
    elif options.output is None and options.minutes >= MINUTES and options.rate == RATE:
        options.output = RESULTS
    options.interval = min(INTERVAL, options.minutes * 60 / 20)
    return options


async def _measure(
    server: PostgresServer, options: argparse.Namespace
) -> tuple[list[Sample], dict[str, str]]:
    """Return the samples of the run, and the server's settings."""
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute("CREATE EXTENSION pg_stat_statements")
        with aiotasks_worker(
            "--processes", str(options.processes), settings="benchmarks.settings_sustained"
        ) as worker:
            await registered(worker, options.processes)
            keep = max(SHORTEST_KEEP, options.keep)
            sampler = Sampler(connection, server=server.pid, worker=worker.pid, keep=keep)
            with _enqueuer(options.rate) as enqueuer:
                await worker.until(sampler.has_begun, START_TIMEOUT)
                samples = await _sample(sampler, worker, enqueuer, options)
        rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", SHOWN)
        return samples, dict(rows)
    finally:
        await connection.close()


async def _sample(
    sampler: Sampler, worker: WorkerProcess, enqueuer: "subprocess.Popen[bytes]", options: argparse.Namespace
) -> list[Sample]:
    samples: list[Sample] = []
    await sampler.start()
    start = time.monotonic()
    for number in range(1, math.ceil(options.minutes * 60 / options.interval) + 1):
        await asyncio.sleep(max(0.0, start + number * options.interval - time.monotonic()))
        worker.check()
        if enqueuer.poll() is not None:
            raise MeasurementFailed(f"The enqueuer has ended with code {enqueuer.returncode}.")
        samples.append(await sampler.sample())
        _say(samples[-1])
    return samples


@contextmanager
def _enqueuer(rate: float) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.sustained.enqueuer", str(rate)])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _say(sample: Sample) -> None:
    print(
        f"{sample.seconds:6.0f} s  enqueued {sample.enqueued_per_s:7,.0f}/s  "
        f"finished {sample.finished_per_s:7,.0f}/s  deleted {sample.deleted_per_s:7,.0f}/s  "
        f"ready {sample.ready:6,}  overdue {sample.overdue_s:4.0f} s  p99 {sample.wait_p99_ms:6.1f} ms  "
        f"table {sample.table_mb:5,.0f} + {sum(sample.indexes_mb.values()):5,.0f} MB  "
        f"dead {sample.dead_rows:9,}  vacuums {sample.autovacuums:3}  "
        f"CPU {sample.database_cpu:.2f} + {sample.worker_cpu:.2f}  {sample.worker_mb:4.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
