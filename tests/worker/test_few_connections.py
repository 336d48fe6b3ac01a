"""A worker whose role may have few connections: the lease comes first, and it says what it lacks."""

from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection

from . import tasks
from .harness import Configure, Ledger, Start, wait_until


@pytest.fixture
def few(database: str, ledger: Ledger) -> Iterator[psycopg.Connection]:
    """A role for workers."""
    with psycopg.connect(database, autocommit=True) as admin:
        password = connection.settings_dict["PASSWORD"]
        admin.execute(f"CREATE ROLE few LOGIN PASSWORD '{password}'")
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO few")
        admin.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO few")
        yield admin
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'few'")
        admin.execute("DROP OWNED BY few; DROP ROLE few")


def test_three_connections(
    few: psycopg.Connection, ledger: Ledger, configure: Configure, start_worker: Start
) -> None:
    """One for the lease, one for statements, one that all tasks share, whichever lane they run in."""
    configure()
    few.execute("ALTER ROLE few CONNECTION LIMIT 3")
    for _ in range(10):
        tasks.query.enqueue(0.01, 2)
        tasks.query_sync.enqueue()
        tasks.query_in_executor.enqueue()
    worker = start_worker(env={"AIOTASKS_DB_USER": "few"})
    wait_until(lambda: set(ledger.statuses()) <= {"SUCCESSFUL", "FAILED"})
    assert ledger.statuses() == {"SUCCESSFUL": 30}, worker.log
    assert "allows this role 3 connections" in worker.log
    assert "its pool takes 1; it polls without LISTEN; tasks' queries share the 1 left" in worker.log
    assert ledger.value("SELECT count(*) FROM aiotasks_worker WHERE lease_expires_at > now()") == 1
    assert worker.stop() == 0
    few.execute("ALTER ROLE few CONNECTION LIMIT 2")
    worker = start_worker(env={"AIOTASKS_DB_USER": "few"}, ready=False)
    assert worker.wait() == 1
    assert "it needs 3, for its lease, its statements and its tasks' queries" in worker.log
    assert "CONNECTION LIMIT" in worker.log


def test_the_pool_gives_way_to_the_lease(
    few: psycopg.Connection, ledger: Ledger, configure: Configure, start_worker: Start, database: str
) -> None:
    """Where the limit isn't known beforehand: others have taken what there is."""
    configure()
    (taken,) = (psycopg.connect(database, user="few"),)
    few.execute("ALTER ROLE few CONNECTION LIMIT 33")
    others = [psycopg.connect(database, user="few") for _ in range(30)]
    try:
        tasks.add.enqueue(1, 1)
        start_worker(env={"AIOTASKS_DB_USER": "few"}, ready=False)  # two are left
        wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
        assert ledger.value("SELECT count(*) FROM aiotasks_worker WHERE lease_expires_at > now()") == 1
    finally:
        for other in (*others, taken):
            other.close()
