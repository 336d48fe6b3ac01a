"""Findings for people: plain text, for any terminal."""

from collections.abc import Sequence

from ..text import counted, printable
from .finding import Finding

__all__ = ["findings_as_text"]


def findings_as_text(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, its remedy below it, and the totals at the end."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<11}  {finding.name:<11}  {printable(finding.message)}")
        if finding.remedy:
            lines.append(f"{'':<26}-> {printable(finding.remedy)}")
    verdicts = [finding.verdict for finding in findings]
    lines += [
        "",
        f"{counted(verdicts.count('error'), 'error')}, {counted(verdicts.count('warning'), 'warning')}.",
    ]
    return "\n".join(lines)
