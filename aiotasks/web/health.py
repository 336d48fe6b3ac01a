"""The views ``livez``, ``readyz`` and ``metrics``: what probes and Prometheus ask of a web process."""

import asyncio
import json
import os
import time
from http import HTTPStatus
from typing import Any

from django.db import connections, transaction, utils
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.tasks import task_backends

from ..backend import PostgresBackend
from ..metrics import Family, merged
from ..queue_figures import families_of
from ..store.route import Route
from ..store.samples import StoredSample
from ..worker.health import Health
from ..worker.worker import workers_here

__all__ = ["livez", "metrics", "readyz"]

PLAIN_TEXT = "text/plain; charset=utf-8"

# Seconds for an answer of the database. Kubernetes waits for one by default; docs/deploy/ has five.
DATABASE_TIMEOUT = 2.0

# Seconds for which a sample of the queues is shown before another is looked up: workers make one a minute.
SAMPLE_TIMEOUT = 15.0

# Seconds for which an old sample is shown.
SAMPLE_AGE = 86_400.0

MISSING = "The metrics need the extra prometheus: pip install 'django-aiotasks[prometheus]'\n"

# The label ``process`` of what isn't a worker's.
SITE = "site"

# The newest sample of each backend, and the time.monotonic() at which it was looked up.
_samples: dict[str, tuple[float, StoredSample | None]] = {}


async def livez(request: HttpRequest) -> HttpResponse:
    """Answer 200: this process answers. No database is asked, because an outage must not restart it."""
    return _refused(request) or HttpResponse("live\n", content_type=PLAIN_TEXT)


async def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 if the databases of all backends of aiotasks answer, and the workers in this process are
    ready; 503 otherwise. The body says how each is, with ``?json`` as JSON.
    """
    if (refused := _refused(request)) is not None:
        return refused
    backends = _backends()
    answers = await asyncio.gather(*map(_does_answer, backends))
    databases = {backend.alias: answer for backend, answer in zip(backends, answers, strict=True)}
    health = [worker.health() for worker in workers_here()]
    ready = all(answers) and all(one.ready for one in health)
    if request.GET.get("json") is not None:
        value = {"ready": ready, "databases": databases, "workers": [_values(one) for one in health]}
        response = HttpResponse(json.dumps(value), content_type="application/json")
    else:
        lines = ["ready" if ready else "not ready"]
        lines += [
            f"database of backend {alias}: {'answers' if answer else 'does not answer'}"
            for alias, answer in databases.items()
        ]
        lines += [f"worker: {'ready' if one.ready else 'not ready'}, {one.status_line}" for one in health]
        response = HttpResponse("".join(f"{line}\n" for line in lines), content_type=PLAIN_TEXT)
    response.status_code = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return response


async def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with the figures of the queues, and the metrics of workers in this process, in Prometheus' text
    format or OpenMetrics. Without a database the last figures are shown, with their age. 501 without the
    extra ``prometheus``.
    """
    if (refused := _refused(request)) is not None:
        return refused
    try:  # by the first scrape, so that a site without scrapes imports nothing of it
        from ..contrib.prometheus import render
    except ImportError:
        return HttpResponse(MISSING, status=HTTPStatus.NOT_IMPLEMENTED, content_type=PLAIN_TEXT)
    figures = await asyncio.gather(*map(_figures, _backends()))
    found = [(SITE, families) for families in figures]
    for number, worker in enumerate(workers_here()):
        found.append((f"{os.getpid()}-{number}", worker.families()))
    body, content_type = render(merged(found), request.headers.get("Accept", ""))
    return HttpResponse(body, content_type=content_type)


# ATOMIC_REQUESTS can't be had with async views, and these only read.
for _alias in connections:
    livez, readyz, metrics = map(transaction.non_atomic_requests(using=_alias), (livez, readyz, metrics))


def _refused(request: HttpRequest) -> HttpResponse | None:
    return None if request.method in ("GET", "HEAD") else HttpResponseNotAllowed(["GET", "HEAD"])


def _backends() -> list[PostgresBackend]:
    return [backend for backend in task_backends.all() if isinstance(backend, PostgresBackend)]


def _values(health: Health) -> dict[str, Any]:
    return {
        "live": health.live,
        "ready": health.ready,
        "reasons": health.reasons,
        "status": health.status_line,
    }


async def _does_answer(backend: PostgresBackend) -> bool:
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            await backend.dispatch(_read_clock)
    except (utils.Error, TimeoutError):
        return False
    return True


async def _read_clock(backend: PostgresBackend, route: Route) -> None:
    await route.run_alone(lambda store: store.read_clock())


async def _figures(backend: PostgresBackend) -> list[Family]:
    now = time.monotonic()
    looked_at, sample = _samples.get(backend.alias, (-SAMPLE_TIMEOUT, None))
    if now - looked_at >= SAMPLE_TIMEOUT:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                sample = await backend.dispatch(_newest_sample)
        except (utils.Error, TimeoutError):
            pass
        else:
            looked_at = time.monotonic()
            _samples[backend.alias] = looked_at, sample
    if sample is None:
        return []
    return families_of(json.loads(sample.figures), sample.age + time.monotonic() - looked_at, backend.alias)


async def _newest_sample(backend: PostgresBackend, route: Route) -> StoredSample | None:
    found = await route.run_alone(lambda store: store.select_samples(backend.alias, SAMPLE_AGE, 1))
    return found[0] if found else None
