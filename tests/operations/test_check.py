"""``manage.py aiotasks check``: a healthy set-up, and one broken thing at a time."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings

from aiotasks import __version__
from aiotasks.operations.check import CHECKS, diagnose, finding_parts
from aiotasks.operations.check.autovacuum import STORAGE
from aiotasks.operations.check.finding import Finding
from aiotasks.operations.check.permissions import AWAIT, CANCEL, METADATA, UNIQUE, WAKE
from aiotasks.operations.tables import as_text
from tests.conftest import ROOT
from tests.proxy import Proxy
from tests.worker.harness import Configure, wait_until

from .conftest import check, run

CHECK = "aiotasks.operations.check"

type Enter = Callable[..., UUID]
BACKEND = "aiotasks.backend.PostgresBackend"


@contextmanager
def params(**changed: Any) -> Iterator[None]:
    """Connect otherwise while the block lasts."""
    here = connection.settings_dict
    before = {name: here[name] for name in changed}
    here.update(changed)
    connection.close()
    try:
        yield
    finally:
        connection.close()
        here.update(before)


@pytest.fixture
def role(pg: Any, sql: psycopg.Connection) -> Iterator[str]:
    """A role without any rights, whom Django and aiotasks connect as."""
    password = getattr(pg, "password", "")
    sql.execute(f"CREATE ROLE checker LOGIN PASSWORD '{password}'")
    with params(USER="checker"):
        yield "checker"
    sql.execute("DROP OWNED BY checker; DROP ROLE checker")


@contextmanager
def database_with(sql: psycopg.Connection, setting: str, undo: str) -> Iterator[None]:
    name = sql.info.dbname
    sql.execute(f'ALTER DATABASE "{name}" {setting}')
    connection.close()
    try:
        yield
    finally:
        sql.execute(f'ALTER DATABASE "{name}" {undo}')


def only(name: str) -> dict[str, str]:
    """The finding of this name, where all others are fine."""
    code, found = check()
    others = {one: finding for one, finding in found.items() if one != name}
    assert {finding["verdict"] for finding in others.values()} == {"ok"}, others
    assert code == (found[name]["verdict"] == "error")
    assert found[name]["remedy"]
    return found[name]


def test_a_healthy_set_up(enter: Enter) -> None:
    """Also that the parameters of the tables are the ones that the migrations give them."""
    enter()
    code, found = check()
    assert (code, list(found)) == (0, list(CHECKS))
    assert {finding["verdict"] for finding in found.values()} == {"ok"}, found
    assert not any(finding["remedy"] for finding in found.values())
    code, text = run("check")
    assert code == 0
    assert [line.split()[:2] for line in text.splitlines()[:-2]] == [["ok", name] for name in CHECKS]
    assert text.splitlines()[-1] == "0 errors, 0 warnings."


SETTINGS: dict[str, tuple[Any, str]] = {
    "no dict": ([], "TASKS has no backend 'default'"),
    "no such alias": ({"other": {"BACKEND": BACKEND}}, "it has 'other'"),
    "nothing": ({"default": None}, "TypeError"),
    "no backend": ({"default": {}}, "'BACKEND'"),
    "no such module": ({"default": {"BACKEND": "nowhere.Backend"}}, "nowhere"),
    "no class": ({"default": {"BACKEND": "aiotasks.backend.checks"}}, "TypeError"),
    "another backend": (
        {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}},
        "is a DummyBackend",
    ),
    "queues": ({"default": {"BACKEND": BACKEND, "QUEUES": 5}}, "(aiotasks.E005)"),
    "option": ({"default": {"BACKEND": BACKEND, "OPTIONS": {"POLL": 1}}}, "(aiotasks.E002)"),
    "database": ({"default": {"BACKEND": BACKEND, "OPTIONS": {"DATABASE": "x"}}}, "(aiotasks.E003)"),
}


@pytest.mark.parametrize("mistake", SETTINGS)
def test_mistakes_in_the_settings(settings: Any, mistake: str) -> None:
    settings.TASKS, told = SETTINGS[mistake]
    code, found = check()
    assert code == 1
    assert found["settings"]["verdict"] == "error"
    assert told in found["settings"]["message"]
    assert found["settings"]["remedy"]
    assert {found[name]["verdict"] for name in CHECKS[1:]} == {"not checked"}
    for subcommand in ("status", "prune"):
        with pytest.raises(CommandError, match=re.escape(told)):
            run(subcommand)


@pytest.mark.parametrize("subcommand", ["status", "check", "prune"])
def test_a_mistake_is_told_where_djangos_own_checks_would_have_stopped_it(
    worker_env: dict[str, str], subcommand: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "django", "aiotasks", subcommand],
        env={
            **worker_env,
            "DJANGO_SETTINGS_MODULE": "tests.worker.settings",
            "TEST_OPTIONS": '{"LEASE_TIMEOUT": "30"}',
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    first = (done.stdout if subcommand == "check" else done.stderr).splitlines()[0]
    assert first.startswith("error        settings" if subcommand == "check" else "aiotasks: TASKS")
    assert "'LEASE_TIMEOUT'" in first
    assert "Traceback" not in done.stderr


def test_what_is_only_doubtful_in_the_settings_stops_nothing(enter: Enter) -> None:
    enter()
    with params(OPTIONS={"keepalives_idle": 5}):
        finding = only("settings")
    assert finding["verdict"] == "warning"
    assert "'keepalives_idle'" in finding["message"]


def test_a_database_that_is_away(worker_env: dict[str, str]) -> None:
    """As a process, so that nothing but the answer reaches the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "aiotasks", "check"],
        env={**worker_env, "AIOTASKS_DB_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    ok, error, remedy, *rest = done.stdout.splitlines()
    assert ok.split()[:2] == ["ok", "settings"]
    assert error.split()[:2] == ["error", "database"]
    assert "DATABASES['default'] can't be reached" in error
    assert "HOST, PORT" in remedy
    assert [line.split()[:3] for line in rest[:-2]] == [["not", "checked", name] for name in CHECKS[2:]]
    assert rest[-1] == "1 error, 0 warnings."


@pytest.mark.parametrize("mode", ["blackhole", "mute"])
def test_a_dead_line(database: str, configure: Configure, mode: Any) -> None:
    configure(COMMAND_TIMEOUT=0.3)
    here = connection.settings_dict
    with (
        Proxy(here["HOST"], int(here["PORT"])) as proxy,
        params(HOST="127.0.0.1", PORT=str(proxy.port)),
    ):
        proxy.mode = mode
        code, found = check()
    assert code == 1
    assert found["database"]["verdict"] == "error"
    assert found["versions"]["verdict"] == "not checked"


def test_a_line_that_dies_between_two_checks(
    database: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(COMMAND_TIMEOUT=0.3)
    here = connection.settings_dict
    with (
        Proxy(here["HOST"], int(here["PORT"])) as proxy,
        params(HOST="127.0.0.1", PORT=str(proxy.port)),
    ):

        def migrations() -> list[str]:
            proxy.mode = "blackhole"
            return []

        monkeypatch.setattr(f"{CHECK}.migrations._migrations", migrations)
        code, found = check()
    assert code == 1
    assert [found[name]["verdict"] for name in ("database", "migrations", "pooler", "versions")] == [
        "ok",
        "error",
        "not checked",
        "not checked",
    ]


def test_a_wrong_password_and_a_database_that_is_not_there(database: str) -> None:
    with params(NAME="nowhere"):
        code, found = check()
    assert code == 1
    assert "doesn't exist" in found["database"]["message"]
    with params(USER="nobody_of_that_name"):
        assert "refuses the user or password" in check()[1]["database"]["message"]


def test_a_read_only_server(sql: psycopg.Connection, enter: Enter) -> None:
    enter()
    with database_with(sql, "SET default_transaction_read_only = on", "RESET default_transaction_read_only"):
        finding = only("database")
    assert finding["verdict"] == "error"
    assert "read-only" in finding["message"]
    assert "target_session_attrs" in finding["remedy"]


def test_a_missing_migration(database: str, sql: psycopg.Connection) -> None:
    call_command("migrate", "aiotasks", "0001", verbosity=0)
    try:
        code, found = check()
    finally:
        call_command("migrate", "aiotasks", verbosity=0)
    assert code == 1
    assert found["migrations"]["verdict"] == "error"
    assert "0002_worker_listening" in found["migrations"]["message"]
    assert "0001" not in found["migrations"]["message"]
    assert found["migrations"]["remedy"] == "Run `manage.py migrate aiotasks --database default`."
    assert found["versions"]["verdict"] == "not checked"
    assert found["connections"]["verdict"] == "ok"


def test_an_index_that_was_lost_and_its_remedy(sql: psycopg.Connection) -> None:
    definition = sql.execute("SELECT pg_get_indexdef('aiotasks_task_ready'::regclass)").fetchone()
    sql.execute("DROP INDEX aiotasks_task_ready")
    code, found = check()
    assert code == 1
    assert "Missing or INVALID: aiotasks_task_ready." in found["migrations"]["message"]
    remedy = found["migrations"]["remedy"].removeprefix("Run, each by itself: ").removesuffix(".")
    for statement in remedy.split("; "):
        sql.execute(statement)
    assert sql.execute("SELECT pg_get_indexdef('aiotasks_task_ready'::regclass)").fetchone() == definition
    assert check()[1]["migrations"]["verdict"] == "ok"


def test_no_tables_at_all(database: str, sql: psycopg.Connection, pg: Any) -> None:
    with params(NAME="postgres"):
        code, found = check()
    assert code == 1
    assert "0001_initial" in found["migrations"]["message"]
    assert found["autovacuum"]["verdict"] == "not checked"


def test_tables_that_were_dropped_behind_the_migrations_back(sql: psycopg.Connection) -> None:
    sql.execute("ALTER TABLE aiotasks_worker RENAME TO aside")
    try:
        code, found = check()
    finally:
        sql.execute("ALTER TABLE aside RENAME TO aiotasks_worker")
    assert code == 1
    assert found["migrations"]["verdict"] == "error"
    assert "tables of aiotasks are missing" in found["migrations"]["message"]
    assert found["clock"]["verdict"] == "ok"  # the others go on


WORKER = (
    "GRANT SELECT, UPDATE, DELETE ON aiotasks_task TO checker;"
    "GRANT SELECT, INSERT, UPDATE, DELETE ON aiotasks_worker TO checker;"
    "GRANT SELECT ON aiotasks_pause TO checker; GRANT SELECT ON aiotasks_schedule TO checker;"
    "GRANT SELECT ON aiotasks_limit TO checker;"
)
SITE = (
    "GRANT SELECT, INSERT ON aiotasks_task TO checker;"
    f"GRANT {CANCEL} TO checker; GRANT {UNIQUE} TO checker; GRANT {AWAIT} TO checker;"
    f"GRANT {METADATA} TO checker; GRANT {WAKE} TO checker;"
)


@pytest.mark.parametrize(("grants", "told"), [(WORKER, "may run a worker"), (SITE, "may enqueue")])
def test_the_documented_roles_lack_nothing(
    sql: psycopg.Connection, enter: Enter, role: str, grants: Any, told: str
) -> None:
    """Though they may not read which migrations are applied, and a site not who works."""
    enter()
    sql.execute(grants)
    code, found = check()
    assert code == 0
    assert found["permissions"]["verdict"] == "ok"
    assert told in found["permissions"]["message"]
    assert found["migrations"]["verdict"] == "not checked"
    assert found["versions"]["verdict"] == ("ok" if grants == WORKER else "not checked")
    sql.execute(f"GRANT SELECT ON django_migrations TO {role}")
    assert check()[1]["migrations"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("grants", "right"),
    [
        *((WORKER, f"{kind} ON aiotasks_task") for kind in ("SELECT", "UPDATE", "DELETE")),
        *((WORKER, f"{kind} ON aiotasks_worker") for kind in ("SELECT", "INSERT", "UPDATE", "DELETE")),
        (WORKER, "SELECT ON aiotasks_schedule"),
        *((SITE, f"{kind} ON aiotasks_task") for kind in ("SELECT", "INSERT")),
    ],
)
def test_the_grant_that_is_missing_is_named(
    sql: psycopg.Connection, enter: Enter, role: str, grants: Any, right: Any
) -> None:
    enter()
    sql.execute(grants)
    sql.execute(f"REVOKE {right} FROM {role}")
    code, found = check()
    assert (code, found["permissions"]["verdict"]) == (1, "error")
    assert found["permissions"]["message"].endswith(f": {right}.")
    assert found["permissions"]["remedy"] == f"GRANT {right} TO {role}"
    assert [name for name, finding in found.items() if finding["verdict"] == "error"] == ["permissions"]
    sql.execute(found["permissions"]["remedy"])
    assert check()[1]["permissions"]["verdict"] == "ok"


def test_a_site_that_cannot_choose_whom_to_wake(sql: psycopg.Connection, enter: Enter, role: str) -> None:
    """Each of its enqueues wakes all workers: a warning, with the GRANT that is documented."""
    enter()
    sql.execute(SITE)
    sql.execute(f"REVOKE SELECT (channel) ON aiotasks_worker FROM {role}")
    code, found = check()
    finding = found["permissions"]
    assert (code, finding["verdict"]) == (0, "warning")
    assert "wakes all workers instead of two" in finding["message"]
    assert finding["remedy"] == f"GRANT {WAKE} TO {role}"
    assert found["fleet"]["verdict"] == "not checked"
    page = (ROOT / "docs/reference/permissions.md").read_text("utf-8")
    assert f"{finding['remedy'].removesuffix(role)}site;" in page
    sql.execute(finding["remedy"])
    found = check()[1]
    assert (found["permissions"]["verdict"], found["fleet"]["verdict"]) == ("ok", "ok")
    sql.execute(f"GRANT SELECT ON aiotasks_worker TO {role}")  # more than it needs makes it no worker's
    assert check()[1]["permissions"]["verdict"] == "ok"


def test_a_site_with_the_grants_of_the_release_before(
    sql: psycopg.Connection, enter: Enter, role: str
) -> None:
    """It could cancel, and can't: a warning. One that never could has chosen so."""
    enter()
    sql.execute(SITE)
    sql.execute(
        "REVOKE UPDATE (errors_omitted), UPDATE (unique_key, former_key), UPDATE (awaited), "
        f"UPDATE (metadata) ON aiotasks_task FROM {role}"
    )
    code, found = check()
    finding = found["permissions"]
    assert (code, finding["verdict"]) == (0, "warning")
    assert "but not cancel or enqueue tasks with a unique_key or join tasks without" in finding["message"]
    assert "or save the metadata of tasks." in finding["message"]
    page = (ROOT / "docs/reference/permissions.md").read_text("utf-8")
    for grant in finding["remedy"].split("; "):
        assert f"{grant.removesuffix(role)}site;" in page
    sql.execute(finding["remedy"])
    assert check()[1]["permissions"]["verdict"] == "ok"
    sql.execute(f"REVOKE {CANCEL} FROM {role}; REVOKE {UNIQUE} FROM {role}; REVOKE {AWAIT} FROM {role}")
    sql.execute(f"REVOKE {METADATA} FROM {role}")
    finding = check()[1]["permissions"]
    assert finding["verdict"] == "ok"
    assert "or join tasks without polling or save the metadata of tasks or run a worker" in finding["message"]


@pytest.mark.parametrize("usage", [True, False])
def test_tables_in_a_schema_that_the_role_does_not_find(
    sql: psycopg.Connection, role: str, usage: bool
) -> None:
    """To migrate, as for missing ones, would make them a second time."""
    sql.execute("CREATE SCHEMA elsewhere; ALTER TABLE aiotasks_task SET SCHEMA elsewhere")
    sql.execute("ALTER TABLE django_migrations SET SCHEMA elsewhere")
    if usage:
        sql.execute(f"GRANT USAGE ON SCHEMA elsewhere TO {role}")
    else:
        sql.execute(f"ALTER ROLE {role} SET search_path = elsewhere, public")
    try:
        code, found = check()
    finally:
        sql.execute("ALTER TABLE elsewhere.aiotasks_task SET SCHEMA public")
        sql.execute(
            "ALTER TABLE elsewhere.django_migrations SET SCHEMA public; DROP SCHEMA elsewhere CASCADE"
        )
    assert (code, found["migrations"]["verdict"]) == (1, "error")
    assert "which are in the schema elsewhere." in found["migrations"]["message"]
    assert found["migrations"]["remedy"].startswith("GRANT USAGE ON SCHEMA elsewhere TO checker;")
    assert found["permissions"]["verdict"] == "not checked"


def test_a_server_without_a_connection_left(sql: psycopg.Connection, role: str) -> None:
    sql.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    code, found = check()
    assert code == 1
    assert "has no connection left" in found["database"]["message"]
    assert "max_connections" in found["database"]["remedy"]


def test_connections_that_are_nearly_all_taken(
    sql: psycopg.Connection, enter: Enter, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By others, too, of whom this role isn't told much."""
    sql.execute(WORKER)
    enter()
    (most,) = sql.execute("SHOW max_connections").fetchone() or ()
    assert check()[1]["connections"]["verdict"] == "ok"
    monkeypatch.setattr(
        f"{CHECK}.connections.NEARLY_ALL", 1.5 / (int(most) - 3)
    )  # ours and that of `sql` are two
    finding = check()[1]["connections"]
    assert finding["verdict"] == "warning"
    assert "max_connections" in finding["remedy"]


@pytest.mark.parametrize(
    ("direct", "message", "remedy"),
    [
        ({"NAME": "postgres"}, "NOTIFY is not delivered", "has to lead to the same database as 'default'"),
        ({"PORT": "1"}, "LISTEN can't be tried: PostgreSQL at DATABASES['direct']", "DATABASES['direct']"),
    ],
    ids=["another database", "no server"],
)
def test_a_direct_line_that_is_none(
    enter: Enter,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    direct: dict[str, str],
    message: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(f"{CHECK}.notify.NOTIFY_TIMEOUT", 0.1)
    monkeypatch.setitem(connections.databases, "direct", {**connection.settings_dict, **direct})
    configure(LISTEN_DATABASE="direct")
    enter()
    finding = only("notify")
    assert finding["verdict"] == "warning"
    assert message in finding["message"]
    assert remedy in finding["remedy"]


@pytest.mark.parametrize("size", [100, 0])
def test_a_pooler_in_transaction_mode(
    enter: Enter, configure: Configure, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """That one is found is in test_probes."""

    async def found(*args: Any) -> str:
        return "transaction"

    monkeypatch.setattr(f"{CHECK}.pooler.find_pooler", found)
    configure(STATEMENT_CACHE_SIZE=size)
    enter()
    code, findings = check()
    assert (code, findings["pooler"]["verdict"]) == ((1, "error") if size else (0, "ok"))
    assert ("Set STATEMENT_CACHE_SIZE to 0" in findings["pooler"]["remedy"]) is bool(size)
    assert findings["connections"]["verdict"] == "not checked"
    assert "at most 30 connections to it." in findings["connections"]["message"]


def test_connections_past_a_pooler_are_counted_apart(
    enter: Enter, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(*args: Any) -> str:
        return "transaction"

    monkeypatch.setattr(f"{CHECK}.pooler.find_pooler", found)
    monkeypatch.setitem(connections.databases, "direct", dict(connection.settings_dict))
    configure(STATEMENT_CACHE_SIZE=0, LISTEN_DATABASE="direct")
    enter()
    enter(threads=0)
    finding = check()[1]["connections"]
    assert finding["verdict"] == "not checked"
    assert "(2 running) open at most 48 connections to it, and 2 past it, for LISTEN." in finding["message"]


def test_notify_that_is_turned_off(enter: Enter, configure: Configure) -> None:
    configure(NOTIFY=False, POLL_INTERVAL=3)
    enter()
    finding = only("notify")
    assert finding["verdict"] == "warning"
    assert "up to 3 s" in finding["message"]


def test_notify_that_does_not_arrive(enter: Enter, pg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of another database hears nothing of this one's: as deaf as behind a pooler."""

    async def elsewhere(alias: str, **options: Any) -> Any:
        return await asyncpg.connect(pg.dsn())

    monkeypatch.setattr(f"{CHECK}.notify.connect", elsewhere)
    monkeypatch.setattr(f"{CHECK}.notify.NOTIFY_TIMEOUT", 0.1)
    enter()
    finding = only("notify")
    assert finding["verdict"] == "warning"
    assert "NOTIFY is not delivered" in finding["message"]
    assert "pooler" in finding["remedy"]


def test_a_worker_that_notify_does_not_reach(enter: Enter) -> None:
    enter()
    enter(host="deaf", pid=7, listening=False)
    enter(host="new", listening=None)
    enter(host="dead", listening=False, lease=-1.0)
    finding = only("notify")
    assert finding["verdict"] == "warning"
    assert "doesn't wake deaf:7." in finding["message"]


def test_storage_parameters(sql: psycopg.Connection, enter: Enter) -> None:
    """A missing one is a warning, whose remedy mends it; another value is somebody's decision."""
    enter()
    sql.execute("ALTER TABLE aiotasks_task RESET (fillfactor, autovacuum_vacuum_threshold)")
    sql.execute("ALTER TABLE aiotasks_worker RESET (fillfactor)")
    sql.execute("ALTER TABLE aiotasks_limit RESET (autovacuum_vacuum_scale_factor)")
    try:
        finding = only("autovacuum")
        assert finding["verdict"] == "warning"
        assert "autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, fillfactor" in finding["message"]
        sql.execute(finding["remedy"])
        assert check()[1]["autovacuum"]["verdict"] == "ok"
        sql.execute("ALTER TABLE aiotasks_task SET (autovacuum_vacuum_threshold = 99)")
        assert check()[1]["autovacuum"]["verdict"] == "ok"
        for table in STORAGE:
            sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            finding = only("autovacuum")
            assert finding["verdict"] == "error"
            assert f"off for {table}" in finding["message"]
            sql.execute(finding["remedy"])
    finally:
        for table, parameters in STORAGE.items():
            sql.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")
            if told := ", ".join(f"{name} = {value}" for name, value in parameters.items()):
                sql.execute(f"ALTER TABLE {table} SET ({told})")
    assert check()[1]["autovacuum"]["verdict"] == "ok"


def test_autovacuum_that_is_off(sql: psycopg.Connection, enter: Enter) -> None:
    enter()
    with database_with(sql, "SET track_counts = off", "RESET track_counts"):
        assert only("autovacuum")["verdict"] == "error"
    sql.execute("ALTER SYSTEM SET autovacuum = off")
    sql.execute("SELECT pg_reload_conf()")
    try:
        wait_until(lambda: sql.execute("SHOW autovacuum").fetchone() == ("off",))
        assert only("autovacuum")["verdict"] == "error"
    finally:
        sql.execute("ALTER SYSTEM RESET autovacuum")
        sql.execute("SELECT pg_reload_conf()")
        wait_until(lambda: sql.execute("SHOW autovacuum").fetchone() == ("on",))


def test_too_few_connections(sql: psycopg.Connection, enter: Enter) -> None:
    with database_with(sql, "CONNECTION LIMIT 29", "CONNECTION LIMIT -1"):
        code, found = check()
        assert (code, found["connections"]["verdict"]) == (1, "error")  # one by default opens 30
        assert "at most 30 of the 29 connections allowed" in found["connections"]["message"]
    with database_with(sql, "CONNECTION LIMIT 40", "CONNECTION LIMIT -1"):
        assert check()[1]["connections"]["verdict"] == "ok"
        for _ in range(2):
            enter(concurrency=0)  # pool 10, listener, heartbeat, ten threads
        finding = only("connections")
        assert finding["verdict"] == "warning"  # each can work, not both at their busiest
        assert "(2 running) open at most 44 of the 40 connections allowed" in finding["message"]
        assert "max_connections" in finding["remedy"]
    assert check()[1]["connections"]["verdict"] == "ok"
    (most,) = sql.execute("SHOW max_connections").fetchone() or ()
    assert f"of the {int(most) - 3} connections allowed" in check()[1]["connections"]["message"]


def test_the_workers_of_all_backends_need_connections(
    sql: psycopg.Connection, enter: Enter, settings: Any
) -> None:
    """With the sizes of the backend's own pools; those of a backend that TASKS hasn't are unknown."""
    settings.TASKS = {
        "default": {"BACKEND": BACKEND},
        "mails": {"BACKEND": BACKEND, "OPTIONS": {"POOL_MAX_SIZE": 3}},
        "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
    }
    enter(threads=0)  # pool 10, listener, heartbeat, 8 ORM threads
    for _ in range(2):
        enter(backend="mails", concurrency=0, threads=1)  # pool 3
    enter(backend="renamed", concurrency=0, threads=0)  # 12
    enter(backend="mails", lease=-1.0)
    with database_with(sql, "CONNECTION LIMIT 44", "CONNECTION LIMIT -1"):
        assert check()[1]["connections"]["verdict"] == "ok"
    with database_with(sql, "CONNECTION LIMIT 43", "CONNECTION LIMIT -1"):
        finding = only("connections")
    assert finding["verdict"] == "warning"
    assert "(4 running) open at most 44 of the 43 connections allowed" in finding["message"]
    assert "POOL_MAX_SIZE and ASYNC_DB_THREADS as they are here" in finding["message"]
    assert "--processes" in finding["remedy"]
    assert "PgBouncer" in finding["remedy"]


def test_how_the_workers_of_a_database_are_woken(enter: Enter) -> None:
    """Workers of the release before have no channel: an enqueue of their backend wakes all of its workers."""
    assert check()[1]["fleet"]["message"] == "No worker of any backend has a live lease."
    enter()
    enter()
    enter(listening=None)
    enter(backend="other", concurrency=0, listening=False, channel=None)
    enter(backend="gone", channel=None, lease=-1.0)
    found = check()[1]
    assert found["fleet"]["verdict"] == "ok"
    assert found["fleet"]["message"].startswith(
        "Live workers on this database: 4, of 'default' (3), 'other' (1)."
    )
    for told in ("2 LISTEN on a channel of their own", "1 only poll", "1 not known yet"):
        assert told in found["fleet"]["message"]
    enter(backend="other", channel=None)
    finding = only("fleet")
    assert finding["verdict"] == "warning"
    assert "1 LISTEN on the common channel alone" in finding["message"]
    assert "of 'other' (1), every enqueue there wakes all workers" in finding["message"]
    assert "restart the workers" in finding["remedy"]


@pytest.mark.parametrize(("minutes", "told"), [(2, "120.0 s ahead of"), (-2, "120.0 s behind")])
def test_a_clock_that_differs(sql: psycopg.Connection, enter: Enter, minutes: int, told: str) -> None:
    """The server's, as far as SQL can tell: another function is found first under that name."""
    enter()
    sql.execute("CREATE SCHEMA faked")
    try:
        sql.execute(
            "CREATE FUNCTION faked.clock_timestamp() RETURNS timestamptz LANGUAGE SQL AS "
            f"$$ SELECT pg_catalog.clock_timestamp() + interval '{minutes} minutes' $$"
        )
        with params(OPTIONS={"options": "-c search_path=faked,pg_catalog,public"}):
            finding = only("clock")
    finally:
        sql.execute("DROP SCHEMA faked CASCADE")
    assert finding["verdict"] == "warning"
    assert told in finding["message"]


def test_workers_of_several_versions(enter: Enter) -> None:
    assert only("versions")["message"] == "No worker of 'default' has a live lease: nothing runs."
    enter(version="0.0.1", lease=-1.0)  # of the dead, who cares
    enter(backend="other", version="0.0.2")
    enter()
    assert check()[1]["versions"]["verdict"] == "ok"
    enter(version="99.0")
    finding = only("versions")
    assert finding["verdict"] == "warning"
    assert f"{__version__} (1), 99.0 (1)" in finding["message"]


def test_the_lines_for_people() -> None:
    text = as_text(
        finding_parts(
            [
                Finding("settings", "ok", "fine"),
                Finding("database", "error", "bad\nnews", "mend it"),
                Finding("clock", "not checked", "why"),
            ]
        )
    )
    assert text.splitlines() == [
        "ok           settings  fine",
        r"error        database  'bad\nnews'",
        "                       -> mend it",
        "not checked  clock     why",
        "",
        "1 error, 0 warnings.",
    ]


LIMITED = """
from aiotasks import task

@task(timeout=5)
def short(): ...

@task(timeout=40)
def long(): ...

@task(timeout=5, max_attempts=3)
def again(): ...

@task(timeout=40, max_attempts=3)
async def coroutine(): ...

@task(max_attempts=3)
def unlimited(): ...
"""


def test_time_limits_of_sync_tasks(
    enter: Enter, sql: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the tasks of an installed app."""
    (tmp_path / "limited_shop").mkdir()
    (tmp_path / "limited_shop/__init__.py").touch()
    (tmp_path / "limited_shop/tasks.py").write_text(LIMITED)
    monkeypatch.syspath_prepend(tmp_path)
    enter()
    with override_settings(INSTALLED_APPS=["aiotasks", "limited_shop"]):
        found = check()[1]["timeouts"]
        assert found["verdict"] == "warning"
        assert (
            "grace of 25 s, so that a stop gives them back while they run: limited_shop.tasks.long."
            in (found["message"])
        )
        assert "goes on: limited_shop.tasks.again." in found["message"]
        assert "limited_shop.tasks.long" not in check("--grace", "60")[1]["timeouts"]["message"]
    assert check()[1]["timeouts"]["verdict"] == "ok"
    sql.execute("UPDATE aiotasks_worker SET stuck_threads = 2")
    assert "stuck in tasks whose time is over: 2." in check()[1]["timeouts"]["message"]


def test_nothing_stays_open(sql: psycopg.Connection, enter: Enter) -> None:
    """Neither asyncpg's connections nor that of the thread that looks at the migrations."""
    enter()
    asyncio.run(diagnose("default"))
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    wait_until(lambda: sql.execute(query).fetchone() == (0,))
