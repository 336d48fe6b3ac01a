"""The outcomes of an execution: what can come of running a task."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Failed", "Outcome", "Released", "Snoozed", "Succeeded"]


@dataclass(frozen=True, slots=True)
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
    """We cancelled the task (shutdown, lost lease): READY again, no attempt spent.

    Where it was to be cancelled for good meanwhile, it is FAILED with ``failure`` instead.
    """

    failure: Failed | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task is unknown here: put off for ``delay`` seconds, no attempt spent.

    Where it has been unknown to every worker for a whole ``window`` (seconds), it is FAILED
    with ``failure`` instead.
    """

    delay: float
    window: float
    failure: Failed


Outcome = Succeeded | Failed | Released | Snoozed
