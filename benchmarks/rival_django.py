"""The workloads of a rival that is a backend of django.tasks; its module says what differs."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import django

from .contenders.common import MeasurementFailed, WorkerProcess, latencies, run, worker
from .rival_support import INTERVAL, drained, enqueued, until_finished

__all__ = ["DjangoRival"]

# Tasks after which a worker is up, and all its threads have connected.
_WARM_UP = 5


@dataclass(frozen=True, kw_only=True)
class DjangoRival:
    """One of them, measured with plain functions as tasks, which all of them run faster than coroutines.

    app: as in INSTALLED_APPS and in rival_settings.
    drain, drain_cpu, latency: its command that works, with the options for these; ``env`` for all drains.
    fill: enqueues a task so many times, in the rival's quickest way.
    counts: SQL of how many tasks have finished, and how many failed.
    seconds: SQL of the time from the first task's start to the last one's finish.
    returned: SQL of the return values in the order in which the tasks were enqueued.
    """

    app: str
    drain: tuple[str, ...]
    drain_cpu: tuple[str, ...]
    latency: tuple[str, ...]
    fill: Callable[[Any, int], object]
    counts: str
    seconds: str
    returned: str
    env: Mapping[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the tables, and the rows that tasks look up."""
        self._set_up()
        from django.core.management import call_command

        from .models import ITEMS, Item

        call_command("migrate", run_syncdb=True, verbosity=0)
        Item.objects.bulk_create(Item(id=number, name=f"item {number}") for number in range(1, ITEMS + 1))

    def workloads(self) -> dict[str, Callable[[int], dict[str, float]]]:
        """Return its workloads by name."""
        return {
            "drain": lambda count: self._drained("noop", count, self.drain),
            "drain-sync": lambda count: self._drained("noop", count, self.drain),
            "drain-cpu": lambda count: self._drained("cpu", count, self.drain_cpu),
            "drain-queries": lambda count: self._drained("queries", count, self.drain),
            "enqueue-50": lambda count: self._aenqueued(50, count),
            "enqueue-1": lambda count: self._aenqueued(1, count),
            "enqueue-sync": self._enqueued,
            "latency": self._latency,
        }

    def _set_up(self) -> ModuleType:
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.rival_settings"
        os.environ["AIOTASKS_BENCH_RIVAL"] = self.app
        django.setup()
        from . import rival_tasks

        return rival_tasks

    def _worker(
        self, command: tuple[str, ...], env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[WorkerProcess]:
        return worker(sys.executable, "-m", "django", *command, env=env)

    def _drained(self, task: str, count: int, command: tuple[str, ...]) -> dict[str, float]:
        self.fill(getattr(self._set_up(), task), count)
        with self._worker(command, self.env) as process:
            return run(drained(process, self.counts, self.seconds, count))

    def _aenqueued(self, callers: int, count: int) -> dict[str, float]:
        tasks = self._set_up()
        return run(enqueued(lambda number: tasks.noop.aenqueue(), callers, count))

    def _enqueued(self, count: int) -> dict[str, float]:
        tasks = self._set_up()
        tasks.noop.enqueue()  # connects
        start = time.perf_counter()
        for _ in range(count):
            tasks.noop.enqueue()
        return {"per_s": count / (time.perf_counter() - start)}

    def _latency(self, count: int) -> dict[str, float]:
        tasks = self._set_up()
        sent = []
        with self._worker(self.latency) as process:
            for number in range(_WARM_UP):
                tasks.now.enqueue()
                run(until_finished(process, self.counts, number + 1))
            start = time.perf_counter()
            for number in range(count):
                time.sleep(max(0.0, start + number * INTERVAL - time.perf_counter()))
                sent.append(time.time())
                tasks.now.enqueue()
            run(until_finished(process, self.counts, _WARM_UP + count))
        ran = self._returned()[_WARM_UP:]
        if len(ran) != count:
            raise MeasurementFailed(f"{len(ran):,} of {count:,} tasks have run.")
        return latencies([body - before for before, body in zip(sent, ran, strict=True)])

    def _returned(self) -> list[float]:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(self.returned)
            return [float(value) for (value,) in cursor.fetchall()]
