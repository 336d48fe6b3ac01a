"""``/metrics``: the families of all processes as one page, and their way from a worker to its supervisor."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from ...metrics import Family, Sample, merged
from .http import Answer, Request, Response

__all__ = ["Scrape", "decoded", "metrics_route"]

MISSING = b"The metrics need the extra prometheus: pip install 'django-aiotasks[prometheus]'\n"

# The families of each process that answers, by its name.
type Scrape = Callable[[], Awaitable[Sequence[tuple[str, Sequence[Family]]]]]


def metrics_route(scrape: Scrape) -> Answer:
    """Return the function of ``/metrics``."""

    async def metrics(request: Request) -> Response:
        try:  # by the first scrape, so that a worker without scrapes imports nothing of it
            from ...contrib.prometheus import render
        except ImportError:
            return Response(HTTPStatus.NOT_IMPLEMENTED, MISSING)
        found = await scrape()

        def page() -> tuple[bytes, str]:
            return render(merged(found), request.accept)

        # With many tasks it takes 0.2 s a process, for which probes would wait. (A worker alone has a thread
        # for both, and one of an executor would be in the way of its end.)
        body, content_type = await asyncio.to_thread(page) if len(found) > 1 else page()
        return Response(HTTPStatus.OK, body, content_type)

    return metrics


def decoded(families: Sequence[Sequence[Any]]) -> list[Family]:
    """Return families that have been JSON; what a later release adds to one is left out. Raises TypeError and
    ValueError.
    """
    return [
        Family(name, kind, help, [Sample(*sample[:3]) for sample in samples])
        for name, kind, help, samples, *_ in families
    ]
