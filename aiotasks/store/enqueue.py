"""Statements that store new tasks."""

from collections.abc import Collection, Sequence
from uuid import UUID

from ..rows import Job, JobTemplate, NewJob, UniqueJob
from .columns import job
from .statement_group import StatementGroup, first_if_all_alike, milliseconds, none_if_all_null

__all__ = ["PRIMARY_KEY", "EnqueueStatements"]

# The constraint that an insert violates which is repeated after a lost reply.
PRIMARY_KEY = "aiotasks_task_pkey"


class EnqueueStatements(StatementGroup):
    """Insert tasks, one or many; and what a unique key takes besides."""

    async def insert_job(self, job: NewJob, *, timeout: float | None = None) -> None:
        template = job.template
        if job.limit_key is not None:
            await self._insert_many([job], timeout)
            return
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
            template.metadata,
            *template.policy,
            timeout=timeout,
        )

    async def insert_jobs(self, jobs: Sequence[NewJob], *, timeout: float | None = None) -> None:
        if len(jobs) == 1:
            await self.insert_job(jobs[0], timeout=timeout)
        else:
            await self._insert_many(jobs, timeout)

    async def _insert_many(self, jobs: Sequence[NewJob], timeout: float | None) -> None:
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
            [template.metadata for template in templates],
            none_if_all_null([job.limit_key for job in jobs]),
            [template.ordered for template in templates],
            *map(list, zip(*(template.policy for template in templates), strict=True)),
            timeout=timeout,
        )

    async def insert_unique_job(
        self, new: UniqueJob, *, lock_timeout: float, timeout: float | None = None
    ) -> tuple[bool, Job | None]:
        """Return whether the task was stored, else the task that holds the key: itself, if an earlier try has
        stored it. (False, None): try again, the key has changed hands. Waits ``lock_timeout`` seconds at most
        for another transaction."""
        template = new.template
        (row,) = await self._fetch(
            "insert_unique_job",
            new.id,
            template.backend,
            template.queue_name,
            template.task_path,
            template.lane,
            template.priority,
            new.args,
            new.kwargs,
            new.enqueued_at,
            template.run_after,
            template.expires,
            new.key,
            new.rule.period,
            new.rule.waiting,
            milliseconds(lock_timeout),
            template.metadata,
            new.limit_key,
            template.ordered,
            *template.policy,
            timeout=timeout,
        )
        return row[0], _job_of(row[2:])

    async def insert_unique_jobs(
        self, new: Sequence[UniqueJob], *, lock_timeout: float, timeout: float | None = None
    ) -> set[str]:
        """Store tasks whose keys differ; return the keys of those stored."""
        shared = [(each.template, each.rule) for each in new]
        templates = {each: number for number, each in enumerate(dict.fromkeys(shared), 1)}
        rows = await self._fetch(
            "insert_unique_jobs",
            [each.id for each in new],
            [each.args for each in new],
            [each.kwargs for each in new],
            [each.key for each in new],
            [] if len(templates) == 1 else [templates[each] for each in shared],
            new[0].enqueued_at,
            milliseconds(lock_timeout),
            [template.backend for template, _ in templates],
            [template.queue_name for template, _ in templates],
            [template.task_path for template, _ in templates],
            [template.lane for template, _ in templates],
            [template.priority for template, _ in templates],
            [template.run_after for template, _ in templates],
            [template.expires for template, _ in templates],
            [rule.period for _, rule in templates],
            [rule.waiting for _, rule in templates],
            [template.metadata for template, _ in templates],
            none_if_all_null([each.limit_key for each in new]),
            [template.ordered for template, _ in templates],
            *map(list, zip(*(template.policy for template, _ in templates), strict=True)),
            timeout=timeout,
        )
        stored = {str(id) for id, _ in rows}
        return {each.key for each in new if each.id in stored}

    async def free_unique_keys(
        self, backend: str, keys: Collection[str], *, lock_timeout: float, timeout: float | None = None
    ) -> dict[str, Job]:
        """Take keys from the tasks that hold them no longer; return the holders of the others."""
        rows = await self._fetch(
            "free_unique_keys", backend, sorted(keys), milliseconds(lock_timeout), timeout=timeout
        )
        return _by_key(rows)

    async def lock_unique_keys(
        self, backend: str, keys: Collection[str], *, lock_timeout: float, timeout: float | None = None
    ) -> dict[str, Job]:
        """Keep the waiting holders of keys from being claimed until the transaction ends; return them."""
        rows = await self._fetch(
            "lock_unique_keys", backend, sorted(keys), milliseconds(lock_timeout), timeout=timeout
        )
        return _by_key(rows)

    async def replace_waiting_jobs(
        self,
        ids: Sequence[UUID],
        new: Sequence[UniqueJob],
        *,
        lock_timeout: float,
        timeout: float | None = None,
    ) -> dict[str, Job]:
        """Give the waiting tasks ``ids`` the arguments of ``new``, its priority, metadata, limit and time.

        Return by key those that were still waiting. All of ``new`` have one template and rule, except for
        single ones.
        """
        template = new[0].template
        rows = await self._fetch(
            "replace_waiting_jobs",
            list(ids),
            [each.key for each in new],
            [each.args for each in new],
            [each.kwargs for each in new],
            template.backend,
            template.priority,
            template.run_after,
            template.expires,
            new[0].rule.keep_run_after,
            milliseconds(lock_timeout),
            template.metadata,
            [each.limit_key for each in new],
            template.ordered,
            timeout=timeout,
        )
        return _by_key(rows)


def _job_of(columns: Sequence[object]) -> Job | None:
    """The Job of a row's columns; None where an outer join has found no row."""
    return None if columns[0] is None else job(columns)


def _by_key(rows: Sequence[Sequence[object]]) -> dict[str, Job]:
    """The jobs of rows ``(setting, *columns)`` by their unique keys."""
    found = (_job_of(row[1:]) for row in rows)
    return {each.unique_key: each for each in found if each is not None and each.unique_key is not None}
