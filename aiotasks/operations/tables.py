"""Tables for people as plain text, and the texts that may stand in them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

__all__ = [
    "GAP",
    "SHORTEST_COLUMN",
    "WIDTH",
    "Column",
    "Part",
    "Table",
    "as_text",
    "columns_of",
    "fitted",
    "has_names",
    "printable",
    "printable_lines",
    "shortened",
]

# Columns of a screen where nothing else is known, into which tables are made to fit as far as their columns
# may be shortened, to no less than SHORTEST_COLUMN. Chosen: half of a wide screen.
WIDTH = 100
SHORTEST_COLUMN = 20

# Spaces between columns.
GAP = 2

# In place of what was left out; no character that a terminal may not have.
CUT = "..."


@dataclass(frozen=True, slots=True)
class Column:
    """``right``: it has numbers. ``cut``: its place in the order in which columns are shortened where a table
    is too wide; 0: it isn't. ``keep_end``: shortened at the start of its texts, as paths are. ``style``:
    rich's name for the look of a cell's text, where a terminal shows it."""

    name: str
    right: bool = False
    cut: int = 0
    keep_end: bool = True
    style: Callable[[str], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """``rows``: a text for each column; whatever they hold can't control a terminal. ``notes``: lines below.
    Without any names of columns there is no heading."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


# What people see one below the other, with an empty line in between. A text's stored parts must have been
# made printable, so that none looks like a line of its own.
type Part = str | Table


def as_text(parts: Iterable[Part], *, width: int | None = WIDTH) -> str:
    """Return plain text. ``width``: how wide tables may be, in columns of a screen; None: nothing is cut."""
    return "\n\n".join(
        "\n".join(_lines(part, width)) if isinstance(part, Table) else printable_lines(part) for part in parts
    )


def _lines(table: Table, width: int | None) -> list[str]:
    rows = fitted(table, width)
    if has_names(table):
        rows.insert(0, [column.name for column in table.columns])
    widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, cell, most in zip(table.columns, row, widths, strict=True):
            space = " " * (most - columns_of(cell))
            cells.append(space + cell if column.right else cell + space)
        lines.append((" " * GAP).join(cells).rstrip())
    return [*lines, *map(printable, table.notes)]


def fitted(table: Table, width: int | None) -> list[list[str]]:
    """Return a table's rows, printable, with the texts shortened that its columns let be shortened."""
    rows = [[printable(cell) for cell in row] for row in table.rows]
    names = [column.name for column in table.columns]
    widths = [max(map(columns_of, column)) for column in zip(names, *rows, strict=True)]
    if width is None:
        return rows
    order = sorted((column.cut, index) for index, column in enumerate(table.columns) if column.cut)
    for _, index in order:
        excess = sum(widths) + GAP * (len(widths) - 1) - width
        if excess <= 0:
            break
        widths[index] = min(widths[index], max(SHORTEST_COLUMN, widths[index] - excess))
        for row in rows:
            row[index] = shortened(row[index], widths[index], keep_end=table.columns[index].keep_end)
    return rows


def has_names(table: Table) -> bool:
    """Return whether the table has a heading."""
    return any(column.name for column in table.columns)


def printable(text: str) -> str:
    """Return text from the table or the server in a form that can't control a terminal."""
    return text if text.isprintable() else repr(text)


def printable_lines(text: str) -> str:
    """Return lines in a form that can't control a terminal."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return a text in so many columns at most, without its end, or with it and without its start."""
    if columns_of(text) <= width:
        return text
    rest = width - len(CUT)
    text = text[-rest:] if keep_end else text[:rest]
    while columns_of(text) > rest:
        text = text[1:] if keep_end else text[:-1]
    return CUT + text if keep_end else text + CUT


def columns_of(text: str) -> int:
    """Return how many columns of a screen a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)
