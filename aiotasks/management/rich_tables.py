"""Tables on a terminal, by rich (the extra ``cli``): headings, colours, long texts wrapped."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import StringIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable
from rich.text import Text

from aiotasks.operations.tables import (
    GAP,
    SHORTEST_COLUMN,
    Part,
    Table,
    columns_of,
    fitted,
    has_names,
    printable,
    printable_lines,
)

__all__ = ["as_rich", "progress"]


def as_rich(parts: Iterable[Part], *, width: int, colors: bool) -> str:
    """Return text with a terminal's control sequences. rich leaves colours out where NO_COLOR is set, or TERM
    is ``dumb``.

    Texts are never read as rich's markup. A table that can't be made to fit is wider than ``width``: an id
    that is cut is of no use.
    """
    return "\n\n".join(
        _table(part, width, colors=colors)
        if isinstance(part, Table)
        else _drawn(Text(printable_lines(part)), width, colors=colors)
        for part in parts
    )


def _table(table: Table, width: int, *, colors: bool) -> str:
    rows = fitted(table, width)
    drawn = RichTable(
        box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_header=has_names(table)
    )
    least = 0
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in rows]
        size = max(map(columns_of, [column.name, *cells]))
        # Words can be wrapped; an id or a number that is wrapped can't be copied.
        wraps = size > SHORTEST_COLUMN and any(" " in cell for cell in cells)
        least += GAP + (SHORTEST_COLUMN if wraps else size)
        drawn.add_column(
            Text(column.name), justify="right" if column.right else "left", no_wrap=not wraps, overflow="fold"
        )
    for row in rows:
        drawn.add_row(
            *(
                Text(cell, style=(column.style and column.style(cell)) or "")
                for column, cell in zip(table.columns, row, strict=True)
            )
        )
    lines = [_drawn(drawn, max(width, least - GAP), colors=colors)]
    lines += [_drawn(Text(printable(note)), width, colors=colors) for note in table.notes]
    return "\n".join(lines)


def _drawn(what: RichTable | Text, width: int, *, colors: bool) -> str:
    file = StringIO()
    console = Console(
        file=file,
        force_terminal=True,
        width=width,
        no_color=None if colors else True,
        markup=False,
        emoji=False,
        highlight=False,
    )
    # A line of text is wrapped by the terminal, which then copies it as one.
    console.print(what, soft_wrap=isinstance(what, Text))
    return file.getvalue().rstrip("\n")


@contextmanager
def progress(total: int | None, *, colors: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on stderr, with the time that is left; it goes away at the end."""
    console = Console(
        stderr=True, no_color=None if colors else True, markup=False, emoji=False, highlight=False
    )
    number = TextColumn("{task.completed:,}" if total is None else "{task.completed:,} of {task.total:,}")
    columns = (BarColumn(), number, TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=printable(text))
