"""What somebody may try who can enqueue, read the table, or write to it (docs/faults.md, 44, 47 to 50).

Names in SQL and in the log are also in test_input.py.
"""

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

import aiotasks
from aiotasks import TaskFilter
from aiotasks.codec import dump_error
from aiotasks.db.drivers import ConnectionDriver
from aiotasks.exceptions import UnknownTask
from aiotasks.policies.unique import UniqueRule
from aiotasks.registry import resolve
from aiotasks.rows import LANES, LaneRequest, Status, UniqueJob
from aiotasks.store.bulk import Leg, Meant, Place
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.schedules import DeclaredSchedule, DueSchedule, Move
from aiotasks.store.store import Store
from tests.conftest import ROOT
from tests.store.rows import EVER, new_job, new_schedule
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until

from . import secrets

HERE = "tests.faults.secrets"
CARD = "sk-4000123412341234"


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.call",
        "os.system",
        "builtins.eval",
        f"{HERE}.hide",
        f"{HERE}.alias",
        f"{HERE}.charge.func",
        f"{HERE}.SECRET",
        HERE,
        "",
        ".",
        "..charge",
        "charge",
    ],
)
def test_nothing_but_a_task_at_its_own_path_is_ever_run(path: str) -> None:
    """Fault 44 of docs/faults.md: a stored path runs any callable."""
    with pytest.raises(UnknownTask):
        resolve(path)


async def test_a_stored_path_runs_no_function(configure: Configure, ledger: Ledger, tmp_path: Path) -> None:
    """Fault 44 of docs/faults.md: a stored path runs any callable, in the worker."""
    made = tmp_path / "made by a row"
    result = await tasks.add.aenqueue(1, 2)
    ledger.connection.execute(
        "UPDATE aiotasks_task SET task_path = 'os.mkdir', args = %s", [json.dumps([str(made)])]
    )
    async with aiotasks.Worker():
        await until(lambda: ledger.task(result.id).status == "SCHEDULED")
    assert not made.exists()


def test_nothing_is_unpickled_or_evaluated() -> None:
    """Fault 49 of docs/faults.md: pickle."""
    for path in Path(aiotasks.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        used = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        used |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not used & {"pickle", "marshal", "shelve", "eval", "exec", "compile", "__import__"}, path


# --- Secrets (docs/faults.md, 47)


async def run_one(ledger: Ledger, task: Any) -> dict[str, str]:
    """Run ``task`` with the card; returns the error that is stored."""
    result = await task.aenqueue(CARD)
    async with aiotasks.Worker():
        await until(lambda: ledger.task(result.id).status == "FAILED")
    error: dict[str, str]
    (error,) = ledger.task(result.id).errors
    return error


async def test_no_values_of_variables_are_stored(configure: Configure, ledger: Ledger) -> None:
    error = await run_one(ledger, secrets.keep)
    assert "a card of 16 digits" in error["traceback"]
    assert CARD.removeprefix("sk-") not in json.dumps(error)


@pytest.mark.parametrize("task", [secrets.charge, secrets.charge_sync], ids=["loop", "thread"])
async def test_errors_are_stored_as_redact_has_them(configure: Configure, ledger: Ledger, task: Any) -> None:
    configure(REDACT=f"{HERE}.hide")
    error = await run_one(ledger, task)
    assert error["class"] == "builtins.ValueError"
    assert "[hidden] was declined" in error["traceback"]
    assert CARD not in json.dumps(error)


@pytest.mark.parametrize("name", ["fail", "leave", "return_nothing"])
async def test_a_redact_that_fails_gives_nothing_away(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    configure(REDACT=f"{HERE}.{name}")
    with caplog.at_level(logging.INFO, "aiotasks"):
        error = await run_one(ledger, secrets.charge)
    assert error["traceback"].startswith("(left out: REDACT ")
    records = [record for record in caplog.records if record.name.startswith("aiotasks")]
    assert any(f"{HERE}.{name}" in record.getMessage() for record in records)
    assert not any(CARD in record.getMessage() or record.exc_info for record in records)


def test_the_text_is_redacted_before_it_is_cut() -> None:
    """Else the pattern of a secret wouldn't match where its half is left."""
    for before in range(1000, 1100):
        error = ValueError("x" * before + CARD + "y" * 100_000)
        text = dump_error(error, limit=2048, redact=f"{HERE}.hide")
        assert "sk-" not in text


@pytest.mark.parametrize("path", ["no.such.module", f"{HERE}.nothing", f"{HERE}.not_a_function"])
async def test_a_redact_that_leads_nowhere_is_told_at_the_start(configure: Configure, path: str) -> None:
    configure(REDACT=path)
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"REDACT {path!r} leads to no function")):
        aiotasks.Worker()
    text = dump_error(ValueError(CARD), limit=2048, redact=path)  # a process that nobody has checked
    assert CARD not in text


# --- Least privilege

# A method of the Store, its arguments, and last a dict of those by name.
type Calls = list[tuple[Any, ...]]

PERMISSIONS = (ROOT / "docs/reference/permissions.md").read_text("utf-8")
GRANTS = re.findall(r"^GRANT [^;]+;", PERMISSIONS, re.MULTILINE)
ROLES = ("site", "site_worker", "replacing_site", "site_operator")

ENQUEUER = """
import asyncio, json
import django
django.setup()
import aiotasks
from django.db import transaction
from django.tasks import default_task_backend as backend
from django.utils import timezone
from datetime import timedelta
from tests.worker import tasks

def sync():
    with transaction.atomic():
        many = backend.enqueue_many(tasks.add_sync, [((1, 2), {})] * 2)
        ids = [tasks.add.enqueue(1, 2).id, *(result.id for result in many)]
    assert backend.get_result(ids[0]).status in ("READY", "RUNNING", "SUCCESSFUL")
    assert tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2).cancel()
    return ids

async def main():
    ids = [(await tasks.add.aenqueue(1, 2)).id]
    ids += [r.id for r in await backend.aenqueue_many(tasks.add, [((1, 2), {})] * 2)]
    async with aiotasks.transaction():
        ids.append((await tasks.add.aenqueue(1, 2)).id)
        await backend.aget_result(ids[-1])
    soon = tasks.add.using(run_after=timezone.now() + timedelta(seconds=0.5))
    ids.append((await soon.aenqueue(1, 2)).id)
    running = await tasks.wait_for_release.aenqueue("until it is cancelled")
    while running.status != "RUNNING":
        await running.arefresh()
    assert await running.acancel()
    while running.status != "FAILED":
        await running.arefresh()
    return ids

print(json.dumps(sync() + asyncio.run(main())))
"""


@pytest.fixture
def roles(pg: Any, database: str) -> Iterator[None]:
    """The roles of docs/reference/permissions.md, with the privileges that it grants and no others."""
    password = getattr(pg, "password", "")
    with psycopg.connect(database, autocommit=True) as owner:
        for role in ROLES:
            owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        try:
            for grant in GRANTS:
                owner.execute(grant)
            yield
        finally:
            for role in ROLES:
                owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_documented_grants_are_enough(
    start: Start, start_worker: Start, ledger: Ledger, roles: None, worker_env: dict[str, str]
) -> None:
    dead, lost, unknown = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3))
    ledger.connection.execute(
        """
        INSERT INTO aiotasks_worker VALUES
            (%s, 'default', 'host', 1, '{}', 1, 1, '0', now(), now() - interval '1 hour')
        """,
        [dead],
    )
    ledger.connection.execute(
        """
        INSERT INTO aiotasks_task (id, backend, queue_name, task_path, lane, priority, status, args, kwargs,
            errors, worker_ids, crashes, enqueued_at, ready_at, worker_id, claim_id, last_attempted_at)
        VALUES (%s, 'default', 'default', 'tests.worker.tasks.add', 'loop', 0, 'RUNNING', '[1, 2]', '{}',
                '{}', ARRAY[%s]::uuid[], 0, now(), now(), %s, %s, now()),
               (%s, 'default', 'default', 'tests.no_such.task', 'loop', 0, 'READY', '[1, 2]', '{}',
                '{}', '{}', 0, now(), now(), NULL, NULL, NULL)
        """,
        [lost, dead, dead, dead, unknown],
    )
    worker = start_worker(
        options={"LEASE_TIMEOUT": 1, "POLL_INTERVAL": 0.5}, env={"AIOTASKS_DB_USER": "site_worker"}
    )
    run = subprocess.run(
        [sys.executable, "-c", ENQUEUER],
        env={**worker_env, "DJANGO_SETTINGS_MODULE": "tests.worker.settings", "AIOTASKS_DB_USER": "site"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for id in [lost, *json.loads(run.stdout)]:
        wait_until(lambda id=id: ledger.task(id).status == "SUCCESSFUL")
    wait_until(lambda: ledger.task(unknown).status == "SCHEDULED")
    wait_until(lambda: ledger.workers() == 1)
    assert worker.stop() == 0
    assert ledger.workers() == 0
    assert "permission denied" not in worker.log
    assert "Traceback" not in worker.log


async def test_each_statement_under_the_documented_grants(database: str, roles: None) -> None:
    """Of a site, of one that replaces, of an operator and of a worker. Whether they find tasks makes no
    difference: the server looks at privileges first. (wake_workers: the test above.)"""
    lock = {"lock_timeout": 1.0}
    ids, chosen = [uuid4()], TaskFilter(queue_name="x")
    rule = UniqueRule(None, waiting=True, on_conflict="replace", keep_run_after=False)
    new = [new_job() for _ in range(4)]
    unique = [
        UniqueJob(job.id, job.template, job.args, job.kwargs, job.enqueued_at, f"{number}", rule)
        for number, job in enumerate(new[1:])
    ]
    error = '{"class": "x", "traceback": "y"}'
    schedule = new_schedule()
    meant = Meant("default", [Status.READY, Status.RUNNING])
    bulk: Calls = [
        ("read_clock",),
        ("list_ready", "default", None),
        ("walk_jobs", "default", Leg("finished", Status.FAILED), Place(), 1.0, 10, chosen),
        ("select_left_jobs", ids, meant),
        ("cancel_free_jobs", ids, meant, error),
        ("select_jobs", ids, "default"),
        ("select_states", ids, "default"),
    ]
    site: Calls = [
        ("insert_job", new[0]),
        ("insert_jobs", [new_job() for _ in range(2)]),
        ("cancel_jobs", ids, "default", error),
        ("await_jobs", ids, "default", 1),
        ("select_ended_jobs", ids, "default"),
        ("select_own_jobs", ids, "default"),
        *bulk,
        ("insert_unique_job", unique[0], lock),
        ("insert_unique_jobs", unique[1:], lock),
        ("free_unique_keys", "default", ["0"], lock),
        ("lock_unique_keys", "default", ["0"], lock),
    ]
    replacing: Calls = [("replace_waiting_jobs", [UUID(unique[0].id)], unique[:1], lock)]
    operator: Calls = [
        *bulk,
        ("retry_jobs", ids, meant),
        ("retry_unique_job", ids[0], meant, lock),
        ("delete_jobs", ids, meant),
        ("insert_pause", "default", "queue", "x", "", None, None),
        ("select_pauses", "default"),
        ("delete_pause", "default", "queue", "x"),
        ("declare_schedules", "default", [DeclaredSchedule(schedule, None, None)], {"from_code": False}),
        ("select_schedules", "default"),
        ("pause_schedule", "default", "nightly", ""),
        ("resume_schedule", "default", schedule, None),
        ("delete_schedule", "default", "nightly"),
        ("insert_jobs", [new_job() for _ in range(2)]),
    ]
    lanes = {lane: LaneRequest(["x"], [EVER], 1) for lane in LANES}
    claim_id = uuid4()
    due = DueSchedule(EVER, "nightly", "", "", "last", None, EVER, 0, False)
    working: Calls = [
        ("claim_jobs", ids[0], claim_id, "default", lanes),
        ("claim_suspect", ids[0], claim_id, "default", "loop", ["x"]),
        ("release_jobs", [Release(ids[0], claim_id, 0.0, error=error)]),
        ("finish_jobs", [Finish(ids[0], claim_id, Status.FAILED, None, error)]),
        ("expire_jobs", "default", error, 10),
        ("promote_due_jobs", "default", 10),
        ("select_pauses", "default"),
        ("select_cancelled_jobs", ids[0]),
        ("release_lost_claims", ids[0], [claim_id], 0.0, error),
        ("rescue_jobs", "default", 3, error, 10, error, ids[0]),
        ("prune_jobs", "default", "FAILED", 1.0, float("-inf"), 10),
        ("prune_kept_jobs", "default", float("-inf"), 10),
        ("next_due", "default"),
        ("select_declared", "default"),
        ("announce_schedules", ids[0], ["nightly"]),
        ("stop_schedules", "default", ["nightly"]),
        ("declare_schedules", "default", [DeclaredSchedule(schedule, "", EVER)], {"from_code": True}),
        ("select_due_schedules", "default", 10),
        ("move_schedules", "default", [Move(due, None, EVER)]),
        ("insert_jobs", [new_job() for _ in range(2)]),
        ("insert_unique_job", unique[0], lock),
        ("insert_unique_jobs", unique[1:], lock),
        ("skip_ticks", "default", [("nightly", EVER, 1)]),
        ("fail_schedules", "default", [(due, error)], {"shortest": 1.0, "longest": 1.0}),
        ("stop_schedules", "default", ["nightly"]),
    ]
    conn = await asyncpg.connect(database)
    store = Store(ConnectionDriver(conn))
    try:
        await conn.execute("GRANT site TO replacing_site")
        for role, calls in {
            "site": site,
            "replacing_site": replacing,
            "site_operator": operator,
            "site_worker": working,
        }.items():
            await conn.execute(f"SET ROLE {role}")
            for name, *arguments in calls:
                named = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
                await getattr(store, name)(*arguments, **named)
            await conn.execute("RESET ROLE")
    finally:
        await conn.close()


def test_the_documented_enqueuer_can_do_no_workers_work(database: str, roles: None) -> None:
    for statement in (
        "UPDATE aiotasks_task SET args = '[]'",
        "UPDATE aiotasks_task SET task_path = 'x'",
        "DELETE FROM aiotasks_task",
        "SELECT host FROM aiotasks_worker",
        "UPDATE aiotasks_worker SET listening = false",
    ):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SET ROLE site")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
