"""The drivers: one set of errors for both, and which of them may pass by waiting."""

import asyncio
import json
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from typing import Any

import asyncpg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection as django_connection
from django.db import transaction, utils
from django.test.utils import CaptureQueriesContext

from aiotasks.db import cache as cache_module
from aiotasks.db.drivers import (
    MOST_TRIES,
    AsyncpgDriver,
    ConnectionDriver,
    DjangoDriver,
)
from aiotasks.db.errors import Code, as_django_error, django_errors, is_transient, sqlstate
from aiotasks.db.statement import Statement
from aiotasks.rows import time_of
from aiotasks.store.loop import LoopResources
from aiotasks.store.statements import load
from aiotasks.store.store import Store
from aiotasks.sync import drive
from tests.proxy import Proxy
from tests.worker.harness import until

from .conftest import DjangoInThread
from .rows import methods_of_the_store, new_job

STATEMENTS = sorted(
    path.name.removesuffix(".sql") for path in (files("aiotasks.store") / "queries").iterdir()
)


def statement(sql: str) -> Statement:
    return Statement("test", sql, re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%")))


@pytest.fixture(params=["asyncpg", "connection", "django"])
def driver(request: pytest.FixtureRequest, database: str) -> Any:
    match request.param:
        case "asyncpg":
            return request.getfixturevalue("held").driver
        case "connection":
            return ConnectionDriver(request.getfixturevalue("conn"))
    return DjangoInThread()


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_is_a_method_of_the_store(name: str) -> None:
    assert callable(getattr(Store, name))
    text = load(name)
    assert "--" not in text.sql
    numbers = {int(number) for number in re.findall(r"\$(\d+)", text.sql)}
    assert numbers == set(range(1, len(numbers) + 1))
    assert text.django_sql % {f"p{n}": f"${n}" for n in numbers} == text.sql


def test_every_method_of_the_store_is_a_statement() -> None:
    methods = methods_of_the_store()
    assert methods == set(STATEMENTS)


async def test_placeholders_and_percent_signs(driver: Any) -> None:
    (row,) = await driver.fetch(statement("SELECT $2::text || '%s' || $1::text, 7 % 4, '%(p1)s'"), "a", "b")
    assert tuple(row) == ("b%sa", 3, "%(p1)s")


@pytest.mark.parametrize(
    ("sql", "kind", "state", "transient"),
    [
        ("SELECT 1/0", utils.DataError, "22012", False),
        ("SELECT 'x'::integer", utils.DataError, "22P02", False),
        ("SELEC", utils.ProgrammingError, "42601", False),
        ("SELECT * FROM no_such_table", utils.ProgrammingError, "42P01", False),
        ("INSERT INTO aiotasks_worker (id) VALUES (NULL)", utils.IntegrityError, "23502", False),
    ],
)
async def test_errors_have_djangos_class_and_the_servers_code(
    driver: Any, sql: str, kind: type[Exception], state: str, transient: bool
) -> None:
    with pytest.raises(kind) as caught:
        await driver.fetch(statement(sql))
    assert type(caught.value) is kind
    assert sqlstate(caught.value) == state
    assert is_transient(caught.value) is transient


# What the server says, and whether the same may go through later.
STATES = {
    "40001": True,
    "40P01": True,
    "53100": True,
    "53300": True,
    "55P03": True,
    "57014": True,
    "57P01": True,
    "57P03": True,
    "58030": True,
    "08006": True,
    "25006": True,
    "25P02": False,
    "28P01": False,
    "3D000": False,
    "42501": False,
    "42P01": False,
    "22003": False,
    "23505": False,
    "0A000": False,
    "54000": False,
    "XX000": False,
    "P0001": False,
}


@pytest.mark.parametrize("state", STATES)
async def test_the_server_or_the_line_at_fault_is_transient(driver: Any, state: str) -> None:
    """Raised by the server itself, so that each driver has its own error classes in it."""
    text = f"DO $do$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $do$"
    with pytest.raises(utils.DatabaseError, match="told") as caught:
        await driver.fetch(Statement("test", text, text))
    assert sqlstate(caught.value) == state
    assert is_transient(caught.value) is STATES[state]


@pytest.mark.parametrize("state", sorted(STATES.keys() - {"3D000"}))  # which only a connect is told
async def test_both_drivers_raise_the_same_class(database: str, held: LoopResources, state: str) -> None:
    text = f"DO $do$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $do$"
    errors = []
    for driver in (held.driver, DjangoInThread()):
        with pytest.raises(utils.DatabaseError) as caught:
            await driver.fetch(Statement("test", text, text))
        errors.append(type(caught.value))
    assert errors[0] is errors[1]


@pytest.mark.parametrize(
    ("error", "kind", "transient"),
    [
        (ConnectionRefusedError("no"), utils.OperationalError, True),
        (TimeoutError(), utils.OperationalError, True),
        (asyncpg.ConnectionDoesNotExistError("gone"), utils.OperationalError, True),
        (asyncpg.InterfaceError("closed"), utils.InterfaceError, True),
        (asyncpg.DataError("can't encode"), utils.DataError, False),
    ],
)
def test_what_has_no_answer_from_the_server(error: Exception, kind: type[Exception], transient: bool) -> None:
    with pytest.raises(kind) as caught, django_errors():
        raise error
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert str(caught.value)
    assert is_transient(caught.value) is transient


def test_users_own_errors_are_not_touched() -> None:
    for error in (ValueError("mine"), asyncio.CancelledError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), django_errors():
            raise error
    assert not is_transient(ValueError())
    assert type(as_django_error(OSError())) is utils.OperationalError


async def test_an_argument_that_cannot_be_encoded_is_a_data_error(held: LoopResources) -> None:
    with pytest.raises(utils.DataError) as caught:
        await held.driver.fetch(statement("SELECT $1::smallint"), 100_000)
    assert not is_transient(caught.value)


async def test_a_terminated_session_is_transient(held: LoopResources, conn: asyncpg.Connection) -> None:
    (row,) = await held.driver.fetch(statement("SELECT pg_backend_pid()"))
    sleeping = asyncio.ensure_future(held.driver.fetch(statement("SELECT pg_sleep(60)")))
    active = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep%'"
    await until(lambda: conn.fetchval(active, row[0]))
    await conn.execute("SELECT pg_terminate_backend($1)", row[0])
    with pytest.raises(utils.Error) as caught:
        await sleeping
    assert is_transient(caught.value)
    assert (await held.driver.fetch(statement("SELECT 1")))[0][0] == 1


async def test_a_dead_line_is_a_timeout_and_transient(
    proxy: Proxy, held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody waits until the server has cancelled what was asked, the caller's own timeout neither."""
    monkeypatch.setattr(cache_module, "CANCEL_TIMEOUT", 3600.0)
    async with asyncio.timeout(10):
        for timeout, error in ((0.2, utils.OperationalError), (3600.0, TimeoutError)):
            proxy.mode = "pass"
            await held.driver.fetch(statement("SELECT 1"))
            proxy.mode = "blackhole"
            with pytest.raises(error) as caught:
                async with asyncio.timeout(0.5):
                    await held.driver.fetch(statement("SELECT 2"), timeout=timeout)
            assert is_transient(caught.value) == (error is utils.OperationalError)
        proxy.mode = "pass"
        assert (await held.driver.fetch(statement("SELECT 3"), timeout=10))[0][0] == 3


async def test_a_connection_that_can_not_be_saved_is_cut(
    proxy: Proxy, held: LoopResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CANCEL_TIMEOUT", 0.1)
    await held.driver.fetch(statement("SELECT 1"))
    proxy.mode = "blackhole"
    with pytest.raises(utils.OperationalError):
        await held.driver.fetch(statement("SELECT 2"), timeout=0.2)
    await until(lambda: held.driver.cache.lent == 0)
    assert held.pool.get_size() == 0


async def test_waiting_for_a_free_connection_has_its_own_limit(database: str) -> None:
    driver = AsyncpgDriver(lambda: asyncpg.create_pool(database, min_size=0, max_size=1), timeout=0.2)
    await driver.open()
    async with driver.pool.acquire():
        with pytest.raises(utils.OperationalError) as caught:
            await driver.fetch(statement("SELECT 1"))
    assert is_transient(caught.value)
    assert (await driver.fetch(statement("SELECT 1")))[0][0] == 1
    await driver.cache.close()
    await driver.pool.close()


async def test_concurrent_statements_on_one_connection_queue_up(conn: asyncpg.Connection) -> None:
    driver = ConnectionDriver(conn)
    results = await asyncio.gather(*(driver.fetch(statement("SELECT $1::integer"), n) for n in range(20)))
    assert [rows[0][0] for rows in results] == list(range(20))


@pytest.mark.parametrize("error", [asyncio.CancelledError, ZeroDivisionError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
async def test_a_savepoint_that_cannot_be_rolled_back_keeps_its_error(
    database: str, error: type[BaseException], closed: bool
) -> None:
    """And its transaction ends, because it would go on with what was to be undone."""
    mine = await asyncpg.connect(database)

    async def body() -> None:
        async with ConnectionDriver(mine).savepoint():
            if closed:
                mine.terminate()
            else:
                await mine.execute("ROLLBACK; BEGIN")  # there is no such savepoint
            raise error

    await mine.transaction().start()
    with pytest.raises(error) as caught:
        await body()
    assert caught.value.__notes__[0].startswith("ROLLBACK TO SAVEPOINT failed, so the connection was closed")
    assert mine.is_closed()


def test_djangos_driver_never_suspends_and_goes_by_its_cursor(database: str) -> None:
    driver = DjangoDriver("default")
    with CaptureQueriesContext(django_connection) as queries:
        assert drive(driver.fetch(statement("SELECT $1::integer + 1"), 1))[0][0] == 2
        assert drive(driver.fetch(statement("SELECT pg_notify('x', 'y') WHERE false"))) == []
    assert len(queries) == 2


# Fails with a code for as long as there are numbers below a limit; a sequence isn't rolled back.
FAILS_AT_FIRST = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fails_at_first(code text, failures integer) RETURNS bigint LANGUAGE plpgsql AS $$
        DECLARE number bigint := nextval('tries');
        BEGIN
            IF number <= failures THEN RAISE EXCEPTION 'try %', number USING ERRCODE = code; END IF;
            RETURN number;
        END $$
"""


@pytest.fixture
async def fails_at_first(conn: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    await conn.execute(FAILS_AT_FIRST)
    yield conn
    await conn.execute("DROP FUNCTION fails_at_first(text, integer); DROP SEQUENCE tries")


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize("way", ["asyncpg", "django"])
async def test_what_the_server_has_rolled_back_is_sent_again(
    fails_at_first: asyncpg.Connection, held: LoopResources, way: str, code: str
) -> None:
    """A serialization failure or a deadlock; within limits, and never within somebody's transaction."""
    driver = held.driver if way == "asyncpg" else DjangoInThread()
    again = statement("SELECT fails_at_first($1::text, $2::integer)")
    ((number,),) = await driver.fetch(again, code, 5)
    assert number == 6
    with pytest.raises(utils.OperationalError, match="try") as caught:
        await driver.fetch(again, code, 10_000)
    assert sqlstate(caught.value) == code
    tries = await fails_at_first.fetchval("SELECT last_value FROM tries")
    assert tries == 6 + MOST_TRIES
    with pytest.raises(utils.Error):
        await driver.fetch(again, "23514", 10_000)
    assert await fails_at_first.fetchval("SELECT last_value FROM tries") == tries + 1

    def in_a_transaction() -> None:
        with pytest.raises(utils.OperationalError), transaction.atomic():
            drive(DjangoDriver("default").fetch(again, code, 10_000))
        transaction.set_autocommit(False)
        try:
            with pytest.raises(utils.OperationalError):
                drive(DjangoDriver("default").fetch(again, code, 10_000))
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    await sync_to_async(in_a_transaction)()
    assert await fails_at_first.fetchval("SELECT last_value FROM tries") == tries + 3


UTC_TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", []),
        ("text", [None]),
        ("text", ["", " ", "  a "]),
        ("text", ["NULL", "null", None, "'NULL'", '"NULL"']),
        ("text", ['"', '""', 'a"b', "'", "''", "\\", "\\\\", '\\"', 'a\\"b\\', "\\n"]),
        ("text", [",", "a,b", "{", "}", "{}", "{a,b}", "[", "]", "(a)", ";", "--"]),
        ("text", ["%", "%s", "%(p1)s", "%%", "$1", ":a"]),
        ("text", ["é", "😀", "\u200b", "\u00a0", "\t", "\n", "\r\n", "\x7f", "x" * 100_000]),
        ("uuid", [uuid.UUID(int=0), None, uuid.UUID(int=2**128 - 1)]),
        ("uuid", []),
        ("timestamptz", [UTC_TIME, None, UTC_TIME.astimezone(timezone(timedelta(hours=5, minutes=45)))]),
        ("smallint", [0, None, -32768, 32767]),
        ("smallint", []),
        ("double precision", [0.1, None, -1e300, 1.5]),
        ("integer", [None, None]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_lists_come_back_as_they_were(database: str, kind: str, values: list[Any]) -> None:
    """Over Django's connection, where they go as text."""
    driver = DjangoDriver("default")
    ((found,),) = drive(driver.fetch(statement(f"SELECT $1::{kind}[]"), values))
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_djangos_driver_is_inside_atomic(database: str) -> None:
    driver = DjangoDriver("default")
    with pytest.raises(utils.DataError), transaction.atomic():
        drive(driver.fetch(statement("SELECT 1/0")))
    with transaction.atomic():
        with pytest.raises(utils.DataError):
            drive(driver.fetch(statement("SELECT 1/0")))
        with pytest.raises(utils.InternalError):  # the transaction is broken, as it is for Django's own
            drive(driver.fetch(statement("SELECT 1")))
        transaction.set_rollback(True)
    assert drive(driver.fetch(statement("SELECT 1")))[0][0] == 1


def test_djangos_driver_leaves_a_server_that_became_read_only(database: str) -> None:
    """24: the next connection may find the new primary; in ``atomic()`` it is the block's own to the end."""
    driver = DjangoDriver("default")

    def write() -> None:
        with pytest.raises(utils.InternalError) as caught:
            drive(driver.fetch(statement("DELETE FROM aiotasks_task")))
        assert sqlstate(caught.value) == Code.READ_ONLY

    with transaction.atomic():
        drive(driver.fetch(statement("SELECT set_config('transaction_read_only', 'on', true)")))
        write()
        assert django_connection.connection is not None
        transaction.set_rollback(True)
    drive(driver.fetch(statement("SELECT set_config('default_transaction_read_only', 'on', false)")))
    write()
    assert django_connection.connection is None
    assert drive(driver.fetch(statement("DELETE FROM aiotasks_task"))) == []


def test_every_method_by_psycopg_and_by_psycopg2(worker_env: dict[str, str]) -> None:
    """Django takes whichever the site has; in processes, as it decides once."""
    answers = []
    for which in ("psycopg", "psycopg2"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.store.every_method", which],
            env=worker_env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        answers.append(json.loads(run.stdout))
        with django_connection.cursor() as cursor:
            cursor.execute("TRUNCATE aiotasks_task, aiotasks_worker, aiotasks_limit, aiotasks_sample")
    assert answers[0] == answers[1]
    assert answers[0][4][0] == [7, "RUNNING", '["\\u0000", -0.0]', None, [], 1, True]


async def test_times_are_aware_and_the_databases(held: LoopResources) -> None:
    for driver in (held.driver, DjangoInThread()):
        (row,) = await driver.fetch(statement("SELECT now(), $1::timestamptz"), datetime.now(UTC))
        assert all(moment.tzinfo is not None for moment in row)


def test_arrays_with_nulls_do_not_depend_on_array_nulls(database: str) -> None:
    """`ALTER ROLE … SET array_nulls = off`: NULL in an array's text is a word then."""
    with django_connection.cursor() as cursor:
        cursor.execute("SET array_nulls = off")
    later = datetime.now(UTC) + timedelta(days=1)
    store = Store(DjangoDriver("default"))
    jobs = [new_job(run_after=when, keep_result=keep) for when, keep in [(None, 5.0), (later, None)]]
    drive(store.insert_jobs(jobs))
    found = drive(store.select_jobs([uuid.UUID(job.id) for job in jobs], "default"))
    kept = {
        str(job.id): (job.status, time_of(job.run_after), job.policy.keep_result, job.policy.max_crashes)
        for job in found
    }
    assert kept == {
        jobs[0].id: ("READY", None, 5.0, None),
        jobs[1].id: ("SCHEDULED", later, None, None),
    }
