"""Bulk actions: walk through many tasks, and do something with them in batches.

A batch is one statement, and a transaction of its own unless the caller has one open. It leaves out rows
that other transactions have locked; the action comes back to these at its end. So an action holds no lock for
long, waits for none, and may be interrupted and repeated at any time: what a batch has done stays done.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from inspect import iscoroutinefunction
from itertools import batched
from typing import NamedTuple, Protocol
from uuid import UUID

from django.tasks import TaskResult

from .filters import TaskFilter
from .results import parse_id
from .rows import AnyResult, Status
from .store.bulk import Leg, Meant, Place
from .store.route import Route

__all__ = ["Action", "BulkCounts", "Progress", "Report", "Which", "act"]

# Tasks of one statement that changes them: it takes 30 to 80 ms on a busy machine, for which a worker's
# outcome may wait.
BATCH = 500

# Rows that one statement of a walk looks at, which takes less than 0.2 s, whatever the filter leaves out.
LOOK_AT = 20_000

# The same where errors are compared: those may have to be decompressed.
LOOK_AT_ERRORS = 2_000

# Seconds without progress after which tasks that are still locked are left, and between two tries at first
# and at most. A worker locks its rows for milliseconds.
LOCKED_FOR, SHORTEST_PAUSE, LONGEST_PAUSE = 3.0, 0.02, 0.5

# Seconds by which the clock of a caller that has enqueued tasks may be ahead of the database's.
CLOCKS_DIFFER = 86_400.0


class BulkCounts(NamedTuple):
    """How many tasks a bulk action had which outcome.

    ``cancelled``: FAILED with TaskCancelled. ``requested``: it runs, and its worker was asked to cancel it.
    ``retried``: it is to run again. ``deleted``. ``key_taken``: not retried, because another task holds its
    unique key. ``refused``: its status doesn't allow it (cancelling what is finished, retrying what isn't
    FAILED, deleting what runs, running now what isn't SCHEDULED), or it has changed meanwhile, so that the
    filter isn't for it. ``locked``: another transaction has it locked; nothing was done. ``missing``: there
    is no such task. ``due_now``: it was SCHEDULED, and is READY now. ``would_change``: of a dry run.
    """

    cancelled: int = 0
    requested: int = 0
    retried: int = 0
    deleted: int = 0
    key_taken: int = 0
    refused: int = 0
    locked: int = 0
    missing: int = 0
    due_now: int = 0
    would_change: int = 0

    def __str__(self) -> str:
        """What there is: ``1,200 cancelled, 1 refused``; ``nothing`` without any."""
        found = [f"{number:,} {name.replace('_', ' ')}" for name, number in self._asdict().items() if number]
        return ", ".join(found) or "nothing"


type Progress = Callable[[BulkCounts], None]

# Gets the outcome of each task, by the names of BulkCounts. One that was locked may get another later.
type Report = Callable[[Mapping[UUID, str]], None]

# Ids, results, or a filter.
type Which = TaskFilter | Iterable[str | UUID | AnyResult]


class Action(Protocol):
    """What is done with the tasks. ``statuses``: with those that have one of these. ``may_have_all``: a
    filter that leaves nothing out is no mistake. ``is_dry_run``: it changes nothing."""

    @property
    def statuses(self) -> tuple[Status, ...]: ...

    @property
    def may_have_all(self) -> bool: ...

    @property
    def is_dry_run(self) -> bool: ...

    async def run(self, ids: Sequence[UUID], meant: Meant) -> dict[UUID, str]:
        """Do it with these, as far as they are meant; return the outcome of each task that it was done with.
        ``locked`` may be said."""

    async def announce(self) -> None:
        """Send signals about the last run."""


def _check_meant(action: Action, which: Which, everything: bool) -> None:
    """Raise ValueError for a filter that leaves nothing out, unless ``everything`` is meant."""
    if isinstance(which, TaskFilter) and which.is_empty and not (everything or action.may_have_all):
        raise ValueError(
            "This TaskFilter has no condition, so it is for every task of the backend. If all are meant, "
            "pass everything=True."
        )


async def act(
    action: Action,
    which: Which,
    route: Route,
    backend: str,
    *,
    everything: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> BulkCounts:
    """Do ``action`` with the tasks; return how many had which outcome.

    everything: a filter that leaves nothing out is meant. progress: called after each batch with the counts
    so far; report: before that, with the outcomes. What they raise ends the action.
    """
    for name, called in (("progress", progress), ("report", report)):
        if iscoroutinefunction(called):
            raise TypeError(f"{name} must be an ordinary function: it is called, and not awaited.")
    _check_meant(action, which, everything)
    if isinstance(which, TaskFilter):
        began = await route.run(lambda store: store.read_clock())
        run = _Run(action, _meant_by(which, action, backend, began), route, progress, report)
        await _walk(run, which, began.timestamp())
    else:
        run = _Run(action, Meant(backend, list(action.statuses)), route, progress, report)
        await run.do(_ids_of(which, run))
    await run.come_back()
    return run.counts


def _meant_by(chosen: TaskFilter, action: Action, backend: str, began: datetime) -> Meant:
    """What must still hold for a task when the walk has found it: the rest of a filter holds forever."""
    statuses = action.statuses if chosen.statuses is None else chosen.statuses
    return Meant(
        backend,
        [status for status in action.statuses if status in statuses],
        unique_key=chosen.unique_key,
        finished_after=chosen.finished_after,
        finished_before=chosen.finished_before,
        finished_by=None if chosen.unique_key is not None else began,  # as the walk goes by it
    )


# Outcomes of tasks that the action may meet again, and then do something else with.
_MAY_CHANGE = frozenset(("locked", "requested", "refused"))


class _Run:
    """One action on its way through the tasks."""

    def __init__(
        self, action: Action, meant: Meant, route: Route, progress: Progress | None, report: Report | None
    ) -> None:
        self.meant = meant
        self.route = route
        self.missing = 0
        self.is_dry_run = action.is_dry_run
        self._action = action
        self._progress = progress
        self._report = report
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
        outcomes = await self._action.run(batch, self.meant)
        # Before anything that may fail: nobody would do it later.
        await self._action.announce()
        self._note(outcomes)
        if left := [id for id in batch if id not in outcomes]:
            self._note(await self._why_not(left))
        if self._progress is not None:
            self._progress(self.counts)

    def _note(self, outcomes: Mapping[UUID, str]) -> None:
        """Count each task once, with its last outcome, and report that."""
        for id, outcome in outcomes.items():
            if (before := self._may_change.pop(id, None)) is not None:
                self._outcomes[before] -= 1
            self._outcomes[outcome] += 1
            if outcome in _MAY_CHANGE:
                self._may_change[id] = outcome
        if self._report is not None and outcomes:
            self._report(outcomes)

    async def _why_not(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Return the outcomes of tasks with which nothing was done."""
        found = await self.route.run(lambda store: store.select_left_jobs(ids, self.meant))
        outcomes = {}
        for id in ids:
            if (left := found.get(id)) is None:
                outcomes[id] = "missing"
            else:
                outcomes[id] = "locked" if left.is_meant else "refused"
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


async def _walk(run: _Run, chosen: TaskFilter, began: float) -> None:
    """Act on the tasks of a filter, in the order in which a task changes its status.

    ``began``: when the action has, in epoch seconds.
    A task that runs may go back to SCHEDULED, so where both are meant the walk ends with these, once more,
    but for a dry run, which would count them twice.
    READY and finished tasks that have become so after the walk's begin aren't met, because they might be the
    work of the action itself, or come faster than it goes on.
    """
    goes_back = Status.RUNNING in run.meant.statuses and not run.is_dry_run
    again = (Status.SCHEDULED,) if goes_back else ()
    for status in (*_ORDER, *again):
        if status in run.meant.statuses and _may_have(status, chosen):
            for leg in await _legs(run, status, chosen):
                await _walk_leg(run, leg, chosen, began)


_UNFINISHED = (Status.SCHEDULED, Status.READY, Status.RUNNING)
_ORDER = (*_UNFINISHED, Status.FAILED, Status.SUCCESSFUL)


def _may_have(status: Status, chosen: TaskFilter) -> bool:
    """Whether the filter may be for a task of this status, by its other fields."""
    if chosen.error is not None and status is not Status.FAILED:
        return False
    return status not in _UNFINISHED or (chosen.finished_after is None and chosen.finished_before is None)


async def _legs(run: _Run, status: Status, chosen: TaskFilter) -> list[Leg]:
    if chosen.unique_key is not None:
        return [Leg("key", status)]
    match status:
        case Status.READY:
            found = await run.route.run(lambda store: store.list_ready(run.meant.backend, chosen.queue_name))
            return [Leg("ready", status, *each) for each in found]
        case Status.SCHEDULED:
            return [Leg("scheduled", status)]
        case Status.RUNNING:
            return [Leg("running", status)]
        case _:
            return [Leg("finished", status), Leg("kept", status)]


async def _walk_leg(run: _Run, leg: Leg, chosen: TaskFilter, began: float) -> None:
    place, end = Place(), began
    look_at = LOOK_AT if chosen.error is None else LOOK_AT_ERRORS
    if leg.branch == "finished":
        place = _first_place(chosen)
        if chosen.finished_before is not None:
            end = min(end, chosen.finished_before.timestamp())
    while True:
        step = await run.route.run(
            lambda store, place=place: store.walk_jobs(run.meant.backend, leg, place, end, look_at, chosen)  # type: ignore[misc]  # mypy#1484
        )
        await run.do(step.ids)
        if step.looked_at < look_at:
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
