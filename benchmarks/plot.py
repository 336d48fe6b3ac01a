"""The plot of README.md: three kinds of tasks side by side, as far as there are results."""

import json
from collections.abc import Mapping
from pathlib import Path

from .results import RESULTS
from .svg import add, begin, text_of

__all__ = ["draw", "write"]

PANELS = {"drain": "no-op", "drain-cpu": "1 ms of CPU", "drain-queries": "five ORM queries"}

LIGHT = """\
rect { fill: #9aa4af }
rect.aiotasks { fill: #0969da }
"""
DARK = """\
  rect { fill: #656c76 }
  rect.aiotasks { fill: #4493f8 }
"""

# In pixels. A panel's longest bar leaves room for its number.
NAMES, PANEL, BAR = 130, 230, 150
TOP, ROW, BOTTOM = 44, 24, 30


def write(directory: Path = RESULTS) -> None:
    """Write ``drain.svg`` beside the results that it shows."""
    rates = {workload: _rates(directory / f"{workload}.json") for workload in PANELS}
    if any(rates.values()):
        (directory / "drain.svg").write_text(draw(rates), "utf-8")


def _rates(path: Path) -> dict[str, float]:
    """Return each contender's tasks/s; none where there is no such result yet."""
    if not path.exists():
        return {}
    medians = json.loads(path.read_text("utf-8"))["medians"]
    return {label: figures["per_s"]["median"] for label, figures in medians.items() if label != "floor"}


def draw(rates: Mapping[str, Mapping[str, float]]) -> str:
    """Return the SVG of tasks/s, by workload and contender. Each panel has a scale of its own."""
    names = sorted(
        {name for panel in rates.values() for name in panel},
        key=lambda name: (name != "aiotasks", -max(panel.get(name, 0.0) for panel in rates.values()), name),
    )
    width, height = NAMES + len(PANELS) * PANEL, TOP + len(names) * ROW + BOTTOM
    title = "Tasks per second of one worker, by what the tasks do"
    svg = begin(title, width, height, light=LIGHT, dark=DARK)
    for row, name in enumerate(names):
        add(svg, "text", name.replace("_", "-"), x=NAMES - 10, y=TOP + row * ROW + 16, text_anchor="end")
    for column, (workload, kind) in enumerate(PANELS.items()):
        left = NAMES + column * PANEL
        add(svg, "text", kind, x=left, y=TOP - 16, class_="title")
        most = max(rates[workload].values(), default=1.0)
        for row, name in enumerate(names):
            top, rate = TOP + row * ROW, rates[workload].get(name)
            length = 0 if rate is None else max(1, round(BAR * rate / most))
            if length:
                add(svg, "rect", x=left, y=top + 3, width=length, height=ROW - 6, class_=name)
            number = "not measured" if rate is None else f"{rate:,.0f}"
            class_ = "note" if rate is None else "number"
            add(svg, "text", number, x=left + length + 6, y=top + 16, class_=class_)
    note = "tasks/s, medians; each kind of task has a scale of its own"
    add(svg, "text", note, x=NAMES, y=height - 8, class_="note")
    return text_of(svg)
