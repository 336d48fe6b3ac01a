"""What a run has found, as JSON to keep and as a table to read."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .run import Entry, Measurements
from .statistics import Ratio, Spread, ratio
from .workloads import Workload

__all__ = ["RESULTS", "Result", "rounded"]

RESULTS = Path(__file__).parent / "results"


class Result:
    """One workload's."""

    def __init__(
        self, name: str, workload: Workload, entries: Sequence[Entry], found: Measurements, *, pairs: int
    ) -> None:
        self._name = name
        self._workload = workload
        self._entries = entries
        self._found = found
        self._pairs = pairs
        self.spreads: dict[str, dict[str, Spread]] = {
            label: {
                figure: Spread.of([figures[label][figure] for figures in found.rounds])
                for figure in found.rounds[0][label]
            }
            for label in found.rounds[0]
        }
        ratios = (ratio(target, found.rounds) for target in workload.targets)
        self.ratios: list[Ratio] = [found for found in ratios if found is not None]

    def write(self, versions: Mapping[str, Mapping[str, str]], server: Mapping[str, str]) -> None:
        """Write ``results/NAME.json``, with each contender's versions and the server's settings."""
        content: dict[str, Any] = {
            "workload": self._name,
            "measures": self._workload.measures,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "server": server,
            "versions": versions,
            "counts": {entry.label: entry.count for entry in self._entries},
            "pairs": self._pairs,
            "medians": {
                label: {figure: asdict(spread) for figure, spread in figures.items()}
                for label, figures in self.spreads.items()
            },
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "failed": self._found.failed,
            "rounds": self._found.rounds,
        }
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(rounded(content), indent=1, ensure_ascii=False)
        (RESULTS / f"{self._name}.json").write_text(text + "\n", "utf-8")

    def table(self, *, with_targets: bool) -> str:
        """A line for each contender, and one for each target."""
        workload = self._workload
        lines = [f"{self._name}: {workload.measures}"]
        for label, figures in self.spreads.items():
            spread = figures[workload.figure]
            others = ", ".join(
                f"{figure} {_number(other.median)}"
                for figure, other in figures.items()
                if figure not in (workload.figure, "seconds")
            )
            span = f"{_number(spread.min)}–{_number(spread.max)}"
            lines.append(
                f"  {label:18} {_number(spread.median):>9} {workload.unit:8} {span:18} {others}".rstrip()
            )
        if with_targets:
            lines += [f"  {_target_line(ratio)}" for ratio in self.ratios]
        lines += [f"  {label:18} failed: {why}" for label, why in self._found.failed.items()]
        return "\n".join(lines)


def _target_line(ratio: Ratio) -> str:
    spread, target = ratio.spread, ratio.target
    sign = "≥" if target.at == "least" else "≤"
    of = f" × {ratio.reference}" if ratio.reference else ""
    span = f"{_number(spread.min)}–{_number(spread.max)}"
    verdict = "reached" if ratio.reached else "NOT REACHED"
    return f"{target.figure} {_number(spread.median)}{of} ({span}), to be {sign} {target.bound:g}: {verdict}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rounded(value: Any) -> Any:
    """Without digits that mean nothing."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
