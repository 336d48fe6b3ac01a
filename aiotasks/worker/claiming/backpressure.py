"""Backpressure: nothing is claimed while too much waits to be written."""

from ..protocols import Finishes
from .budget import Strategy
from .overclaim import AT_ONCE_LIMIT

__all__ = ["Backpressure"]

# Outcomes that aren't written and receivers that haven't ended, as a multiple of the slots. Chosen: while the
# database is down claims stop and memory stays bounded; in normal operation the limit is never reached.
UNWRITTEN_FACTOR = 5

# But at least the outcomes of two of the largest claims of short tasks, however few slots there are: those of
# one claim are being written while the tasks of the next end.
UNWRITTEN_LEAST = 2 * AT_ONCE_LIMIT


class Backpressure(Strategy):
    """Nothing while too many outcomes wait to be written, or receivers of signals have too much to do."""

    def __init__(self, finisher: Finishes, *, slots: int) -> None:
        self._finisher = finisher
        self._most = max(UNWRITTEN_FACTOR * slots, UNWRITTEN_LEAST)

    def is_open(self) -> bool:
        finisher = self._finisher
        return len(finisher.pending) + len(finisher.announcer.pending) < self._most and not finisher.crowded
