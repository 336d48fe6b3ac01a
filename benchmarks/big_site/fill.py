"""The rows of the site, made by the server itself."""

import json
from typing import Any

import asyncpg

from aiotasks.rows import lane_of

from . import shop

__all__ = ["fill"]

# Statements that add the finished tasks: each says when it is through.
PARTS = 10

# How the rows divide. What is left is SUCCESSFUL.
FAILED, SCHEDULED, READY = 0.04, 0.05, 0.03
RUNNING, KEYS = 200, 1_000

QUEUES = [
    "default",
    *(f"customer-{number:02}" for number in range(1, 8)),
    "mail",
    "images",
    "reports",
    "slow",
]

KINDS = [
    ("TimeoutError", "the gateway has not answered within 30 s, order #ORDER#"),
    ("ValueError", "no such card: #ORDER#"),
    ("KeyError", "'price'"),
    ("httpx.ConnectError", "[Errno 111] Connection refused"),
    ("django.db.utils.IntegrityError", "duplicate key value violates unique constraint, order #ORDER#"),
    ("shop.errors.OutOfStock", "order #ORDER# wants 3 of 2"),
    ("PermissionError", "[Errno 13] Permission denied: '/exports/#ORDER#.csv'"),
    ("aiotasks.exceptions.TaskTimeout", "The task took longer than its time limit of 60 s."),
]

# Of a statement: $1 and $2, the numbers of its first and last row; $3, how many rows there are of its kind;
# $4, the texts of errors; $5 and $6, the paths of tasks and their lanes; $7, the workers; $8, the queues.
_INSERT = """
    INSERT INTO aiotasks_task (
        id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids, crashes,
        enqueued_at, ready_at, started_at, last_attempted_at, finished_at, failures,
        keep_result, return_value, run_after, claim_id, worker_id, unique_key
    )
    SELECT
        uuidv7(-made.age), 'default', made.queue, ($5::text[])[made.path], ($6::text[])[made.path],
        made.n % 3, made.status, '[]', json_build_object('order', made.n), made.errors,
        ARRAY(SELECT ($7::uuid[])[1 + (made.n + attempt) % cardinality($7::uuid[])]
              FROM generate_series(1, made.attempts) AS attempt),
        0, now() - made.age, made.ready_at, made.started_at, made.started_at, made.finished_at,
        nullif(cardinality(made.errors), 0), made.keep_result,
        CASE WHEN made.status = 'SUCCESSFUL' THEN json_build_object('order', made.n, 'ok', true) END,
        made.run_after,
        CASE WHEN made.status = 'RUNNING' THEN gen_random_uuid() END,
        CASE WHEN made.status = 'RUNNING' THEN ($7::uuid[])[1 + (made.n + 1) % cardinality($7::uuid[])] END,
        made.unique_key
    FROM ({rows}) AS made
    WHERE ROW($3::float8, $4::text[], $8::text[]) IS NOT NULL  -- so that each has a type
"""

_FINISHED = """
    SELECT
        n, {path} AS path, ($8::text[])[1 + n % cardinality($8::text[])] AS queue, '{status}' AS status,
        {errors} AS errors, {attempts} AS attempts, age.age,
        now() - age.age AS ready_at,
        now() - age.age + interval '1 s' * (n % 10) AS started_at,
        now() - age.age + interval '1 s' * (n % 60) AS finished_at,
        CASE WHEN n % 50 = 0 THEN 5184000.0 END AS keep_result,
        NULL::timestamptz AS run_after, NULL::text AS unique_key
    FROM generate_series($1::bigint, $2::bigint) AS n
    CROSS JOIN LATERAL (SELECT {age} AS age) AS age
"""

_WAITING = """
    SELECT
        n, 1 + (n % 30)::integer AS path, ($8::text[])[1 + n % cardinality($8::text[])] AS queue,
        '{status}' AS status, '{{}}'::json[] AS errors, {attempts} AS attempts,
        interval '1 s' * (3600.0 * (1 - n / $3::float8) + 61) AS age,
        {ready_at} AS ready_at, {started_at} AS started_at, NULL::timestamptz AS finished_at,
        NULL::float8 AS keep_result, {run_after} AS run_after, {key} AS unique_key
    FROM generate_series($1::bigint, $2::bigint) AS n
"""

# The ages of rows, from the oldest to the newest.
_WEEK = "interval '1 s' * (604800.0 * (1 - n / $3::float8) + 61)"
_HOUR = "interval '1 s' * (3500.0 * (1 - n / $3::float8) + 61)"
_ERROR = "replace(($4::text[])[1 + (n + {more}) % cardinality($4::text[])], '#ORDER#', n::text)::json"


async def fill(connection: asyncpg.Connection, rows: int) -> None:
    """Put ``rows`` tasks into the empty table, and four workers with leases of a year.

    88 % SUCCESSFUL, over seven days; 4 % FAILED, half of it over the days with one to three errors of 40
    kinds, and half of it one task within the last hour; 5 % SCHEDULED; 3 % READY; 200 RUNNING. The tasks of
    30 paths are in 12 queues; of those that are finished 2 % have a ``keep_result``, and 1,000 have a key.
    """
    indexes = await _drop_indexes(connection)
    workers = await _enter_workers(connection)
    paths = sorted(shop.__all__)
    lanes = [lane_of(getattr(shop, name).func) for name in paths]
    errors = _errors()

    async def add(kind: str, number: int, parts: int = 1) -> None:
        for part in range(parts):
            await add_part(kind, 1 + number * part // parts, number * (part + 1) // parts, number)

    async def add_part(kind: str, first: int, last: int, number: int) -> None:
        await connection.execute(
            _INSERT.format(rows=kind),
            first,
            last,
            number,
            errors,
            [f"{shop.__name__}.{name}" for name in paths],
            lanes,
            workers,
            QUEUES,
            timeout=None,
        )

    waiting = int(rows * SCHEDULED), int(rows * READY)
    failed = int(rows * FAILED)
    successful = rows - sum(waiting) - failed - RUNNING
    path = "1 + (n % 30)::integer"
    done = _FINISHED.format(status="SUCCESSFUL", path=path, errors="'{}'::json[]", attempts="1", age=_WEEK)
    await add(done, successful, PARTS)
    several = f"(ARRAY[{', '.join(_ERROR.format(more=more) for more in range(3))}])[:1 + n % 3]"
    over_days = _FINISHED.format(status="FAILED", path=path, errors=several, attempts="1 + n % 3", age=_WEEK)
    await add(over_days, failed // 2)
    charge = 1 + paths.index("charge")
    one = "ARRAY[replace(($4::text[])[1], '#ORDER#', n::text)::json]"
    in_hour = _FINISHED.format(status="FAILED", path=charge, errors=one, attempts="1", age=_HOUR)
    await add(in_hour, failed // 2)
    nothing = {"ready_at": "NULL::timestamptz", "started_at": "NULL::timestamptz", "attempts": "0"}
    nothing |= {"run_after": "NULL::timestamptz", "key": "NULL::text"}
    due = nothing | {"run_after": "now() + interval '1 s' * (60 + n % 86400)"}
    await add(_WAITING.format(status="SCHEDULED", **due), waiting[0])
    ready_at = "now() - interval '1 s' * (3600.0 * (1 - n / $3::float8) + 61)"
    key = f"CASE WHEN n <= {KEYS} THEN 'order ' || n END"
    ready = nothing | {"ready_at": ready_at, "key": key}
    await add(_WAITING.format(status="READY", **ready), waiting[1])
    runs = nothing | {
        "ready_at": ready_at,
        "started_at": "now() - interval '1 s' * (n % 600)",
        "attempts": "1",
    }
    await add(_WAITING.format(status="RUNNING", **runs), RUNNING)
    for definition in indexes:
        await connection.execute(definition, timeout=None)
    await connection.execute("VACUUM (ANALYZE) aiotasks_task, aiotasks_worker", timeout=None)
    await connection.execute("ALTER TABLE aiotasks_task RESET (autovacuum_enabled)")


async def _drop_indexes(connection: asyncpg.Connection) -> list[str]:
    """Drop those that are cheaper to make at the end; return the statements that make them."""
    await connection.execute("ALTER TABLE aiotasks_task SET (autovacuum_enabled = off)")
    found = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE tablename = 'aiotasks_task' AND indexname <> 'aiotasks_task_pkey'"
    )
    for name, _ in found:
        await connection.execute(f'DROP INDEX "{name}"')
    return [definition for _, definition in found]


async def _enter_workers(connection: asyncpg.Connection) -> list[Any]:
    rows = await connection.fetch(
        """
        INSERT INTO aiotasks_worker (
            id, backend, host, pid, queues, concurrency, threads, version, started_at, lease_expires_at,
            listening
        )
        SELECT uuidv7(), 'default', 'worker-' || n, 100 + n, '{}', 100, 10, '0', now() - interval '2 h',
            now() + interval '1 year', true
        FROM generate_series(1, 4) AS n
        RETURNING id
        """
    )
    return [row[0] for row in rows]


def _errors() -> list[str]:
    """Forty errors as they are stored, of 1.5 KB on average; the first is that of the last hour."""
    texts = []
    for number in range(40):
        kind, message = KINDS[number % len(KINDS)]
        frames = "".join(
            f'  File "/srv/shop/shop/cards.py", line {41 + number + line}, in step_{line}\n'
            f"    return self.step_{line + 1}(order, *args, retry=False, timeout=30.0, **kwargs)\n"
            for line in range(6 + number % 9)
        )
        text = f"Traceback (most recent call last):\n{frames}{kind}: {message}\n"
        path = kind if "." in kind else f"builtins.{kind}"
        texts.append(json.dumps({"class": path, "traceback": text}))
    return texts
