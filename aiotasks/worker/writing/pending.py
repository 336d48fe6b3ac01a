"""PendingWrite: an outcome on its way through the Batcher."""

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ..execution import Execution
from ..outcomes import Failed, Retried, Succeeded

if TYPE_CHECKING:
    from .finisher import Finisher

__all__ = ["PendingWrite", "Written", "size_of"]

# When a row was finished; "released" if it will run again; "locked" if another session locks it; None if the
# row wasn't ours.
type Written = datetime | Literal["released", "locked"] | None


class PendingWrite:
    """Passes the Batcher's answer for one execution on to the Finisher."""

    __slots__ = ("_execution", "_finisher")

    def __init__(self, finisher: "Finisher", execution: Execution) -> None:
        self._finisher = finisher
        self._execution = execution

    def done(self) -> bool:
        return False

    def set_result(self, written: Written) -> None:
        self._finisher.answered(self._execution, written)

    def set_exception(self, error: BaseException) -> None:
        self._finisher.refused(self._execution, error)


def size_of(execution: Execution) -> int:
    """Return the bytes that an outcome takes in a statement."""
    outcome = execution.outcome
    if isinstance(outcome, Succeeded | Failed):  # most are
        return len(outcome.text)
    return len(outcome.failure.text) if isinstance(outcome, Retried) else 0
