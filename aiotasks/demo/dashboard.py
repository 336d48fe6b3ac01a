"""What the demo's page shows: the latest survey of each kind, the throughput, and whether a worker runs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models.functions import Now
from django.tasks import TaskResultStatus
from django.utils import timezone

from aiotasks import PostgresTask, PostgresTaskResult
from aiotasks.demo.chart import Chart, draw
from aiotasks.demo.findings import PAGES, SOURCES, Findings, Place, Ranking, exception_of
from aiotasks.demo.stdlib import sources
from aiotasks.demo.tasks import survey_pages, survey_sources
from aiotasks.models import Task, Worker


@dataclass(frozen=True)
class Panel:
    """One survey on the page; name: its task's; result: its latest one, if there is any."""

    name: str
    title: str
    label: str
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
    def problem(self) -> str:
        """Why the survey has ended before its work was done."""
        if not (self.result and self.can_be_retried):
            return ""
        if self.result.is_cancelled:
            return "A retry goes on from here."
        return exception_of(self.result.errors[-1])

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
            "Modules measured",
            "Each module is parsed by a plain function, in a thread of the worker.",
            SOURCES,
        ),
        _panel(
            survey_pages,
            "Pages",
            "Pages fetched",
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
    """The throughput up to the last full second, or to the end of the surveys; None without surveys."""
    if not results:
        return None
    now = timezone.now()
    since = min(result.enqueued_at or now for result in results)
    ended = max(result.finished_at or now for result in results) + timedelta(seconds=1)
    return await draw(["sources", "pages"], since, (now if is_active else ended).replace(microsecond=0))


async def _panel(
    survey: PostgresTask, title: str, label: str, explanation: str, rankings: Sequence[Ranking]
) -> Panel:
    latest = await Task.objects.filter(task_path=survey.module_path).order_by("-enqueued_at").afirst()
    result = None if latest is None else await survey.aget_result(str(latest.pk))
    return Panel(survey.name, title, label, explanation, rankings, result)
