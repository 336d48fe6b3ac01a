"""The outcomes of an execution. ``writing.writers`` has a writer for each."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Failed", "Outcome", "Released", "Retried", "Snoozed", "Succeeded"]


@dataclass(slots=True)  # not frozen: every task has one, and that takes three times as long
class Succeeded:
    """The task returned. ``return_value`` is what it returned, ``text`` the same as JSON."""

    return_value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The task raised. ``text`` is the stored error as JSON."""

    exception: BaseException
    text: str


@dataclass(frozen=True, slots=True)
class Released:
    """The worker gave the task back (shutdown, lost lease): READY again, no attempt spent.

    If a user has cancelled it meanwhile, it is FAILED with ``failure`` instead.
    """

    failure: Failed | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """The task raised and is tried again after ``delay`` seconds: SCHEDULED; with 0, READY at the end of its
    queue. The error of ``failure`` is stored.

    If it would be due after it has expired, or if a user has cancelled it meanwhile, it is FAILED with
    ``failure``. ``failures``: its failed executions, this one included; ``most``: the number that ends it.
    """

    delay: float
    failure: Failed
    failures: int
    most: int


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task is to run again after ``delay`` seconds, no attempt spent.

    window: None if the task has asked for it. It is FAILED with ``failure`` if it would have expired by then.
    Otherwise the task cannot be imported here: it is FAILED if no worker could import it for so many seconds.
    closes: the key of its limit, of which no task is to start before, either.
    """

    delay: float
    failure: Failed
    window: float | None = None
    closes: str | None = None


Outcome = Succeeded | Failed | Released | Retried | Snoozed
