"""The kinds of errors: what may be repeated, what is the row's own fault, what says that nobody can write."""

import asyncpg
import pytest
from django.db import utils

from aiotasks.db.errors import (
    Code,
    about_tables,
    as_django_error,
    describe,
    is_away,
    is_row_fault,
    is_transient,
    sqlstate,
    timed_out,
    waited_too_long,
    was_rolled_back,
)


def of(code: str, message: str = "no") -> utils.Error:
    """The error of ``django.db`` for a SQLSTATE, as the drivers raise it."""
    cause = asyncpg.PostgresError.new({"C": code, "M": message})
    error = as_django_error(cause)
    error.__cause__ = cause
    return error


SERVER = ["08006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "57P03", "58030", "25006"]
ROW = ["22001", "22P05", "23505", "23514", "54000", "P0001"]
STATEMENT = ["28P01", "28000", "3D000", "42501", "42703", "42P01", "0A000", "25001", "XX000"]


@pytest.mark.parametrize("code", SERVER)
def test_the_server_is_at_fault(code: str) -> None:
    assert sqlstate(of(code)) == code
    assert is_transient(of(code))
    assert not is_row_fault(of(code))


@pytest.mark.parametrize("code", ROW)
def test_the_row_is_at_fault(code: str) -> None:
    assert is_row_fault(of(code))
    assert not is_transient(of(code))


@pytest.mark.parametrize("code", STATEMENT)
def test_neither_is(code: str) -> None:
    assert not is_row_fault(of(code))
    assert not is_transient(of(code))


def test_no_answer_is_the_servers_fault_and_a_value_that_cannot_be_sent_the_rows() -> None:
    for error in (utils.OperationalError("gone"), utils.InterfaceError("closed")):
        assert is_transient(error)
        assert not is_row_fault(error)
    for other in (utils.DataError("too long"), ValueError("not JSON")):
        assert is_row_fault(other)
        assert not is_transient(other)


@pytest.mark.parametrize("code", SERVER + ROW + STATEMENT)
def test_those_that_say_that_nobody_can_write(code: str) -> None:
    assert is_away(of(code)) == (code in ("57P03", "25006", "53100"))


def test_silence_says_nothing() -> None:
    assert is_away(ConnectionRefusedError())
    assert is_away(of("08P01", "server login has been failing"))
    assert not is_away(TimeoutError())


def test_locks_and_time_limits() -> None:
    late = as_django_error(TimeoutError())
    late.__cause__ = TimeoutError()
    assert timed_out(late)
    assert [code for code in SERVER if waited_too_long(of(code))] == ["55P03", "57014"]
    assert waited_too_long(late)
    assert [code for code in SERVER if was_rolled_back(of(code))] == ["40001", "40P01"]


def test_every_code_has_a_sentence_for_people() -> None:
    said = [describe(of(code, "why"), "default") for code in Code]
    assert all("why" in one or "migrate" in one for one in said)
    assert all("DATABASES['default']" in one for one in said)
    assert all(one.endswith(".") for one in said)


def test_tables() -> None:
    missing = of("42P01", 'relation "aiotasks_task" does not exist')
    assert "are missing" in describe(missing, "default")
    assert about_tables(missing, "default") == describe(missing, "default")
    assert about_tables(of("42P01", 'relation "shop_order" does not exist'), "default") is None
    refused = of("42501", 'new row violates row-level security policy for table "aiotasks_task"')
    assert "BYPASSRLS" in describe(refused, "default")
