"""django-tasks-db, the usual choice under django.tasks: one task at a time in each process.

Drains: one worker process, persistent connections, no log. Latency: polling every 50 ms instead of every
second. Kept: the row and its result.
"""

from typing import Any

from benchmarks import rival_support
from benchmarks.rival_django import DjangoRival

__all__ = ["COUNTS", "REQUIRES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["django-tasks-db", "psycopg"]
COUNTS = {
    "drain": 600,
    "drain-sync": 600,
    "drain-cpu": 500,
    "drain-queries": 400,
    "enqueue-50": 3_000,
    "enqueue-1": 2_000,
    "enqueue-sync": 3_000,
    "latency": 200,
}


def versions() -> dict[str, str]:
    return rival_support.versions("django-tasks-db", "Django", "psycopg")


def _fill(task: Any, count: int) -> None:
    from django.db import transaction

    with transaction.atomic():  # there is nothing for many at once
        for _ in range(count):
            task.enqueue()


_WORKER = ("db_worker", "--interval", "0.05", "--no-startup-delay", "--verbosity", "0")

_rival = DjangoRival(
    app="django_tasks_db",
    drain=_WORKER,
    drain_cpu=_WORKER,
    latency=_WORKER,
    fill=_fill,
    counts="""
        SELECT count(*) FILTER (WHERE status = 'SUCCESSFUL'), count(*) FILTER (WHERE status = 'FAILED')
        FROM django_tasks_database_dbtaskresult
    """,
    seconds="""
        SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM django_tasks_database_dbtaskresult
    """,
    returned="SELECT return_value::text FROM django_tasks_database_dbtaskresult ORDER BY enqueued_at",
)
prepare = _rival.prepare
WORKLOADS = _rival.workloads()
