"""The SQL of the package: one statement a file, its name the Store's method."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Statement", "load"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL text, for both drivers."""

    name: str
    sql: str  # with $1 … $n, as PostgreSQL and asyncpg have it
    django_sql: str  # the same with Django's placeholders, %(p1)s … %(pn)s


@cache
def load(name: str) -> Statement:
    """Read ``queries/<name>.sql``; its comments stay with the file."""
    text = (files(__package__) / "queries" / f"{name}.sql").read_text("utf-8")
    sql = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return Statement(name, sql, re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%")))
