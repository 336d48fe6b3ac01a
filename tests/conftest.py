"""The harness: one PostgreSQL per run, a clean database per test, every async test under asyncio and uvloop.

A run that leaves a connection to the test database or a process behind fails.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import psutil
import psycopg
import pytest
import uvloop
from asgiref.sync import SyncToAsync
from django.apps import apps
from django.db import connection, connections
from django.test.utils import setup_databases, teardown_databases
from pytest_django import DjangoDbBlocker

from aiotasks.demo.postgres import PostgresServer

ROOT = Path(__file__).parent.parent

# Whose PostgreSQL; None: that of the wheel.
BIN_DIR = Path(named) if (named := os.environ.get("AIOTASKS_TEST_PG_BIN")) else None

# Whoever descends from this run inherits the mark, so that even orphans are found at its end.
RUN_MARK = ("AIOTASKS_TEST_RUN", str(os.getpid()))
os.environ.update([RUN_MARK])

LEFT_BEHIND = pytest.StashKey[list[str]]()

# What needs another site's settings, and packages that only requirements/clients.txt has, is collected with
# these settings alone: `nox -s clients`.
CLIENTS, CLIENTS_SETTINGS = ROOT / "tests" / "clients", "tests.clients.settings"


class RunningServer:
    """A server that isn't ours (AIOTASKS_TEST_DSN), with what it can have of PostgresServer's interface."""

    def __init__(self, dsn: str) -> None:
        self._url = urlsplit(dsn)
        self.host = self._url.hostname or "127.0.0.1"
        self.port = self._url.port or 5432
        self.user = unquote(self._url.username or "postgres")
        self.password = unquote(self._url.password or "")

    def dsn(self, database: str = "postgres") -> str:
        return self._url._replace(path=f"/{database}").geturl()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if collection_path == CLIENTS and os.environ["DJANGO_SETTINGS_MODULE"] != CLIENTS_SETTINGS:
        return True
    return None  # others may ignore it


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.hookimpl(trylast=True)  # when all fixtures are torn down
def pytest_sessionfinish(session: pytest.Session) -> None:
    name, value = RUN_MARK
    left = []
    for process in psutil.process_iter(["environ", "cmdline"]):
        if process.pid != os.getpid() and (process.info["environ"] or {}).get(name) == value:
            left.append(f"process {process.pid}: {process.info['cmdline']}")
            process.kill()
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:  # one of pytest-xdist's processes, which tells the one that reports
        output["left_behind"] = left
        return
    left_by_others = session.config.stash.get(LEFT_BEHIND, [])
    left += left_by_others
    if left:
        reporter = session.config.pluginmanager.getplugin("terminalreporter")
        reporter.ensure_newline()
        for line in left:
            reporter.write_line(f"Left behind: {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """pytest-xdist can't pass on the lone surrogates that some tests have logged."""
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended."""
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(LEFT_BEHIND, []).extend(output.get("left_behind", []))


@pytest.fixture(scope="session")
def pg() -> Iterator[PostgresServer | RunningServer]:
    """The run's PostgreSQL server. A test that stops or restarts a server brings its own."""
    if dsn := os.environ.get("AIOTASKS_TEST_DSN"):
        yield RunningServer(dsn)
        return
    settings = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
    with PostgresServer(bin_dir=BIN_DIR, settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def django_db_setup(
    pg: PostgresServer | RunningServer, django_test_environment: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """Create the test database; pytest-django's own does so only if one of its markers asks for it."""
    connection.settings_dict.update(
        HOST=pg.host, PORT=str(pg.port), USER=pg.user, PASSWORD=getattr(pg, "password", "")
    )
    if process := os.environ.get("PYTEST_XDIST_WORKER"):  # on AIOTASKS_TEST_DSN they share a server
        connection.settings_dict["TEST"]["NAME"] = f"test_aiotasks_{process}"
    with django_db_blocker.unblock():
        old_names = setup_databases(verbosity=0, interactive=False)
    yield
    if left := connections_left(pg, connection.settings_dict["NAME"]):
        pytest.fail(f"Connections left open: {left}", pytrace=False)  # nor could the database be dropped
    with django_db_blocker.unblock():
        teardown_databases(old_names, verbosity=0)


def connections_left(pg: PostgresServer | RunningServer, database: str) -> list[tuple[object, ...]]:
    """Return who is still connected to the database, after five seconds in which to leave."""
    connections.close_all()
    query = """
        SELECT pid, application_name, backend_start::text, state, query FROM pg_stat_activity
        WHERE datname = %s AND backend_type = 'client backend'
    """
    deadline = time.monotonic() + 5
    with psycopg.connect(pg.dsn(), autocommit=True) as observer:
        while (left := observer.execute(query, [database]).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.05)
    return left


@pytest.fixture
def database(
    pg: PostgresServer | RunningServer, django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[str]:
    """The test database without any rows of ours; its DSN. The test may use Django's connections too."""
    dsn = pg.dsn(connection.settings_dict["NAME"])
    tables = ", ".join(model._meta.db_table for model in apps.get_app_config("aiotasks").get_models())
    # A lock that an earlier test has left is an error here, not a run that hangs.
    with psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=5s") as cleaner:
        cleaner.execute(f"TRUNCATE {tables}")
    with django_db_blocker.unblock():
        yield dsn
    connections.close_all()
    # In async tests the ORM runs on asgiref's one thread for all.
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(timeout=30)


@pytest.fixture
async def conn(database: str) -> AsyncIterator[asyncpg.Connection]:
    """An asyncpg connection to the test database."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
def worker_env(database: str) -> dict[str, str]:
    """The environment for processes that a test starts: these settings, the test database."""
    params = connection.settings_dict
    return {
        **os.environ,
        **{f"AIOTASKS_DB_{key}": params[key] for key in ("HOST", "PORT", "USER", "PASSWORD", "NAME")},
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.fspath(ROOT),
    }
