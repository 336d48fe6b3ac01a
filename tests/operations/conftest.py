"""What the tests of the operators' commands have in common: rows, and the commands' answers."""

import json
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.core.management import call_command

from aiotasks import __version__
from tests.worker.harness import configure, ledger, start

__all__ = ["configure", "ledger", "start"]

type Findings = tuple[int, dict[str, dict[str, str]]]


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection]:
    """A connection outside of everything that is tested."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def fill(sql: psycopg.Connection) -> Callable[..., None]:
    """Store this many tasks of a status, the oldest of them READY since ``age`` seconds."""

    def fill(
        status: str,
        number: int,
        queue: str = "default",
        *,
        lane: str = "loop",
        priority: int = 0,
        **values: Any,
    ) -> None:
        sql.execute(
            """
            INSERT INTO aiotasks_task (
                id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
                crashes, enqueued_at, ready_at, run_after, worker_id, finished_at
            )
            SELECT gen_random_uuid(), %(backend)s, %(queue)s, 'x', %(lane)s, %(priority)s, %(status)s,
                '[]', '{}', '{}', '{}', 0, now(),
                CASE WHEN %(status)s <> 'SCHEDULED' THEN
                    now() - %(age)s * interval '1 s' + n * interval '1 us'
                END,
                CASE WHEN %(status)s = 'SCHEDULED' THEN now() + n * interval '1 day' END,
                %(worker)s,
                CASE WHEN %(status)s IN ('SUCCESSFUL', 'FAILED') THEN now() END
            FROM generate_series(0, %(number)s - 1) AS n
            """,
            {
                "status": status,
                "number": number,
                "queue": queue,
                "lane": lane,
                "priority": priority,
                "backend": values.get("backend", "default"),
                "age": values.get("age", 0),
                "worker": values.get("worker"),
            },
        )

    return fill


@pytest.fixture
def enter(sql: psycopg.Connection) -> Callable[..., UUID]:
    """Enter a worker, with this many seconds of its lease left, of this age in seconds; returns its id."""

    def enter(**values: Any) -> UUID:
        id = uuid4()
        sql.execute(
            """
            INSERT INTO aiotasks_worker (
                id, backend, host, pid, queues, concurrency, threads, version, started_at, lease_expires_at,
                listening, channel, claims_keyed
            )
            VALUES (
                %s, %s, %s, %s, %s, %s, %s, %s,
                now() - %s * interval '1 s', now() + %s * interval '1 s', %s, %s, %s
            )
            """,
            [
                id,
                values.get("backend", "default"),
                values.get("host", "host"),
                values.get("pid", 1),
                values.get("queues", []),
                values.get("concurrency", 100),
                values.get("threads", 10),
                values.get("version", __version__),
                values.get("age", 0.0),
                values.get("lease", 60.0),
                values.get("listening", True),
                values.get("channel", f"aiotasks_{id.hex}"),
                values.get("claims_keyed", True),
            ],
        )
        return id

    return enter


def run(*arguments: str) -> tuple[int, str]:
    """Run ``manage.py aiotasks …`` in this process; returns the exit code and what it said."""
    out = StringIO()
    try:
        call_command("aiotasks", *arguments, stdout=out)
    except SystemExit as exit:
        return int(exit.code or 0), out.getvalue()
    return 0, out.getvalue()


def status(*arguments: str) -> dict[str, Any]:
    code, text = run("status", "--json", *arguments)
    assert code == 0
    answer: dict[str, Any] = json.loads(text)
    return answer


def check(*arguments: str) -> Findings:
    """The exit code, and the findings by name."""
    code, text = run("check", "--json", *arguments)
    report = json.loads(text)
    assert report["ok"] is (code == 0)
    return code, {finding["name"]: finding for finding in report["checks"]}
