"""The two tasks of the demo: one for a thread, one for the event loop."""

import time
from typing import TypedDict

import httpx
from django.tasks import task

from aiotasks.demo.stdlib import Measures, measure, sources


class Page(TypedDict):
    status: int
    bytes: int
    seconds: float


@task(queue_name="sources")
def measure_source(name: str) -> Measures:
    """Parse a module of the standard library and measure it; a plain function, because it computes."""
    return measure(sources()[name].read_bytes())


@task(queue_name="pages")
async def fetch_page(url: str) -> Page:
    """Fetch a page of the site and time it; a coroutine function, because it waits."""
    # Loopback only: no proxy of the environment, and no CA certificates, which take 20 ms to load.
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client:
        started = time.perf_counter()
        response = await client.get(url)
        seconds = time.perf_counter() - started
    response.raise_for_status()
    return {"status": response.status_code, "bytes": len(response.content), "seconds": seconds}
