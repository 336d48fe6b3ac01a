"""Whether the table of tasks has the indexes that its migrations have made."""

from collections.abc import Set as AbstractSet

from django.db import connections

from ..models import Task

__all__ = ["missing", "remedy"]


def missing(serving: AbstractSet[str]) -> list[str]:
    """The names of those that aren't there, or are INVALID."""
    return sorted(index.name for index in Task._meta.indexes if index.name not in serving)


def remedy(names: list[str], database: str) -> str:
    """The statements that make them again beside a running queue; nothing is sent."""
    editor = connections[database].schema_editor(collect_sql=True)
    creates = (
        index.create_sql(Task, editor, concurrently=True)
        for index in Task._meta.indexes
        if index.name in names
    )
    drops = (f"DROP INDEX CONCURRENTLY IF EXISTS {name}" for name in names)
    return "; ".join([*drops, *map(str, creates)])
