"""Store: one thin method a statement. It knows no policy, only columns."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from ..db.drivers import Driver
from ..db.statement import load
from ..rows import Job, JobTemplate, Lane, LaneRequest, NewJob
from .row_security import Restriction

__all__ = ["Store"]


class Store:
    """The statements of ``queries/``, over one driver. Times are in seconds."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    async def _fetch(self, name: str, *args: Any, timeout: float | None = None) -> Sequence[Sequence[Any]]:
        return await self.driver.fetch(load(name), *args, timeout=timeout)

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
            template.max_crashes,
            template.keep_result,
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
            [job.args for job in jobs],
            [job.kwargs for job in jobs],
            _first_if_all_alike([numbers[id(job.template)] for job in jobs]),
            _first_if_all_alike([job.enqueued_at for job in jobs]),
            [template.backend for template in templates],
            [template.queue_name for template in templates],
            [template.task_path for template in templates],
            [template.lane for template in templates],
            [template.priority for template in templates],
            [template.run_after for template in templates],
            [template.max_crashes for template in templates],
            [template.keep_result for template in templates],
            timeout=timeout,
        )

    async def select_jobs(self, ids: Sequence[UUID], backend: str) -> list[Job]:
        return [Job(*row) for row in await self._fetch("select_jobs", list(ids), backend)]

    async def claim_jobs(
        self,
        worker_id: UUID,
        claim_id: UUID,
        backend: str,
        *,
        loop: LaneRequest,
        thread: LaneRequest,
    ) -> list[Job]:
        rows = await self._fetch(
            "claim_jobs",
            worker_id,
            claim_id,
            backend,
            loop.queues,
            loop.since,
            loop.limit,
            loop.robust_only,
            thread.queues,
            thread.since,
            thread.limit,
            thread.robust_only,
        )
        return [_claimed(claim_id, backend, *row) for row in rows]

    async def claim_suspect(
        self, worker_id: UUID, claim_id: UUID, backend: str, lane: Lane, queues: Sequence[str]
    ) -> list[Job]:
        rows = await self._fetch("claim_suspect", worker_id, claim_id, backend, lane, list(queues))
        return [_claimed(claim_id, backend, *row) for row in rows]

    async def finish_jobs(
        self, finishes: Iterable[tuple[UUID, UUID, str, str | None, str | None]]
    ) -> dict[UUID, datetime]:
        """Rows of (id, claim id, status, return value, error); returns finished_at of those accepted."""
        columns = [list(column) for column in zip(*finishes, strict=True)]
        return {row[0]: row[1] for row in await self._fetch("finish_jobs", *columns)}

    async def select_finished_jobs(
        self, ids: Sequence[UUID], claim_ids: Sequence[UUID]
    ) -> dict[UUID, datetime | None]:
        """When each was finished of those that carry the claim id still; None for what is RUNNING."""
        rows = await self._fetch("select_finished_jobs", list(ids), list(claim_ids))
        return {row[0]: row[1] for row in rows}

    async def release_jobs(
        self, releases: Iterable[tuple[UUID, UUID, float, float | None]]
    ) -> dict[UUID, str | None]:
        """Rows of (id, claim id, delay, window); returns the queue names of those released, and None for
        those that are ours and must be failed instead.
        """
        columns = [list(column) for column in zip(*releases, strict=True)]
        return {row[0]: row[1] for row in await self._fetch("release_jobs", *columns)}

    async def release_lost_claims(
        self, worker_id: UUID, held: Sequence[UUID], reply_timeout: float, cancelled: str
    ) -> list[Job]:
        """Returns what was given back: READY, or FAILED with the error ``cancelled`` (JSON text)."""
        rows = await self._fetch("release_lost_claims", worker_id, list(held), reply_timeout, cancelled)
        return [Job(*row) for row in rows]

    async def cancel_jobs(self, ids: Sequence[UUID], backend: str, error: str) -> list[Job]:
        """Returns those that could still be cancelled: FAILED now, or RUNNING and asked to end."""
        return [Job(*row) for row in await self._fetch("cancel_jobs", sorted(ids), backend, error)]

    async def select_cancelled_jobs(self, worker_id: UUID) -> set[UUID]:
        return {row[0] for row in await self._fetch("select_cancelled_jobs", worker_id)}

    async def rescue_jobs(
        self,
        backend: str,
        max_crashes: int,
        error: str,
        limit: int,
        cancelled: str,
        rescuer: UUID,
        remaining: float = 0.0,
    ) -> list[Job]:
        """``rescuer`` is the worker that rescues: none without a live lease, and nothing of its own.
        ``remaining``: seconds that its lease should have to run at the least.
        """
        rows = await self._fetch(
            "rescue_jobs", backend, max_crashes, error, limit, cancelled, rescuer, remaining
        )
        return [Job(*row) for row in rows]

    async def promote_due_jobs(self, backend: str, limit: int) -> list[tuple[str, float]]:
        """Returns the queue name of every task promoted, and its place there: when it was due, in epoch
        seconds."""
        return [(row[0], row[1]) for row in await self._fetch("promote_due_jobs", backend, limit)]

    async def next_due(self, backend: str) -> tuple[datetime, float] | None:
        """When the earliest scheduled task is due, and in how many seconds."""
        rows = await self._fetch("next_due", backend)
        return (rows[0][0], rows[0][1]) if rows else None

    async def list_queues(self, backend: str) -> list[str]:
        return [row[0] for row in await self._fetch("list_queues", backend)]

    async def list_waiting(self, limit: int) -> list[tuple[str, str, str]]:
        """The backends, queues and lanes that have READY tasks."""
        return [(row[0], row[1], row[2]) for row in await self._fetch("list_waiting", limit)]

    async def has_unfinished_jobs(
        self, backend: str, queues: Sequence[str] | None, lanes: Sequence[str]
    ) -> bool:
        rows = await self._fetch(
            "has_unfinished_jobs", backend, None if queues is None else list(queues), list(lanes)
        )
        return bool(rows[0][0])

    async def register_worker(
        self,
        worker_id: UUID,
        backend: str,
        host: str,
        pid: int,
        queues: Sequence[str],
        concurrency: int,
        threads: int,
        version: str,
        lease_timeout: float,
        *,
        timeout: float | None = None,
    ) -> None:
        await self._fetch(
            "register_worker",
            worker_id,
            backend,
            host,
            pid,
            list(queues),
            concurrency,
            threads,
            version,
            lease_timeout,
            timeout=timeout,
        )

    async def renew_lease(
        self,
        worker_id: UUID,
        lease_timeout: float,
        listening: bool | None = None,
        *,
        even_expired: bool = False,
        remaining: float = 0.0,
        timeout: float | None = None,
    ) -> bool | None:
        """Whether the lease was renewed: False where it has expired by the database's clock, or would within
        ``remaining`` seconds, unless ``even_expired``; None where the worker's row has gone. ``listening``:
        whether NOTIFY wakes the worker (None: not known).
        """
        rows = await self._fetch(
            "renew_lease", worker_id, lease_timeout, listening, even_expired, remaining, timeout=timeout
        )
        return bool(rows[0][0]) if rows else None

    async def are_leases_locked(self, *, timeout: float | None = None) -> bool:
        """Whether a lock on the table keeps every worker from renewing its lease."""
        ((locked,),) = await self._fetch("are_leases_locked", timeout=timeout)
        return bool(locked)

    async def prune_jobs(
        self, backend: str, status: str, keep: float | None, since: float, limit: int
    ) -> tuple[int, float]:
        """Of the tasks without a policy of their own. Returns how many, and when the last of them was
        finished (in epoch seconds, as ``since``).
        """
        ((number, last),) = await self._fetch("prune_jobs", backend, status, keep, since, limit)
        return number, last

    async def prune_kept_jobs(self, backend: str, since: float, limit: int) -> tuple[int, float]:
        """Of the tasks with a ``keep_result``. Returns how many, and when the last one's time was over."""
        ((number, last),) = await self._fetch("prune_kept_jobs", backend, since, limit)
        return number, last

    async def remove_dead_workers(self, backend: str, worker_id: UUID | None = None) -> list[UUID]:
        """``worker_id`` is the worker that asks, whose own lease must be live; None for an operator."""
        return [row[0] for row in await self._fetch("remove_dead_workers", backend, worker_id)]

    async def remove_worker(self, worker_id: UUID) -> None:
        await self._fetch("remove_worker", worker_id)

    async def count_ready_jobs(
        self, backend: str, queues: Sequence[str], limit: int
    ) -> dict[str, tuple[int, float | None]]:
        """By queue: how many, counted up to ``limit``, and the age of the oldest (None: there is none)."""
        rows = await self._fetch("count_ready_jobs", backend, list(queues), limit)
        return {row[0]: (row[1], row[2]) for row in rows}

    async def count_scheduled_jobs(self, backend: str, limit: int) -> Counter[str]:
        rows = await self._fetch("count_scheduled_jobs", backend, limit)
        return Counter({row[0]: row[1] for row in rows})

    async def count_running_jobs(self, backend: str, limit: int) -> dict[tuple[str, UUID | None, str], int]:
        """By queue name, worker id and lane."""
        rows = await self._fetch("count_running_jobs", backend, limit)
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    async def count_failed_jobs(self, backend: str, limit: int) -> tuple[int, int, bool]:
        """How many FAILED in the last hour and in the last day, counted up to ``limit``; whether that is
        all of those with a ``keep_result``."""
        ((hour, day, complete),) = await self._fetch("count_failed_jobs", backend, limit)
        return hour, day, complete

    async def oldest_running_job(
        self, backend: str, limit: int
    ) -> tuple[UUID, str, UUID | None, float] | None:
        """Its id, path and worker, and for how many seconds it has run."""
        rows = await self._fetch("oldest_running_job", backend, limit)
        return (rows[0][0], rows[0][1], rows[0][2], rows[0][3]) if rows else None

    async def notify_queue(self) -> tuple[float, int | None, str | None, float | None]:
        """How full NOTIFY's queue is, from 0 to 1; the session with the oldest transaction, what it is, and
        the transaction's age in seconds."""
        (row,) = await self._fetch("notify_queue")
        return row[0], row[1], row[2], row[3]

    async def select_workers(self, backend: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._fetch("select_workers", backend)]

    async def oldest_snapshot(self) -> tuple[bool, tuple[str, str, int, float | None] | None]:
        """Whether all were seen; the holder's template and name, and its age in transactions and, where
        known, in seconds."""
        (row,) = await self._fetch("oldest_snapshot")
        return row[0], None if row[1] is None else (row[1], row[2], row[3], row[4])

    async def inspect_server(self) -> tuple[int, bool, bool, int, int, int]:
        """Version number, whether it is read-only, whether autovacuum runs; connections allowed to us, to
        everybody, and open."""
        (row,) = await self._fetch("inspect_server")
        return row[0], row[1], row[2], row[3], row[4], row[5]

    async def describe_session(self) -> tuple[Any, ...]:
        """What session.Session has."""
        (row,) = await self._fetch("describe_session")
        return tuple(row)

    async def select_migrations(self) -> set[str]:
        """The names of those that have been applied."""
        return {row[0] for row in await self._fetch("select_migrations")}

    async def select_indexes(self) -> set[str]:
        """The names of those of the tasks' table that serve."""
        return {row[0] for row in await self._fetch("select_indexes")}

    async def select_rights(self) -> tuple[str, set[str] | None, list[str]]:
        """The role, as an identifier; its rights, each as ``SELECT ON aiotasks_task`` (None: it finds no
        tables); the schemas that have tables, whether it finds them there or not."""
        (row,) = await self._fetch("select_rights")
        return row[0], None if row[1] is None else set(row[1]), list(row[2])

    async def select_row_security(self) -> list[Restriction]:
        """What row-level security doesn't let this role do with every row."""
        return [Restriction(*row) for row in await self._fetch("select_row_security")]

    async def select_storage(self) -> dict[str, list[str]]:
        """By table: its storage parameters, each as ``name=value``."""
        return {row[0]: row[1] for row in await self._fetch("select_storage")}

    async def read_clock(self) -> datetime:
        (row,) = await self._fetch("read_clock")
        return row[0]  # type: ignore[no-any-return]  # rows are of Any

    async def backend_pid(self) -> int:
        (row,) = await self._fetch("backend_pid")
        return int(row[0])

    async def wait_for_standbys(self, *, timeout: float | None = None) -> None:
        await self._fetch("wait_for_standbys", timeout=timeout)

    async def notify(self, channel: str, payloads: Sequence[str], *, alone: bool) -> bool:
        """``alone``: this statement is a transaction of its own. Returns whether it was sent: inside
        somebody's transaction it isn't where PostgreSQL's queue of notifications is half full.
        """
        return bool(await self._fetch("notify", channel, list(payloads), alone))


def _claimed(
    claim_id: UUID,
    backend: str,
    id: UUID,
    queue_name: str,
    task_path: str,
    lane: Lane,
    priority: int,
    args: str,
    kwargs: str,
    errors: list[str],
    worker_ids: list[str],
    enqueued_at: datetime,
    run_after: datetime | None,
    ready_at: datetime | None,
    started_at: datetime | None,
    last_attempted_at: datetime | None,
    max_crashes: int | None,
    keep_result: float | None,
) -> Job:
    """The row that a claim has made, of the columns that it returns."""
    return Job(
        id,
        claim_id,
        backend,
        queue_name,
        task_path,
        lane,
        priority,
        "RUNNING",
        args,
        kwargs,
        None,
        errors,
        worker_ids,
        enqueued_at,
        run_after,
        ready_at,
        started_at,
        last_attempted_at,
        None,
        max_crashes,
        keep_result,
    )


def _first_if_all_alike[Value](values: list[Value]) -> list[Value]:
    return values[:1] if values.count(values[0]) == len(values) else values
