"""A server that tests stop and restart, seen from outside."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from django.db import connections
from psycopg.rows import namedtuple_row

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import ROOT

# The sessions of ours that LISTEN in the current database.
LISTENERS = (
    "SELECT pid FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'aiotasks' "
    "AND (query ILIKE 'LISTEN%%' OR query LIKE '%%pg_notify($1, '''')%%')"
)


def environment(server: PostgresServer) -> dict[str, str]:
    """What has a process use ``server``, over the environment it has anyway."""
    return {
        "AIOTASKS_DB_HOST": server.host,
        "AIOTASKS_DB_PORT": str(server.port),
        "AIOTASKS_DB_USER": server.user,
        "AIOTASKS_DB_PASSWORD": "",
        "AIOTASKS_DB_NAME": "postgres",
        "DJANGO_SETTINGS_MODULE": "tests.worker.settings",
        "PYTHONPATH": os.fspath(ROOT),
    }


def migrate(server: PostgresServer) -> None:
    """Make the tables in the server's own database."""
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--verbosity=0", "--skip-checks"],
        env={**os.environ, **environment(server)},
        check=True,
    )


@contextmanager
def connected(server: Any, **options: object) -> Iterator[None]:
    """Have this process' connections go to ``server``."""
    connections.close_all()
    params = connections["default"].settings_dict
    before = {name: params[name] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD", "OPTIONS")}
    params.update(
        HOST=server.host,
        PORT=str(server.port),
        NAME="postgres",
        USER="postgres",
        PASSWORD="",
        OPTIONS=options,
    )
    yield
    connections.close_all()
    params.update(before)


class Away:
    """Looks into a database that may be away at the moment."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._connection: psycopg.Connection | None = None

    def rows(self, query: str, *args: object) -> list[Any]:
        deadline = time.monotonic() + 20
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(
                        self.server.dsn(), autocommit=True, row_factory=namedtuple_row
                    )
                cursor = self._connection.execute(query, args)
                return list(cursor) if cursor.description else []
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def value(self, query: str, *args: object) -> Any:
        return self.rows(query, *args)[0][0]

    def statuses(self) -> dict[str, int]:
        return dict(self.rows("SELECT status, count(*) FROM aiotasks_task GROUP BY 1"))

    def enqueue(self, path: str, *args: object, count: int = 1, lane: str = "loop") -> list[str]:
        ids = [str(uuid4()) for _ in range(count)]
        self.rows(
            """
            INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status,
                args, kwargs, errors, worker_ids, crashes, enqueued_at, ready_at)
            SELECT id, 'default', 'default', %s, %s, 0, 'READY',
                %s, '{}', '{}', '{}', 0, now(), clock_timestamp()
            FROM unnest(%s::uuid[]) AS id
            ON CONFLICT DO NOTHING
            """,
            f"tests.worker.tasks.{path}",
            lane,
            json.dumps(args),
            ids,
        )
        return ids
