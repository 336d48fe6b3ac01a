"""Families of metrics, as plain values: what shows them may import a client of Prometheus, and a worker need
not.

https://prometheus.io/docs/concepts/metric_types/
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

__all__ = ["SECONDS", "SIZES", "Family", "Histogram", "Kind", "Sample", "family", "merged"]

type Kind = Literal["counter", "gauge", "histogram"]

# The upper bounds of the buckets of durations and waits, in seconds. Chosen: what an SLO is about lies
# between some milliseconds and an hour, and each bucket of each task is a series.
SECONDS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)

# The same of the tasks of one statement.
SIZES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Sample(NamedTuple):
    """One value of a family. ``name``: the family's, or that with a suffix."""

    name: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """A metric with its samples. ``name``: without the suffixes ``_total``, ``_bucket``, ``_count`` and
    ``_sum`` of its samples.
    """

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


class Histogram:
    """Counts values by the ``bounds`` of buckets. ``counts`` has one more: of the values above them all.

    ``unit``: by what bounds and values are multiplied where they are shown.
    """

    __slots__ = ("bounds", "counts", "total", "unit")

    def __init__(self, bounds: Sequence[float], unit: float = 1) -> None:
        self.bounds = bounds
        self.unit = unit
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0  # the sum of the values

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def samples(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        """Return the samples of a family of this name. May be called in any thread."""
        sums = list(accumulate(self.counts))
        bounds = [*(f"{bound * self.unit:g}" for bound in self.bounds), "+Inf"]
        buckets = [
            Sample(f"{name}_bucket", {**labels, "le": bound}, number)
            for bound, number in zip(bounds, sums, strict=True)
        ]
        return [
            *buckets,
            Sample(f"{name}_count", labels, sums[-1]),
            Sample(f"{name}_sum", labels, self.total * self.unit),
        ]


def family(
    kind: Literal["counter", "gauge"], name: str, help: str, *values: tuple[Mapping[str, str], float]
) -> Family:
    """Return a family of counters or gauges, with its values by their labels."""
    suffix = "_total" if kind == "counter" else ""
    return Family(name, kind, help, [Sample(name + suffix, labels, value) for labels, value in values])


def merged(found: Iterable[tuple[str, Sequence[Family]]]) -> list[Family]:
    """Return each family once, its samples with the label ``process``: the name beside the families.

    There are no sums over processes: they would fall when one is started again.
    """
    by_name: dict[str, tuple[Family, list[Sample]]] = {}
    for process, families in found:
        for family in families:
            _, samples = by_name.setdefault(family.name, (family, []))
            samples += (one._replace(labels={**one.labels, "process": process}) for one in family.samples)
    return [family._replace(samples=samples) for family, samples in by_name.values()]
