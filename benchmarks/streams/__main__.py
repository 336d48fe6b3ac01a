"""Measure streams of Server-Sent Events: the age of updates, what they cost a worker, and a server's stop.

age: 200 tasks that call progress() ten times a second, each followed by a client: seconds from the call to
the client. drain: the rate of no-ops on the worker that runs those tasks; beside tasks that tell nothing,
beside tasks that tell, and beside tasks that tell to clients. stop: seconds from SIGTERM to the end of a
server with 500 streams.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, NamedTuple

from aiotasks.demo.postgres import PostgresServer, free_port

from ..contenders.aiotasks.support import aiotasks_worker, all_ended, connection, warm_up
from ..contenders.common import MeasurementFailed, WorkerProcess, percentile
from ..run import SERVER_SETTINGS
from .clients import Clients

__all__: list[str] = []

SETTINGS = "benchmarks.settings_streams"
PARTS = ("age", "drain", "stop")

# Slots of the worker that are left for no-ops.
FREE_SLOTS = 100

# Seconds after which an update is late.
LATE = 0.3

# Seconds for a server to start.
START_TIMEOUT = 60.0


class Sizes(NamedTuple):
    """Of a run. ``seconds``: for which the tasks tell."""

    tasks: int = 200
    seconds: float = 15.0
    noops: int = 30_000
    streams: int = 500
    rounds: int = 3


QUICK = Sizes(tasks=5, seconds=1.0, noops=200, streams=10, rounds=1)


def main() -> int:
    """Do what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="show that it runs: some seconds")
    parser.add_argument("--rounds", type=int, default=Sizes().rounds, metavar="N", help=f"({Sizes().rounds})")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes(rounds=options.rounds)
    with PostgresServer(settings=SERVER_SETTINGS) as server:
        os.environ["AIOTASKS_BENCH_DSN"] = server.dsn()
        subprocess.run([sys.executable, "-m", "benchmarks.contenders", "aiotasks", "prepare"], check=True)
        os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
        import django

        django.setup()
        measures = {"age": _measure_age, "drain": _measure_drain, "stop": _measure_stop}
        for part in options.parts or PARTS:
            asyncio.run(measures[part](sizes))
    return 0


async def _measure_age(sizes: Sizes) -> None:
    with _worker(sizes) as worker, _server() as (_, port):
        await warm_up(worker)
        for _ in range(sizes.rounds):
            _show("age", await _tell(worker, sizes, port=port, noops=0))


async def _measure_drain(sizes: Sizes) -> None:
    with _worker(sizes) as worker, _server() as (_, port):
        await warm_up(worker)
        rates: dict[str, list[float]] = {}
        for _ in range(sizes.rounds):
            ways = (("silent", False, None), ("tell", True, None), ("to clients", True, port))
            for name, tells, to in ways:
                found = await _tell(worker, sizes, port=to, noops=sizes.noops, tells=tells)
                rates.setdefault(name, []).append(found["noops_per_s"])
                _show(f"drain, {name}", found)
        silent = statistics.median(rates.pop("silent"))
        _show("drain, ratios", {name: statistics.median(each) / silent for name, each in rates.items()})


async def _measure_stop(sizes: Sizes) -> None:
    from aiotasks.views import sign

    from .tasks import tell

    for _ in range(sizes.rounds):
        result = await tell.aenqueue(1.0)
        with _server() as (process, port):
            clients = Clients(port, [sign(result)] * sizes.streams)
            await clients.open(once=True)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, START_TIMEOUT)
            seconds = time.monotonic() - start
            await clients.wait_closed()
        _show("stop", {"seconds": seconds, "streams": sizes.streams, "in_order": clients.ended_in_order})
    async with connection() as opened:
        await opened.execute("TRUNCATE aiotasks_task")


async def _tell(
    worker: WorkerProcess, sizes: Sizes, *, port: int | None, noops: int, tells: bool = True
) -> dict[str, float]:
    """Run the tasks, with clients if there is a server's ``port``, and no-ops meanwhile."""
    from django.tasks import default_task_backend

    from aiotasks.views import sign

    from ..tasks import noop
    from .tasks import tell

    async with connection() as opened:
        await opened.execute("TRUNCATE aiotasks_task")
    calls = [((sizes.seconds, tells), {}) for _ in range(sizes.tasks)]
    results = await default_task_backend.aenqueue_many(tell, calls)
    clients = Clients(port or 0, [sign(result) for result in results] if port else [])
    await clients.open()
    await asyncio.sleep(sizes.seconds / 10)  # until all run
    before = len(clients.ages)
    for _ in range(0, noops, 1000):
        await default_task_backend.aenqueue_many(noop, [((), {})] * min(1000, noops))
    await all_ended(worker)
    await clients.close()
    found: dict[str, float] = {}
    if port:
        ages = clients.ages[before:]
        found = {"updates": len(ages), "p50": percentile(ages, 50), "p99": percentile(ages, 99)}
        found |= {"max": max(ages), "late": sum(age > LATE for age in ages) / len(ages)}
    if noops:
        async with connection() as opened:
            found["noops_per_s"] = await opened.fetchval(
                """
                SELECT count(*) / extract(epoch FROM max(finished_at) - min(started_at))::float8
                FROM aiotasks_task WHERE task_path LIKE '%.noop' AND status = 'SUCCESSFUL'
                """
            )
    return found


def _worker(sizes: Sizes) -> AbstractContextManager[WorkerProcess]:
    return aiotasks_worker("--concurrency", str(sizes.tasks + FREE_SLOTS), settings=SETTINGS)


@contextmanager
def _server() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The site under uvicorn, and its port."""
    port = free_port()
    command = ["-m", "uvicorn", "django.core.asgi:get_asgi_application", "--factory", "--no-access-log"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command, "--port", str(port)], stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_TIMEOUT
            while b"running on" not in _read(log):
                if process.poll() is not None or time.monotonic() > end:
                    raise MeasurementFailed(f"The server hasn't started: {_read(log).decode()}")
                time.sleep(0.05)
            yield process, port
        finally:
            process.kill()
            process.wait()


def _read(log: BinaryIO) -> bytes:
    log.seek(0)
    return log.read()


def _show(title: str, figures: dict[str, float]) -> None:
    print(title, {name: float(f"{value:.3g}") for name, value in figures.items()}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
