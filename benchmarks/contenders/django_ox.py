"""django-ox: leases, retries and cron under django.tasks; it polls.

Drains: two processes of four threads, the fastest of one to four processes with one to ten threads each on
two cores; tasks of CPU time: one process of two threads, to compare with others' one process. Persistent
connections, no log. Latency: one process, polling every 50 ms instead of every second. Kept: the row and
its result.
"""

from typing import Any

from benchmarks import rival_support
from benchmarks.rival_django import DjangoRival

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["django-ox", "psycopg"]
COUNTS = {
    "drain": 2_500,
    "drain-sync": 2_500,
    "drain-cpu": 600,
    "drain-queries": 800,
    "enqueue-50": 3_000,
    "enqueue-1": 2_000,
    "enqueue-sync": 3_000,
    "latency": 200,
}


def versions() -> dict[str, str]:
    return rival_support.versions("django-ox", "Django", "psycopg")


def _fill(task: Any, count: int) -> None:
    from django_ox.bulk import enqueue_many

    enqueue_many(task, [((), {})] * count)


_WORKER = ("ox_worker", "--interval", "0.05", "--verbosity", "0")

_rival = DjangoRival(
    app="django_ox",
    drain=(*_WORKER, "--processes", "2", "--concurrency", "4"),
    drain_cpu=(*_WORKER, "--concurrency", "2"),
    latency=_WORKER,
    fill=_fill,
    counts="""
        SELECT
            count(*) FILTER (WHERE status = 'SUCCESSFUL' AND attempts = 1),
            count(*) FILTER (WHERE status IN ('FAILED', 'LOST') OR attempts > 1)
        FROM django_ox_oxtask
    """,
    seconds="SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM django_ox_oxtask",
    returned="SELECT return_value::text FROM django_ox_oxtask ORDER BY enqueued_at",
)
prepare = _rival.prepare
WORKLOADS = _rival.workloads()
