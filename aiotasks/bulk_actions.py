"""What bulk actions do with tasks: cancel, retry or delete them, or run them before their time; a batch at a
time. And what a dry run does."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, Literal, get_args
from uuid import UUID

from django.db import utils
from django.tasks.signals import task_finished

from . import signals
from .codec import dump_error
from .conf import Options
from .db.errors import Code, constraint, sqlstate
from .exceptions import InvalidRow, TaskCancelled, UnknownTask
from .row_results import result_of
from .rows import STORED_LANES, Status
from .store.bulk import CancelledJob, DeletedJob, DueJob, LeftJob, Meant, RetriedJob
from .store.route import Route
from .store.wakeups import ANY_QUEUE, Wakeup, wakeup_in

if TYPE_CHECKING:
    from .bulk import Action

__all__ = ["ACTIONS", "STATUSES", "ActionName", "DryRun", "action_named"]

ActionName = Literal["cancel", "retry", "delete", "run_now"]
ACTIONS: tuple[ActionName, ...] = get_args(ActionName)

# Tasks of one look-up for receivers of task_finished, as LOOKUP_LIMIT.
LOOK_UP = 100

# Seconds for which a statement waits for a unique key that another transaction has written. One that enqueues
# ends sooner.
LOCK_TIMEOUT = 0.2

UNIQUE_KEYS = "aiotasks_task_unique"


class _Quiet:
    """What most actions have in common."""

    may_have_all = False
    is_dry_run = False

    async def announce(self) -> None:
        """Do nothing: Django has a signal for the end of a task alone."""


class Cancel(_Quiet):
    """Cancels tasks: see ``PostgresTaskResult.acancel``. ``sender``: of task_finished."""

    statuses = (Status.SCHEDULED, Status.READY, Status.RUNNING)

    def __init__(self, route: Route, backend: str, sender: type, options: Options) -> None:
        self._route = route
        self._backend = backend
        self._sender = sender
        self._options = options
        self._error = dump_error(_cancelled(), limit=options.max_error_size, redact=options.redact)
        self._ended: list[UUID] = []

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Cancel them; wake the owners of those that run, and tell who awaits the others."""

        def wake_and_tell_all() -> None:
            self._route.wake([Wakeup(self._backend, ANY_QUEUE, cancel=True)])
            self._route.tell(ids)

        jobs: list[CancelledJob] = await self._route.run(
            lambda store: store.cancel_free_jobs(ids, meant, self._error), lost=wake_and_tell_all
        )
        self._route.wake(
            {Wakeup(self._backend, job.queue_name, cancel=True) for job in jobs if job.is_running}
        )
        self._route.tell([job.id for job in jobs if job.is_awaited])
        self._ended = [job.id for job in jobs if not job.is_running]
        return {job.id: "requested" if job.is_running else "cancelled" for job in jobs}

    async def announce(self) -> None:
        """Send task_finished for the tasks that waited, if somebody listens, once that is committed."""
        ended, self._ended = self._ended, []
        if ended and signals.audience(task_finished, self._sender) is not signals.Audience.NOBODY:
            await self._route.after_commit(partial(self._send_finished, ended))

    async def _send_finished(self, ended: Sequence[UUID], route: Route) -> None:
        for ids in batched(ended, LOOK_UP):
            jobs = await route.run(lambda store, ids=ids: store.select_jobs(ids, self._backend))  # type: ignore[misc]  # mypy#1484
            for job in jobs:
                if job.status != Status.FAILED:
                    continue  # it has been retried meanwhile
                try:
                    result = result_of(job, self._options.moved_tasks)
                except (UnknownTask, InvalidRow):
                    continue  # this process has no Task object for receivers
                await route.send_finished(self._sender, result, _cancelled())


def _cancelled() -> TaskCancelled:
    return TaskCancelled("The task was cancelled before it ran.")


class Retry(_Quiet):
    """Has FAILED tasks run again, with all their attempts."""

    statuses = (Status.FAILED,)
    may_have_all = True

    def __init__(self, route: Route, backend: str) -> None:
        self._route = route
        self._backend = backend

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Retry them, and wake workers: once a queue."""
        jobs: list[RetriedJob] = await self._route.run(
            lambda store: store.retry_jobs(ids, meant), lost=self._wake_all
        )
        self._route.wake(self._wakeups(jobs))
        outcomes = dict.fromkeys((job.id for job in jobs), "retried")
        if left := [id for id in ids if id not in outcomes]:
            found = await self._route.run(lambda store: store.select_left_jobs(left, meant))
            for id, job in found.items():
                if job.is_meant and job.lost_key:
                    outcomes[id] = await self._take_back_key(id, meant)
        return outcomes

    async def _take_back_key(self, id: UUID, meant: Meant) -> str:
        """Retry a task whose unique key another task has taken, one at a time: it may hold the key."""
        try:
            job, by_another = await self._route.run_alone(
                lambda store: store.retry_unique_job(id, meant, lock_timeout=LOCK_TIMEOUT),
                lost=self._wake_all,
            )
        except utils.IntegrityError as error:
            if constraint(error) != UNIQUE_KEYS:
                raise
            return "key_taken"  # in between
        except utils.OperationalError as error:
            if sqlstate(error) != Code.LOCK_TIMEOUT:
                raise
            return "locked"  # a transaction that is open has written the key
        if job is None:
            return "key_taken" if by_another else "locked"
        self._route.wake(self._wakeups([job]))
        return "retried"

    def _wake_all(self) -> None:
        """Have workers look for READY tasks, and for the next one that is due."""
        self._route.wake([Wakeup(self._backend, ANY_QUEUE, time.time())])

    def _wakeups(self, jobs: Iterable[RetriedJob]) -> set[Wakeup]:
        ready = _ready_wakeups(self._backend, (job for job in jobs if job.due is None))
        due: dict[str, float] = {}
        for job in jobs:
            if job.due is not None and math.isfinite(job.due):
                due[job.queue_name] = min(job.due, due.get(job.queue_name, job.due))
        return ready | {Wakeup(self._backend, name, at) for name, at in due.items()}


class Delete(_Quiet):
    """Deletes tasks that don't run, without a signal."""

    statuses = tuple(status for status in Status if status is not Status.RUNNING)

    def __init__(self, route: Route) -> None:
        self._route = route

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Delete them, and tell who awaits them."""
        jobs: list[DeletedJob] = await self._route.run(
            lambda store: store.delete_jobs(ids, meant), lost=lambda: self._route.tell(ids)
        )
        self._route.tell([job.id for job in jobs if job.is_awaited])
        return dict.fromkeys((job.id for job in jobs), "deleted")


class RunNow(_Quiet):
    """Has SCHEDULED tasks run before their time: those of a later ``run_after``, and those that wait for
    their next attempt."""

    statuses = (Status.SCHEDULED,)

    def __init__(self, route: Route, backend: str) -> None:
        self._route = route
        self._backend = backend

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Make them READY, and wake workers: once a queue."""
        jobs: list[DueJob] = await self._route.run(
            lambda store: store.run_jobs_now(ids, meant),
            lost=lambda: self._route.wake([Wakeup(self._backend, ANY_QUEUE)]),
        )
        self._route.wake(_ready_wakeups(self._backend, jobs))
        return dict.fromkeys((job.id for job in jobs), "due_now")


# With tasks of which statuses each action does something.
STATUSES: dict[ActionName, tuple[Status, ...]] = {
    "cancel": Cancel.statuses,
    "retry": Retry.statuses,
    "delete": Delete.statuses,
    "run_now": RunNow.statuses,
}


def _ready_wakeups(backend: str, jobs: Iterable[RetriedJob | DueJob]) -> set[Wakeup]:
    """Return the wake-ups for tasks that have become READY."""
    return {wakeup_in(backend, job.queue_name, job.lane) for job in jobs if job.lane in STORED_LANES}


class DryRun(_Quiet):
    """Changes nothing, and counts the tasks with which another action would do something.

    Of tasks that run a cancel would ask the worker. What is locked counts as what isn't.
    """

    is_dry_run = True

    def __init__(self, action: "Action", route: Route) -> None:
        self.statuses = action.statuses
        self.may_have_all = action.may_have_all
        self._takes_keys = isinstance(action, Retry)
        self._route = route

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Look at them."""
        found = await self._route.run(lambda store: store.select_left_jobs(ids, meant))
        return {id: self._outcome(job) for id, job in found.items() if job.is_meant}

    def _outcome(self, job: LeftJob) -> str:
        return "key_taken" if self._takes_keys and job.key_holder is not None else "would_change"


def action_named(name: ActionName, route: Route, backend: str, sender: type, options: Options) -> "Action":
    """Return an action for the tasks of a backend, over a route. ``sender``: of its signals. Raises
    ValueError for another name."""
    match name:
        case "cancel":
            return Cancel(route, backend, sender, options)
        case "retry":
            return Retry(route, backend)
        case "delete":
            return Delete(route)
        case "run_now":
            return RunNow(route, backend)
    raise ValueError(f"An action is one of {', '.join(ACTIONS)}, not {name!r:.100}.")
