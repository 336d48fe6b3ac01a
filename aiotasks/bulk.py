"""Bulk actions: cancel, retry or delete many tasks, in batches.

A batch is one statement, and a transaction of its own unless the caller has one open. It leaves out rows
that other transactions have locked; the action comes back to these at its end. So an action holds no lock for
long, waits for none, and may be interrupted and repeated at any time: what a batch has done stays done.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import iscoroutinefunction
from itertools import batched
from typing import NamedTuple, Protocol
from uuid import UUID

from django.db import utils
from django.tasks import TaskResult
from django.tasks.signals import task_finished

from . import signals
from .codec import dump_error
from .conf import Options
from .db.errors import Code, constraint, sqlstate
from .exceptions import InvalidRow, TaskCancelled, UnknownTask
from .filters import TaskFilter
from .results import parse_id, result_of
from .rows import LANES, AnyResult, Status
from .store.bulk import CancelledJob, Leg, Place, RetriedJob
from .store.routes import Route
from .store.wakeups import Wakeup

__all__ = ["BulkCounts", "Cancel", "Delete", "Progress", "Retry", "Which", "act", "check_meant"]

# Tasks of one statement that changes them: it takes 30 to 80 ms on a busy machine, for which a worker's
# outcome may wait.
BATCH = 500

# Rows that one statement of a walk looks at, which takes less than 0.2 s, whatever the filter leaves out.
LOOK_AT = 20_000

# Tasks of one look-up for receivers of task_finished, as LOOKUP_LIMIT.
LOOK_UP = 100

# Seconds without progress after which tasks that are still locked are left, and between two tries at first
# and at most. A worker locks its rows for milliseconds.
LOCKED_FOR, SHORTEST_PAUSE, LONGEST_PAUSE = 3.0, 0.02, 0.5

# Seconds for which a statement waits for a unique key that another transaction has written. One that enqueues
# ends sooner.
LOCK_TIMEOUT = 0.2

UNIQUE_KEYS = "aiotasks_task_unique"

# Seconds by which the clock of a caller that has enqueued tasks may be ahead of the database's.
CLOCKS_DIFFER = 86_400.0


class BulkCounts(NamedTuple):
    """How many tasks a bulk action had which outcome.

    ``cancelled``: FAILED with TaskCancelled. ``requested``: it runs, and its worker was asked to cancel it.
    ``retried``: it is to run again. ``deleted``. ``key_taken``: not retried, because another task holds its
    unique key. ``refused``: its status doesn't allow it (cancelling what is finished, retrying what isn't
    FAILED, deleting what runs). ``locked``: another transaction has it locked; nothing was done. ``missing``:
    there is no such task.
    """

    cancelled: int = 0
    requested: int = 0
    retried: int = 0
    deleted: int = 0
    key_taken: int = 0
    refused: int = 0
    locked: int = 0
    missing: int = 0

    def __str__(self) -> str:
        """What there is: ``3 cancelled, 1 refused``; ``nothing`` without any."""
        found = [f"{number} {name.replace('_', ' ')}" for name, number in self._asdict().items() if number]
        return ", ".join(found) or "nothing"


type Progress = Callable[[BulkCounts], None]

# Ids, results, or a filter.
type Which = TaskFilter | Iterable[str | UUID | AnyResult]


class Action(Protocol):
    """What is done with the tasks. ``statuses``: with those that have one of these."""

    statuses: tuple[Status, ...]

    async def run(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Do it with these; return the outcome of each task that it was done with. ``locked`` may be said."""

    async def announce(self) -> None:
        """Send signals about the last run."""


def check_meant(which: Which, everything: bool) -> None:
    """Raise ValueError for a filter that leaves nothing out, unless ``everything`` is meant."""
    if isinstance(which, TaskFilter) and which.is_empty and not everything:
        raise ValueError(
            "This TaskFilter has no condition, so it is for every task of the backend. If all are meant, "
            "pass everything=True."
        )


async def act(
    action: Action, which: Which, route: Route, backend: str, progress: Progress | None
) -> BulkCounts:
    """Do ``action`` with the tasks; return how many had which outcome.

    progress: called after each batch with the counts so far. What it raises ends the action.
    """
    if iscoroutinefunction(progress):
        raise TypeError("progress must be an ordinary function: it is called, and not awaited.")
    run = _Run(action, route, backend, progress)
    if isinstance(which, TaskFilter):
        if which.statuses is not None:
            action.statuses = tuple(status for status in action.statuses if status in which.statuses)
        await _walk(run, which)
    else:
        await run.do(_ids_of(which, run))
    await run.come_back()
    return run.counts


# Outcomes of tasks that the action may meet again, and then do something else with.
_MAY_CHANGE = frozenset(("locked", "requested", "refused"))


class _Run:
    """One action on its way through the tasks."""

    def __init__(self, action: Action, route: Route, backend: str, progress: Progress | None) -> None:
        self.action = action
        self.route = route
        self.backend = backend
        self.missing = 0
        self._progress = progress
        self._outcomes: Counter[str] = Counter()
        self._may_change: dict[UUID, str] = {}

    @property
    def counts(self) -> BulkCounts:
        counts = BulkCounts(**self._outcomes)
        return counts._replace(missing=counts.missing + self.missing)

    async def do(self, ids: Iterable[UUID]) -> None:
        """Act on these tasks, batch by batch."""
        for batch in batched(ids, BATCH):
            await self._do(batch)

    async def come_back(self) -> None:
        """Act on those that were locked, until none is left, or none has come free for LOCKED_FOR."""
        pause = SHORTEST_PAUSE
        end = time.monotonic() + LOCKED_FOR
        while (locked := self._locked()) and time.monotonic() < end:
            await self.route.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            await self.do(locked)
            if len(self._locked()) < len(locked):
                end = time.monotonic() + LOCKED_FOR

    def _locked(self) -> list[UUID]:
        return [id for id, outcome in self._may_change.items() if outcome == "locked"]

    async def _do(self, batch: Sequence[UUID]) -> None:
        outcomes = await self.action.run(batch)
        self._note(outcomes)
        # Before anything that may fail: nobody would do it later.
        await self.action.announce()
        if left := [id for id in batch if id not in outcomes]:
            self._note(await self._why_not(left))
        if self._progress is not None:
            self._progress(self.counts)

    def _note(self, outcomes: Mapping[UUID, str]) -> None:
        """Count each task once, with its last outcome."""
        for id, outcome in outcomes.items():
            if (before := self._may_change.pop(id, None)) is not None:
                self._outcomes[before] -= 1
            self._outcomes[outcome] += 1
            if outcome in _MAY_CHANGE:
                self._may_change[id] = outcome

    async def _why_not(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Return the outcomes of tasks with which nothing was done."""
        statuses = await self.route.run(lambda store: store.select_statuses(ids, self.backend))
        outcomes = {}
        for id in ids:
            if (stored := statuses.get(id)) is None:
                outcomes[id] = "missing"
            else:
                outcomes[id] = "locked" if stored.status in self.action.statuses else "refused"
        return outcomes


def _ids_of(which: Iterable[str | UUID | AnyResult], run: _Run) -> list[UUID]:
    """The ids, each once. Those that no task can have are missing."""
    if isinstance(which, str | bytes) or not isinstance(which, Iterable):
        raise TypeError(f"A TaskFilter, or a list of ids or results, is wanted, not {which!r:.100}.")
    ids: dict[UUID, None] = {}
    for each in which:
        value = each.id if isinstance(each, TaskResult) else each
        id = value if isinstance(value, UUID) else parse_id(value)
        if id is None:
            run.missing += 1
        else:
            ids[UUID(int=id.int)] = None
    return list(ids)


# --- The walk through the tasks of a filter


async def _walk(run: _Run, chosen: TaskFilter) -> None:
    """Act on the tasks of a filter, in the order in which a task changes its status.

    A task that runs may go back to SCHEDULED, so where both are meant the walk ends with these, once more.
    READY and finished tasks that have become so after the walk's begin aren't met, because they might be the
    work of the action itself, or come faster than it goes on.
    """
    began = (await run.route.run(lambda store: store.read_clock())).timestamp()
    again = (Status.SCHEDULED,) if Status.RUNNING in run.action.statuses else ()
    for status in (*_ORDER, *again):
        if status in run.action.statuses and not (_is_about_the_end(chosen) and status in _UNFINISHED):
            for leg in await _legs(run, status, chosen):
                await _walk_leg(run, leg, chosen, began)


_UNFINISHED = (Status.SCHEDULED, Status.READY, Status.RUNNING)
_ORDER = (*_UNFINISHED, Status.FAILED, Status.SUCCESSFUL)


def _is_about_the_end(chosen: TaskFilter) -> bool:
    return chosen.finished_after is not None or chosen.finished_before is not None


async def _legs(run: _Run, status: Status, chosen: TaskFilter) -> list[Leg]:
    if chosen.unique_key is not None:
        return [Leg("key", status)]
    match status:
        case Status.READY:
            found = await run.route.run(lambda store: store.list_ready(run.backend, chosen.queue_name))
            return [Leg("ready", status, *each) for each in found]
        case Status.SCHEDULED:
            return [Leg("scheduled", status)]
        case Status.RUNNING:
            return [Leg("running", status)]
        case _:
            return [Leg("finished", status), Leg("kept", status)]


async def _walk_leg(run: _Run, leg: Leg, chosen: TaskFilter, began: float) -> None:
    place, end = Place(), began
    if leg.branch == "finished":
        place = _first_place(chosen)
        if chosen.finished_before is not None:
            end = min(end, chosen.finished_before.timestamp())
    while True:
        step = await run.route.run(
            lambda store, place=place: store.walk_jobs(run.backend, leg, place, end, LOOK_AT, chosen)  # type: ignore[misc]  # mypy#1484
        )
        await run.do(step.ids)
        if step.looked_at < LOOK_AT:
            return
        place = step.last


def _first_place(chosen: TaskFilter) -> Place:
    """Where finished tasks of the filter begin: none was finished before it was enqueued."""
    bounds = [-math.inf]
    if chosen.finished_after is not None:
        bounds.append(chosen.finished_after.timestamp() - 1)
    if chosen.enqueued_after is not None:
        bounds.append(chosen.enqueued_after.timestamp() - CLOCKS_DIFFER)
    return Place(max(bounds))


# --- The actions


class Cancel:
    """Cancels tasks: see ``PostgresTaskResult.acancel``. ``sender``: of task_finished."""

    def __init__(self, route: Route, backend: str, sender: type, options: Options) -> None:
        self.statuses: tuple[Status, ...] = (Status.SCHEDULED, Status.READY, Status.RUNNING)
        self._route = route
        self._backend = backend
        self._sender = sender
        self._options = options
        self._error = dump_error(_cancelled(), limit=options.max_error_size, redact=options.redact)
        self._ended: list[UUID] = []

    async def run(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Cancel them, and wake the owners of those that run."""
        jobs: list[CancelledJob] = await self._route.run(
            lambda store: store.cancel_free_jobs(ids, self._backend, self.statuses, self._error)
        )
        self._route.wake(
            {Wakeup(self._backend, job.queue_name, cancel=True) for job in jobs if job.is_running}
        )
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


class Retry:
    """Has FAILED tasks run again, with all their attempts."""

    def __init__(self, route: Route, backend: str) -> None:
        self.statuses: tuple[Status, ...] = (Status.FAILED,)
        self._route = route
        self._backend = backend

    async def run(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Retry them, and wake workers: once a queue."""
        jobs: list[RetriedJob] = await self._route.run(lambda store: store.retry_jobs(ids, self._backend))
        self._route.wake(self._wakeups(jobs))
        outcomes = dict.fromkeys((job.id for job in jobs), "retried")
        if left := [id for id in ids if id not in outcomes]:
            statuses = await self._route.run(lambda store: store.select_statuses(left, self._backend))
            for id, stored in statuses.items():
                if stored.status == Status.FAILED and stored.lost_key:
                    outcomes[id] = await self._take_back_key(id)
        return outcomes

    async def _take_back_key(self, id: UUID) -> str:
        """Retry a task whose unique key another task has taken, one at a time: it may hold the key."""
        try:
            job, by_another = await self._route.run_alone(
                lambda store: store.retry_unique_job(id, self._backend, lock_timeout=LOCK_TIMEOUT)
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

    def _wakeups(self, jobs: Iterable[RetriedJob]) -> set[Wakeup]:
        ready = {
            Wakeup(self._backend, job.queue_name, lane=job.lane)
            for job in jobs
            if job.due is None and job.lane in LANES
        }
        due: dict[str, float] = {}
        for job in jobs:
            if job.due is not None and math.isfinite(job.due):
                due[job.queue_name] = min(job.due, due.get(job.queue_name, job.due))
        return ready | {Wakeup(self._backend, name, at) for name, at in due.items()}

    async def announce(self) -> None:
        """Do nothing: Django has no signal for it."""


class Delete:
    """Deletes tasks that don't run, without a signal."""

    def __init__(self, route: Route, backend: str) -> None:
        self.statuses: tuple[Status, ...] = tuple(status for status in Status if status is not Status.RUNNING)
        self._route = route
        self._backend = backend

    async def run(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Delete them."""
        deleted = await self._route.run(lambda store: store.delete_jobs(ids, self._backend, self.statuses))
        return dict.fromkeys(deleted, "deleted")

    async def announce(self) -> None:
        """Do nothing: Django has no signal for it."""
