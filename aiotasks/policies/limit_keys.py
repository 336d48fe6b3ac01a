"""``limit_key``: the key of a call, by which its task is limited.

The enqueue makes it, and the row stores it: ``name:key``, or ``name`` where the limit has one key for all.
"""

from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, iscoroutine, signature
from typing import Any, NamedTuple, Protocol

from .limits import Limit, LimitKey
from .text import is_storable

__all__ = ["LimitedTask", "check_limit", "limit_key_of_call", "parse_limit_key"]

# Characters. With the name of the limit, and the longest names of a backend and a queue, it fits into an
# entry of an index: 2,508 bytes of 2,704.
LONGEST_KEY = 200


def parse_limit_key(value: Any) -> str:
    """The text of a key. Raises ValueError, which says what it must be."""
    text = _text_of(value)
    if not 1 <= len(text) <= LONGEST_KEY or not is_storable(text):
        raise ValueError(A_KEY)
    return text


A_KEY = f"an integer or a string, of 1 to {LONGEST_KEY} characters, without NUL and surrogates"


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)  # str() of a member of `class Key(str, Enum)` is its name
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 4 * LONGEST_KEY:
        return int.__repr__(value)
    return ""


class LimitedTask(Protocol):
    """What the key of a call follows from."""

    @property
    def func(self) -> Callable[..., Any]: ...
    @property
    def takes_context(self) -> bool: ...
    @property
    def limit(self) -> Limit | None: ...
    @property
    def limit_key(self) -> str | None: ...


def check_limit(task: LimitedTask) -> None:
    """Raise ValueError for a limit that a task can't have, and for a limit_key without one."""
    limit = task.limit
    if limit is None:
        if task.limit_key is not None:
            raise ValueError(
                f"limit_key={task.limit_key!r} is the key of a limit, and the task has none. Write "
                "@task(limit=…)."
            )
    elif isinstance(limit.by, str) and _place_of(task.func, limit.by, task.takes_context) is None:
        raise ValueError(
            f"Limit {limit.name!r} goes by the parameter {limit.by!r}, which the task's function doesn't "
            "have. Have `by` be one of its parameters, or a function of the arguments."
        )


def limit_key_of_call(task: LimitedTask, path: str, args: list[Any], kwargs: dict[str, Any]) -> str | None:
    """The key of one call, as the table has it; None for a call that isn't limited.

    args, kwargs: as JSON has made them, without the context. Raises TypeError or ValueError, which names the
    task by ``path``, if the key can't be made.
    """
    limit = task.limit
    if limit is None:
        return None
    if task.limit_key is not None:
        return f"{limit.name}:{task.limit_key}"
    if limit.by is None:
        return limit.name
    if isinstance(limit.by, str):
        key = _argument(task, limit.by, path, args, kwargs)
    else:
        key = _made(limit, limit.by, path, args, kwargs)
    if key is None:
        return None
    try:
        return f"{limit.name}:{parse_limit_key(key)}"
    except ValueError as error:
        kind = ValueError if isinstance(key, str | int) and not isinstance(key, bool) else TypeError
        raise kind(
            f"The key of limit {limit.name!r} of {path} must be {error}, or None for a call that isn't "
            f"limited, not {key!r:.200}."
        ) from None


def _made(
    limit: Limit, by: Callable[..., LimitKey], path: str, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    try:
        key = by(*args, **kwargs)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"The function that makes keys of limit {limit.name!r} failed for {path}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if iscoroutine(key):
        key.close()  # or Python warns that nobody has awaited it
    return key


class _Place(NamedTuple):
    """Where a call has the value of a parameter. ``position``: among the positional arguments; None: nowhere.
    ``keyword``: whether it may be given by name. ``default``: without either; ``Parameter.empty``: none."""

    position: int | None
    keyword: bool
    default: Any


def _argument(task: LimitedTask, by: str, path: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """The value of the parameter in one call, which fits the function."""
    place = _place_of(task.func, by, task.takes_context)
    if place is not None:
        if place.keyword and by in kwargs:
            return kwargs[by]
        if place.position is not None and place.position < len(args):
            return args[place.position]
        if place.default is not Parameter.empty:
            return place.default
    raise TypeError(
        f"The limit of {path} goes by the argument {by!r}, which this call doesn't give by name. Give it, or "
        "name the key by using(limit_key=…)."
    )


@lru_cache(maxsize=1024)  # inspect takes 24 µs, ten times the rest of a key
def _place_of(function: Callable[..., Any], name: str, takes_context: bool) -> _Place | None:
    """Where calls of the function have this parameter; None if it hasn't got it.

    Of a ``functools.wraps`` wrapper its own parameters count, because it may add or remove arguments.
    """
    try:
        parameters = list(signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):  # it isn't known
        return _Place(None, True, Parameter.empty)
    for index, each in enumerate(parameters[takes_context:]):
        if each.name == name:
            match each.kind:
                case Parameter.POSITIONAL_ONLY:
                    return _Place(index, False, each.default)
                case Parameter.POSITIONAL_OR_KEYWORD:
                    return _Place(index, True, each.default)
                case Parameter.KEYWORD_ONLY:
                    return _Place(None, True, each.default)
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
        return _Place(None, True, Parameter.empty)
    return None
