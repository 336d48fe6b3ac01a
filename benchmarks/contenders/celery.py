"""Celery on Redis, when there is one: each measurement starts its own, appendonly and synced every second.

Drains: plain functions in two prefork processes, its fastest pool on two cores, each of which prefetches
32 tasks; a no-op writes its time to a file, and what is measured lies between the first and the last.
Results off. Kept: nothing.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import rival_support
from benchmarks.rival_support import BodyTimes

from .common import worker

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["celery", "redis", "redis-server"]
COUNTS = {"drain": 2_000, "drain-cpu": 1_500, "enqueue-50": 3_000, "enqueue-1": 3_000, "latency": 200}

_PROCESSES = 2


def versions() -> dict[str, str]:
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    server = next(word.removeprefix("v=") for word in said.split() if word.startswith("v="))
    return rival_support.versions("celery", "redis") | {"redis-server": server}


def prepare() -> None:
    """Nothing: each measurement has a Redis of its own."""


@contextmanager
def _redis() -> Iterator[str]:
    """Run a Redis; its URL, of a socket."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        options = ["--port", "0", "--unixsocket", path, "--dir", directory, "--appendonly", "yes"]
        with worker("redis-server", *options, "--appendfsync", "everysec", "--save", "") as process:

            async def listens() -> bool:
                return os.path.exists(path)  # noqa: ASYNC240  # a moment

            asyncio.run(process.until(listens, 10))
            yield f"redis+socket://{path}"


def _app(url: str, times: str = os.devnull) -> "Celery":
    """Return the app; the bodies of "now" and "cpu" append to the file at ``times``."""
    from celery import Celery

    app = Celery(broker=url, set_as_current=False)
    app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=32)
    file = os.open(times, os.O_WRONLY | os.O_APPEND)

    @app.task(name="now")
    def now(number: int) -> None:
        os.write(file, f"{number} {time.time()}\n".encode())

    @app.task(name="cpu")
    def cpu(number: int) -> None:
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        os.write(file, f"{number} {time.time()}\n".encode())

    return app


def _drain(task: str, count: int) -> dict[str, float]:
    with _redis() as url, tempfile.TemporaryDirectory() as directory:
        times = BodyTimes(Path(directory) / "times")
        body = _app(url).tasks[task]
        for number in range(count):
            body.delay(number)
        with worker(sys.executable, "-m", __name__, url, os.fspath(times.path)) as process:
            ran = asyncio.run(times.until(process, count))
    seconds = max(ran) - min(ran)
    return {"per_s": (count - 1) / seconds, "seconds": seconds}


def _enqueue(callers: int, count: int) -> dict[str, float]:
    """By threads: it has no coroutines."""

    async def measured() -> dict[str, float]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(callers))
        return await rival_support.enqueued(lambda number: asyncio.to_thread(body.delay, 0), callers, count)

    with _redis() as url:
        body = _app(url).tasks["now"]
        return asyncio.run(measured())


def _latency(count: int) -> dict[str, float]:
    with _redis() as url, tempfile.TemporaryDirectory() as directory:
        times = BodyTimes(Path(directory) / "times")
        body = _app(url).tasks["now"]
        with worker(sys.executable, "-m", __name__, url, os.fspath(times.path)) as process:
            return asyncio.run(
                rival_support.waits(
                    process, times, lambda number: asyncio.to_thread(body.delay, number), count
                )
            )


WORKLOADS = {
    "drain": lambda count: _drain("now", count),
    "drain-cpu": lambda count: _drain("cpu", count),
    "enqueue-50": lambda count: _enqueue(50, count),
    "enqueue-1": lambda count: _enqueue(1, count),
    "latency": _latency,
}

if __name__ == "__main__":
    _app(sys.argv[1], sys.argv[2]).worker_main(
        ["worker", "--pool=prefork", f"--concurrency={_PROCESSES}", "--without-gossip", "--without-mingle"]
    )
