"""Findings for people."""

from collections.abc import Sequence

from ..tables import Column, Part, Table
from ..text import counted
from .finding import Finding

__all__ = ["finding_parts"]

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "not checked": "dim"}


def finding_parts(findings: Sequence[Finding]) -> list[Part]:
    """Return a line for each finding, its remedy below it, and the totals at the end."""
    rows = []
    for finding in findings:
        rows.append([finding.verdict, finding.name, finding.message])
        if finding.remedy:
            rows.append(["", "", f"-> {finding.remedy}"])
    verdicts = [finding.verdict for finding in findings]
    totals = f"{counted(verdicts.count('error'), 'error')}, {counted(verdicts.count('warning'), 'warning')}."
    return [Table([Column("", style=STYLES.get), Column(""), Column("")], rows), totals]
