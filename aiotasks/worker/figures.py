"""Figures: how a worker does at the moment, for its row in the database, and its metrics."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from .. import __version__
from ..metrics import Family, family
from ..rows import LANES, Lane
from .execution import Execution
from .memory import resident_bytes

if TYPE_CHECKING:
    from .engine import Engine
    from .running.watchdog import Blocked

__all__ = ["Figures", "Gauges", "Outlasting"]

# Tasks that outlast their time, in one report, and characters of a name: a report has 4 KiB at most, where
# names are of ASCII. (A worker with more stuck threads than this is about to end.)
MOST_OUTLASTING = 20
LONGEST_NAME = 100


class Outlasting(NamedTuple):
    """A task that has gone on for so many seconds after its ``timeout``."""

    id: UUID
    task_path: str
    lane: Lane
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a worker does at the moment. Times are in seconds.

    worker_id: of its row; None while it has no lease. lease: for how long its lease lasts; negative if that
        has ended.
    slots, used: by lane. Tasks that wait for other tasks use none.
    running: tasks by path, those that outlast their time included.
    ended: attempts whose outcome is stored, since the start.
    pending: outcomes that aren't written yet.
    orm_threads: threads with ORM calls of coroutine tasks, and how many there may be. stuck_threads: of sync
        tasks, that haven't come back at their time limits.
    lag: by how much the loop was late at the most within the last minute. blocked: what blocks it now.
    outlasting: the tasks that go on after their time, those that began first first.
    rss: bytes of memory that the process has.
    stalled: for how long it has claimed nothing, though tasks wait that it could run; None: it isn't so.
    draining: it claims no more, because it stops.
    """

    worker_id: UUID | None
    lease: float
    slots: Mapping[Lane, int]
    used: Mapping[Lane, int]
    running: Mapping[str, int]
    ended: int
    pending: int
    orm_threads: tuple[int, int]
    stuck_threads: int
    lag: float
    blocked: "Blocked | None"
    outlasting: list[Outlasting]
    rss: int
    stalled: float | None
    draining: bool

    def report(self) -> str:
        """Return the part of this that other processes see, as the JSON of ``aiotasks_worker.report``."""
        report: dict[str, Any] = {
            "lag": round(self.lag, 3),
            "blocked": None
            if self.blocked is None
            else {
                "seconds": round(self.blocked.seconds, 1),
                "task": None if self.blocked.task_name is None else _cut(self.blocked.task_name),
            },
            "outlasting": [
                {
                    "id": str(one.id),
                    "path": _cut(one.task_path),
                    "lane": one.lane,
                    "seconds": round(one.seconds),
                }
                for one in self.outlasting[:MOST_OUTLASTING]
            ],
            "stalled": None if self.stalled is None else round(self.stalled),
            "orm_threads": self.orm_threads,
            "rss": self.rss,
            "tasks": self.ended,
            "draining": self.draining,
        }
        return json.dumps(report, separators=(",", ":"))

    def families(self) -> list[Family]:
        """Return this as metrics."""
        busy, threads = self.orm_threads
        return [
            family(
                "gauge", "aiotasks_worker_info", "The version of aiotasks.", ({"version": __version__}, 1)
            ),
            family(
                "gauge",
                "aiotasks_worker_slots",
                "Tasks that may run at a time.",
                *(({"lane": lane}, number) for lane, number in self.slots.items()),
            ),
            family(
                "gauge",
                "aiotasks_worker_slots_used",
                "Tasks that run; those that wait for other tasks don't count.",
                *(({"lane": lane}, number) for lane, number in self.used.items()),
            ),
            family(
                "gauge",
                "aiotasks_worker_lease_seconds",
                "Seconds for which the worker's lease lasts; 0 without one.",
                ({}, 0.0 if self.worker_id is None else max(0.0, self.lease)),
            ),
            family(
                "gauge",
                "aiotasks_worker_loop_lag_seconds",
                "By how much the event loop was late at most within the last minute.",
                ({}, self.lag),
            ),
            family(
                "gauge",
                "aiotasks_worker_orm_threads",
                "Threads for the ORM calls of coroutine tasks.",
                ({"state": "busy"}, busy),
                ({"state": "idle"}, max(0, threads - busy)),
            ),
            family(
                "gauge",
                "aiotasks_worker_stuck_threads",
                "Threads that don't come back from sync tasks whose timeout is over.",
                ({}, self.stuck_threads),
            ),
            family(
                "gauge",
                "aiotasks_worker_stalled_seconds",
                "Seconds for which it has claimed nothing, though tasks wait that it could run; or 0.",
                ({}, self.stalled or 0.0),
            ),
        ]


class Gauges:
    """Reads a worker's Figures from the parts of its engine. May be used in any thread: it only looks."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def read(self) -> Figures:
        """Return the figures of this moment."""
        engine = self._engine
        slots, finisher, watchdog = engine.slots, engine.finisher, engine.watchdog
        outlasting = list(engine.runner.deadlines.outlasting)
        running = Counter(one.job.task_path for one in [*list(engine.runner.running), *outlasting])
        return Figures(
            worker_id=engine.lease.worker_id,
            lease=engine.lease.remaining(),
            slots={"loop": slots.total - slots.threads, "thread": slots.threads},
            used={lane: slots.taken(lane) for lane in LANES},
            running=running,
            ended=finisher.ended,
            pending=len(finisher.pending),
            orm_threads=(engine.orm_threads.busy, engine.orm_threads.size),
            stuck_threads=engine.sync_threads.stuck,
            lag=watchdog.lag(),
            blocked=watchdog.blocked(),
            outlasting=sorted(map(_outlasting, outlasting), key=lambda one: -one.seconds),
            rss=resident_bytes(),
            stalled=engine.stalls.seconds(),
            draining=engine.claimer.is_stopping,
        )


def _outlasting(execution: Execution) -> Outlasting:
    limit = execution.limit
    ends_at = None if limit is None else limit.ends_at
    seconds = 0.0 if ends_at is None else time.monotonic() - ends_at
    return Outlasting(execution.job.id, execution.job.task_path, execution.lane, seconds)


def _cut(name: str) -> str:
    """The end of a name, which says more than its beginning, as text that PostgreSQL can read back."""
    shown = name.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return shown if len(shown) <= LONGEST_NAME else "…" + shown[1 - LONGEST_NAME :]
