"""Quarantine: tasks that have been in two crashes are claimed one at a time, and run alone at first."""

from collections.abc import Callable
from math import inf

from ...rows import LANES, Job, Lane

__all__ = ["Quarantine"]

# Seconds for which nothing is claimed beside such a task, and before it until what runs has ended: what
# takes the worker down now is most probably that one. Most that kill their process do so at once; and a
# long one that was only near them is not to keep a worker from its others.
APART_TIME = 5.0

# Seconds between two looks for those, at the least; whoever rescues them looks at once.
LOOK_INTERVAL = 10.0


class Quarantine:
    """When one worker looks for such tasks, and what may be claimed beside one.

    Whoever brings workers down is told so from those that were only there, who would fail with it.
    ``busy`` tells whether anything is running here. Times are the loop's, in seconds.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._lanes: set[Lane] = set()  # where there may be some
        self._looked_at = -inf
        self._alone: Job | None = None
        self._awaited: Lane | None = None  # one of it was given back, until all has ended that runs
        self._quiet_until = -inf
        self._others_turn = False

    def suspect(self, now: float) -> None:
        """There may be some."""
        self._lanes.update(LANES)
        self._looked_at = now

    def look(self, now: float) -> None:
        """There may be some that nobody told of, unless that was asked a moment ago."""
        if now - self._looked_at >= LOOK_INTERVAL:
            self.suspect(now)

    def lanes(self) -> list[Lane]:
        """Where there may be some."""
        return [lane for lane in LANES if lane in self._lanes]

    def quiet_until(self, now: float) -> float | None:
        """Until when nothing is to be claimed, as long as nothing ends that is waited for."""
        waits = self._alone is not None or (self._awaited is not None and self._busy())
        return self._quiet_until if waits and now < self._quiet_until else None

    def take_turn(self) -> bool:
        """Whether one may be claimed now. After one, it is the others' turn."""
        has_turn, self._others_turn = not self._others_turn, False
        return has_turn

    def asks(self, lane: Lane) -> None:
        """The lane is looked at now: whatever is told of from here on needs another look."""
        self._lanes.discard(lane)

    def none_in(self, lane: Lane) -> None:
        """The look has found none: but the one that was given back may be on its way."""
        if self._awaited == lane:
            self._awaited = None
            self._lanes.add(lane)

    def admit(self, job: Job, now: float) -> bool:
        """Whether ``job`` may start; else it is to be given back: what runs may be the culprit."""
        self._lanes.add(job.lane)  # there may be another
        self._quiet_until = now + APART_TIME
        if self._busy() and self._awaited is None:
            self._awaited = job.lane
            return False
        self._awaited = None
        self._alone = job
        self._others_turn = True
        return True

    def ended(self, job: Job) -> None:
        """``job`` is written: a crash before that would be its, too."""
        if job is self._alone:
            self._alone = None
