"""The views of a site: ``events``, and ``sign()``, which makes the tokens that it takes; ``livez``,
``readyz`` and ``metrics`` for probes and Prometheus.
"""

from .web.events import events
from .web.health import livez, metrics, readyz
from .web.tokens import sign

__all__ = ["events", "livez", "metrics", "readyz", "sign"]
