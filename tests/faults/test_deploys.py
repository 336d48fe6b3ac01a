"""Old and new code side by side on one schema, migrations under load, and tasks that have moved."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connections
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoDbBlocker
from uuid_utils import uuid7

import aiotasks
from aiotasks import PostgresTask
from aiotasks.conf import MovedTasks
from aiotasks.db.connect import connect
from aiotasks.exceptions import UnknownTask
from aiotasks.migrations import _online
from aiotasks.registry import resolve
from aiotasks.store.statements import load
from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until

from .releases import ADD, RELEASES, Release, Release0001, Release0007

BACKEND = "aiotasks.backend.PostgresBackend"
NEW_SCHEMA = "0013_reports"
elsewhere = tasks.add  # a Task, but at a path that isn't its own

# Rows in the table when it is migrated under load. 200,000 have been tried, too.
ROWS = 20_000


@pytest.fixture
def older(database: str, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The alias of a database of its own, whose schema is 0001's."""
    params = connections.databases["default"]
    name = f"{params['NAME']}_older"
    with psycopg.connect(database, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        connections.databases["older"] = {**params, "NAME": name}
        migrate("0001_initial")
        yield "older"
        connections["older"].close()
        del connections["older"]
        del connections.databases["older"]
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migrate(target: str) -> None:
    """Migrate that database, in whatever thread this is."""
    try:
        call_command("migrate", "aiotasks", target, database="older", verbosity=0)
    finally:
        connections["older"].close()


class Migrating(threading.Thread):
    """``migrate`` in another thread; ``join()`` raises what it raised."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            migrate(NEW_SCHEMA)
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = 30.0) -> None:
        super().join(timeout)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def observe(alias: str) -> psycopg.Connection[Any]:
    params = connections[alias].get_connection_params()
    keys = ("host", "port", "user", "password", "dbname")
    return psycopg.connect(**{key: params[key] for key in keys if params.get(key)}, autocommit=True)


# --- One schema, two releases ---------------------------------------------------------------


@RELEASES
async def test_old_code_works_on_the_new_schema(
    configure: Configure, ledger: Ledger, kind: type[Release]
) -> None:
    """What it enqueues, a new worker runs; what new code enqueues, an old worker runs."""
    conn = await connect("default", timeout=10.0, statement_cache_size=100)
    release = kind(conn)
    single = await release.enqueue(1, 2)
    await release.enqueue_many(3)
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 4})
    result = await tasks.add.aget_result(single)
    assert result.return_value == 3
    kept = await tasks.add.using(keep_result=3600.0).aenqueue(1, 2)
    awaited = "UPDATE aiotasks_task SET awaited = 1, metadata = '{}' WHERE id = %s"
    ledger.connection.execute(awaited, [kept.id])
    await release.register()
    (id,) = await release.claim(10)
    assert await release.finish([id]) == 1
    await conn.close()
    assert (ledger.task(kept.id).awaited, ledger.task(kept.id).metadata) == (1, {})
    found = await default_task_backend.aget_result(kept.id)
    assert isinstance(found.task, PostgresTask)
    assert (found.return_value, found.task.keep_result) == (3, 3600.0)
    ledger.connection.execute("UPDATE aiotasks_task SET finished_at = now() - interval '2 hours'")
    await sync_to_async(call_command)("aiotasks", "prune", stdout=StringIO())
    assert ledger.statuses() == {"SUCCESSFUL": 4}
    await sync_to_async(call_command)("aiotasks", "prune", "--older-than=1h", stdout=StringIO())
    assert ledger.statuses() == {}


@RELEASES
async def test_a_worker_of_each_release_and_no_task_twice(
    configure: Configure, ledger: Ledger, kind: type[Release]
) -> None:
    conn = await connect("default", timeout=10.0, statement_cache_size=100)
    release = kind(conn)
    await release.register()
    await release.enqueue_many(400)
    finished = 0
    async with aiotasks.Worker(concurrency=5):
        while claimed := await release.claim(10):
            finished += await release.finish(claimed)
            await asyncio.sleep(0)
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 400})
    assert ledger.value("SELECT max(cardinality(worker_ids)) FROM aiotasks_task") == 1
    mine = "SELECT count(*) FROM aiotasks_task WHERE worker_ids = ARRAY[%s]::uuid[]"
    assert ledger.value(mine, release.worker_id) == finished
    await conn.close()


def test_a_new_worker_on_the_old_schema_says_to_migrate(older: str, start: Start) -> None:
    env = {"AIOTASKS_DB_NAME": connections.databases[older]["NAME"]}
    worker = start("-m", "aiotasks.worker", "--until-empty", env=env)
    assert worker.wait() == 1
    (said,) = [line for line in worker.log.splitlines() if "of another version" in line]
    assert re.search(r"(column|relation) \S+ does not exist", said)
    assert "run `manage.py migrate --database default`" in said
    assert "Traceback" not in worker.log
    migrate(NEW_SCHEMA)
    assert start("-m", "aiotasks.worker", "--until-empty", env=env).wait() == 0


BRAND_NEW = """
from django.tasks import task

@task
async def task_of_the_next_release():
    return "new"
"""


def test_a_task_that_the_old_worker_does_not_know_is_left_to_the_new_one(
    start_worker: Start, ledger: Ledger, tmp_path: Path, worker_env: dict[str, str]
) -> None:
    """Fault 43 of docs/faults.md: real processes release it, unspent, to where its module is."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "brand_new.py").write_text(BRAND_NEW)
    id = str(uuid7())
    row = (id, "default", "default", "brand_new.task_of_the_next_release", "loop", 0, "READY", "[]", "{}")
    quick: dict[str, Any] = {"options": {"POLL_INTERVAL": 0.1}, "queues": ["default"]}
    old_worker = start_worker(**quick)
    ledger.connection.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at
        )
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, '{}', '{}', 0, now(), now())
        """,
        row,
    )
    wait_until(lambda: ledger.task(id).unknown_since)
    old_worker.wait_for("Task cannot be imported here; snoozing it")
    assert (ledger.task(id).status, ledger.task(id).worker_ids, ledger.task(id).errors) == (
        "SCHEDULED",
        [],
        [],
    )
    start_worker(**quick, env={"PYTHONPATH": f"{worker_env['PYTHONPATH']}:{tmp_path / 'code'}"})

    def succeeded() -> bool:
        # Both claim it when it is due; the test doesn't wait for ten seconds each time.
        ledger.connection.execute(
            "UPDATE aiotasks_task SET status = 'READY', ready_at = now() WHERE status = 'SCHEDULED'"
        )
        return bool(ledger.task(id).status == "SUCCESSFUL")

    wait_until(succeeded)
    assert (ledger.task(id).errors, len(ledger.task(id).worker_ids)) == ([], 1)
    assert old_worker.is_alive()


# --- Tasks that have moved ------------------------------------------------------------------


async def test_a_task_that_has_moved_runs_and_is_found(configure: Configure, ledger: Ledger) -> None:
    results = [await tasks.add.aenqueue(1, 2) for _ in range(2)]
    ledger.connection.execute("UPDATE aiotasks_task SET task_path = 'gone.module.plus'")
    with pytest.raises(UnknownTask):
        await tasks.add.aget_result(results[0].id)
    configure(MOVED_TASKS={"gone.module.plus": ADD})
    waiting = await tasks.add.aget_result(results[0].id)
    assert waiting.task.module_path == ADD
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 2})
    found = await tasks.add.aget_result(results[1].id)
    assert found.return_value == 3
    assert ledger.value("SELECT min(task_path) FROM aiotasks_task") == "gone.module.plus"


async def test_an_alias_comes_before_what_the_path_leads_to(configure: Configure, ledger: Ledger) -> None:
    """The old function may be there still, for callers."""
    configure(MOVED_TASKS={"tests.worker.tasks.fail": ADD})
    result = await tasks.add.aenqueue(1, 2)
    ledger.connection.execute("UPDATE aiotasks_task SET task_path = 'tests.worker.tasks.fail'")
    async with aiotasks.Worker():
        await until(lambda: ledger.statuses() == {"SUCCESSFUL": 1})
    assert (await tasks.add.aget_result(result.id)).return_value == 3


@pytest.mark.parametrize(
    "target", ["subprocess.call", "tests.faults.test_deploys.elsewhere", "tests.worker.tasks.nothing_there"]
)
def test_an_alias_leads_to_tasks_only(settings: Any, target: str) -> None:
    """Fault 44 of docs/faults.md: a stored path runs any callable."""
    moved = MovedTasks({"old.path": target})
    with pytest.raises(UnknownTask, match=f"'{target}' is not a task"):
        resolve("old.path", moved)
    settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": {"MOVED_TASKS": dict(moved)}}}
    (message,) = [one for one in run_checks() if one.id == "aiotasks.E007"]
    assert f"TASKS['default']['OPTIONS']['MOVED_TASKS']['old.path']: '{target}' is not a task" in message.msg
    settings.TASKS["default"]["OPTIONS"]["MOVED_TASKS"] = {"old.path": ADD}
    assert not [one for one in run_checks() if str(one.id).startswith("aiotasks.E")]


def test_a_worker_does_not_start_with_an_alias_to_nowhere(start: Start, ledger: Ledger) -> None:
    worker = start(
        "-m", "aiotasks.worker", options={"MOVED_TASKS": {"old.path": "tests.worker.tasks.nowhere"}}
    )
    assert worker.wait() == 1
    assert "['MOVED_TASKS']['old.path']: 'tests.worker.tasks.nowhere' is not a task" in worker.log
    assert "Traceback" not in worker.log


# --- Migrations -----------------------------------------------------------------------------


def test_the_models_have_their_migrations(database: str) -> None:
    call_command("makemigrations", "aiotasks", check=True, dry_run=True, verbosity=0)


async def test_a_full_table_is_migrated_under_load(older: str, start: Start) -> None:
    """Old enqueuers and old workers go on while it is; a new worker runs what is left."""
    observer = observe(older)
    observer.execute(
        """
        INSERT INTO aiotasks_task (
            id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
            crashes, enqueued_at, ready_at, finished_at
        )
        SELECT gen_random_uuid(), 'default', 'default', %s, 'loop', 0, 'SUCCESSFUL', '[]', '{}', '{}',
            '{}', 0, now(), now(), now()
        FROM generate_series(1, %s)
        """,
        [ADD, ROWS],
    )
    releases = [Release0001(await connect(older, timeout=10.0, statement_cache_size=100)) for _ in range(6)]
    stopping = asyncio.Event()
    longest = dict.fromkeys(("enqueue", "claim", "finish"), 0.0)
    enqueued = finished = 0

    async def timed[Value](what: str, awaitable: Any) -> Any:
        began = time.perf_counter()
        value = await awaitable
        longest[what] = max(longest[what], time.perf_counter() - began)
        return value

    async def site(release: Release0001, *, seconds_open: float) -> None:
        nonlocal enqueued
        while not stopping.is_set():
            async with release.conn.transaction():
                await timed("enqueue", release.enqueue(1, 2))
                await asyncio.sleep(seconds_open)
            enqueued += 1

    async def work(release: Release0001) -> None:
        nonlocal finished
        await release.register()
        while not stopping.is_set():
            claimed = await timed("claim", release.claim(20))
            if claimed:
                finished += await timed("finish", release.finish(claimed))
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for number, release in enumerate(releases):
            group.create_task(
                site(release, seconds_open=0.05 * (number % 3)) if number < 4 else work(release)
            )
        await until(lambda: finished >= 50)
        began, before = time.perf_counter(), finished
        migrating = Migrating()
        migrating.start()
        await asyncio.to_thread(migrating.join)
        took = time.perf_counter() - began
        await until(lambda: finished >= before + 50)
        stopping.set()
    for release in releases:
        await release.conn.close()
    print(f"migrated in {took:.2f} s; {enqueued} tasks meanwhile; longest statement", longest)  # noqa: T201
    env = {"AIOTASKS_DB_NAME": connections.databases[older]["NAME"]}
    assert await asyncio.to_thread(start("-m", "aiotasks.worker", "--until-empty", env=env).wait) == 0
    statuses = observer.execute("SELECT status, count(*) FROM aiotasks_task GROUP BY status").fetchall()
    observer.close()
    assert dict(statuses) == {"SUCCESSFUL": ROWS + enqueued}


def test_an_alter_that_must_wait_steps_aside(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever enqueues meanwhile waits behind it for LOCK_TIMEOUT at most."""
    monkeypatch.setattr(_online, "LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(_online, "PAUSE", 0.05)
    waits = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE 'ALTER%' AND wait_event_type = 'Lock'
    """
    with observe(older) as observer, observe(older) as holder, observe(older) as site:
        with holder.transaction():
            holder.execute(
                "LOCK TABLE aiotasks_task IN ROW EXCLUSIVE MODE"
            )  # as an open atomic() with a task
            migrating = Migrating()
            migrating.start()
            wait_until(lambda: observer.execute(waits).fetchone() == (1,))
            site.execute("SET lock_timeout = '10s'")
            site.execute("DELETE FROM aiotasks_task")
            assert migrating.is_alive()
        migrating.join()
    assert has_column()


def has_column() -> bool:
    with observe("older") as observer:
        found = observer.execute(
            "SELECT FROM pg_attribute WHERE attrelid = 'aiotasks_task'::regclass AND attname = 'keep_result'"
        )
        return found.rowcount == 1


def test_an_alter_brings_limits_of_its_own_and_leaves_none(
    older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the role's are. Behind a pooler a session is another client's next."""
    monkeypatch.setattr(_online, "LOCK_TIMEOUT", "300ms")
    monkeypatch.setattr(_online, "PAUSE", 0.01)
    monkeypatch.setattr(_online, "TRIES", 2)
    with observe(older) as server:
        server.execute(f"ALTER DATABASE {server.info.dbname} SET statement_timeout = '150ms'")
    with observe(older) as holder, holder.transaction():
        holder.execute("LOCK TABLE aiotasks_worker IN ROW EXCLUSIVE MODE")
        with pytest.raises(CommandError, match="aiotasks_worker couldn't be altered"):
            call_command("migrate", "aiotasks", "0002", database=older, verbosity=0)
    with observe(older) as server:
        server.execute(f"ALTER DATABASE {server.info.dbname} RESET statement_timeout")
    connections[older].close()
    with CaptureQueriesContext(connections[older]) as context:
        call_command("migrate", "aiotasks", NEW_SCHEMA, database=older, verbosity=0)
        call_command("migrate", "aiotasks", "0001", database=older, verbosity=0)
    statements = [query["sql"] for query in context.captured_queries]
    assert "SET LOCAL lock_timeout = '300ms'" in statements
    limits = [sql for sql in statements if "_timeout" in sql and "current_setting" not in sql]
    assert {sql.split()[1] for sql in limits} == {"LOCAL"}


def test_an_alter_that_gets_no_lock_says_so(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_online, "LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(_online, "PAUSE", 0.01)
    monkeypatch.setattr(_online, "TRIES", 3)
    with observe(older) as holder, holder.transaction():
        holder.execute("LOCK TABLE aiotasks_task IN ROW EXCLUSIVE MODE")
        with pytest.raises(CommandError, match=r"aiotasks_task couldn't be altered: .* for 3 tries"):
            call_command("migrate", "aiotasks", NEW_SCHEMA, database=older, verbosity=0)
    with connections[older].cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)
    assert not has_column()
    migrate(NEW_SCHEMA)
    assert has_column()


def indexes() -> dict[str, bool]:
    with observe("older") as observer:
        return dict(
            observer.execute(
                "SELECT indexrelid::regclass::text, indisvalid FROM pg_index "
                "WHERE indrelid = 'aiotasks_task'::regclass"
            ).fetchall()
        )


def test_a_migration_that_was_broken_off_is_taken_up(older: str) -> None:
    migrate(NEW_SCHEMA)
    whole = indexes()
    assert set(whole.values()) == {True}
    migrate("0001_initial")
    assert indexes().keys() == {*whole, "aiotasks_task_finished"} - {
        "aiotasks_task_prunable",
        "aiotasks_task_kept",
        "aiotasks_task_suspects",
        "aiotasks_task_expiring",
        "aiotasks_task_unique",
        "aiotasks_task_keyed",
        "aiotasks_task_held",
        "aiotasks_task_ordered",
    }
    assert not has_column()
    with observe(older) as broken, observe(older) as holder:
        # As one that was killed while it built its second index.
        broken.execute("ALTER TABLE aiotasks_task ADD COLUMN keep_result double precision NULL")
        broken.execute("CREATE INDEX aiotasks_task_prunable ON aiotasks_task (backend)")
        with holder.transaction():
            holder.execute("LOCK TABLE aiotasks_task IN ROW EXCLUSIVE MODE")
            broken.execute("SET lock_timeout = '20ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                broken.execute("CREATE INDEX CONCURRENTLY aiotasks_task_kept ON aiotasks_task (backend)")
    assert indexes()["aiotasks_task_kept"] is False
    migrate(NEW_SCHEMA)
    assert indexes() == whole
    with observe(older) as broken:  # all of it was done, and not written down
        broken.execute("DELETE FROM django_migrations WHERE app = 'aiotasks' AND name > '0002'")
    migrate(NEW_SCHEMA)
    assert indexes() == whole


def test_the_frozen_statements_are_not_todays() -> None:
    """They name no column that is new."""
    for name in ("insert_job", "insert_jobs", "claim_jobs", "select_jobs"):
        assert "keep_result" in load(name).sql
        assert "keep_result" not in Release0001.statement(name)
    news = re.compile(
        r"\b(expires_at|failures|snoozes|errors_omitted|unique_\w+|former_key|aiotasks_pause)\b"
    )
    for file in (Path(__file__).parent / "release_0007").iterdir():
        assert not news.search(Release0007.statement(file.stem)), file.stem
