"""Verdict: what follows on an error of a task, by its policy and its failed executions so far. Pure."""

from typing import Any, NamedTuple

from ...backoff import DEFAULT
from ...conf import Options
from ...exceptions import GiveUp, InvalidRow, Retry, Snooze
from ...policies.policy import PolicyFields
from ...policies.retry import Backoff, load_backoff, parse_delay
from ...rows import AnyTask

__all__ = ["Delay", "Verdict", "judge", "most_attempts", "seconds_of"]


class Delay(NamedTuple):
    """The task runs again after so many seconds. ``snoozes``: because it has asked for it, without a
    failure."""

    seconds: float
    snoozes: bool = False


# None: the task is FAILED. A function: ask it, as the task's backoff.
type Verdict = Delay | Backoff | None


def judge(task: AnyTask | None, options: Options, failures: int, error: BaseException) -> Verdict:
    """Return what follows on ``error``.

    task: None if it couldn't be imported. failures: the task's failed executions, this one included.
    Raises whatever the attributes of a task's own subclass of Retry or Snooze, the BACKOFF's module, or an
    ``__instancecheck__`` of its classes raise.
    """
    if task is None or isinstance(error, InvalidRow):
        return None
    if isinstance(error, Snooze):
        return Delay(parse_delay(error.seconds), snoozes=True)
    if failures >= most_attempts(task, options) or isinstance(error, GiveUp):
        return None
    if isinstance(error, Retry):
        if error.after is not None:
            return Delay(parse_delay(error.after))
    elif isinstance(task, PolicyFields) and (
        (task.retry_on is not None and not isinstance(error, task.retry_on))
        or (task.give_up_on is not None and isinstance(error, task.give_up_on))
    ):
        return None
    return _backoff_of(task, options)


def most_attempts(task: AnyTask | None, options: Options) -> int:
    """Return after how many failed executions the task is FAILED."""
    own = task.max_attempts if isinstance(task, PolicyFields) else None
    return options.max_attempts if own is None else own


def seconds_of(answer: Any) -> float | None:
    """Return a backoff's answer in seconds; None: no more attempts. Raises ValueError for another value."""
    try:
        return None if answer is None else parse_delay(answer)
    except ValueError as error:
        raise ValueError(f"A backoff must return {error}, or None, not {answer!r:.200}.") from None


def _backoff_of(task: AnyTask, options: Options) -> Backoff:
    own = task.backoff if isinstance(task, PolicyFields) else None
    backoff = options.backoff if own is None else own
    if backoff is None:
        return DEFAULT
    return load_backoff(backoff) if isinstance(backoff, str) else backoff
