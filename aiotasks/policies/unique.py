"""``unique_key``, ``unique_for``, ``on_conflict`` and ``keep_run_after``: one task of a key at a time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, get_args

from .seconds import parse_seconds

__all__ = [
    "OnConflict",
    "UniqueFor",
    "UniqueKey",
    "check_unique",
    "parse_keep_run_after",
    "parse_on_conflict",
    "parse_unique_for",
    "parse_unique_key",
]

# A key, or a function of the task's arguments that returns one (None: this call isn't unique).
type UniqueKey = str | Callable[..., str | None]

# While a task holds its key: until it is finished, until it starts, or for seconds from its enqueue.
type UniqueFor = Literal["unfinished", "waiting"] | float | timedelta

type OnConflict = Literal["return", "raise", "replace"]

_ON_CONFLICT = get_args(OnConflict.__value__)

# The longest time in seconds for which a key may be held: as long as a result may be kept.
LONGEST = 100 * 365 * 86_400.0


def parse_unique_key(value: Any) -> UniqueKey:
    """The key or the function itself. Raises ValueError, which says what it must be."""
    if not (isinstance(value, str) and value and "\0" not in value) and (
        not callable(value) or isinstance(value, type)
    ):
        raise ValueError(
            "a string with at least one character and without NUL, or a function of the arguments"
        )
    key: UniqueKey = value
    return key


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
