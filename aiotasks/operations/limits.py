"""Limits by key, as operators change and see them: numbers at run time, pauses of keys, stopped lines.

An operator's word is stored in a row, and wins over the code's. Each claim reads it, so it holds from its
commit on for every worker of the database.
"""

from typing import Any, Literal, TypedDict, Unpack
from uuid import UUID

from ..backend import PostgresBackend
from ..policies.limit_keys import parse_limit_key
from ..policies.limits import (
    LARGEST_BURST,
    LARGEST_WEIGHT,
    MOST_PLACES,
    LimitKey,
    RateValue,
    known_limits,
    parse_limit_name,
    parse_rate,
)
from ..store.limits import LimitSetting
from ..store.route import Route
from ..store.wakeups import ANY_QUEUE, Wakeup
from ..worker.startup import backend_of
from .limit_listing import select_statuses
from .limit_statuses import LimitStatus
from .pauses import parse_reason

__all__ = [
    "LimitStatus",
    "Numbers",
    "alimit",
    "alimits",
    "apause_limit",
    "areset_limit",
    "aresume_limit",
    "askip_task",
    "limit",
    "limits",
    "pause_limit",
    "reset_limit",
    "resume_limit",
    "skip_task",
]

# As a rate: none, whatever the code says.
NO_RATE = "none"


class Numbers(TypedDict, total=False):
    """What an operator can set of a limit or a key.

    concurrency: how many tasks of a key run at a time, from 1 to 100,000. rate: how many start in a time, as
    Limit takes it, or ``"none"``: no rate, whatever the code says. burst: how many of them may start at once,
    from 1 to 100,000; a rate that is set without it has the one of a Limit of that rate. weight: how many
    start by turn, from 1 to 100.
    """

    concurrency: int
    rate: RateValue | Literal["none"]
    burst: int
    weight: int


async def alimit(
    name: str, key: LimitKey = None, *, backend: str = "default", **numbers: Unpack[Numbers]
) -> LimitStatus:
    """Set numbers of a limit, for one of its keys or (``key`` None) for all; the others stay as they are.
    Returns what applies now.

    name: the limit's. key: as the limit's ``by`` makes it. numbers: see Numbers. backend: the alias in TASKS.

    A number of a key goes before one of its limit, and that before the code's. Tasks that run go on, however
    low the new number is. Inside of a transaction it holds from the commit on. Raises ValueError for bad
    values and the concurrency of an ordered limit, TypeError for unknown ones, ImproperlyConfigured for an
    alias that isn't a backend of aiotasks, ``django.db`` errors where the database fails.
    """
    return await backend_of(backend).dispatch(_set, _stored_key(name, key), _setting(name, **numbers))


def limit(
    name: str, key: LimitKey = None, *, backend: str = "default", **numbers: Unpack[Numbers]
) -> LimitStatus:
    """The same in sync code, over Django's connection: see ``alimit``."""
    return backend_of(backend).run_over_django(_set, _stored_key(name, key), _setting(name, **numbers))


async def alimits(
    name: str | None = None, key: LimitKey = None, *, backend: str = "default"
) -> list[LimitStatus]:
    """Return limits with what applies to them, by name, and those keys that have waiting or running tasks,
    stand still, or have a number of an operator: 200 at most.

    name: only this limit and its keys. key: only this key, whatever it has.

    Limits that only the code has are listed if this process has imported it. Errors are ``alimit``'s.
    """
    return await backend_of(backend).dispatch(_list, *_listed(name, key))


def limits(name: str | None = None, key: LimitKey = None, *, backend: str = "default") -> list[LimitStatus]:
    """The same in sync code, over Django's connection: see ``alimits``."""
    return backend_of(backend).run_over_django(_list, *_listed(name, key))


async def areset_limit(name: str, key: LimitKey = None, *, backend: str = "default") -> bool:
    """Have the code's numbers apply again, to a key or (``key`` None) where nothing is said of a key itself.

    Returns whether an operator had set any. A pause stays. Arguments and errors: ``alimit``.
    """
    return await backend_of(backend).dispatch(_reset, _stored_key(name, key))


def reset_limit(name: str, key: LimitKey = None, *, backend: str = "default") -> bool:
    """The same in sync code, over Django's connection: see ``areset_limit``."""
    return backend_of(backend).run_over_django(_reset, _stored_key(name, key))


async def apause_limit(
    name: str, key: LimitKey = None, *, reason: str = "", backend: str = "default"
) -> None:
    """Start no task of a key, or (``key`` None) of any key of the limit, until ``aresume_limit``.

    reason: for people who look at the status. What runs goes on, and enqueues work as ever. Other arguments
    and errors: ``alimit``.
    """
    await backend_of(backend).dispatch(_pause, _stored_key(name, key), parse_reason(reason))


def pause_limit(name: str, key: LimitKey = None, *, reason: str = "", backend: str = "default") -> None:
    """The same in sync code, over Django's connection: see ``apause_limit``."""
    backend_of(backend).run_over_django(_pause, _stored_key(name, key), parse_reason(reason))


async def aresume_limit(name: str, key: LimitKey = None, *, backend: str = "default") -> bool:
    """Open a key, or (``key`` None) the limit: end a pause of it, or the time for which a task has closed it
    by ``RateLimited``. Returns whether it was closed. Arguments and errors: ``alimit``.
    """
    return await backend_of(backend).dispatch(_resume, _stored_key(name, key))


def resume_limit(name: str, key: LimitKey = None, *, backend: str = "default") -> bool:
    """The same in sync code, over Django's connection: see ``aresume_limit``."""
    return backend_of(backend).run_over_django(_resume, _stored_key(name, key))


async def askip_task(id: UUID | str, *, backend: str = "default") -> bool:
    """Have an ordered line go on after this task, which is FAILED and has stopped it. The task stays FAILED.

    Returns whether the task had stopped a line. Raises ValueError for an id that is none. Other errors are
    ``alimit``'s.
    """
    return await backend_of(backend).dispatch(_skip, _id(id))


def skip_task(id: UUID | str, *, backend: str = "default") -> bool:
    """The same in sync code, over Django's connection: see ``askip_task``."""
    return backend_of(backend).run_over_django(_skip, _id(id))


async def _set(backend: PostgresBackend, route: Route, key: str, setting: LimitSetting) -> LimitStatus:
    await route.run(lambda store: store.set_limit(backend.alias, key, setting))
    _wake(backend, route)
    (status,) = await route.run(lambda store: select_statuses(store, backend.alias, key=key))
    return status


async def _list(
    backend: PostgresBackend, route: Route, name: str | None, key: str | None
) -> list[LimitStatus]:
    return await route.run(lambda store: select_statuses(store, backend.alias, name=name, key=key))


async def _reset(backend: PostgresBackend, route: Route, key: str) -> bool:
    was_set = await route.run(lambda store: store.reset_limit(backend.alias, key))
    _wake(backend, route)
    return was_set


async def _pause(backend: PostgresBackend, route: Route, key: str, reason: str) -> None:
    await route.run(lambda store: store.pause_limit(backend.alias, key, reason))


async def _resume(backend: PostgresBackend, route: Route, key: str) -> bool:
    was_closed = await route.run(lambda store: store.resume_limit(backend.alias, key))
    _wake(backend, route)
    return was_closed


async def _skip(backend: PostgresBackend, route: Route, id: UUID) -> bool:
    had_stopped, _ = await route.run(lambda store: store.release_line(id, backend.alias))
    _wake(backend, route)
    return had_stopped


def _wake(backend: PostgresBackend, route: Route) -> None:
    """Wake all workers, whatever has changed: a try before this one may have, and its reply was lost."""
    route.wake([Wakeup(backend.alias, ANY_QUEUE)])


def _stored_key(name: Any, key: Any) -> str:
    """Return a key as rows have it."""
    name = parse_limit_name(name)
    if key is None:
        return name  # type: ignore[no-any-return]  # it has been checked
    try:
        return f"{name}:{parse_limit_key(key)}"
    except ValueError as error:
        raise ValueError(f"key must be {error}, not {key!r:.200}.") from None


def _listed(name: str | None, key: LimitKey) -> tuple[str | None, str | None]:
    """Return the name and the stored key to list: one of them, or neither."""
    if key is not None:
        return None, _stored_key(name, key)
    return (None if name is None else _stored_key(name, None)), None


def _setting(limit_name: str, **numbers: Any) -> LimitSetting:
    if unknown := numbers.keys() - Numbers.__annotations__:
        raise TypeError(
            f"{min(unknown)!r} isn't a number of a limit. These are: {', '.join(Numbers.__annotations__)}."
        )
    if not numbers:
        raise TypeError(f"Give at least one of {', '.join(Numbers.__annotations__)}.")
    known = known_limits().get(limit_name)
    if numbers.get("concurrency") is not None and known is not None and known.ordered:
        raise ValueError(
            f"Limit {limit_name!r} is ordered: one task of a key runs at a time, so concurrency can't be set."
        )
    rate, pace, burst = _rate(numbers.get("rate"))
    return LimitSetting(
        concurrency=_whole("concurrency", numbers.get("concurrency"), MOST_PLACES),
        rate=rate,
        pace=pace,
        burst=_whole("burst", numbers.get("burst", burst), LARGEST_BURST),
        weight=_whole("weight", numbers.get("weight"), LARGEST_WEIGHT),
    )


def _rate(value: Any) -> tuple[str | None, float | None, int | None]:
    """Return the rate as a text, its pace, and the burst that it has where none is given."""
    if value is None:
        return None, None, None
    if value == NO_RATE:
        return NO_RATE, 0.0, None
    try:
        rate = parse_rate(value)
    except ValueError as error:
        raise ValueError(f"rate must be {error}, or {NO_RATE!r}, not {value!r:.200}.") from None
    return str(rate), rate.pace, rate.default_burst


def _whole(what: str, value: Any, most: int) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise ValueError(f"{what} must be a whole number from 1 to {most}, not {value!r:.200}.")
    return value


def _id(value: UUID | str) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"id must be the id of a task, not {value!r:.200}.") from None
