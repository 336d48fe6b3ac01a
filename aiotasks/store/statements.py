"""The SQL of the package: one statement a file, its name the Store's method."""

from importlib.resources import files

from ..db.statement import Statement, statement
from .columns import expand

__all__ = ["load"]


def load(name: str) -> Statement:
    """The statement of ``queries/<name>.sql``."""
    return _STATEMENTS[name]


def _read(name: str, text: str) -> Statement:
    """The text without its comments, which stay with the file, and with the lists that it names."""
    sql = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return statement(name, expand(sql))


# All of them at once: a process may live on when its release has been replaced on the disk, and has to speak
# of the columns that its own code knows.
_STATEMENTS = {
    file.name.removesuffix(".sql"): _read(file.name.removesuffix(".sql"), file.read_text("utf-8"))
    for file in (files("aiotasks.store") / "queries").iterdir()
    if file.name.endswith(".sql")
}
