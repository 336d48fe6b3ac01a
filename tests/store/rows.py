"""Rows for the tests of the Store."""

import inspect
import uuid
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils import uuid7

from aiotasks.policies.policy import COLUMNS, NO_POLICY, Policy
from aiotasks.policies.unique import UniqueRule
from aiotasks.rows import Job, JobTemplate, LaneRequest, NewJob, Schedule, Status, UniqueJob
from aiotasks.store.outcomes import Finish, Release
from aiotasks.store.store import Store

EVER = datetime(1970, 1, 1, tzinfo=UTC)
WORKER_LOST = '{"class": "aiotasks.exceptions.WorkerLost", "traceback": "lost"}'
CANCELLED = '{"class": "aiotasks.exceptions.TaskCancelled", "traceback": "cancelled"}'
NO_LANE = LaneRequest([], [], 0)


# What new_job() passes on to the template.
TEMPLATE = {field.name for field in fields(JobTemplate)}


def new_job(**values: Any) -> NewJob:
    template: dict[str, Any] = {
        "backend": "default",
        "queue_name": "default",
        "task_path": "tests.store.tasks.nothing",
        "lane": "loop",
        "priority": 0,
        "run_after": None,
        "expires": None,
        "metadata": None,
        "ordered": None,
        "policy": Policy(**{name: values.pop(name) for name in COLUMNS if name in values}),
    }
    own: dict[str, Any] = {"id": str(uuid7()), "args": "[]", "kwargs": "{}", "enqueued_at": datetime.now(UTC)}
    for name, value in values.items():
        (template if name in TEMPLATE else own)[name] = value
    return NewJob(template=JobTemplate(**template), **own)


def unique_job(key: str, **values: Any) -> UniqueJob:
    job = new_job(**values)
    rule = UniqueRule(None, waiting=False, on_conflict="return", keep_run_after=False)
    return UniqueJob(job.id, job.template, job.args, job.kwargs, job.enqueued_at, key, rule)


def new_schedule(name: str = "nightly", **values: Any) -> Schedule:
    defaults: dict[str, Any] = {
        "expression": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "missed": "last",
        "missed_within": None,
        "overlap": "skip",
        "jitter": None,
        "task_path": "tests.store.tasks.nothing",
        "queue_name": "default",
        "lane": "loop",
        "priority": 0,
        "args": "[]",
        "kwargs": "{}",
        "expires": None,
        "metadata": None,
        "unique_key": None,
        "unique_period": None,
        "unique_waiting": None,
        "policy": NO_POLICY,
    }
    return Schedule(name=name, **(defaults | values))


async def insert(store: Store, number: int = 1, **values: Any) -> list[UUID]:
    """Store this many equal tasks; their ids, which are in the order of their claiming."""
    jobs = [new_job(**values) for _ in range(number)]
    await store.insert_jobs(jobs)
    return [UUID(job.id) for job in jobs]


async def worker(store: Store, lease: float = 60.0, backend: str = "default") -> UUID:
    id = uuid.uuid4()
    await store.register_worker(id, backend, "host", 1, [], 10, 10, "0", lease)
    return id


def lane(queues: Sequence[str] = ("default",), slots: int = 10, since: datetime = EVER) -> LaneRequest:
    return LaneRequest(list(queues), [since] * len(queues), slots)


async def claim(
    store: Store, worker_id: UUID, claim_id: UUID | None = None, *, backend: str = "default", **lanes: Any
) -> list[Job]:
    """Claim by default ten of each lane from the queue `default`."""
    lanes = lanes or {"loop": lane(), "thread": lane()}
    return await store.claim_jobs(
        worker_id,
        claim_id or uuid.uuid4(),
        backend,
        loop=lanes.get("loop", NO_LANE),
        thread=lanes.get("thread", NO_LANE),
    )


async def claimed(store: Store, number: int = 1, **values: Any) -> tuple[UUID, list[Job]]:
    """Store tasks and claim them: the worker's id, and the jobs."""
    ids = await insert(store, number, **values)
    worker_id = await worker(store)
    jobs = await claim(store, worker_id, loop=lane(slots=number))
    assert [job.id for job in jobs] == ids
    return worker_id, jobs


def claim_of(job: Job) -> tuple[UUID, UUID]:
    """The job's id and claim id, as outcomes are written under."""
    assert job.claim_id is not None
    return job.id, job.claim_id


async def finish(store: Store, *jobs: Job, value: str = "1") -> dict[UUID, datetime]:
    """Write SUCCESSFUL for these; returns finished_at of those accepted."""
    outcomes = [Finish(*claim_of(job), Status.SUCCESSFUL, value, None) for job in jobs]
    return (await store.finish_jobs(outcomes)).at


async def fail(store: Store, *jobs: Job, error: str = "{}") -> dict[UUID, datetime]:
    """Write FAILED for these; returns finished_at of those accepted."""
    outcomes = [Finish(*claim_of(job), Status.FAILED, None, error) for job in jobs]
    return (await store.finish_jobs(outcomes)).at


async def release(
    store: Store,
    *jobs: Job,
    delay: float = 0.0,
    window: float | None = None,
    error: str | None = None,
    snoozes: bool | None = None,
) -> dict[UUID, str | None]:
    """Give these back; returns the queues of those released, None for those that are to be failed."""
    released = await store.release_jobs(
        Release(*claim_of(job), delay, window, error, snoozes) for job in jobs
    )
    return {id: each.queue_name for id, each in released.items()}


async def expire(conn: asyncpg.Connection, worker_id: UUID) -> None:
    """Let a worker's lease end now."""
    await conn.execute(
        "UPDATE aiotasks_worker SET lease_expires_at = clock_timestamp() - interval '1 s' WHERE id = $1",
        worker_id,
    )


async def rescue(
    store: Store,
    max_crashes: int = 3,
    limit: int = 100,
    *,
    backend: str = "default",
    error: str = WORKER_LOST,
) -> list[Job]:
    """Have a worker rescue that is there for this alone."""
    rescuer = await worker(store, backend=backend)
    jobs = await store.rescue_jobs(backend, max_crashes, error, limit, CANCELLED, rescuer)
    await store.remove_worker(rescuer)
    return jobs


async def row(conn: asyncpg.Connection, id: UUID) -> asyncpg.Record:
    found = await conn.fetchrow("SELECT * FROM aiotasks_task WHERE id = $1", id)
    assert found is not None
    return found


def methods_of_the_store() -> set[str]:
    """The names of the Store's statements."""
    return {name for name, _ in inspect.getmembers(Store, inspect.iscoroutinefunction) if name[0] != "_"}
