"""Fields for columns that Django's own fields don't fit: ``json``, ``json[]`` and other arrays.

``json`` keeps a value as it was written (the order of keys, -0.0), ``jsonb`` doesn't; but only ``jsonb``
can be compared. So values are written and read as text, and cast where SQL compares them.
"""

import json
from typing import Any

from django import forms
from django.contrib.postgres import fields
from django.db import models
from django.db.models.expressions import Col, Value

__all__ = ["ArrayField", "JsonArrayField", "JsonField"]


class _JsonCol(Col):
    """The column, cast to a type that PostgreSQL can compare."""

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        sql, params = super().as_sql(compiler, connection)
        return f"({sql}::{self.target.compared_type})", params  # type: ignore[attr-defined]  # a field of ours

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        sql, params = super().as_sql(compiler, compiler.connection)  # as it was written
        return self.target.select_format(compiler, sql, params)  # a field of ours


class _Compared:
    """A field whose column is cast in expressions, and read as text."""

    text_type: str
    compared_type: str

    def get_col(self, alias: Any, output_field: Any = None) -> Col:
        return _JsonCol(alias, self, output_field)  # type: ignore[arg-type]  # this is mixed into fields

    @property
    def cached_col(self) -> Col:
        return self.get_col(self.model._meta.db_table)  # type: ignore[attr-defined]  # as above

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        return f"{sql}::{self.text_type}", params


class JsonField(_Compared, models.JSONField):
    """JSONField on a column of type ``json``."""

    text_type = "text"
    compared_type = "jsonb"

    def db_type(self, connection: Any) -> str:
        return "json"

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        if isinstance(value, Value) and value.value is None:
            return "null"  # JSON's, as with JSONField; None is SQL's
        if value is None or hasattr(value, "as_sql"):
            return value
        return json.dumps(value, cls=self.encoder, separators=(",", ":"))  # as tasks are stored


class ArrayField(fields.ArrayField):  # type: ignore[type-arg]  # generic in the stubs alone
    """ArrayField without the check for ``django.contrib.postgres`` in INSTALLED_APPS: it works without."""

    def check(self, **kwargs: Any) -> list[Any]:
        return [message for message in super().check(**kwargs) if message.id != "postgres.E005"]


class _JsonElement(JsonField):
    """An element of an array, which lookups pass as text."""

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else json.dumps(value)


class JsonArrayField(_Compared, ArrayField):
    """A column of type ``json[]``."""

    text_type = "text[]"
    compared_type = "jsonb[]"

    def __init__(self, **kwargs: Any) -> None:
        kwargs["base_field"] = _JsonElement()
        super().__init__(**kwargs)

    def cast_db_type(self, connection: Any) -> str:
        """Return the type to which lookups cast their other side."""
        return self.compared_type

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["base_field"]
        return name, path, args, kwargs

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if isinstance(value, list | tuple):
            return [self.base_field.get_db_prep_save(each, connection) for each in value]
        return value

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        return value if hasattr(value, "as_sql") else self.get_db_prep_value(value, connection)

    def get_transform(self, lookup_name: str) -> Any:
        transform: Any = super().get_transform(lookup_name)
        if hasattr(transform, "base_field"):  # one element, which lookups read as a value and not as text
            transform.base_field = JsonField()
        return transform

    def formfield(self, **kwargs: Any) -> Any:
        """A form field for the whole as one JSON text: Django's splits text at commas."""
        return models.Field.formfield(self, **{"form_class": forms.JSONField, **kwargs})
