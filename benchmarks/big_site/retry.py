"""Retry all failed tasks of one path, on a site with millions of tasks that works meanwhile.

``python -m benchmarks.big_site.retry [--seconds N]``, in the environment that ``python -m benchmarks.big_site
--keep`` prints. Two workers run what is ready, first of all the backlog. A process enqueues no-ops one after
another. Then ``aiotasks retry`` is given beside these, as at a command line, and the workers run the retried
tasks, too. Shown: the command's time, memory and batches; enqueues and the workers' writes, before it and
meanwhile; and when all retried tasks have run.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from aiotasks.store.store import Store

from ..contenders.common import latencies, worker
from ..contenders.site import set_up

__all__: list[str] = []

PATH = "benchmarks.big_site.shop.charge"

# Seconds between two looks for what is waited for, and for which the workers may take to run the backlog.
LOOK, PATIENCE = 0.5, 900.0

# Seconds after an enqueue until the next one.
REST = 0.005

WORKERS = 2

type Timed = list[tuple[float, float]]  # when it began (epoch seconds), and how long it took


def main() -> int:
    """Measure; returns the exit code. In the processes that it starts: play a part."""
    match sys.argv[1:]:
        case ["worker", file]:
            from aiotasks.worker.process import cli

            with timed("finish_jobs", Path(file)):
                return cli.main([])
        case ["enqueuer", file]:
            times = asyncio.run(_enqueue())
            Path(file).write_text(json.dumps(times))
            return 0
        case ["command", file]:
            from django.core.management import execute_from_command_line

            with timed("retry_jobs", Path(file)):
                execute_from_command_line(["manage.py", "aiotasks", "retry", "--task", PATH, "--yes"])
            return 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.big_site.retry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure before the retry (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(_measure(Path(directory), options.seconds))
    print(json.dumps(figures, indent=2))
    return 0


@contextmanager
def timed(method: str, file: Path) -> Iterator[None]:
    """Time each call of a statement of this process, and write the times into a file at the end."""
    statement = getattr(Store, method)
    times: Timed = []

    async def measured(self: Store, *args: Any, **kwargs: Any) -> Any:
        at, began = time.time(), time.perf_counter()
        try:
            return await statement(self, *args, **kwargs)
        finally:
            times.append((at, time.perf_counter() - began))

    setattr(Store, method, measured)
    try:
        yield
    finally:
        file.write_text(json.dumps(times))


async def _enqueue() -> Timed:
    """Enqueue until SIGTERM; returns how long each has taken."""
    set_up()
    from benchmarks.tasks import noop

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    times: Timed = []
    while not stop.is_set():
        at, began = time.time(), time.perf_counter()
        await noop.aenqueue()
        times.append((at, time.perf_counter() - began))
        await asyncio.sleep(REST)
    return times


async def _measure(directory: Path, seconds: float) -> dict[str, Any]:
    me = [sys.executable, "-m", "benchmarks.big_site.retry"]
    env = {"DJANGO_SETTINGS_MODULE": "benchmarks.big_site.settings"}
    connection = await asyncpg.connect(os.environ["AIOTASKS_BENCH_DSN"])
    failed = await connection.fetchval(_FAILED, PATH)
    with ExitStack() as processes:
        writes = [directory / f"worker{number}" for number in range(WORKERS)]
        workers = [processes.enter_context(worker(*me, "worker", str(file), env=env)) for file in writes]
        await _until(connection, _NONE_IS_READY, None)
        enqueuer = processes.enter_context(worker(*me, "enqueuer", str(directory / "enqueues"), env=env))
        await asyncio.sleep(seconds)
        began = time.time()
        peak = await _run(*me, "command", str(directory / "batches"), env=env)
        ended = time.time()
        left = await connection.fetchval(_FAILED, PATH)
        await _until(connection, _NONE_IS_READY, PATH)
        have_run = time.time()
        for process in (enqueuer, *workers):
            process.stop()
    await connection.close()
    enqueues = _read(directory / "enqueues")
    written = [one for file in writes for one in _read(file)]
    return {
        "retried": failed - left,
        "seconds": ended - began,
        "until_all_have_run": have_run - began,
        "peak_mib": peak / 1024,
        "batches": latencies([took for _, took in _read(directory / "batches")]),
        "enqueues_before": _between(enqueues, began - seconds, began),
        "enqueues_meanwhile": _between(enqueues, began, ended),
        "writes_before": _between(written, began - seconds, began),
        "writes_meanwhile": _between(written, began, ended),
    }


_FAILED = "SELECT count(*) FROM aiotasks_task WHERE status = 'FAILED' AND task_path = $1"
_NONE_IS_READY = """
    SELECT NOT EXISTS (
        SELECT FROM aiotasks_task WHERE status = 'READY' AND ($1::text IS NULL OR task_path = $1::text)
    )
"""


async def _until(connection: asyncpg.Connection, condition: str, *args: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await connection.fetchval(condition, *args):  # noqa: ASYNC110  # another process's rows
            await asyncio.sleep(LOOK)


async def _run(*command: str, env: dict[str, str]) -> int:
    """Run a command to its end; returns the most memory that it has had, in KiB."""
    process = await asyncio.to_thread(os.posix_spawn, command[0], command, {**os.environ, **env})
    _, status, usage = await asyncio.to_thread(os.wait4, process, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"The command has ended with code {code}.")
    return usage.ru_maxrss


def _read(file: Path) -> Timed:
    return [(at, took) for at, took in json.loads(file.read_text())]


def _between(times: Timed, begin: float, end: float) -> dict[str, float]:
    chosen = [took for at, took in times if begin <= at < end]
    return {"number": len(chosen), **(latencies(chosen) if chosen else {})}


if __name__ == "__main__":
    sys.exit(main())
