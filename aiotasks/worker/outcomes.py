"""The outcomes of an execution. ``writing.writers`` has a writer for each."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Failed", "Outcome", "Released", "Snoozed", "Succeeded"]


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
class Snoozed:
    """The task cannot be imported here: READY again after ``delay`` seconds, no attempt spent.

    If no worker could import it for a whole ``window`` (seconds), it is FAILED with ``failure`` instead.
    """

    delay: float
    window: float
    failure: Failed


Outcome = Succeeded | Failed | Released | Snoozed
