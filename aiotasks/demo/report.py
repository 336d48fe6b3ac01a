"""What the demo prints when the work is done."""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from aiotasks.demo.client import Findings

_PLACES = 3
_FAILURES_SHOWN = 10


def print_findings(console: Console, findings: Findings) -> None:
    """Print a table of the extremes, then the failures, then the throughput."""
    console.print(_table(findings))
    for failure in findings.failures[:_FAILURES_SHOWN]:
        console.print(f"[red]failed[/] {escape(failure)}")
    if (more := len(findings.failures) - _FAILURES_SHOWN) > 0:
        console.print(f"[red]failed[/] … and {more:,} more")
    lines = sum(found["lines"] for found in findings.measures.values())
    console.print(f"{lines:,} lines of source measured, {len(findings.pages):,} pages fetched.")
    tasks, seconds = findings.tasks, findings.seconds
    throughput = f"{tasks:,} tasks in {seconds:.1f} s: {tasks / seconds:,.0f} tasks/s"
    console.print(f"[bold]{throughput}[/], {len(findings.failures):,} failed.")


def _table(findings: Findings) -> Table:
    measures, pages = findings.measures, findings.pages
    table = Table("", "where", title="The standard library by its extremes")
    table.add_column("", justify="right")
    _add_ranking(
        table, "longest modules", {name: found["lines"] for name, found in measures.items()}, "lines"
    )
    _add_ranking(
        table,
        "longest functions",
        {
            f"{name}: {found['longest_function']}": found["longest_function_lines"]
            for name, found in measures.items()
        },
        "lines",
    )
    _add_ranking(
        table, "most classes", {name: found["classes"] for name, found in measures.items()}, "classes"
    )
    _add_ranking(
        table, "most imports", {name: found["imports"] for name, found in measures.items()}, "imports"
    )
    _add_ranking(
        table, "deepest nesting", {name: found["nesting"] for name, found in measures.items()}, "levels"
    )
    _add_ranking(table, "largest pages", {name: page["bytes"] / 1000 for name, page in pages.items()}, "kB")
    _add_ranking(table, "slowest pages", {name: page["seconds"] * 1000 for name, page in pages.items()}, "ms")
    return table


def _add_ranking(table: Table, label: str, values: Mapping[str, float], unit: str) -> None:
    for name in nlargest(_PLACES, values, key=values.__getitem__):
        table.add_row(label, escape(name), f"{values[name]:,.0f} {unit}")
        label = ""
    table.add_section()
