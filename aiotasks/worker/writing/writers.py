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

    def add(self, job: Job, outcome: Outcome | None) -> None:
        """Add the row that brings ``outcome`` into the table."""
        WRITERS[type(outcome)](self, job.id, job.claim_id, outcome)


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


def _succeeded(statements: Statements, id: UUID, claim_id: UUID, outcome: Succeeded) -> None:
    statements.finishes.append(_new(Finish, (id, claim_id, _SUCCESSFUL, outcome.text, None)))


def _failed(statements: Statements, id: UUID, claim_id: UUID, outcome: Failed) -> None:
    statements.finishes.append(_new(Finish, (id, claim_id, _FAILED, None, outcome.text)))


def _released(statements: Statements, id: UUID, claim_id: UUID, outcome: Released) -> None:
    statements.releases.append(Release(id, claim_id, 0.0))
    statements.failures[id] = outcome.failure


def _retried(statements: Statements, id: UUID, claim_id: UUID, outcome: Retried) -> None:
    statements.releases.append(Release(id, claim_id, outcome.delay, error=outcome.failure.text))
    statements.failures[id] = outcome.failure


def _snoozed(statements: Statements, id: UUID, claim_id: UUID, outcome: Snoozed) -> None:
    snoozes = True if outcome.window is None else None
    statements.releases.append(Release(id, claim_id, outcome.delay, outcome.window, snoozes=snoozes))
    statements.failures[id] = outcome.failure


WRITERS: dict[type, Callable[[Statements, UUID, Any, Any], None]] = {
    Succeeded: _succeeded,
    Failed: _failed,
    Released: _released,
    Retried: _retried,
    Snoozed: _snoozed,
}
