"""graphile-worker, of npm: `npm --prefix benchmarks/contenders/graphile install` (with a Node.js of its own).

Drains: one process, its local queue of 500 jobs and completions in batches (graphile/bench.mjs), from the
first body until it has stopped and all completions are written. Latency and enqueues: its defaults, a pool
of 10. Kept: nothing, a job that is through is deleted.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.rival_support import BodyTimes

from .common import MeasurementFailed, dsn, latencies, run, worker

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

_DIRECTORY = Path(__file__).with_name("graphile")
_NODE = os.fspath(_DIRECTORY / "node_modules/.bin/node")
_SCRIPT = os.fspath(_DIRECTORY / "bench.mjs")

REQUIRES = [_NODE, os.fspath(_DIRECTORY / "node_modules/.bin/graphile-worker")]
COUNTS = {"drain": 50_000, "drain-cpu": 2_000, "enqueue-50": 4_000, "enqueue-1": 2_000, "latency": 200}

# Seconds one command of the script may take.
_TIMEOUT = 600.0


def versions() -> dict[str, str]:
    package = json.loads((_DIRECTORY / "node_modules/graphile-worker/package.json").read_text())
    node = subprocess.run([_NODE, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {"graphile-worker": package["version"], "Node.js": node.removeprefix("v")}


def _run(*command: str | int) -> dict[str, Any]:
    """Run a command of the script; return what it prints."""
    done = subprocess.run(
        [_NODE, _SCRIPT, *map(str, command)], capture_output=True, text=True, timeout=_TIMEOUT
    )
    if done.returncode != 0:
        raise MeasurementFailed(f"{command[0]} has failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def prepare() -> None:
    """Make its schema."""
    _run("migrate")


def _drain(task: str, count: int) -> dict[str, float]:
    async def left() -> int:
        connection = await asyncpg.connect(dsn())
        number = await connection.fetchval("SELECT count(*) FROM graphile_worker.jobs")
        await connection.close()
        return number

    _run("fill", task, count)
    seconds = _run("drain", task, count)["seconds"]
    if not_deleted := run(left()):
        raise MeasurementFailed(f"{not_deleted:,} of {count:,} jobs have not been completed.")
    return {"per_s": count / seconds, "seconds": seconds}


def _latency(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        times = BodyTimes(Path(directory) / "times")
        with worker(_NODE, _SCRIPT, "serve", os.fspath(times.path)) as process:
            _run("send", 0, 0)
            run(times.until(process, 1))  # it is up, and has connected
            sent = _run("send", 1, count)["sent"]
            ran = run(times.until(process, count + 1))
    return latencies([body - before for before, body in zip(sent, ran[1:], strict=True)])


WORKLOADS = {
    "drain": lambda count: _drain("noop", count),
    "drain-cpu": lambda count: _drain("cpu", count),
    "enqueue-50": lambda count: _run("enqueue", 50, count),
    "enqueue-1": lambda count: _run("enqueue", 1, count),
    "latency": _latency,
}
