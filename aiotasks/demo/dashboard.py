"""What the demo's page shows: the latest survey of each kind, the throughput, and whether a worker runs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models.functions import Now
from django.tasks import TaskResultStatus
from django.utils import timezone

from aiotasks import PostgresTask, PostgresTaskResult, TaskCancelled
from aiotasks.demo.chart import Chart, draw
from aiotasks.demo.findings import PAGES, SOURCES, Findings, Place, Ranking
from aiotasks.demo.stdlib import sources
from aiotasks.demo.tasks import survey_pages, survey_sources
from aiotasks.models import Task, Worker

_CANCELLED = f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}"

_STATES = {
    TaskResultStatus.READY: "Waiting for a worker",
    TaskResultStatus.RUNNING: "Running",
    TaskResultStatus.SUCCESSFUL: "Finished",
    TaskResultStatus.FAILED: "Failed",
}


@dataclass(frozen=True)
class Panel:
    """One survey on the page; name: its task's; result: its latest one, if there is any."""

    name: str
    title: str
    explanation: str
    rankings: Sequence[Ranking]
    result: PostgresTaskResult | None

    @property
    def is_active(self) -> bool:
        return self.result is not None and not self.result.is_finished

    @property
    def can_be_retried(self) -> bool:
        return self.result is not None and self.result.status == TaskResultStatus.FAILED

    @property
    def state(self) -> str:
        if self.result is None:
            return "Not started yet"
        if self.can_be_retried and self.result.errors[-1].exception_class_path == _CANCELLED:
            return "Cancelled"
        return _STATES[self.result.status]

    @property
    def findings(self) -> Findings | None:
        return None if self.result is None else self.result.metadata.get("findings")

    @property
    def places(self) -> list[tuple[Ranking, list[Place]]]:
        """The rankings that have places."""
        places = self.findings["places"] if self.findings else {}
        return [(ranking, places[ranking.title]) for ranking in self.rankings if ranking.title in places]


async def dashboard() -> dict[str, Any]:
    """Return what the page's template shows. Raises an error of `django.db` while the database is away."""
    panels = await asyncio.gather(
        _panel(
            survey_sources,
            "Sources",
            "Each module is parsed by a plain function, in a thread of the worker.",
            SOURCES,
        ),
        _panel(
            survey_pages,
            "Pages",
            "Each module's page is fetched by a coroutine, on the worker's event loop.",
            PAGES,
        ),
    )
    is_active = any(panel.is_active for panel in panels)
    return {
        "panels": panels,
        "is_active": is_active,
        "ended": sum(panel.findings["tasks"] for panel in panels if panel.findings),
        "modules": len(sources()),
        "total": len(panels) * len(sources()),
        "chart": await _chart([panel.result for panel in panels if panel.result], is_active=is_active),
        "workers": await Worker.objects.filter(lease_expires_at__gt=Now()).acount(),
    }


async def _chart(results: Sequence[PostgresTaskResult], *, is_active: bool) -> Chart | None:
    """Return the throughput up to now, or to the end of the surveys; None without surveys."""
    if not results:
        return None
    now = timezone.now()
    since = min(result.enqueued_at or now for result in results)
    until = now if is_active else max(result.finished_at or now for result in results)
    return await draw(["sources", "pages"], since, until)


async def _panel(survey: PostgresTask, title: str, explanation: str, rankings: Sequence[Ranking]) -> Panel:
    latest = await Task.objects.filter(task_path=survey.module_path).order_by("-enqueued_at").afirst()
    result = None if latest is None else await survey.aget_result(str(latest.pk))
    return Panel(survey.name, title, explanation, rankings, result)
