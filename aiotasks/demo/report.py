"""What the demo prints when the work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from aiotasks.demo.findings import PAGES, SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from aiotasks.demo.client import Survey
    from aiotasks.demo.findings import Findings, Ranking


def print_findings(console: Console, survey: Survey) -> None:
    """Print a table of the extremes, then the failures, then the throughput."""
    sources, pages = survey.sources, survey.pages
    table = Table("", "where", title="The standard library by its extremes")
    table.add_column("", justify="right")
    _add_rankings(table, SOURCES, sources)
    _add_rankings(table, PAGES, pages)
    console.print(table)
    for failure in sources["failures"] + pages["failures"]:
        console.print(f"[red]failed[/] {escape(failure)}")
    tasks = sources["tasks"] + pages["tasks"]
    failed = sources["failed"] + pages["failed"]
    if more := failed - len(sources["failures"] + pages["failures"]):
        console.print(f"[red]failed[/] … and {more:,} more")
    fetched = pages["tasks"] - pages["failed"]
    console.print(f"{sources['sum']:,.0f} lines of source measured, {fetched:,} pages fetched.")
    throughput = f"{tasks:,} tasks in {survey.seconds:.1f} s: {tasks / survey.seconds:,.0f} tasks/s"
    console.print(f"[bold]{throughput}[/], {failed:,} failed.")


def _add_rankings(table: Table, rankings: Sequence[Ranking], findings: Findings) -> None:
    for ranking in rankings:
        label = ranking.title
        for place in findings["places"].get(ranking.title, []):
            table.add_row(label, escape(place["where"]), f"{place['value']:,.0f} {ranking.unit}")
            label = ""
        table.add_section()
