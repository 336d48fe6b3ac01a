"""Prometheus: metrics in its formats, by the package prometheus-client."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ..metrics import Family

__all__ = ["FamilyCollector", "render"]


class FamilyCollector(Collector):
    """Collects what ``read`` returns at each scrape: ``REGISTRY.register(FamilyCollector(worker.families))``
    adds a worker's metrics to a site's own.
    """

    def __init__(self, read: Callable[[], Sequence[Family]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: the families are known only once there are samples."""
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._read():
            metric = Metric(family.name, family.help, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def render(families: Sequence[Family], accept: str = "") -> tuple[bytes, str]:
    """Return a page of metrics and its content type.

    ``accept``: the value of the request's header, which chooses between Prometheus' text format and
    OpenMetrics.
    """
    registry = CollectorRegistry()
    registry.register(FamilyCollector(lambda: families))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # of prometheus-client 0.26, for a version that is no number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
