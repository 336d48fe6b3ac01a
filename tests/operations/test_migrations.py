"""Migrations after the first: old and new workers beside each other, and no queue for the lock."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.test import override_settings

from aiotasks.conf import Options
from aiotasks.exceptions import DatabaseNotReady
from aiotasks.store.loop import close_pools, resources
from aiotasks.worker.startup import reach_database
from tests.worker import limited_work

from .conftest import status

# As 0.1 has them, before the column: what its workers go on sending while a site is deployed.
OLD_REGISTER = """
    INSERT INTO aiotasks_worker (
        id, backend, host, pid, queues, concurrency, threads, version, started_at, lease_expires_at
    )
    VALUES (%s, 'default', 'old', 1, '{}', 10, 10, '0', now(), now() + interval '30 s')
"""
OLD_RENEWAL = (
    "UPDATE aiotasks_worker SET lease_expires_at = now() + interval '30 s' WHERE id = %s RETURNING id"
)


@pytest.fixture
def before(database: str) -> Iterator[None]:
    """The schema as it was before the column."""
    call_command("migrate", "aiotasks", "0001", verbosity=0)
    yield
    connection.close()
    call_command("migrate", "aiotasks", verbosity=0)


def test_old_workers_go_on_while_the_column_comes(before: None, sql: psycopg.Connection) -> None:
    """And no row is written anew for it."""
    old, later = uuid4(), uuid4()
    sql.execute(OLD_REGISTER, [old])
    files = "SELECT pg_relation_filenode('aiotasks_worker'), pg_relation_filenode('aiotasks_task')"
    were = sql.execute(files).fetchone()
    assert sql.execute(OLD_RENEWAL, [old], prepare=True).rowcount == 1
    call_command("migrate", "aiotasks", verbosity=0)
    assert sql.execute(files).fetchone() == were
    assert sql.execute(OLD_RENEWAL, [old], prepare=True).rowcount == 1
    sql.execute(OLD_REGISTER, [later])
    assert [worker["listening"] for worker in status()["workers"]] == [None, None]


async def test_a_new_worker_does_not_start_before_the_migration(database: str) -> None:
    """It could claim, but not keep its lease: others would run its tasks too."""
    await asyncio.to_thread(_migrate, "0001")
    try:
        with pytest.raises(DatabaseNotReady, match=r"another version.*run `manage.py migrate"):
            await reach_database(
                resources(Options()).store,
                "default",
                database="default",
                within=5.0,
                stopping=asyncio.Event(),
                failed=lambda: None,
            )
    finally:
        await close_pools()
        await asyncio.to_thread(_migrate)


def test_tasks_with_limits_run_without_them_after_a_downgrade(database: str, sql: psycopg.Connection) -> None:
    """The release before knows no lane of theirs, nor does this one know their keys again."""
    limited_work.work_in_line.enqueue("a", 0.0)
    lane = "SELECT lane FROM aiotasks_task"
    assert sql.execute(lane).fetchone() == ("loop+",)
    try:
        _migrate("0011")
        assert sql.execute(lane).fetchone() == ("loop",)
    finally:
        _migrate()
    assert sql.execute(lane).fetchone() == ("loop",)


class TasksElsewhere:
    """A site's router, whose tasks have a database of their own."""

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
        return app_label != "aiotasks"


@pytest.mark.parametrize("engine", ["postgresql", "sqlite3"])
@override_settings(DATABASE_ROUTERS=[TasksElsewhere()])
def test_a_database_that_a_router_keeps_the_tables_out_of(engine: str, database: str, tmp_path: Path) -> None:
    """`migrate` goes through all migrations there too, and no operation of any may touch it."""
    name = "postgres" if engine == "postgresql" else tmp_path / "db"
    params = {**connections.databases["default"], "ENGINE": f"django.db.backends.{engine}", "NAME": name}
    connections.databases["elsewhere"] = params
    try:
        with connections["elsewhere"].cursor() as cursor:
            recorder = MigrationRecorder(connections["elsewhere"])
            call_command("migrate", "aiotasks", database="elsewhere", verbosity=0)
            assert len(recorder.applied_migrations()) > 1
            call_command("migrate", "aiotasks", "zero", database="elsewhere", verbosity=0)
            assert connections["elsewhere"].introspection.table_names(cursor) == ["django_migrations"]
            cursor.execute("DROP TABLE django_migrations")
    finally:
        connections["elsewhere"].close()
        del connections["elsewhere"]
        del connections.databases["elsewhere"]


def _migrate(*target: str) -> None:
    call_command("migrate", "aiotasks", *target, verbosity=0)
    connection.close()
