"""Check ``migrations``: all are applied, and the indexes that they have made are usable."""

from collections.abc import Set as AbstractSet
from importlib import import_module
from pkgutil import iter_modules

from django.db import connections, utils
from django.db.migrations.loader import MigrationLoader

from ...db.errors import Code, sqlstate
from ...models import Task
from ..status import select_workers
from .examination import Examination
from .finding import Result

__all__ = ["check", "missing_indexes"]


async def check(examination: Examination) -> Result:
    """Return whether all migrations are applied and all indexes usable; sets ``workers`` and ``fleet``."""
    names = _migrations()
    applied: set[str] | None
    try:
        applied = await examination.store.select_migrations()
    except utils.ProgrammingError as error:
        if sqlstate(error) not in (Code.NO_PRIVILEGE, Code.NO_TABLE):
            raise
        # Neither a site nor a worker needs a right to Django's table of migrations.
        applied = None if sqlstate(error) == Code.NO_PRIVILEGE else set()
    if applied is not None and (pending := [name for name in names if name not in applied]):
        role, rights, schemas = await examination.store.select_rights()
        if rights is None and schemas:  # `migrate` would create a second set
            return (
                "error",
                f"Role {role} doesn't find the tables, which are in the schema {' or '.join(schemas)}.",
                f"GRANT USAGE ON SCHEMA {schemas[0]} TO {role}; have its search_path name that schema.",
            )
        return (
            "error",
            f"Not applied to DATABASES[{examination.database!r}]: {', '.join(pending)}.",
            f"Run `manage.py migrate aiotasks --database {examination.database}`.",
        )
    try:
        examination.fleet = await examination.store.count_live_workers()
        examination.workers = await select_workers(examination.store, examination.alias)
    except utils.ProgrammingError as error:
        if sqlstate(error) != Code.NO_PRIVILEGE:  # the next check says which right is missing
            raise
    serving = await examination.store.select_indexes()
    if serving and (lost := missing_indexes(serving)):
        return (
            "error",
            f"Missing or INVALID: {', '.join(lost)}. Statements that want it read the whole table.",
            f"Run, each by itself: {_remake(lost, examination.database)}.",
        )
    if applied is None:
        return (
            "not checked",
            "This role may not read which are applied.",
            "GRANT SELECT ON django_migrations, or check as the role that migrates.",
        )
    return "ok", "All of aiotasks' migrations are applied, and its indexes are whole.", ""


def missing_indexes(serving: AbstractSet[str]) -> list[str]:
    """Return the names of the indexes that are missing or INVALID; ``serving`` are the usable ones."""
    return sorted(index.name for index in Task._meta.indexes if index.name not in serving)


def _remake(names: list[str], database: str) -> str:
    """Return the statements that build indexes again while the queue runs; sends none."""
    editor = connections[database].schema_editor(collect_sql=True)
    creates = (
        index.create_sql(Task, editor, concurrently=True)
        for index in Task._meta.indexes
        if index.name in names
    )
    drops = (f"DROP INDEX CONCURRENTLY IF EXISTS {name}" for name in names)
    return "; ".join([*drops, *map(str, creates)])


def _migrations() -> list[str]:
    """Return the names of aiotasks' migrations, without loading the site's, which may have mistakes."""
    module, _ = MigrationLoader.migrations_module("aiotasks")
    if module is None:
        return []  # MIGRATION_MODULES says that there are none
    names = (name for _, name, is_package in iter_modules(import_module(module).__path__) if not is_package)
    return sorted(name for name in names if name[0] not in "_~")
