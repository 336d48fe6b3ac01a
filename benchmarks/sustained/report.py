"""Whether the end of a run is as its beginning, once everything was warm: targets, and the JSON to keep."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from ..results import rounded
from .sampler import Sample

__all__ = ["Finding", "findings", "write"]

# A run has so many parts. The third is compared with the last: of 20 minutes, the third minute and the last.
PARTS = 20

# Statements that take less of the time of all than this aren't compared: they run a few times a minute.
SHARE = 0.01

SIZES: dict[str, Callable[[Sample], float]] = {
    "table, MB": lambda sample: sample.table_mb,
    "indexes, MB": lambda sample: sum(sample.indexes_mb.values()),
    "dead rows": lambda sample: sample.dead_rows,
    "overdue, s": lambda sample: sample.overdue_s,
    "worker, MB": lambda sample: sample.worker_mb,
}


@dataclass(frozen=True)
class Finding:
    """A figure in the last part of the run by that in an earlier one, and the bound of this ratio."""

    name: str
    earlier: float
    last: float
    bound: float
    at_least: bool = False

    @property
    def ratio(self) -> float:
        return self.last / self.earlier if self.earlier else float(self.last > 0)

    @property
    def reached(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    def __str__(self) -> str:
        sign, verdict = "≥" if self.at_least else "≤", "reached" if self.reached else "NOT REACHED"
        figures = f"{self.earlier:10,.4g} → {self.last:10,.4g}"
        return f"{self.name:28} {figures}  {self.ratio:6.3f}, to be {sign} {self.bound:g}: {verdict}"


def findings(samples: Sequence[Sample]) -> list[Finding]:
    """Compare the last part with the third, and the sizes of quarters."""
    end = samples[-1].seconds
    third = _between(samples, 2 / PARTS * end, 3 / PARTS * end)
    last = _between(samples, (PARTS - 1) / PARTS * end, end)

    def compare(
        name: str, figure: Callable[[Sample], float], bound: float, *, at_least: bool = False
    ) -> Finding:
        return Finding(name, mean(map(figure, third)), mean(map(figure, last)), bound, at_least)

    found = [
        compare("finished/s", lambda sample: sample.finished_per_s, 0.95, at_least=True),
        compare("database CPU, µs a task", _cpu_of_a_task, 1.25),
    ]
    # Sizes go up and down with each vacuum: the highest of the second quarter and of the last.
    second_quarter, last_quarter = _between(samples, end / 4, end / 2), _between(samples, end * 3 / 4, end)
    for name, size in SIZES.items():
        found.append(Finding(name, max(map(size, second_quarter)), max(map(size, last_quarter)), 1.1))
    times = [compare(f"{name}, ms", _time_of(name), 1.25) for name in _frequent_statements(samples)]
    return found + times


def _between(samples: Sequence[Sample], start: float, end: float) -> list[Sample]:
    within = [sample for sample in samples if start < sample.seconds <= end]
    return within or [min(samples, key=lambda sample: abs(sample.seconds - end))]


def _cpu_of_a_task(sample: Sample) -> float:
    return 10**6 * sample.database_cpu / sample.finished_per_s if sample.finished_per_s else 0.0


def _time_of(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.statements_ms.get(name, 0.0)


def _frequent_statements(samples: Sequence[Sample]) -> list[str]:
    """Those whose time is a share of all, the most expensive first."""
    total: dict[str, float] = {}
    for sample in samples:
        for name, ms in sample.statements_ms.items():
            total[name] = total.get(name, 0.0) + ms * sample.calls_per_s[name]
    least = SHARE * sum(total.values())
    return sorted((name for name in total if total[name] >= least), key=lambda name: -total[name])


def write(
    directory: Path, samples: Sequence[Sample], arguments: Mapping[str, float], server: Mapping[str, str]
) -> None:
    """Write ``sustained.json``."""
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "server": server,
        "arguments": arguments,
        "findings": [{**asdict(found), "ratio": found.ratio} for found in findings(samples)],
        "curves": _curves([asdict(sample) for sample in samples]),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sustained.json").write_text(json.dumps(rounded(content)) + "\n", "utf-8")


def _curves(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the samples by figure: a list for each, or a dict of lists."""
    curves: dict[str, Any] = {}
    for name, value in samples[0].items():
        figures = [sample[name] for sample in samples]
        if isinstance(value, dict):
            keys = sorted({key for figure in figures for key in figure})
            curves[name] = {key: [figure.get(key) for figure in figures] for key in keys}
        else:
            curves[name] = figures
    return curves
