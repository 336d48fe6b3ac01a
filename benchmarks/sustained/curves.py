"""The run as small curves, in an SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from xml.etree import ElementTree

from ..svg import add, begin, text_of
from .sampler import Sample

__all__ = ["draw"]

LIGHT = """\
.grid { stroke: #d1d9e0 }
polyline { fill: none; stroke-width: 1.5 }
.line0 { stroke: #0969da } text.label0 { fill: #0969da }
.line1 { stroke: #bc4c00 } text.label1 { fill: #bc4c00 }
.line2 { stroke: #1a7f37 } text.label2 { fill: #1a7f37 }
.line3 { stroke: #8250df } text.label3 { fill: #8250df }
"""
DARK = """\
  .grid { stroke: #3d444d }
  .line0 { stroke: #4493f8 } text.label0 { fill: #4493f8 }
  .line1 { stroke: #db6d28 } text.label1 { fill: #db6d28 }
  .line2 { stroke: #3fb950 } text.label2 { fill: #3fb950 }
  .line3 { stroke: #ab7df8 } text.label3 { fill: #ab7df8 }
"""

type Curve = Callable[[Sample], float | None]

# In pixels. Panels are two in a row.
COLUMNS, WIDTH, HEIGHT = 2, 410, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 52, 34


def _statement(name: str) -> Curve:
    return lambda sample: sample.statements_ms.get(name)


PANELS: dict[str, dict[str, Curve]] = {
    "tasks/s": {
        "enqueued": lambda sample: sample.enqueued_per_s,
        "deleted": lambda sample: sample.deleted_per_s,
        "finished": lambda sample: sample.finished_per_s,
    },
    "size, MB": {
        "table": lambda sample: sample.table_mb,
        "indexes": lambda sample: sum(sample.indexes_mb.values()),
    },
    "a statement, ms": {
        "insert": _statement("insert_jobs"),
        "claim": _statement("claim_jobs"),
        "finish": _statement("finish_jobs"),
        "prune": _statement("prune_jobs"),
    },
    "rows, thousands": {
        "live": lambda sample: sample.live_rows / 1000,
        "dead": lambda sample: sample.dead_rows / 1000,
    },
    "from ready to started, ms": {
        "p50": lambda sample: sample.wait_p50_ms,
        "p99": lambda sample: sample.wait_p99_ms,
    },
    "overdue for deletion, s": {"the oldest row": lambda sample: sample.overdue_s},
}


def draw(samples: Sequence[Sample], title: str) -> str:
    """Return the SVG of all panels, over minutes."""
    rows = math.ceil(len(PANELS) / COLUMNS)
    svg = begin(title, COLUMNS * WIDTH, rows * HEIGHT, light=LIGHT, dark=DARK)
    for number, (name, curves) in enumerate(PANELS.items()):
        row, column = divmod(number, COLUMNS)
        _draw_panel(svg, samples, name, curves, left=column * WIDTH + LEFT, top=row * HEIGHT + TOP)
    return text_of(svg)


def _draw_panel(
    svg: ElementTree.Element,
    samples: Sequence[Sample],
    name: str,
    curves: Mapping[str, Curve],
    *,
    left: int,
    top: int,
) -> None:
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    values = {
        label: [(sample.seconds, curve(sample)) for sample in samples] for label, curve in curves.items()
    }
    most = _round_up(max((value or 0.0 for line in values.values() for _, value in line), default=0.0))
    end = samples[-1].seconds
    add(svg, "text", name, x=left, y=top - 30, class_="title")
    for part in (0.0, 0.5, 1.0):
        y = top + height - height * part
        add(svg, "line", x1=left, x2=left + width, y1=y, y2=y, class_="grid")
        add(svg, "text", _number(most * part), x=left - 8, y=y + 4, text_anchor="end", class_="note number")
    add(svg, "text", "0", x=left, y=top + height + 18, class_="note number")
    add(
        svg,
        "text",
        f"{_number(round(end / 60, 1))} min",
        x=left + width,
        y=top + height + 18,
        text_anchor="end",
        class_="note number",
    )
    x = left
    for number, (label, line) in enumerate(values.items()):
        points = " ".join(
            f"{left + width * seconds / end:.1f},{top + height - height * value / most:.1f}"
            for seconds, value in line
            if value is not None
        )
        add(svg, "polyline", points=points, class_=f"line{number}")
        add(svg, "text", label, x=x, y=top - 12, class_=f"label{number}")
        x += 8 * len(label) + 14


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _round_up(value: float) -> float:
    """Return the next number above that has one digit, or 1.5, 2.5."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value)
