"""What several contenders need: worker processes, the beat of arrivals, percentiles."""

import asyncio
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop

__all__ = [
    "REFRESH_WAVES",
    "MeasurementFailed",
    "WorkerProcess",
    "dsn",
    "latencies",
    "percentile",
    "run",
    "ticks",
    "worker",
]

# Seconds a worker may take to stop once it is told to.
STOP_TIMEOUT = 40.0

# Refreshes that are made at once are made so many times over: one wave takes a tenth of a second.
REFRESH_WAVES = 5


class MeasurementFailed(Exception):
    """What happened isn't what was to be measured; says so in a sentence."""


def dsn() -> str:
    """Return the URL of the database to measure on."""
    return os.environ["AIOTASKS_BENCH_DSN"]


def run[Result](coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run ``coroutine`` on the loop that aiotasks' workers have too."""
    return uvloop.run(coroutine)


class WorkerProcess:
    """A worker that has been started; what it logs is shown only if it fails."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        self._process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=self._log, stderr=self._log
        )
        self.pid = self._process.pid

    def wait(self, timeout: float) -> None:
        """Wait for a worker that ends by itself."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MeasurementFailed(
                f"The worker was not through after {timeout:.0f} s.{self._said()}"
            ) from None
        if code != 0:
            raise MeasurementFailed(f"The worker has ended with code {code}.{self._said()}")

    async def until(self, condition: Callable[[], Coroutine[Any, Any, bool]], timeout: float) -> None:
        """Wait for ``condition``, looked at ten times a second, while the worker runs."""
        end = time.monotonic() + timeout
        while not await condition():
            self.check()
            if time.monotonic() > end:
                raise MeasurementFailed(f"Not what was waited for after {timeout:.0f} s.{self._said()}")
            await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raise MeasurementFailed if the worker doesn't run any longer."""
        if self._process.poll() is not None:
            code = self._process.returncode
            raise MeasurementFailed(f"The worker has ended too early, with code {code}.{self._said()}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that doesn't stop."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _said(self) -> str:
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        return "".join(f" It said: {line}" for line in last)


@contextmanager
def worker(*command: str, env: Mapping[str, str] | None = None) -> Iterator[WorkerProcess]:
    """A worker process, stopped at the end of the block if it hasn't ended by itself."""
    process = WorkerProcess(command, env or {})
    try:
        yield process
    finally:
        process.stop()


async def ticks(count: int, interval: float) -> AsyncIterator[None]:
    """``count`` beats, ``interval`` seconds apart by the clock: a late one doesn't delay the next."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number * interval - loop.time()))
        yield


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of ``values`` that at least ``percent`` % of them don't exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """The figures of latencies: milliseconds."""
    return {
        "p50_ms": percentile(seconds, 50) * 1000,
        "p99_ms": percentile(seconds, 99) * 1000,
        "max_ms": max(seconds) * 1000,
    }
