"""The processes of a fleet: workers, and those that enqueue."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .enqueuer import Order
from .server import ENQUEUERS, WORKERS, MeasuredServer, cpu_of

__all__ = ["OPTIONS", "Enqueuers", "Fleet", "FleetWorker", "wait_until"]

# A worker of the table.
OPTIONS = ("--concurrency", "10", "--threads", "1")

# Workers that are started at a time, lest they wait for the CPU longer than a start may take.
AT_ONCE = 8

# Seconds for a batch of workers to start, and for all of them to store that they listen.
START_TIMEOUT = 120.0

# A worker logs this once notifications arrive.
LISTENS = "wake-ups: LISTEN"


class FleetWorker:
    """One worker process."""

    def __init__(self, log: Path, dsn: str, options: Sequence[str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "aiotasks.worker", *options],
                env=_env(dsn),
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    def is_up(self) -> bool:
        """Return whether NOTIFY wakes it. Raises RuntimeError if it has ended."""
        text = self._log.read_text(errors="replace")
        if self._process.poll() is not None:
            raise RuntimeError(f"A worker has ended with code {self._process.returncode}: {text[-500:]}")
        return LISTENS in text

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Fleet:
    """Workers on the database of ``server``; ``directory`` gets their logs."""

    def __init__(self, server: MeasuredServer, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._started = 0
        self.workers: list[FleetWorker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.kill()
        self._server.connection.execute("TRUNCATE aiotasks_worker, aiotasks_task")

    def start(self, options: Sequence[str] = OPTIONS) -> FleetWorker:
        """Start one more worker; it isn't up yet."""
        self._started += 1
        log = self._directory / f"worker-{self._started}-{time.monotonic_ns()}.log"
        worker = FleetWorker(log, self._server.dsn(WORKERS), options)
        self.workers.append(worker)
        return worker

    def grow(self, number: int, options: Sequence[str] = OPTIONS) -> None:
        """Start workers until there are ``number``; returns once all are up, and their rows say so."""
        while len(self.workers) < number:
            batch = [self.start(options) for _ in range(min(AT_ONCE, number - len(self.workers)))]
            wait_until(lambda batch=batch: all(worker.is_up() for worker in batch))
        wait_until(self._all_listen)

    def cpu(self) -> float:
        return sum(cpu_of(worker.pid) for worker in self.workers)

    def _all_listen(self) -> bool:
        (number,) = self._server.connection.execute(
            "SELECT count(*) FROM aiotasks_worker WHERE listening"
        ).fetchone() or (0,)
        return number >= len(self.workers)


class Enqueuers:
    """Processes that enqueue, all of them started and connected before the first order."""

    def __init__(self, server: MeasuredServer, number: int) -> None:
        self._random = random.Random(0)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fleet.enqueuer"],
                env=_env(server.dsn(ENQUEUERS)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(number)
        ]
        self.order([Order(warm_up=True)] * number)
        self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def at_rate(self, rate: float, seconds: float, *, processes: int, task: str = "now") -> None:
        """Have ``processes`` of them enqueue ``rate`` tasks a second together."""
        interval = processes / rate
        count = max(1, round(seconds / interval))
        self.order(
            [Order(task, (), count, interval, self._random.uniform(0, interval)) for _ in range(processes)]
        )

    def order(self, orders: Sequence[Order]) -> None:
        """Give each of the first processes an order, without waiting for the answers."""
        self._busy = self._processes[: len(orders)]
        for process, order in zip(self._busy, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(order.line())
            process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Wait until the orders are carried out; returns when each task was enqueued, by its id."""
        called: dict[str, float] = {}
        for process in self._busy:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("A process that enqueues has ended.")
            called |= json.loads(line)
        return called


def wait_until(condition: Callable[[], bool], timeout: float = START_TIMEOUT) -> None:
    """Wait for ``condition``, looked at ten times a second. Raises RuntimeError after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"Not what was waited for after {timeout:.0f} s.")
        time.sleep(0.1)


def _env(dsn: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AIOTASKS_", "DJANGO_"))}
    return {**env, "AIOTASKS_BENCH_DSN": dsn, "DJANGO_SETTINGS_MODULE": "benchmarks.settings"}
