"""The throughput as bars of an SVG chart: how many tasks have ended in each second."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

from django.db.models import Count
from django.db.models.functions import TruncSecond

from aiotasks.models import Task

_MOST_SECONDS = 60
_FEWEST_SECONDS = 20
_HEIGHT = 100


class Bar(NamedTuple):
    """One second; the chart is `_HEIGHT` high, and one unit wide for each second."""

    x: int
    y: float
    height: float


@dataclass(frozen=True)
class Chart:
    """tasks: in all; peak, latest: in a second; width: the seconds that are shown, up to `until`."""

    bars: list[Bar]
    tasks: int
    peak: int
    latest: int
    width: int
    until: datetime


async def draw(queues: list[str], since: datetime, until: datetime) -> Chart:
    """Count the tasks of these queues that ended in each second from `since` to `until`: the last minute."""
    width = min(max(ceil((until - since).total_seconds()), _FEWEST_SECONDS), _MOST_SECONDS)
    start = until - timedelta(seconds=width)
    ended = Task.objects.filter(
        queue_name__in=queues, finished_at__gte=max(since, start), finished_at__lt=until
    )
    seconds = ended.values(second=TruncSecond("finished_at")).annotate(tasks=Count("pk")).order_by("second")
    counts = {int((row["second"] - start).total_seconds()): row["tasks"] async for row in seconds}
    peak = max(counts.values(), default=0)
    bars = [
        Bar(second, round(_HEIGHT - height, 1), round(height, 1))
        for second, tasks in counts.items()
        for height in [_HEIGHT * tasks / peak]
    ]
    return Chart(bars, sum(counts.values()), peak, counts.get(width - 1, 0), width, until)
