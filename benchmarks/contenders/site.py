"""The Django site that aiotasks and the floor share, and rows of its table."""

import os
from types import ModuleType

import asyncpg
import django

__all__ = ["insert_rows", "migrate", "set_up"]

# By status: ready_at, run_after, started_at, finished_at, return_value.
_COLUMNS = {
    "READY": "clock_timestamp(), NULL, NULL, NULL, NULL",
    "SCHEDULED": "NULL, now() + interval '1 day', NULL, NULL, NULL",
    "SUCCESSFUL": "now(), NULL, now(), now() - interval '1 day', 'null'",
}


def set_up(settings: str = "benchmarks.settings") -> ModuleType:
    """Set Django up and return the module of tasks, which can't be imported before."""
    os.environ["DJANGO_SETTINGS_MODULE"] = settings
    django.setup()
    from benchmarks import tasks

    return tasks


def migrate() -> None:
    """Make the tables, and the rows that tasks look up."""
    set_up()
    from django.core.management import call_command

    from benchmarks.models import ITEMS, Item

    call_command("migrate", run_syncdb=True, verbosity=0)
    Item.objects.bulk_create(Item(id=number, name=f"item {number}") for number in range(1, ITEMS + 1))


async def insert_rows(
    connection: asyncpg.Connection,
    count: int,
    *,
    status: str = "READY",
    queue: str = "default",
    names: int = 1,
    lane: str = "loop",
    key: str | None = None,
    keys: int = 1,
) -> None:
    """Add ``count`` no-ops by one statement, which takes none of this process's time.

    With several ``names`` they take turns in so many queues: "default 0", "default 1", …
    With a ``key``, the name of a limit, they are of the task ``fair``; with several ``keys`` they take turns
    among so many of it: "tenant:0", "tenant:1", …
    """
    await connection.execute(
        f"""
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at, run_after, started_at, finished_at, return_value,
            limit_key, limit_place
        )
        SELECT
            uuidv7(), 'default', $2 || CASE WHEN $4 > 1 THEN ' ' || n % $4 ELSE '' END,
            CASE WHEN $6::text IS NULL THEN 'benchmarks.tasks.noop' ELSE 'benchmarks.limited.fair' END,
            $5 || CASE WHEN $6 IS NULL THEN '' ELSE '+' END, 0, $3,
            CASE WHEN $6 IS NULL THEN '[]' ELSE '[0]' END::json, '{{}}', '{{}}', '{{}}', 0, now(),
            {_COLUMNS[status]},
            $6 || ':' || n % $7,
            CASE WHEN $6 IS NOT NULL THEN clock_timestamp() END
        FROM generate_series(1, $1::integer) AS n
        """,
        count,
        queue,
        status,
        names,
        lane,
        key,
        keys,
        timeout=600,
    )
