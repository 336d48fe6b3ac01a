"""The options of a backend: ``TASKS[alias]["OPTIONS"]``, parsed and checked once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from django.core.exceptions import ImproperlyConfigured

from .policies.crashes import MOST_CRASHES
from .policies.keep import parse_keep_time
from .policies.retry import MOST_ATTEMPTS, Backoff, parse_backoff

__all__ = ["MovedTasks", "Options", "shown"]


# Passwords in values: DATABASE may hold a URL, a DSN or a dict by mistake.
_PASSWORDS = re.compile(
    r"""(?P<before> ://[^/\s]*?: | passw\w*['"]?\s*[:=]\s* )  ( '[^']*' | "[^"]*" | \S+(?=@) | [^\s,]+ )""",
    re.IGNORECASE | re.VERBOSE,
)


def shown(value: Any) -> str:
    """Return the repr of any value for a message, at most 500 characters, without passwords."""
    try:
        return _PASSWORDS.sub(r"\g<before>***", repr(value))[:500]
    except Exception:  # an integer of 5,000 digits, something nested too deep  # noqa: BLE001
        return f"a {type(value).__name__}"


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"a number of seconds from {low:g} to {high:g}")
        return float(value)

    return check


def _number_or_none(low: float, high: float) -> Callable[[Any], float | None]:
    number = _number(low, high)

    def check(value: Any) -> float | None:
        try:
            return None if value is None else number(value)
        except ValueError as error:
            raise ValueError(f"{error}, or None (never)") from None

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _keep_time(value: Any) -> float | None:
    try:
        return None if value is None else parse_keep_time(value)
    except ValueError as error:
        raise ValueError(f"{error}, or None (forever)") from None


class MovedTasks(dict[str, str]):
    """Old paths of tasks, and the new path of each. Don't change one: Options are hashed by it."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None
        return hash(frozenset(self.items()))


def _moved_tasks(value: Any) -> MovedTasks:
    if not isinstance(value, Mapping) or not all(map(_is_path, [*value, *value.values()])):
        raise ValueError("a dict of task paths, {'old.module.task': 'new.module.task'}")
    if value.keys() & set(value.values()):
        raise ValueError("a dict in which no value is also a key (every old path needs its newest path)")
    return MovedTasks(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "." in value and all(map(str.isidentifier, value.split(".")))


def _alias(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("an alias of DATABASES")
    return value


def _other_alias(value: Any) -> str | None:
    try:
        return None if value is None else _alias(value)
    except ValueError as error:
        raise ValueError(f"{error}, or None for the one in DATABASE") from None


def _path(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and _is_path(value)):
        return value
    raise ValueError("the dotted path of a function, or None")


def _backoff(value: Any) -> str | Backoff | None:
    if value is None or (isinstance(value, str) and _is_path(value)):
        return value
    try:
        hash(value)  # Options are hashed by it
        return parse_backoff(value)
    except (TypeError, ValueError):
        raise ValueError(
            "a function (exception, task_result) that returns seconds, its dotted path, or None"
        ) from None


def _schedules(value: Any) -> tuple[str, ...] | Literal[False] | None:
    if value is None or value is False:
        return value
    if (
        isinstance(value, list | tuple)
        and value  # it would stop every schedule
        and all(isinstance(each, str) and _is_path(f"a.{each}") for each in value)
    ):
        return tuple(value)
    raise ValueError(
        "a list of the names of modules, None (those of the installed apps), or False (no schedules)"
    )


# Options that may as well stand beside BACKEND, where Django's proposal for retries has them.
BESIDE = frozenset({"MAX_ATTEMPTS", "BACKOFF"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A backend's OPTIONS. The fields are the option names in lower case.

    Sizes are in bytes of JSON text, times in seconds.
    """

    database: str = "default"
    # The same database by a direct connection, where DATABASE goes through a pooler that breaks LISTEN.
    listen_database: str | None = None
    pool_min_size: int = 0
    pool_max_size: int = 10
    # 0 for a pooler in transaction mode: no prepared statements, and no SET on sessions of other clients.
    statement_cache_size: int = 100
    # Statements take milliseconds, so ten seconds without a reply mean a dead connection.
    command_timeout: float = 10.0
    notify: bool = True
    # The fallback where NOTIFY isn't delivered: workers poll every 0.2 to 1 times this.
    poll_interval: float = 5.0
    lease_timeout: float = 30.0
    # An event loop that is blocked for this long is given up; None: never.
    loop_timeout: float | None = 300.0
    # An attempt that takes longer is logged as a warning; None: never.
    slow_task: float | None = None
    max_crashes: int = 3
    # For tasks that say nothing themselves: the failed executions after which a task is FAILED, and the
    # function (or its dotted path) that says how long it waits before; None: aiotasks.backoff.exponential().
    max_attempts: int = 1
    backoff: str | Backoff | None = None
    async_db_threads: int = 8
    # For how long finished tasks are kept; None: forever.
    keep_successful: float | None = 86_400.0
    keep_failed: float | None = 14 * 86_400.0
    max_argument_size: int = 1024 * 1024
    max_result_size: int = 1024 * 1024
    max_error_size: int = 64 * 1024
    # The new paths of tasks that have moved, by the old paths, which rows hold.
    moved_tasks: MovedTasks = field(default_factory=MovedTasks)
    # The dotted path of a function (str) -> str that rewrites the text of an error before it is stored.
    redact: str | None = None
    # The modules that declare schedules; None: `tasks` and `schedules` of each installed app; False: workers
    # declare none, and enqueue none.
    schedules: tuple[str, ...] | Literal[False] | None = None

    def orm_connections(self, concurrency: int) -> int:
        """Return how many connections the ORM calls of a worker's coroutine tasks take."""
        return self.async_db_threads if concurrency else 0

    def most_connections(self, concurrency: int, threads: int) -> int:
        """Return how many connections a worker with these slots opens at most, with its listener's and its
        heartbeat's. Each ORM thread that a query blocks may need one more."""
        return self.pool_max_size + 2 + self.orm_connections(concurrency) + threads

    @classmethod
    def from_params(cls, alias: str, params: Mapping[str, Any]) -> "Options":
        """Parse ``TASKS[alias]``. Raises ImproperlyConfigured that names the option and the value."""
        given = params.get("OPTIONS", {})
        if not isinstance(given, Mapping):
            raise ImproperlyConfigured(f"TASKS[{alias!r}]['OPTIONS'] must be a dict, not {shown(given)}.")
        if not BESIDE.isdisjoint(params):
            given = _with_those_beside(alias, params, given)
        try:
            # With the types, because 1 and True are equal as keys, but not as options.
            key = tuple((name, type(value), _hashable(value)) for name, value in given.items())
            known = _cache.get(key)
        except TypeError:  # an unhashable value, which _parse() reports
            return cls._parse(alias, given, params)
        if known is None:
            # Django makes a backend per thread and context, so parsing must cost next to nothing.
            known = _cache[key] = cls._parse(alias, given, params)
        return known

    @classmethod
    def _parse(cls, alias: str, given: Mapping[str, Any], params: Mapping[str, Any]) -> "Options":
        names = {field.name.upper() for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in names:
                raise ImproperlyConfigured(
                    f"TASKS[{alias!r}]['OPTIONS'] has no option {shown(name)}. "
                    f"The options are {', '.join(sorted(names))}."
                )
            try:
                values[name.lower()] = _CHECKS[name](value)
            except ValueError as error:
                where = "" if name in BESIDE and name in params else "['OPTIONS']"
                raise ImproperlyConfigured(
                    f"TASKS[{alias!r}]{where}[{name!r}] must be {error}, not {shown(value)}."
                ) from None
        options = cls(**values)
        if options.pool_min_size > options.pool_max_size:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]['OPTIONS']: POOL_MIN_SIZE ({options.pool_min_size}) is above "
                f"POOL_MAX_SIZE ({options.pool_max_size})."
            )
        return options


def _hashable(value: Any) -> Any:
    return (
        tuple(value.items() if isinstance(value, dict) else value)
        if isinstance(value, dict | list)
        else value
    )


def _with_those_beside(alias: str, params: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return OPTIONS with those of ``BESIDE``. Raises ImproperlyConfigured for two values of one of them."""
    values = dict(given)
    for name in sorted(BESIDE.intersection(params)):
        value = params[name]
        if name in values and values[name] != value:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}][{name!r}] is {shown(value)}, and TASKS[{alias!r}]['OPTIONS'][{name!r}] is "
                f"{shown(values[name])}: give it once."
            )
        values[name] = value
    return values


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "DATABASE": _alias,
    "LISTEN_DATABASE": _other_alias,
    "POOL_MIN_SIZE": _whole(0, 1000),
    # Claim, finish, look-up, enqueue, wake-up and maintenance of a worker may each use one.
    "POOL_MAX_SIZE": _whole(2, 1000),
    "STATEMENT_CACHE_SIZE": _whole(0, 10_000),
    "COMMAND_TIMEOUT": _number(0.1, 3600),
    "NOTIFY": _boolean,
    "POLL_INTERVAL": _number(0.05, 3600),
    # Below 0.5 s a busy machine's scheduling alone loses leases.
    "LEASE_TIMEOUT": _number(0.5, 86_400),
    "LOOP_TIMEOUT": _number_or_none(1, 86_400),
    "SLOW_TASK": _number_or_none(0.001, 86_400),
    "MAX_CRASHES": _whole(0, MOST_CRASHES),
    "MAX_ATTEMPTS": _whole(1, MOST_ATTEMPTS),
    "BACKOFF": _backoff,
    "ASYNC_DB_THREADS": _whole(1, 1000),
    "KEEP_SUCCESSFUL": _keep_time,
    "KEEP_FAILED": _keep_time,
    "MOVED_TASKS": _moved_tasks,
    "MAX_ARGUMENT_SIZE": _whole(2, 256 * 1024 * 1024),
    "MAX_RESULT_SIZE": _whole(4, 256 * 1024 * 1024),
    "MAX_ERROR_SIZE": _whole(1024, 16 * 1024 * 1024),
    "REDACT": _path,
    "SCHEDULES": _schedules,
}
_cache: dict[tuple[tuple[str, type, Any], ...], Options] = {}
