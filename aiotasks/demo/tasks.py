"""The demo's tasks: two for each module, and two surveys that have all modules examined."""

import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypedDict

import httpcore  # noqa: F401  # httpx would import it at the first request, while the event loop waits
import httpx
from django.tasks import TaskResultStatus

from aiotasks import PostgresTask, PostgresTaskContext, PostgresTaskResult, task
from aiotasks.demo.findings import PAGES, SOURCES, Findings, Ranking, add, add_failure, no_findings
from aiotasks.demo.stdlib import Measures, measure, sources

_MODULES_AT_ONCE = 40


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


# A unique key: while a survey waits or runs, a second one isn't stored, whoever presses the button.
@task(queue_name="surveys", takes_context=True, unique_key="survey of the sources")
async def survey_sources(context: PostgresTaskContext) -> Findings:
    """Have the source of each module measured."""
    return await _survey(context, measure_source, {name: name for name in sources()}, SOURCES)


@task(queue_name="surveys", takes_context=True, unique_key="survey of the pages")
async def survey_pages(context: PostgresTaskContext, site: str) -> Findings:
    """Have the page of each module fetched from the site, whose URL has no slash at its end."""
    return await _survey(context, fetch_page, {name: f"{site}/modules/{name}/" for name in sources()}, PAGES)


async def start(site: str) -> tuple[PostgresTaskResult, PostgresTaskResult]:
    """Enqueue both surveys; of one that waits or runs, return that one's result."""
    return await survey_sources.aenqueue(), await survey_pages.aenqueue(site)


async def _survey(
    context: PostgresTaskContext,
    task: PostgresTask,
    arguments: Mapping[str, str],
    rankings: Sequence[Ranking],
) -> Findings:
    """Enqueue the task for each module, and rank what the tasks return.

    The findings are in the survey's metadata. So the site shows them as they come, and a survey that was
    cancelled and is retried goes on where it was.
    """
    findings: Findings = context.metadata.setdefault("findings", no_findings())
    async for module, result in _enqueue(task, arguments, skip=findings["tasks"]):
        await result.ajoin()
        if result.status == TaskResultStatus.SUCCESSFUL:
            add(findings, rankings, module, result.return_value)
        else:
            add_failure(findings, task.name, module, result.errors[-1])
        context.progress(findings["tasks"], len(arguments), module)
        context.save_metadata()  # with these findings, which the next progress() would save otherwise
    return findings


async def _enqueue(
    task: PostgresTask, arguments: Mapping[str, str], *, skip: int
) -> AsyncIterator[tuple[str, PostgresTaskResult]]:
    """Enqueue the task for each module, forty ahead of the one whose result is asked for."""
    ahead: deque[tuple[str, PostgresTaskResult]] = deque()
    for module in list(arguments)[skip:]:
        ahead.append((module, await task.aenqueue(arguments[module])))
        if len(ahead) == _MODULES_AT_ONCE:
            yield ahead.popleft()
    while ahead:
        yield ahead.popleft()
