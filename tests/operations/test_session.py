"""What Django's connection is told and aiotasks' isn't: it is named, with what to write instead."""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created

import aiotasks
from aiotasks.exceptions import DatabaseNotReady
from aiotasks.operations.connection import operator_connection
from aiotasks.store.inspection import Session
from aiotasks.store.session import our_session
from tests.worker.harness import Configure

from .conftest import check
from .test_check import params

type Enter = Callable[..., Any]


@contextmanager
def receiver(sql: str) -> Iterator[None]:
    """Each connection of Django's begins with this statement."""

    def begin(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    connection_created.connect(begin)
    connection.close()
    try:
        yield
    finally:
        connection_created.disconnect(begin)
        connection.close()


@pytest.fixture
def elsewhere(sql: psycopg.Connection) -> Iterator[None]:
    """Our tables are in a schema that the default search_path doesn't name."""
    tables = ("aiotasks_task", "aiotasks_worker", "django_migrations")
    sql.execute("CREATE SCHEMA app")
    for table in tables:
        sql.execute(f"ALTER TABLE {table} SET SCHEMA app")
    yield
    for table in tables:
        sql.execute(f"ALTER TABLE app.{table} SET SCHEMA public")
    sql.execute("DROP SCHEMA app CASCADE")


def literal(remedy: str, name: str) -> str:
    """The value that a remedy wants to have written for an option."""
    found = re.search(rf'"{name}": \'(.+?)\' in', remedy)
    assert found, remedy
    return found[1].replace("\\\\", "\\")


def start_worker() -> str:
    """What a worker of its own process says that can't start."""

    async def start() -> None:
        async with aiotasks.Worker(database_timeout=0):
            pass

    with pytest.raises(DatabaseNotReady) as caught:
        asyncio.run(start())
    return str(caught.value)


def test_a_search_path_by_a_receiver(elsewhere: None, configure: Configure) -> None:
    """Not "the tables are missing: run migrate", which would make others."""
    configure()
    with receiver('SET search_path TO app, "$user", public'):
        told = start_worker()
    assert "migrate" not in told
    assert "search_path app" in told
    with params(OPTIONS={"options": literal(told, "options")}):
        session = asyncio.run(of_ours())
    assert session.finds_tables
    assert session.search_path == 'app,"$user",public'


async def of_ours() -> Session:
    async with operator_connection("default", timeout=5) as line:
        return await our_session(line)


def test_check_on_a_search_path_by_a_receiver(elsewhere: None) -> None:
    with receiver("SET search_path TO app"):
        code, found = check()
    assert (code, found["session"]["verdict"]) == (1, "error")
    assert "search_path app" in found["session"]["message"]
    assert found["migrations"]["verdict"] == "not checked"
    with params(OPTIONS={"options": literal(found["session"]["remedy"], "options")}):
        assert check()[1]["session"]["verdict"] == "ok"


def test_a_role_by_a_receiver(sql: psycopg.Connection, enter: Enter) -> None:
    enter()
    sql.execute("CREATE ROLE site; GRANT ALL ON ALL TABLES IN SCHEMA public TO site")
    try:
        with receiver("SET ROLE site"):
            code, found = check()
        assert (code, found["session"]["verdict"]) == (0, "warning")  # it finds the same tables
        with params(OPTIONS={"assume_role": literal(found["session"]["remedy"], "assume_role")}):
            code, found = check()
        assert (code, found["session"]["verdict"]) == (0, "ok")
    finally:
        connection.close()
        sql.execute("DROP OWNED BY site; DROP ROLE site")


def test_an_engine_that_adds_what_nobody_is_told(
    database: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user (or password) in get_new_connection()."""
    configure()
    original = DatabaseWrapper.get_new_connection
    user = connection.settings_dict["USER"]
    monkeypatch.setattr(
        DatabaseWrapper, "get_new_connection", lambda self, given: original(self, {**given, "user": user})
    )
    with params(USER="nobody_of_that_name"):
        assert "override the former" in start_worker()
        code, found = check()
    assert (code, found["database"]["verdict"]) == (1, "error")
    assert "get_new_connection()" in found["database"]["remedy"]


def test_where_django_fares_no_better_the_usual_is_told(database: str, configure: Configure) -> None:
    configure()
    with params(NAME="postgres"):
        assert "run `manage.py migrate" in start_worker()
    with params(USER="nobody_of_that_name"):
        assert start_worker().startswith("PostgreSQL refuses the user or password")
