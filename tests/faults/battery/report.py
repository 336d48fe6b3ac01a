"""Figures, what is expected of them, and the table at the end."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Report", "table"]

_WIDTHS = {"run": 22, "load": 26, "figures": 52, "passes when": 30, "verdict": 26}


@dataclass
class Report:
    """What one run has found."""

    name: str
    seed: int
    passes_when: str
    load: str = ""
    figures: dict[str, object] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figure(self, **figures: object) -> None:
        """Note figures by name; floats are shown with two digits."""
        self.figures |= {
            name.replace("_", " "): f"{value:.2f}" if isinstance(value, float) else value
            for name, value in figures.items()
        }

    def expect(self, holds: bool, what: str) -> None:
        """Fail the run unless ``holds``; ``what`` says what was wrong."""
        if not holds:
            self.failures.append(what)

    @property
    def passed(self) -> bool:
        return not self.failures

    def row(self) -> dict[str, str]:
        return {
            "run": f"{self.name} (seed {self.seed}, {self.seconds:.0f} s)",
            "load": self.load,
            "figures": ", ".join(f"{name} {value}" for name, value in self.figures.items()),
            "passes when": self.passes_when,
            "verdict": "passed" if self.passed else "FAILED: " + "; ".join(self.failures),
        }


def table(reports: Sequence[Report]) -> str:
    """The reports as a table for a terminal."""
    lines = [_line({name: name for name in _WIDTHS}), _rule()]
    for report in reports:
        lines += [_line(report.row()), _rule()]
    return "\n".join(lines)


def _rule() -> str:
    return "-+-".join("-" * width for width in _WIDTHS.values())


def _line(row: dict[str, str]) -> str:
    cells = [textwrap.wrap(row[name], width) or [""] for name, width in _WIDTHS.items()]
    height = max(map(len, cells))
    return "\n".join(
        " | ".join(
            (cell[number] if number < len(cell) else "").ljust(width)
            for cell, width in zip(cells, _WIDTHS.values(), strict=True)
        ).rstrip()
        for number in range(height)
    )
