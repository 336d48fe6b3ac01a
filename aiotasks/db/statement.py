"""One SQL text, in the form that each driver takes."""

import re
from dataclasses import dataclass

__all__ = ["Statement", "statement"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL text, for both drivers."""

    name: str
    sql: str  # with $1 … $n, as PostgreSQL and asyncpg have it
    django_sql: str  # the same with Django's placeholders, %(p1)s … %(pn)s


def statement(name: str, sql: str) -> Statement:
    """The Statement of a text that has PostgreSQL's placeholders, $1 … $n."""
    return Statement(name, sql, re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%")))
