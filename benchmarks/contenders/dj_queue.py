"""dj-queue, Solid Queue's port to django.tasks, which wakes its workers by NOTIFY.

Drains, those of CPU time too: four processes of three threads that fetch eight tasks for each, the fastest
of one to four processes with one to three threads on two cores. It keeps no time of a start: what is
measured lies between the first finish and the last. Persistent connections. Latency and enqueues: its
defaults. Kept: the row and its result.
"""

import json
from typing import Any

from benchmarks import rival_support
from benchmarks.rival_django import DjangoRival

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["dj-queue", "psycopg"]
COUNTS = {
    "drain": 3_000,
    "drain-sync": 3_000,
    "drain-cpu": 1_500,
    "drain-queries": 1_000,
    "enqueue-50": 1_000,
    "enqueue-1": 800,
    "enqueue-sync": 800,
    "latency": 200,
}


def versions() -> dict[str, str]:
    return rival_support.versions("dj-queue", "Django", "psycopg")


def _fill(task: Any, count: int) -> None:
    task.get_backend().enqueue_all([(task, (), {})] * count)


_WORKER = ("dj_queue", "--only-work")

_rival = DjangoRival(
    app="dj_queue",
    drain=_WORKER,
    drain_cpu=_WORKER,
    env={
        "AIOTASKS_BENCH_DJ_QUEUE_WORKERS": json.dumps(
            [{"processes": 4, "threads": 3, "prefetch_multiplier": 8}]
        )
    },
    latency=_WORKER,
    fill=_fill,
    counts="""
        SELECT
            (SELECT count(*) FROM dj_queue_jobs WHERE finished_at IS NOT NULL),
            (SELECT count(*) FROM dj_queue_failed_executions)
    """,
    seconds="""
        SELECT extract(epoch FROM max(finished_at) - min(finished_at)) * count(*) / (count(*) - 1)
        FROM dj_queue_jobs
    """,
    returned="SELECT return_value::text FROM dj_queue_jobs ORDER BY created_at",
)
prepare = _rival.prepare
WORKLOADS = _rival.workloads()
