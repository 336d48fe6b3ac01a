"""``unique_key``, ``unique_for``, ``on_conflict`` and ``keep_run_after``: one task of a key at a time."""

import math
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from inspect import iscoroutine, iscoroutinefunction
from typing import Any, Literal, NamedTuple, Protocol, get_args

from .seconds import parse_seconds
from .text import is_storable

__all__ = [
    "OWN_PREFIX",
    "OnConflict",
    "UniqueFor",
    "UniqueKey",
    "UniqueRule",
    "check_unique",
    "keep_for_period",
    "key_of_call",
    "parse_keep_run_after",
    "parse_on_conflict",
    "parse_unique_for",
    "parse_unique_key",
    "rule_of",
    "stored_key",
]

# A key, or a function of the task's arguments that returns one (None: this call isn't unique).
type UniqueKey = str | Callable[..., str | None]

# While a task holds its key: until it is finished, until it starts, or for seconds from its enqueue.
type UniqueFor = Literal["unfinished", "waiting"] | float | timedelta

type OnConflict = Literal["return", "raise", "replace"]

_ON_CONFLICT = get_args(OnConflict.__value__)

# Bytes of a key in the table. An entry of the index may have 2,704, of which the backend's name and the entry
# itself take some.
LONGEST_KEY = 2000

# With which the keys begin that aiotasks itself uses, so that no task of a site holds one of them.
OWN_PREFIX = "aiotasks:"

# The longest time in seconds for which a key may be held: as long as a result may be kept.
LONGEST = 100 * 365 * 86_400.0


def parse_unique_key(value: Any) -> UniqueKey:
    """The key or the function itself. Raises ValueError, which says what it must be."""
    if not _is_key(value) and (
        isinstance(value, str | type) or not callable(value) or iscoroutinefunction(value)
    ):
        raise ValueError(f"{A_KEY}, or a function of the arguments (not a coroutine function)")
    key: UniqueKey = value
    return key


A_KEY = (
    f"a string of at least one character, without NUL and surrogates, that doesn't begin with {OWN_PREFIX!r}"
)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and value != "" and is_storable(value) and not value.startswith(OWN_PREFIX)


def parse_unique_for(value: Any) -> str | float:
    """``"unfinished"``, ``"waiting"``, or seconds. Raises ValueError, which says what it must be."""
    if isinstance(value, str):
        if value in ("unfinished", "waiting"):
            return value
    else:
        try:
            return parse_seconds(value, low=0.001, high=LONGEST, longest="100 years")
        except ValueError:
            pass
    raise ValueError("'unfinished', 'waiting', or seconds or a timedelta from 0.001 to 100 years")


def parse_on_conflict(value: Any) -> str:
    """The value itself. Raises ValueError, which says what it must be."""
    if not isinstance(value, str) or value not in _ON_CONFLICT:
        raise ValueError(f"one of {', '.join(map(repr, _ON_CONFLICT))}")
    return value


def parse_keep_run_after(value: Any) -> bool:
    """The value itself. Raises ValueError, which says what it must be."""
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def check_unique(
    unique_for: str | float | None, on_conflict: str | None, keep_run_after: bool | None
) -> None:
    """Raise ValueError for values that contradict each other."""
    if on_conflict == "replace" and unique_for not in (None, "waiting"):
        raise ValueError(
            "on_conflict='replace' replaces a task that waits, so unique_for can only be 'waiting', "
            f"not {unique_for!r}."
        )
    if keep_run_after and on_conflict != "replace":
        raise ValueError(
            f"keep_run_after=True is for on_conflict='replace', and says nothing about {on_conflict!r}."
        )


class UniqueRule(NamedTuple):
    """How the key of one call is held, and what an enqueue does that meets it."""

    period: float | None  # seconds for which the key is held; None: as the task's status says
    waiting: bool  # whether the key is held only while the task waits
    on_conflict: str
    keep_run_after: bool


class UniqueFields(Protocol):
    """The fields of a task that its rule follows from."""

    @property
    def unique_for(self) -> str | float | None: ...
    @property
    def on_conflict(self) -> str | None: ...
    @property
    def keep_run_after(self) -> bool | None: ...


def rule_of(task: UniqueFields) -> UniqueRule:
    """The rule of a task that has a unique_key."""
    held, on_conflict = task.unique_for, task.on_conflict or "return"
    return UniqueRule(
        period=held if isinstance(held, float) else None,
        waiting=held == "waiting" or on_conflict == "replace",
        on_conflict=on_conflict,
        keep_run_after=bool(task.keep_run_after),
    )


def keep_for_period(
    keep: float | None, period: float | None, defaults: tuple[float | None, float | None]
) -> float | None:
    """The keep_result of a task that holds its key for ``period`` seconds: with its row the key would go.

    keep: its own keep_result. defaults: the backend's KEEP_SUCCESSFUL and KEEP_FAILED, which count where it
    is None; there None is forever.
    """
    if period is None:
        return keep
    if keep is not None:
        return max(keep, period)
    times = [math.inf if each is None else each for each in defaults]
    return None if min(times) >= period else max(period, *times)


def key_of_call(unique_key: UniqueKey, task_path: str, args: list[Any], kwargs: dict[str, Any]) -> str | None:
    """The key of one call, as it is stored; None for a call that isn't unique.

    Raises TypeError or ValueError if the function fails or returns something else than a key.
    """
    if isinstance(unique_key, str):
        return stored_key(unique_key)
    try:
        key = unique_key(*args, **kwargs)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"unique_key of {task_path} failed: {type(error).__name__}: {error}") from error
    if key is None:
        return None
    if not isinstance(key, str):
        if iscoroutine(key):
            key.close()  # or Python warns that nobody has awaited it
        raise TypeError(f"unique_key of {task_path} must return a str or None, not {key!r:.200}.")
    if not _is_key(key):
        raise ValueError(f"unique_key of {task_path} must return {A_KEY}, not {key!r:.200}.")
    return stored_key(key)


def stored_key(key: str) -> str:
    """The key as the table has it: itself, or where it is too long for an index, its hash."""
    text = key.encode()
    # str() of a member of `class Key(str, Enum)` is its name.
    return str.__str__(key) if len(text) <= LONGEST_KEY else f"sha256:{sha256(text).hexdigest()}"
