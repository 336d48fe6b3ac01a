"""Row-level security on our tables: whoever it shuts out is told so, instead of seeing an empty table."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import ProgrammingError, connection

import aiotasks
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, start, start_worker, until

from .conftest import check
from .test_check import SITE, WORKER, role

__all__ = ["role", "start", "start_worker"]

type Enter = Callable[..., Any]


@pytest.fixture
def secured(sql: psycopg.Connection, role: str) -> Iterator[str]:
    """A role that has been granted everything, and no policy."""
    sql.execute(f"{WORKER}{SITE}GRANT ALL ON ledger TO {role}; GRANT ALL ON ledger_number_seq TO {role}")
    for table in ("aiotasks_task", "aiotasks_worker"):
        sql.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    yield role
    for table in ("aiotasks_task", "aiotasks_worker"):
        sql.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY")
        sql.execute(f"ALTER TABLE {table} OWNER TO CURRENT_USER")
        for name in sql.execute(
            f"SELECT polname FROM pg_policy WHERE polrelid = '{table}'::regclass"
        ).fetchall():
            sql.execute(f"DROP POLICY {name[0]} ON {table}")


def permissions() -> dict[str, str]:
    return check()[1]["permissions"]


def test_no_policy(
    ledger: Ledger, secured: str, sql: psycopg.Connection, configure: Configure, start_worker: Start
) -> None:
    configure()
    with pytest.raises(ProgrammingError, match=r'table "aiotasks_task".*BYPASSRLS'):
        tasks.add.enqueue(1, 2)
    with pytest.raises(ProgrammingError, match=r'table "aiotasks_task".*BYPASSRLS'):
        asyncio.run(tasks.add.aenqueue(1, 2))

    worker = start_worker("--until-empty", ready=False)
    assert worker.wait() == 1  # 0 before, with the table full of tasks
    assert f"Row-level security hides every row from role {secured}" in worker.log

    found = permissions()
    assert found["verdict"] == "error"
    assert "SELECT ON aiotasks_task" in found["message"]
    assert "INSERT ON aiotasks_worker" in found["message"]
    for statement in found["remedy"].split(": ", 1)[1].split("; "):
        sql.execute(statement)
    assert permissions()["verdict"] == "ok"
    result = tasks.add.enqueue(1, 2)
    assert start_worker("--until-empty", ready=False).wait() == 0
    result.refresh()
    assert result.return_value == 3


def test_policies_for_some(ledger: Ledger, secured: str, sql: psycopg.Connection) -> None:
    sql.execute(f"CREATE POLICY all_workers ON aiotasks_worker TO {secured} USING (true)")
    for kind in ("SELECT", "DELETE"):
        sql.execute(f"CREATE POLICY all_{kind} ON aiotasks_task FOR {kind} USING (true)")
    found = permissions()
    assert found["verdict"] == "error"
    assert "INSERT ON aiotasks_task, UPDATE ON aiotasks_task." in found["message"]
    sql.execute("CREATE POLICY made ON aiotasks_task FOR INSERT WITH CHECK (true)")
    sql.execute(f"CREATE POLICY mine ON aiotasks_task FOR UPDATE TO {secured} USING (queue_name = 'mine')")
    found = permissions()
    assert found["verdict"] == "warning"
    assert "the policies mine ON aiotasks_task" in found["message"]
    sql.execute("CREATE POLICY every ON aiotasks_task USING (true)")
    assert permissions()["verdict"] == "ok"
    sql.execute("CREATE POLICY less ON aiotasks_task AS RESTRICTIVE USING (queue_name <> 'theirs')")
    found = permissions()
    assert found["verdict"] == "warning"
    assert "less ON aiotasks_task" in found["message"]


def test_whom_it_does_not_concern(ledger: Ledger, secured: str, sql: psycopg.Connection) -> None:
    sql.execute(f"ALTER ROLE {secured} BYPASSRLS")
    connection.close()
    assert permissions()["verdict"] == "ok"
    sql.execute(f"ALTER ROLE {secured} NOBYPASSRLS; GRANT CREATE ON SCHEMA public TO {secured}")
    for table in ("aiotasks_task", "aiotasks_worker"):
        sql.execute(f"ALTER TABLE {table} OWNER TO {secured}")
    assert permissions()["verdict"] == "ok"
    sql.execute("ALTER TABLE aiotasks_task FORCE ROW LEVEL SECURITY")  # for its owner, too
    assert permissions()["verdict"] == "error"


def test_without_a_lease_nothing_is_empty(
    ledger: Ledger,
    role: str,
    sql: psycopg.Connection,
    configure: Configure,
    start_worker: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that can't enter itself has ended with 0 before it could have claimed anything."""
    configure()
    sql.execute(f"{WORKER}REVOKE INSERT ON aiotasks_worker FROM {role}")
    worker = start_worker("--until-empty", ready=False)
    assert worker.wait() == 1
    assert f"GRANT INSERT ON aiotasks_worker TO {role}" in worker.log

    async def embedded() -> None:
        async with aiotasks.Worker() as worker:
            waiting = asyncio.ensure_future(worker.wait_until_empty())
            await until(lambda: "the lease cannot be renewed" in caplog.text)
            for _ in range(20):
                await asyncio.sleep(0.05)  # each of which was enough for it
                assert not waiting.done()
            sql.execute(f"GRANT INSERT ON aiotasks_worker TO {role}")
            await waiting

    asyncio.run(embedded())
