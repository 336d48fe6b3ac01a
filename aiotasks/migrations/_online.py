"""Migrations of tables that are in use: workers claim and sites enqueue while they run.

Each operation can be repeated: an interrupted run continues where it stopped. Migrations made of them have
``atomic = False``, because an index can't be built CONCURRENTLY inside a transaction.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.contrib.postgres.operations import (
    AddConstraintNotValid,
    AddIndexConcurrently,
    NotInTransactionMixin,
    RemoveIndexConcurrently,
)
from django.core.management.base import CommandError
from django.db import migrations, transaction, utils
from django.db.migrations.operations.base import Operation

from aiotasks.db.errors import Code, sqlstate

# While an ALTER waits for its lock, all other statements wait behind it, so it gives way after a second.
LOCK_TIMEOUT = "1s"
TRIES = 60
PAUSE = 1.0


class _Online(Operation):
    """Does nothing in a database that a router keeps aiotasks' tables out of, as Django's own operations."""

    model_name: str

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            run = partial(super().database_forwards, app_label, schema_editor, from_state, to_state)
            self._forwards(schema_editor, model, run)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            run = partial(super().database_backwards, app_label, schema_editor, from_state, to_state)
            self._backwards(schema_editor, model, run)

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        raise NotImplementedError

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        raise NotImplementedError


class _Alter(_Online):
    """Waits for its lock in short spans, and does nothing if it has been done before."""

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if schema_editor.collect_sql or not self._is_done(schema_editor, model):
            _alter(schema_editor, model._meta.db_table, run)

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if schema_editor.collect_sql or self._is_done(schema_editor, model):
            _alter(schema_editor, model._meta.db_table, run)

    def _is_done(self, schema_editor: Any, model: Any) -> bool:
        raise NotImplementedError


class AddTable(_Online, migrations.CreateModel):
    """CreateModel that does nothing if it has been done before."""

    @property
    def model_name(self) -> str:  # type: ignore[override]  # an attribute in the base
        return str(self.name)

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if schema_editor.collect_sql or not self._is_done(schema_editor, model):
            run()

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if schema_editor.collect_sql or self._is_done(schema_editor, model):
            run()

    def _is_done(self, schema_editor: Any, model: Any) -> bool:
        with schema_editor.connection.cursor() as cursor:
            return model._meta.db_table in schema_editor.connection.introspection.table_names(cursor)


class AddColumn(_Alter, migrations.AddField):
    """AddField, for a column that is nullable or has a default in the database: no row is rewritten."""

    def _is_done(self, schema_editor: Any, model: Any) -> bool:
        connection = schema_editor.connection
        with connection.cursor() as cursor:
            description = connection.introspection.get_table_description(cursor, model._meta.db_table)
        return self.name in {one.name for one in description}


class AddConstraint(_Alter, AddConstraintNotValid):
    """AddConstraintNotValid: rows written later must comply, and no row is read."""

    def _is_done(self, schema_editor: Any, model: Any) -> bool:
        connection = schema_editor.connection
        with connection.cursor() as cursor:
            constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
        return self.constraint.name in constraints


class RemoveConstraint(_Alter, migrations.RemoveConstraint):
    """RemoveConstraint; backwards it is added as AddConstraint adds it."""

    def _is_done(self, schema_editor: Any, model: Any) -> bool:
        connection = schema_editor.connection
        with connection.cursor() as cursor:
            constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
        return self.name not in constraints

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        constraint = to_state.models[app_label, self.model_name.lower()].get_constraint_by_name(self.name)
        added = AddConstraint(self.model_name, constraint)
        added.database_forwards(app_label, schema_editor, from_state, to_state)


class AddIndex(_Online, AddIndexConcurrently):
    """AddIndexConcurrently; an index that an interrupted run has left INVALID is built again."""

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if not _is_valid(schema_editor, self.index.name):
            with _without_limits(schema_editor):
                run()

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        with _without_limits(schema_editor):
            run()


class AddUnique(_Online, NotInTransactionMixin, migrations.AddConstraint):
    """AddConstraint of a UniqueConstraint with a condition, which is a unique index, built CONCURRENTLY; one
    that an interrupted run has left INVALID is built again.
    """

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        self._ensure_not_in_transaction(schema_editor)
        if not _is_valid(schema_editor, self.constraint.name):
            create = str(self.constraint.create_sql(model, schema_editor))
            with _without_limits(schema_editor):
                schema_editor.execute(
                    create.replace("UNIQUE INDEX", "UNIQUE INDEX CONCURRENTLY", 1), params=None
                )

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        self._ensure_not_in_transaction(schema_editor)
        name = schema_editor.quote_name(self.constraint.name)
        with _without_limits(schema_editor):
            schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


class RemoveIndex(_Online, RemoveIndexConcurrently):
    """RemoveIndexConcurrently, with the same care as AddIndex in both directions."""

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        with _without_limits(schema_editor):
            run()

    def _backwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        if not _is_valid(schema_editor, self.name):
            with _without_limits(schema_editor):
                run()


class Repair(_Online, migrations.RunSQL):
    """RunSQL of an UPDATE that repairs rows for what comes, or for what was there before, if it is back. It
    can be repeated."""

    def __init__(
        self, model_name: str, sql: str = migrations.RunSQL.noop, backwards: str = migrations.RunSQL.noop
    ) -> None:
        super().__init__(sql, backwards)
        self.model_name = model_name

    def deconstruct(self) -> Any:
        return type(self).__name__, [self.model_name, self.sql, self.reverse_sql], {}

    def _forwards(self, schema_editor: Any, model: Any, run: Callable[[], None]) -> None:
        with _without_limits(schema_editor):
            run()

    _backwards = _forwards


def _alter(schema_editor: Any, table: str, alter: Callable[[], None]) -> None:
    """Run an ALTER of ``table``, which waits LOCK_TIMEOUT for its lock, up to TRIES times."""
    for attempt in range(1, TRIES + 1):
        try:
            with _transaction(schema_editor):
                # For this transaction only, because behind a pooler another client gets the session next.
                schema_editor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                schema_editor.execute("SET LOCAL statement_timeout = 0")
                return alter()
        except utils.OperationalError as error:
            if sqlstate(error) != Code.LOCK_TIMEOUT:
                raise
            if attempt == TRIES:
                raise CommandError(
                    f"{table} couldn't be altered: another transaction has held a lock on it for "
                    f"{TRIES} tries (see the oldest xact_start in pg_stat_activity). Nothing is lost: end "
                    "that transaction and run `manage.py migrate` again."
                ) from error
        time.sleep(PAUSE)


@contextmanager
def _transaction(schema_editor: Any) -> Iterator[None]:
    if schema_editor.collect_sql:  # for sqlmigrate
        schema_editor.execute("BEGIN")
        yield
        schema_editor.execute("COMMIT")
    else:
        with transaction.atomic(using=schema_editor.connection.alias):
            yield


@contextmanager
def _without_limits(schema_editor: Any) -> Iterator[None]:
    """Lift lock_timeout and statement_timeout: CONCURRENTLY waits for every open transaction, and blocks no
    other statement meanwhile.

    A limit that isn't set stays as it is, because behind a pooler SET would reach another client's session.
    """
    limited = [name for name in ("lock_timeout", "statement_timeout") if _is_set(schema_editor, name)]
    for name in limited:
        schema_editor.execute(f"SET {name} = 0")
    yield
    for name in limited:
        schema_editor.execute(f"RESET {name}")


def _is_set(schema_editor: Any, limit: str) -> bool:
    if schema_editor.collect_sql:
        return True
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s) <> '0'", [limit])
        return bool(cursor.fetchone()[0])


def _is_valid(schema_editor: Any, index: str) -> bool:
    """Return whether the index exists and is valid; an INVALID one is dropped."""
    if schema_editor.collect_sql:
        return False
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
            [schema_editor.quote_name(index)],
        )
        found = cursor.fetchone()
    if found is None:
        return False
    if not found[0]:
        with _without_limits(schema_editor):
            schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {schema_editor.quote_name(index)}")
    return bool(found[0])
