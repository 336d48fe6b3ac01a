"""The SQL of the package: one statement a file, its name the Store's method."""

import re
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Statement", "load"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL text, for both drivers."""

    name: str
    sql: str  # with $1 … $n, as PostgreSQL and asyncpg have it
    django_sql: str  # the same with Django's placeholders, %(p1)s … %(pn)s


def load(name: str) -> Statement:
    """The statement of ``queries/<name>.sql``."""
    return _STATEMENTS[name]


def _read(name: str, text: str) -> Statement:
    """The comments stay with the file."""
    sql = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return Statement(name, sql, re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%")))


# All of them at once: a process may live on when its release has been replaced on the disk, and has to speak
# of the columns that its own code knows.
_STATEMENTS = {
    file.name.removesuffix(".sql"): _read(file.name.removesuffix(".sql"), file.read_text("utf-8"))
    for file in (files("aiotasks.store") / "queries").iterdir()
    if file.name.endswith(".sql")
}
