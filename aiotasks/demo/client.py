"""The demo's terminal: starts both surveys, and follows their progress."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from django.tasks import TaskResultStatus

from aiotasks.demo.errors import DemoError
from aiotasks.demo.findings import Findings, no_findings
from aiotasks.demo.tasks import start

_POLL_INTERVAL = 0.1

# Seconds in which no task ended, after which the demo gives up. Chosen: two hundred times what the tasks of
# the longest module take (0.24 s), so that a busy machine is no reason.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Survey:
    """What the surveys of the sources and of the pages have found, within how many seconds."""

    sources: Findings
    pages: Findings
    seconds: float


async def survey(site: str, show: Callable[[int, int], object]) -> Survey:
    """Run both surveys; call `show` with how many tasks of each have ended."""
    loop = asyncio.get_running_loop()
    began = advanced = loop.time()
    results = await start(site)
    before = (0, 0)
    while not all(result.is_finished for result in results):
        await asyncio.sleep(_POLL_INTERVAL)
        await asyncio.gather(*(result.arefresh() for result in results))
        sources, pages = (result.metadata.get("findings", no_findings()) for result in results)
        done = sources["tasks"], pages["tasks"]
        show(*done)
        if done != before:
            before, advanced = done, loop.time()
        elif loop.time() > advanced + _PATIENCE:
            raise DemoError(
                f"Only {sum(done)} tasks have ended, and none within the last {_PATIENCE:g} seconds."
            )
    for result in results:
        if result.status == TaskResultStatus.FAILED:
            raise DemoError(f"{result.task.name} failed: {result.errors[-1].traceback}")
    sources, pages = (result.return_value for result in results)
    return Survey(sources, pages, seconds=loop.time() - began)
