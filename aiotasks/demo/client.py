"""The demo's client: has the site enqueue two tasks for each module, and awaits their results."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from django.tasks import TaskResult, TaskResultStatus, default_task_backend

from aiotasks.demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiotasks.demo.stdlib import Measures
    from aiotasks.demo.tasks import Page

_MODULES_AT_ONCE = 40
_POLL_INTERVAL = 0.05

# Seconds in which no module was done, after which the demo gives up. Chosen: two hundred times what the tasks
# of the longest module take (0.24 s), so that a busy machine is no reason.
_PATIENCE = 60.0


@dataclass
class Findings:
    """What the tasks returned, by module, and a sentence for each that failed."""

    measures: dict[str, Measures] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tasks(self) -> int:
        return len(self.measures) + len(self.pages) + len(self.failures)


async def examine(url: str, modules: Iterable[str], advance: Callable[[], object]) -> Findings:
    """Examine the modules, forty at a time, and call `advance` after each."""
    findings = Findings()
    slots = asyncio.Semaphore(_MODULES_AT_ONCE)
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def visit(module: str) -> None:
        async with slots:
            try:
                await _visit(client, module, findings)
            except httpx.HTTPError as error:
                findings.failures.append(f"{module}: {error or type(error).__name__}")
        if not limit.expired():
            limit.reschedule(loop.time() + _PATIENCE)
        advance()

    try:
        async with (
            asyncio.timeout(_PATIENCE) as limit,
            # Loopback only: no proxy of the environment, and no CA certificates.
            httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=None) as client,
            asyncio.TaskGroup() as group,
        ):
            for module in modules:
                group.create_task(visit(module))
    except TimeoutError:
        raise DemoError(
            f"Only {findings.tasks} tasks have ended, and none within the last {_PATIENCE:g} seconds."
        ) from None
    findings.seconds = loop.time() - started
    return findings


async def _visit(client: httpx.AsyncClient, module: str, findings: Findings) -> None:
    response = await client.post(f"/modules/{module}/examine/")
    response.raise_for_status()
    ids = response.json()
    measured, fetched = await asyncio.gather(_result(ids["measure_source"]), _result(ids["fetch_page"]))
    if measured.status == TaskResultStatus.SUCCESSFUL:
        findings.measures[module] = measured.return_value
    if fetched.status == TaskResultStatus.SUCCESSFUL:
        findings.pages[module] = fetched.return_value
    for result in (measured, fetched):
        if result.status == TaskResultStatus.FAILED:
            reason = result.errors[-1].traceback.strip().splitlines()[-1]
            findings.failures.append(f"{result.task.name}({module!r}): {reason}")


async def _result(result_id: str) -> TaskResult[..., Any]:
    result = await default_task_backend.aget_result(result_id)
    while not result.is_finished:
        await asyncio.sleep(_POLL_INTERVAL)
        await result.arefresh()
    return result
