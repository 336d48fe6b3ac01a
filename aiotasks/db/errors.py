"""The errors of a database: what kind each is, and a sentence for people about it.

Every decision about an error of the database is made here, by its SQLSTATE. What raises passes Django's
errors on (``django_errors``), so the functions take errors of ``django.db``, with the driver's as
``__cause__``, or the driver's own.

===============  =========================================================  ==============================
SQLSTATE         meaning                                                    the same statement may go through
===============  =========================================================  ==============================
08 57 58 40 53   server, connection, resources, rolled back for another     later: ``is_transient``
55P03 25006      locked for too long; read-only after a failover            later: ``is_transient``
none             no answer (a broken connection, a time-out)                later: ``is_transient``
22 23 54 P0      a value, a constraint, a limit, a trigger's RAISE          with other rows: ``is_row_fault``
others           privileges, a missing table or column, a password          after it has been fixed
===============  =========================================================  ==============================

- What may be repeated for a while is repeated where ``is_transient``.
- What must not be lost (an outcome) is repeated unless ``is_row_fault``: a password may be rotated, a table
  locked away, or a privilege missing for an hour.
- A batch is split unless ``is_transient``, because a policy or a trigger may refuse one row with any code.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import asyncpg
from django.db import utils

__all__ = [
    "UNREADABLE",
    "Code",
    "about_tables",
    "as_django_error",
    "constraint",
    "describe",
    "django_errors",
    "is_about_the_session",
    "is_away",
    "is_row_fault",
    "is_transient",
    "refuses_login",
    "sqlstate",
    "timed_out",
    "waited_too_long",
    "was_rolled_back",
]


class Code(StrEnum):
    """The SQLSTATEs that somebody asks for."""

    READ_ONLY = "25006"  # a write to a standby, or to a server that a failover has made read-only
    LOGIN_REFUSED = "28000"  # also where no entry of pg_hba.conf is for the connection
    WRONG_PASSWORD = "28P01"
    NO_DATABASE = "3D000"
    NO_SCHEMA = "3F000"
    NO_PRIVILEGE = "42501"
    NO_COLUMN = "42703"
    NO_OBJECT = "42704"
    NO_TABLE = "42P01"
    DISK_FULL = "53100"
    TOO_MANY_CONNECTIONS = "53300"  # max_connections, or a limit of the role or the database, is reached
    LOCK_TIMEOUT = "55P03"
    CANCELED = "57014"  # by statement_timeout, or by pg_cancel_backend()
    STARTING_UP = "57P03"  # or shutting down, or not recovered yet


# The server, the connection to it or other sessions are at fault: connections (08), serialization failures
# and deadlocks (40), resources such as connections and disk (53), shutdowns and cancelled statements (57),
# I/O (58).
_TRANSIENT = ("08", "40", "53", Code.LOCK_TIMEOUT, "57", "58", Code.READ_ONLY)

# The values of one row are at fault: data exceptions, constraints (a site's own), program limits, a trigger's
# RAISE.
_ROW_FAULT = ("22", "23", "54", "P0")

# A server answers, and no client can write to it.
_AWAY = (Code.STARTING_UP, Code.READ_ONLY, Code.DISK_FULL)

# PgBouncer's words for a server that it can't log in to, which arrive with one code or another.
_POOLER_CANNOT_LOG_IN = ("server login", "connect to server")

# Serialization failures and deadlocks: nothing of the statement was stored.
_ROLLED_BACK = ("40001", "40P01")

# The server refuses a session that isn't as it expects: the user, the password or the database; schemas and
# tables that it doesn't find or that the role may not use.
_ABOUT_THE_SESSION = (
    "28",
    Code.NO_DATABASE,
    Code.NO_SCHEMA,
    Code.NO_TABLE,
    Code.NO_PRIVILEGE,
    Code.NO_OBJECT,
)

# What drivers raise for values that Python hasn't: a time after 9999, text that isn't UTF-8.
UNREADABLE = (OverflowError, UnicodeDecodeError)

# asyncpg's errors by SQLSTATE class, as psycopg's by PEP 249, which is what Django wraps.
_DJANGO_CLASSES: dict[str, type[utils.DatabaseError]] = {
    "08": utils.OperationalError,
    "0A": utils.NotSupportedError,
    "22": utils.DataError,
    "23": utils.IntegrityError,
    "24": utils.InternalError,
    "25": utils.InternalError,
    "28": utils.OperationalError,
    "2D": utils.InternalError,
    "3D": utils.OperationalError,
    "3F": utils.ProgrammingError,
    "40": utils.OperationalError,
    "42": utils.ProgrammingError,
    "53": utils.OperationalError,
    "54": utils.OperationalError,
    "55": utils.OperationalError,
    "57": utils.OperationalError,
    "58": utils.OperationalError,
    "P0": utils.ProgrammingError,
    "XX": utils.InternalError,
}


def as_django_error(error: BaseException) -> utils.Error:
    """The ``django.db`` error that Django would raise over psycopg for this asyncpg error."""
    if isinstance(error, asyncpg.PostgresError):
        kind: type[utils.Error] = _DJANGO_CLASSES.get((error.sqlstate or "")[:2], utils.DatabaseError)
    elif isinstance(error, UNREADABLE):
        return utils.DataError(f"a value of the database can't be read: {error}")
    elif isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        kind = utils.DataError  # asyncpg couldn't encode an argument
    elif isinstance(error, asyncpg.InterfaceError):
        kind = utils.InterfaceError
    else:
        kind = utils.OperationalError
    return kind(str(error) or type(error).__name__)


@contextmanager
def django_errors() -> Iterator[None]:
    """Raise what asyncpg raises inside as Django's errors. Not for blocks that run user code."""
    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # seen where the server had just closed an idle connection
        OSError,
        TimeoutError,
        *UNREADABLE,
    ) as error:
        raise as_django_error(error) from error


def _drivers(error: BaseException) -> BaseException | None:
    """The driver's error: ``error`` itself, or what Django's stands for."""
    return error.__cause__ if isinstance(error, utils.Error) else error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that PostgreSQL gave with the error; None if it gave no answer."""
    cause = _drivers(error)
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code if isinstance(code, str) else None


def constraint(error: BaseException) -> str | None:
    """The name of the constraint that the error is about; None if it isn't about one."""
    cause = _drivers(error)  # psycopg has it in `diag`
    name = getattr(cause, "constraint_name", None) or getattr(
        getattr(cause, "diag", None), "constraint_name", None
    )
    return name if isinstance(name, str) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may go through later, because the server or the connection is at fault."""
    if not isinstance(error, utils.OperationalError | utils.InterfaceError | utils.InternalError):
        return False
    code = sqlstate(error)
    return code is None or code.startswith(_TRANSIENT)


def is_row_fault(error: BaseException) -> bool:
    """Whether the values are at fault: the same statement with other rows may go through, with these never.

    An error that isn't the database's (a value that can't be encoded) is the row's, too.
    """
    if not isinstance(error, utils.Error):
        return True
    code = sqlstate(error)
    if code is None:
        return isinstance(error, utils.DataError)  # asyncpg couldn't encode it
    return code.startswith(_ROW_FAULT)


def is_away(error: BaseException) -> bool:
    """Whether there was an *answer* that no client can write to the database.

    It comes from the host, if it has no server (connection refused); from the server, if it starts up, is
    read-only or has a full disk; or from a pooler in front of it. No answer is no evidence.
    """
    cause = _drivers(error)
    if isinstance(cause, ConnectionRefusedError | asyncpg.TargetServerAttributeNotMatched):
        return True
    code = getattr(cause, "sqlstate", None) or ""
    return code in _AWAY or (
        code.startswith("08") and any(text in str(cause) for text in _POOLER_CANNOT_LOG_IN)
    )


def was_rolled_back(error: BaseException) -> bool:
    """Whether PostgreSQL has rolled the statement back because of others that ran beside it.

    Nothing of it was stored, so any statement may be sent again.
    """
    return sqlstate(error) in _ROLLED_BACK


def timed_out(error: BaseException) -> bool:
    """Whether the statement had no answer within its own time limit."""
    return isinstance(_drivers(error), TimeoutError)


def waited_too_long(error: BaseException) -> bool:
    """Whether the statement may have waited for a lock: for its own time limit, or for one of the server's
    (lock_timeout, statement_timeout)."""
    return timed_out(error) or sqlstate(error) in (Code.LOCK_TIMEOUT, Code.CANCELED)


def refuses_login(error: BaseException) -> bool:
    """Whether the server refuses the user, the password or the connection itself."""
    return (sqlstate(error) or "").startswith("28")


def is_about_the_session(error: BaseException) -> bool:
    """Whether another session (of another user, database or search_path) might fare better."""
    return (sqlstate(error) or "").startswith(_ABOUT_THE_SESSION)


def about_tables(error: BaseException, database: str) -> str | None:
    """A sentence for an error that means: tables are missing, lack columns, or refuse a row. Else None."""
    reason = next(iter(str(error).strip().splitlines()), "")
    match sqlstate(error):
        case Code.NO_TABLE if "aiotasks_task" in reason or "aiotasks_worker" in reason:
            return (
                f"The tables of aiotasks are missing in DATABASES[{database!r}]: "
                f"run `manage.py migrate --database {database}`."
            )
        case Code.NO_PRIVILEGE if "row-level security" in reason and "aiotasks_" in reason:
            return (
                f"DATABASES[{database!r}] refuses the row ({reason}): the role needs BYPASSRLS, or a policy "
                "that has WITH CHECK (true); `manage.py aiotasks check` names it."
            )
        case Code.NO_COLUMN | Code.NO_TABLE if sqlstate(error) == Code.NO_COLUMN or "aiotasks_" in reason:
            return (
                f"The tables of aiotasks in DATABASES[{database!r}] are of another version ({reason}): "
                f"run `manage.py migrate --database {database}`."
            )
    return None


def describe(error: utils.Error, database: str) -> str:
    """One sentence for people: the problem with ``DATABASES[database]``, and its fix."""
    where = f"DATABASES[{database!r}]"
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if (missing := about_tables(error, database)) is not None:
        return missing
    match sqlstate(error):
        case Code.WRONG_PASSWORD | Code.LOGIN_REFUSED:
            return f"PostgreSQL refuses the user or password of {where}: {reason}."
        case Code.NO_DATABASE:
            return f"The database of {where} doesn't exist: {reason}."
        case Code.READ_ONLY:
            return (
                f"{where} is read-only, perhaps a standby ({reason}): name the primary, or several hosts "
                "with target_session_attrs=read-write."
            )
        case Code.NO_PRIVILEGE:
            return (
                f"The user of {where} may not use the tables of aiotasks ({reason}): "
                "`manage.py aiotasks check` names the GRANT."
            )
        case Code.TOO_MANY_CONNECTIONS:
            return (
                f"PostgreSQL at {where} has no connection left ({reason}): raise max_connections, or the "
                "CONNECTION LIMIT of the role or the database."
            )
    if is_transient(error):
        return f"PostgreSQL at {where} can't be reached: {reason}."
    return f"{where} can't be used: {reason}."
