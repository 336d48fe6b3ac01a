"""Lists of tasks, a page at a time: by indexes that are there, and never more than so many rows a page."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Self
from uuid import UUID

from ..bulk import CLOCKS_DIFFER, LOOK_AT, LOOK_AT_ERRORS
from ..filters import TaskFilter
from ..logs.failures import last_words
from ..rows import FINAL, Status
from ..store.bulk import NO_ID, Place
from ..store.listing import LAST_ID, Listed, Walk
from ..store.store import Store

__all__ = ["Cursor", "Page", "TaskRow", "WrongCursor", "list_tasks", "one_line", "row_of"]

# Tasks with a keep_result that are sorted, for each look again: they are read from all over the table, so
# that 20,000 took 0.2 s of the server on a busy machine.
KEPT = 5_000

# Epoch seconds that no place has: beyond, PostgreSQL might have no time.
LATEST = 1e11

# Queues, lanes and priorities whose READY tasks are merged. With more, all tasks are looked at by id.
MOST_LEGS = 50

# Days by which the id of a task may be older than its enqueue: ids of ticks begin with the time of the tick,
# and a weekly one may be made up for almost a week late, by clocks that differ.
LATE_DAYS = 8

# What lists are sorted by, as their cursors say it: the time, the latest or the soonest first, or the id.
BY_TIME, SOONEST, BY_ID = ORDERS = ("t", "s", "i")

# The first look is for so many times the page's tasks, and each look is so many times the one before.
FIRST, GROWTH = 4, 8


class WrongCursor(ValueError):
    """A page was asked for behind a place of a list in another order."""


class Cursor(NamedTuple):
    """The place in a list behind which its next page begins: a time in epoch seconds, and an id. ``order``:
    what the list is sorted by.

    Its text, which ``Cursor.read()`` takes, may stand in a URL.
    """

    at: float
    id: UUID
    order: str

    def __str__(self) -> str:
        return f"{self.order}{self.at!r},{self.id}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the cursor of a text. Raises ValueError for another."""
        order, (at, _, id) = text[:1], text[1:].partition(",")
        try:
            cursor = cls(float(at), UUID(id), order)
        except ValueError:
            cursor = None
        if cursor is None or not abs(cursor.at) < LATEST or order not in ORDERS:
            raise ValueError(f"{text!r:.100} is no place in a list: take one that a page has ended with.")
        return cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task in a list. ``run_after``: when it is due, or was. ``attempts``: its executions so far.
    ``error``: of a FAILED task, the class and message of the last error. ``worker``: ``host:pid`` of the last
    execution, or the worker's id where its row is gone; None: it has had none. ``worker_id``: its id."""

    id: UUID
    status: Status
    task_path: str
    queue_name: str
    priority: int
    enqueued_at: datetime | None
    run_after: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    attempts: int
    unique_key: str | None
    limit_key: str | None
    error: str | None
    worker: str | None
    worker_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """``next``: where the next page begins; None: there is none. ``looked_at``: how many tasks were, to find
    these. ``complete``: no task can be missing between them; False where more tasks have a ``keep_result``
    than can be sorted."""

    rows: list[TaskRow]
    next: Cursor | None
    looked_at: int
    complete: bool


async def list_tasks(
    store: Store, backend: str, chosen: TaskFilter, *, after: Cursor | None = None, limit: int = 50
) -> Page:
    """Return the next tasks that the filter is for, ``limit`` at most: what has been enqueued last first; of
    finished tasks what has finished last, of READY ones what has become so last, of RUNNING ones what has
    started last. SCHEDULED tasks: what is due first.

    A page that has looked at 20,000 tasks (2,000 where errors are compared) ends there: it may have fewer
    rows, even none, and a ``next``. Tasks that come or go between two pages move none of the others. In
    lists by their enqueue, tasks of schedules stand at the time of their tick; those that were enqueued more
    than 8 days late are missing where the filter has an ``enqueued_after``.
    Raises WrongCursor where ``after`` is of a list in another order.
    """
    walks = await _walks(store, backend, chosen, after)
    order = _order(walks)
    if after is not None and walks and after.order != order:
        raise WrongCursor("is a place in a list of other tasks: take one of a page with the same filters.")
    key: _Key = _soonest if order == SOONEST else _latest
    streams = [_Stream(walk, _begin(chosen, walk, after, key), limit) for walk in walks]
    most, looked_at = LOOK_AT if chosen.error is None else LOOK_AT_ERRORS, 0
    # Each walk has its share: nothing is certain of the merged list before every one has been looked at.
    share = max(1, most // max(1, len(streams)))
    found = _known(streams, key)
    while len(found) < limit and looked_at < most and not all(stream.ended for stream in streams):
        last = min((stream for stream in streams if not stream.ended), key=lambda each: key(each.reached))
        looked_at += await last.look(store, backend, chosen, min(share, most - looked_at))
        found = _known(streams, key)
    going_on = [stream.reached for stream in streams if not stream.ended]
    end = None
    if len(found) > limit or (going_on and len(found) == limit):
        end = found[limit - 1]
    elif going_on:
        end = min(going_on, key=key)
    shown = found[:limit]
    listed = await store.select_listed([place.id for place in shown], backend) if shown else {}
    return Page(
        rows=[row_of(listed[place.id]) for place in shown if place.id in listed],
        next=None if end is None else Cursor(*end, order),
        looked_at=looked_at,
        complete=not any(stream.capped for stream in streams),
    )


def row_of(listed: Listed) -> TaskRow:
    """Return what a list shows of a task."""
    values = listed._asdict()
    error, host, pid = (values.pop(name) for name in ("error", "host", "pid"))
    worker = None if listed.worker_id is None else str(listed.worker_id)
    return TaskRow(
        **values,
        error=None if error is None else one_line(error),
        worker=worker if host is None else f"{host}:{pid}",
    )


def one_line(error: str) -> str:
    """Return the class and message of a stored error, JSON text or its beginning, in a line."""
    try:
        stored = json.loads(error)
        return " ".join(last_words(stored["class"], stored["traceback"]).split()) or str(stored["class"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # cut, or written by others
        return error.split('"')[3] if error.count('"') > 3 else error[:100]


# --- The walks of a filter


def _order(walks: Sequence[Walk]) -> str:
    branches = {walk.branch for walk in walks}
    return SOONEST if branches == {"scheduled"} else BY_ID if branches == {"newest"} else BY_TIME


async def _walks(store: Store, backend: str, chosen: TaskFilter, after: Cursor | None) -> list[Walk]:
    """Return the walks that meet all tasks of the filter, in the same order: that of the page before."""
    statuses = None if chosen.statuses is None else frozenset(chosen.statuses)
    if chosen.error is not None:
        statuses = frozenset((Status.FAILED,)).intersection(Status if statuses is None else statuses)
    if chosen.finished_after is not None or chosen.finished_before is not None:
        statuses = FINAL.intersection(Status if statuses is None else statuses)
    if statuses is not None and not statuses:
        return []
    wanted = None if statuses is None else sorted(statuses)
    if chosen.unique_key is not None:
        return [Walk("key", wanted)]
    match wanted:
        case [Status.READY] if after is None or after.order != BY_ID:
            legs = await store.list_ready(backend, chosen.queue_name)
            if after is not None or len(legs) <= MOST_LEGS:
                return [Walk("ready", [Status.READY], legs)]
        case [Status.SCHEDULED]:
            return [Walk("scheduled", [Status.SCHEDULED])]
        case [Status.RUNNING]:
            return [Walk("running", [Status.RUNNING])]
        case [*_] if FINAL.issuperset(wanted):
            until = _until(chosen.finished_after, chosen.enqueued_after)
            each = [Walk("finished", [status], until=until) for status in wanted]
            return [*each, Walk("kept", wanted, until=until)]
    until_id = NO_ID if chosen.enqueued_after is None else _id_at(chosen.enqueued_after, -LATE_DAYS)
    return [Walk("newest", wanted, until_id=until_id)]


def _until(finished_after: datetime | None, enqueued_after: datetime | None) -> float:
    """When the first finished tasks of a filter have: none before it was enqueued."""
    return max(
        -math.inf if finished_after is None else finished_after.timestamp(),
        -math.inf if enqueued_after is None else enqueued_after.timestamp() - CLOCKS_DIFFER,
    )


def _begin(chosen: TaskFilter, walk: Walk, after: Cursor | None, key: "_Key") -> Place:
    """Where a walk begins: where the filter does, or the page."""
    if walk.branch == "scheduled":
        begin = Place()
    elif walk.branch == "newest":
        begin = Place(0.0, LAST_ID if chosen.enqueued_before is None else _id_at(chosen.enqueued_before, 1))
    else:
        before = chosen.finished_before
        begin = Place(math.inf if before is None else before.timestamp(), LAST_ID)
    return begin if after is None else max(begin, Place(after.at, after.id), key=key)


def _id_at(time: datetime, days: int) -> UUID:
    """The first id of a task that was enqueued so many days later: it begins with the milliseconds of the
    caller's clock."""
    milliseconds = int((time + timedelta(days=days)).timestamp() * 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


# --- Merging them


def _soonest(place: Place) -> tuple[float, int]:
    return place.at, place.id.int


def _latest(place: Place) -> tuple[float, int]:
    return -place.at, -place.id.int


type _Key = Callable[[Place], tuple[float, int]]


class _Stream:
    """One walk. ``reached``: all before this place has been met."""

    def __init__(self, walk: Walk, begin: Place, limit: int) -> None:
        self.walk = walk
        self.reached = begin
        self.ended = False
        self.capped = False
        self.found: list[Place] = []
        self._number = FIRST * limit

    async def look(self, store: Store, backend: str, chosen: TaskFilter, most: int) -> int:
        """Meet the next tasks, ``most`` at most, more than the last time; return how many those were."""
        # Each queue, lane and priority has so many rows read, because all might be of one.
        number = min(self._number, max(1, most // max(1, len(self.walk.legs))))
        self._number *= GROWTH
        found = await store.page_jobs(backend, self.walk, self.reached, number, KEPT, chosen)
        self.found += found.found
        self.reached = found.last or self.reached
        self.ended = found.looked_at < number
        self.capped = found.capped
        return found.looked_at


def _known(streams: Sequence[_Stream], key: _Key) -> list[Place]:
    """What is certain of the merged list: up to where the walk is that has come least far."""
    end = min((key(stream.reached) for stream in streams if not stream.ended), default=None)
    places = (place for stream in streams for place in stream.found)
    return sorted((place for place in places if end is None or key(place) <= end), key=key)
