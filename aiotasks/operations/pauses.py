"""Pause queues and tasks: no worker starts their tasks until somebody resumes them, or a time has come.

A pause is a row, and each claim reads it, so it holds from its commit on for every worker of the database.
What runs goes on, and enqueues work as ever.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.tasks.base import Task
from django.utils import timezone

from ..backend import PostgresBackend
from ..policies.seconds import parse_seconds
from ..rows import AnyTask
from ..store.pauses import Kind, Paused
from ..store.route import Route
from ..store.wakeups import ANY_QUEUE, Wakeup
from ..worker.startup import backend_of

__all__ = [
    "Pause",
    "alist_pauses",
    "apause",
    "aresume",
    "list_pauses",
    "parse_reason",
    "pause",
    "pause_of",
    "resume",
]

# Characters. A reason is for people, and each look at the status reads it.
LONGEST_REASON = 1_000

# Seconds. PostgreSQL's timestamps must hold the end.
LONGEST_PAUSE = 100 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause that hasn't ended.

    kind: ``"queue"`` or ``"task"``. name: the queue's, or the path of the task. age: for how many seconds it
    has been paused, by the database's clock. until: when it ends by itself; None: when somebody resumes it.
    """

    kind: Kind
    name: str
    reason: str
    age: float
    until: datetime | None


async def apause(
    *,
    queue: str | None = None,
    task: str | AnyTask | None = None,
    reason: str = "",
    until: datetime | timedelta | float | None = None,
    backend: str = "default",
) -> Pause:
    """Have no worker start tasks of a queue, or of one task, in any queue. Returns the pause.

    queue: its name. task: the task, or its path as rows store it; exactly one of the two.
    reason: for people who look at the status.
    until: a time, or a timedelta or seconds from now on, after which it ends by itself; None: it doesn't.
    backend: the alias in TASKS.

    Where it is paused already, reason and end are changed. Inside of a transaction it holds from the commit
    on. Raises TypeError or ValueError for wrong arguments, ImproperlyConfigured for an alias that isn't a
    backend of aiotasks, ``django.db`` errors where the database fails.
    """
    return await backend_of(backend).dispatch(
        _pause, *_named(queue, task), parse_reason(reason), *_end(until)
    )


def pause(
    *,
    queue: str | None = None,
    task: str | AnyTask | None = None,
    reason: str = "",
    until: datetime | timedelta | float | None = None,
    backend: str = "default",
) -> Pause:
    """The same in sync code, over Django's connection: see ``apause``."""
    return backend_of(backend).run_over_django(
        _pause, *_named(queue, task), parse_reason(reason), *_end(until)
    )


async def aresume(
    *, queue: str | None = None, task: str | AnyTask | None = None, backend: str = "default"
) -> bool:
    """End a pause, and wake the workers. Returns whether there was one. Arguments and errors: ``apause``."""
    return await backend_of(backend).dispatch(_resume, *_named(queue, task))


def resume(*, queue: str | None = None, task: str | AnyTask | None = None, backend: str = "default") -> bool:
    """The same in sync code, over Django's connection: see ``aresume``."""
    return backend_of(backend).run_over_django(_resume, *_named(queue, task))


async def alist_pauses(backend: str = "default") -> list[Pause]:
    """Return the pauses that haven't ended, the oldest first. Errors are ``apause``'s."""
    return await backend_of(backend).dispatch(_list)


def list_pauses(backend: str = "default") -> list[Pause]:
    """The same in sync code, over Django's connection: see ``alist_pauses``."""
    return backend_of(backend).run_over_django(_list)


async def _pause(
    backend: PostgresBackend,
    route: Route,
    kind: Kind,
    name: str,
    reason: str,
    until: datetime | None,
    seconds: float | None,
) -> Pause:
    stored = await route.run(
        lambda store: store.insert_pause(backend.alias, kind, name, reason, until, seconds)
    )
    if stored.until is not None:
        # Each worker notes when it ends. Those that this doesn't reach find the tasks at their next poll.
        route.wake([Wakeup(backend.alias, ANY_QUEUE, due=stored.until)])
    return pause_of(stored)


async def _resume(backend: PostgresBackend, route: Route, kind: Kind, name: str) -> bool:
    was_paused = await route.run(lambda store: store.delete_pause(backend.alias, kind, name))
    # In any case: a try before this one may have ended it, and its reply may have been lost.
    route.wake([Wakeup(backend.alias, ANY_QUEUE)])
    return was_paused


async def _list(backend: PostgresBackend, route: Route) -> list[Pause]:
    return [pause_of(one) for one in await route.run(lambda store: store.select_pauses(backend.alias))]


def pause_of(stored: Paused) -> Pause:
    """Return a stored pause for people."""
    until = None if stored.until is None else datetime.fromtimestamp(stored.until, UTC)
    return Pause(
        kind=stored.kind, name=stored.name, reason=stored.reason, age=max(0.0, stored.age), until=until
    )


def _named(queue: str | None, task: str | AnyTask | None) -> tuple[Kind, str]:
    if (queue is None) == (task is None):
        raise TypeError("Name either a queue or a task to pause or resume.")
    kind: Kind = "task" if queue is None else "queue"
    name = task.module_path if isinstance(task, Task) else task if queue is None else queue
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{kind} must be a name, not {name!r:.200}.")
    return kind, name


def parse_reason(reason: Any) -> str:
    """Return a reason. Raises ValueError if it is no text, or too long."""
    if not isinstance(reason, str) or len(reason) > LONGEST_REASON or "\0" in reason:
        raise ValueError(
            f"reason must be a text of at most {LONGEST_REASON} characters, not {reason!r:.200}."
        )
    return reason


def _end(until: datetime | timedelta | float | None) -> tuple[datetime | None, float | None]:
    """Return the end as a time, or as seconds from now on by the database's clock."""
    if until is None:
        return None, None
    if not isinstance(until, datetime):
        try:
            return None, parse_seconds(until, high=LONGEST_PAUSE, longest="100 years")
        except ValueError as error:
            raise ValueError(f"until must be a time, or {error}, not {until!r:.200}.") from None
    try:
        if timezone.is_naive(until):
            if settings.USE_TZ:
                raise ValueError(f"until must have a time zone, because of USE_TZ, not {until!r}.")
            until = timezone.make_aware(until)
        return until.astimezone(UTC), None
    except OverflowError:
        raise ValueError(f"until must be a time in every time zone, not {until!r}.") from None
