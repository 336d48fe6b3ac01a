"""System checks: they report mistakes in the settings before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router, utils
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTaskBackend

from .conf import Options, shown
from .exceptions import UnknownTask
from .policies.retry import load_backoff
from .redact import load_redactor
from .registry import resolve

__all__ = ["check_backend", "check_tables"]


def check_backend(alias: str, params: Mapping[str, Any]) -> list[CheckMessage]:
    """Return the messages about one backend. Connects nowhere.

    E001 the app isn't installed, E002 a bad option, E003 DATABASE or LISTEN_DATABASE isn't an alias
    of DATABASES, E004 it isn't PostgreSQL, E005 QUEUES isn't a list of names, E006 its settings can't
    be used, E007 one of MOVED_TASKS leads to no task, E008 REDACT leads to no function, E009 a
    connection parameter requires safety that asyncpg can't give, E010 each tenant of django-tenants has
    tables of its own, E011 BACKOFF leads to no function, W001 asyncpg doesn't support a connection
    parameter, W003 a router keeps the tables out of DATABASE, W004 threads keep their connections under
    ASGI.
    """
    messages: list[CheckMessage] = []
    where = f"TASKS[{alias!r}]"
    if not apps.is_installed("aiotasks"):
        messages.append(
            Error(
                f"{where} uses aiotasks, but INSTALLED_APPS doesn't have it.",
                hint='Add "aiotasks" to INSTALLED_APPS and run `manage.py migrate`.',
                id="aiotasks.E001",
            )
        )
    messages += _check_tenants(where)
    queues = params.get("QUEUES", ["default"])
    if (
        isinstance(queues, str)
        or not isinstance(queues, Iterable)
        or not all(isinstance(name, str) and name for name in queues)
    ):
        messages.append(
            Error(
                f"{where}['QUEUES'] must be a list of queue names, not {shown(queues)}.",
                hint='For example ["default", "emails"]; an empty list allows any name.',
                id="aiotasks.E005",
            )
        )
    try:
        options = Options.from_params(alias, params)
    except ImproperlyConfigured as error:
        return [*messages, Error(str(error), id="aiotasks.E002")]
    messages += _check_database(where, "DATABASE", options.database)
    if not any(message.is_serious() for message in messages):
        messages += [*_check_router(where, options.database), *_check_age(where, options.database)]
    if options.listen_database not in (None, options.database):
        messages += _check_database(where, "LISTEN_DATABASE", options.listen_database)
    return [
        *messages,
        *_check_moved_tasks(where, options.moved_tasks),
        *_check_redact(where, options.redact),
        *_check_backoff(where, options.backoff),
    ]


def _check_tenants(where: str) -> list[CheckMessage]:
    """Refuse tables for each tenant: its schema comes first, so no worker would find its tasks."""
    tenants = getattr(settings, "TENANT_APPS", ())
    if not any(str(name).split(".")[0] == "aiotasks" for name in tenants):
        return []
    return [
        Error(
            f"{where}: TENANT_APPS has aiotasks, so each tenant has its own tables, which no worker reads.",
            hint='Move "aiotasks" to SHARED_APPS, and drop the tenants\' tables once they are empty.',
            id="aiotasks.E010",
        )
    ]


def _check_router(where: str, database: str) -> list[CheckMessage]:
    if not apps.ready or not apps.is_installed("aiotasks"):
        return []
    from .models import Task

    if router.allow_migrate_model(database, Task):
        return []
    return [
        Warning(
            f"{where}: a database router keeps the tables of aiotasks out of DATABASES[{database!r}].",
            hint=f"Have allow_migrate({database!r}, 'aiotasks') of DATABASE_ROUTERS return True, or set "
            "OPTIONS['DATABASE'] to the alias that they are migrated to.",
            id="aiotasks.W003",
        )
    ]


def _check_age(where: str, database: str) -> list[CheckMessage]:
    """Repeat Django's advice about CONN_MAX_AGE if the settings show that the site is served by ASGI."""
    age = connections[database].settings_dict.get("CONN_MAX_AGE", 0)
    if age == 0 or not getattr(settings, "ASGI_APPLICATION", None):
        return []
    return [
        Warning(
            f"{where}: CONN_MAX_AGE of DATABASES[{database!r}] is {age!r}, and under ASGI each of many "
            "threads keeps a connection for that long.",
            hint="Set it to 0 (a worker's threads keep theirs between tasks anyway), or use a pool.",
            id="aiotasks.W004",
        )
    ]


def _check_redact(where: str, path: str | None) -> list[CheckMessage]:
    if path is not None:
        try:
            load_redactor(path)
        except (Exception, SystemExit) as error:  # importing runs user code, which may raise anything  # noqa: BLE001
            reason = f"{type(error).__name__}: {error}"
            return [
                Error(
                    f"{where}: REDACT {path!r} leads to no function ({reason}).",
                    hint="Set it to the dotted path of a function that takes a text and returns one.",
                    id="aiotasks.E008",
                )
            ]
    return []


def _check_backoff(where: str, backoff: object) -> list[CheckMessage]:
    if not isinstance(backoff, str) or not apps.ready:
        return []  # its module may import models
    try:
        load_backoff(backoff)
    except (Exception, SystemExit) as error:  # as above  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"
        return [
            Error(
                f"{where}: BACKOFF {backoff!r} leads to no function ({reason}).",
                hint="Set it to a function of an exception and a task's result that returns seconds, or to "
                "its dotted path.",
                id="aiotasks.E011",
            )
        ]
    return []


def _check_moved_tasks(where: str, moved_tasks: Mapping[str, str]) -> list[CheckMessage]:
    if not apps.ready:
        return []  # tasks' modules may import models
    messages: list[CheckMessage] = []
    for path in moved_tasks:
        try:
            resolve(path, moved_tasks)
        except UnknownTask as error:
            messages.append(
                Error(
                    f"{where}['OPTIONS']['MOVED_TASKS'][{path!r}]: {error}",
                    hint="Name the task by the module that defines it: its `module_path`.",
                    id="aiotasks.E007",
                )
            )
    return messages


def _check_database(where: str, option: str, database: str) -> list[CheckMessage]:
    if database not in settings.DATABASES:
        known = ", ".join(sorted(settings.DATABASES))
        return [
            Error(
                f"{where}: {option} {shown(database)} isn't an alias of DATABASES (which has {known}).",
                id="aiotasks.E003",
            )
        ]
    connection = connections[database]
    if connection.vendor != "postgresql":
        return [
            Error(
                f"{where}: DATABASES[{database!r}] is {connection.display_name}; aiotasks needs PostgreSQL.",
                hint=f"Set OPTIONS['{option}'] to an alias of DATABASES that is PostgreSQL.",
                id="aiotasks.E004",
            )
        ]
    from .db.connect import connect_arguments

    try:
        unknown = connect_arguments(database).unknown
    except utils.NotSupportedError as error:
        return [Error(f"{where}: {error}", id="aiotasks.E009")]
    except Exception as error:  # a value of a wrong type may raise anything in Django's engine or here  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"
        return [Error(f"{where}: DATABASES[{database!r}] can't be used: {reason}", id="aiotasks.E006")]
    return [
        Warning(
            f"{where}: asyncpg doesn't support {name!r} in DATABASES[{database!r}]; "
            "aiotasks connects without it.",
            id="aiotasks.W001",
        )
        for name in unknown
    ]


@register(Tags.database)
def check_tables(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return W002 if the tables aren't migrated. Runs with other database checks, as in ``migrate``."""
    messages: list[CheckMessage] = []
    for alias in task_backends.settings:
        try:
            options = getattr(task_backends[alias], "config", None)
        except (ImproperlyConfigured, InvalidTaskBackend):
            continue  # E002 reports it, or Django
        if not isinstance(options, Options):
            continue  # not a backend of aiotasks
        database = options.database
        if database not in (databases or ()) or connections[database].vendor != "postgresql":
            continue
        try:
            missing = {"aiotasks_task", "aiotasks_worker"} - set(
                connections[database].introspection.table_names()
            )
        except utils.Error:
            continue  # a database that doesn't answer is no mistake in the settings
        if missing:
            messages.append(
                Warning(
                    f"The tables of aiotasks are missing in DATABASES[{database!r}].",
                    hint=f"Run `manage.py migrate --database {database}`.",
                    id="aiotasks.W002",
                )
            )
    return messages
