"""One writer per outcome: it adds the row that brings the outcome into the table.

A new kind of outcome is a function here and an entry of WRITERS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from ...rows import Job, Status
from ...store.outcomes import Finish, Release
from ..outcomes import Failed, Outcome, Released, Retried, Snoozed, Succeeded
from .notes import noted

__all__ = ["NOTHING_FREED", "WRITERS", "Freed", "Statements"]

# Every task's outcome passes here: a NamedTuple's own constructor takes three times as long, and a member of
# an Enum is looked up.
_new = tuple.__new__
_SUCCESSFUL, _FAILED = Status.SUCCESSFUL, Status.FAILED


class Statements:
    """The rows of the statements that write a batch of outcomes.

    ``failures``: for each row to release, the outcome that it gets if it must not become READY again (it
    was to be cancelled, has expired, or its window is over); None for a plain TaskCancelled.
    """

    __slots__ = ("failures", "finishes", "releases")

    def __init__(self) -> None:
        self.finishes: list[Finish] = []
        self.releases: list[Release] = []
        self.failures: dict[UUID, Failed | None] = {}

    def add(self, job: Job, outcome: Outcome | None, seconds: float | None) -> None:
        """Add the row that brings ``outcome`` into the table. ``seconds``: the attempt's; None: its body has
        not begun."""
        WRITERS[type(outcome)](self, job, job.claim_id, outcome, seconds)


@dataclass(frozen=True, slots=True)
class Freed:
    """What became of tasks that were to be released.

    gone: the seconds until they are due, of those that were. refused: those that must be FAILED instead, and
    whether that is because they are to be cancelled. locked: those that another session locks.
    """

    gone: dict[UUID, float] = field(default_factory=dict)
    refused: dict[UUID, bool] = field(default_factory=dict)
    locked: set[UUID] = field(default_factory=set)

    def with_(self, other: "Freed") -> "Freed":
        return Freed(self.gone | other.gone, self.refused | other.refused, self.locked | other.locked)


NOTHING_FREED = Freed()


def _succeeded(
    statements: Statements, job: Job, claim_id: UUID, outcome: Succeeded, seconds: float | None
) -> None:
    statements.finishes.append(_new(Finish, (job.id, claim_id, _SUCCESSFUL, outcome.text, None)))


def _failed(statements: Statements, job: Job, claim_id: UUID, outcome: Failed, seconds: float | None) -> None:
    statements.finishes.append(
        _new(Finish, (job.id, claim_id, _FAILED, None, noted(outcome.text, job, seconds)))
    )


def _released(
    statements: Statements, job: Job, claim_id: UUID, outcome: Released, seconds: float | None
) -> None:
    statements.releases.append(Release(job.id, claim_id, 0.0))
    statements.failures[job.id] = outcome.failure


def _retried(
    statements: Statements, job: Job, claim_id: UUID, outcome: Retried, seconds: float | None
) -> None:
    statements.releases.append(
        Release(job.id, claim_id, outcome.delay, error=noted(outcome.failure.text, job, seconds))
    )
    statements.failures[job.id] = outcome.failure


def _snoozed(
    statements: Statements, job: Job, claim_id: UUID, outcome: Snoozed, seconds: float | None
) -> None:
    snoozes = True if outcome.window is None else None
    statements.releases.append(Release(job.id, claim_id, outcome.delay, outcome.window, snoozes=snoozes))
    statements.failures[job.id] = outcome.failure


WRITERS: dict[type, Callable[[Statements, Job, Any, Any, float | None], None]] = {
    Succeeded: _succeeded,
    Failed: _failed,
    Released: _released,
    Retried: _retried,
    Snoozed: _snoozed,
}
