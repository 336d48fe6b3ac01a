"""Statements that store new tasks."""

from collections.abc import Sequence

from ..rows import JobTemplate, NewJob
from .statement_group import StatementGroup, first_if_all_alike

__all__ = ["EnqueueStatements"]


class EnqueueStatements(StatementGroup):
    """Insert tasks, one or many."""

    async def insert_job(self, job: NewJob, *, timeout: float | None = None) -> None:
        template = job.template
        await self._fetch(
            "insert_job",
            job.id,
            template.backend,
            template.queue_name,
            template.task_path,
            template.lane,
            template.priority,
            job.args,
            job.kwargs,
            job.enqueued_at,
            template.run_after,
            template.expires,
            *template.policy,
            timeout=timeout,
        )

    async def insert_jobs(self, jobs: Sequence[NewJob], *, timeout: float | None = None) -> None:
        if len(jobs) == 1:
            await self.insert_job(jobs[0], timeout=timeout)
            return
        # By identity first: most jobs of a batch share a few objects, and comparing those takes time.
        templates: dict[JobTemplate, int] = {}
        numbers = {
            same: templates.setdefault(template, len(templates) + 1)
            for same, template in {id(job.template): job.template for job in jobs}.items()
        }
        await self._fetch(
            "insert_jobs",
            [job.id for job in jobs],
            first_if_all_alike([job.args for job in jobs]),
            first_if_all_alike([job.kwargs for job in jobs]),
            first_if_all_alike([numbers[id(job.template)] for job in jobs]),
            first_if_all_alike([job.enqueued_at for job in jobs]),
            [template.backend for template in templates],
            [template.queue_name for template in templates],
            [template.task_path for template in templates],
            [template.lane for template in templates],
            [template.priority for template in templates],
            [template.run_after for template in templates],
            [template.expires for template in templates],
            *map(list, zip(*(template.policy for template in templates), strict=True)),
            timeout=timeout,
        )
