"""Runs the checks of one backend in their order."""

from collections.abc import Awaitable, Callable, Iterable

from django.db import utils

from ...backend import PostgresBackend
from ...db.errors import Code, describe, refuses_login, sqlstate
from ...store.session import GETS_IN, djangos_session
from ...worker.startup import backend_of
from ..connection import operator_connection
from . import (
    autovacuum,
    clock,
    connections,
    database,
    fleet,
    limits,
    migrations,
    notify,
    permissions,
    pooler,
    schedules,
    session,
    timeouts,
    versions,
    waiting,
)
from .examination import GRACE, Examination, remedy_for
from .finding import Finding, Result
from .settings import check_settings

__all__ = ["CHECKS", "diagnose"]

# In their order: later checks use what earlier ones have found out.
_CHECKS: dict[str, Callable[[Examination], Awaitable[Result]]] = {
    "database": database.check,
    "session": session.check,
    "migrations": migrations.check,
    "permissions": permissions.check,
    "pooler": pooler.check,
    "notify": notify.check,
    "autovacuum": autovacuum.check,
    "connections": connections.check,
    "fleet": fleet.check,
    "clock": clock.check,
    "versions": versions.check,
    "waiting": waiting.check,
    "limits": limits.check,
    "timeouts": timeouts.check,
    "schedules": schedules.check,
}

CHECKS = ("settings", *_CHECKS)


async def diagnose(alias: str, *, grace: float = GRACE) -> list[Finding]:
    """Run all checks of ``TASKS[alias]``; mistakes and failures are findings, not exceptions.

    ``grace``: the seconds for which a stop of its workers waits.
    """
    findings = check_settings(alias)
    if any(finding.verdict == "error" for finding in findings):
        return findings + _not_checked(_CHECKS, "The settings have mistakes.")
    return findings + await _examine(backend_of(alias), grace)


async def _examine(backend: PostgresBackend, grace: float) -> list[Finding]:
    names = list(_CHECKS)
    alias, timeout = backend.config.database, backend.config.command_timeout
    findings: list[Finding] = []
    try:
        async with operator_connection(alias, timeout=timeout) as connection:
            examination = Examination(backend, connection, grace=grace)
            for name, check in _CHECKS.items():
                try:
                    result = await check(examination)
                except utils.Error as error:
                    if name == "database" or connection.connection.is_closed():
                        raise
                    result = "error", describe(error, alias), remedy_for(error)
                findings.append(Finding(name, *result))
                if name == "session" and result[0] == "error":
                    return findings + _not_checked(
                        names[len(findings) :], "aiotasks would look elsewhere than Django."
                    )
    except utils.Error as error:
        findings.append(Finding(names[len(findings)], *await _refused(error, alias, timeout)))
    return findings + _not_checked(names[len(findings) :], "The database can't be reached.")


async def _refused(error: utils.Error, alias: str, timeout: float) -> Result:
    remedy = (
        f"See that the server runs and takes connections from here, and that HOST, PORT, NAME, USER, "
        f"PASSWORD and OPTIONS of DATABASES[{alias!r}] are right."
    )
    if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
        remedy = remedy_for(error)
    elif refuses_login(error) and await _django_gets_in(alias, timeout):
        remedy = GETS_IN
    return "error", describe(error, alias), remedy


async def _django_gets_in(alias: str, timeout: float) -> bool:
    try:
        await djangos_session(alias, timeout=timeout)
    except Exception:  # a database engine may raise anything  # noqa: BLE001
        return False
    return True


def _not_checked(names: Iterable[str], reason: str) -> list[Finding]:
    return [Finding(name, "not checked", reason) for name in names]
