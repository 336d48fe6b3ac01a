"""Quarantine: tasks that have been in two crashes are claimed one at a time, and run alone at first."""

from math import inf

from ...rows import LANES, Job, Lane
from ..protocols import Starts

__all__ = ["Quarantine"]

# Seconds for which nothing is claimed beside a suspect, nor before it while other tasks run: if the worker is
# killed then, the suspect most probably did it. Most tasks that kill their process do so at once; and a long
# task that was only near them must not keep a worker from its other tasks.
APART_TIME = 5.0

# Seconds between two claims for suspects, at the least. Chosen: a claim for none costs a statement, and the
# worker that rescues suspects looks for them at once.
LOOK_INTERVAL = 10.0


class Quarantine:
    """Decides when the worker looks for suspects, and what may be claimed beside one.

    Running suspects alone separates the task that kills workers from bystanders, which would fail with it.
    Times are the loop's, in seconds.
    """

    def __init__(self, runner: Starts) -> None:
        self._runner = runner
        self._lanes: set[Lane] = set()  # in which there may be suspects
        self._looked_at = -inf
        self._alone: Job | None = None
        self._awaited: Lane | None = (
            None  # a suspect of it was given back, until all running tasks have ended
        )
        self._quiet_until = -inf
        self._others_turn = False

    def suspect(self, now: float) -> None:
        """Look for suspects in all lanes."""
        self._lanes.update(LANES)
        self._looked_at = now

    def look(self, now: float) -> None:
        """Look for suspects, unless that was done less than LOOK_INTERVAL ago."""
        if now - self._looked_at >= LOOK_INTERVAL:
            self.suspect(now)

    @property
    def has_looked(self) -> bool:
        """Whether there was a reason to look for suspects yet."""
        return self._looked_at > -inf

    def lanes(self) -> list[Lane]:
        """Return the lanes in which there may be suspects."""
        return [lane for lane in LANES if lane in self._lanes]

    def quiet_until(self, now: float) -> float | None:
        """Return until when nothing may be claimed, unless the task that is waited for ends before."""
        waits = self._alone is not None or (self._awaited is not None and self._others_run())
        return self._quiet_until if waits and now < self._quiet_until else None

    def take_turn(self) -> bool:
        """Return whether a suspect may be claimed now. After each it is the turn of the other tasks, once."""
        has_turn, self._others_turn = not self._others_turn, False
        return has_turn

    def asks(self, lane: Lane) -> None:
        """Note, before the statement is sent, that it looks in this lane: later news needs another look."""
        self._lanes.discard(lane)

    def none_in(self, lane: Lane) -> None:
        """Note that the statement has found none; a suspect that was given back may be on its way."""
        if self._awaited == lane:
            self._awaited = None
            self._lanes.add(lane)

    def admit(self, job: Job, now: float) -> bool:
        """Return whether ``job`` may start. If not, give it back: a running task may be the culprit."""
        self._lanes.add(job.lane)  # there may be another
        self._quiet_until = now + APART_TIME
        if self._awaited is None and self._others_run():
            self._awaited = job.lane
            return False
        self._awaited = None
        self._alone = job
        self._others_turn = True
        return True

    def ended(self, job: Job) -> None:
        """The outcome of ``job`` is written (a crash before that would count as its, too), or it waits for
        other tasks, which may have to be claimed for it to go on.
        """
        if job is self._alone:
            self._alone = None

    def _others_run(self) -> bool:
        """Whether tasks run that may be the culprits: those without a slot wait for other tasks."""
        return any(execution.has_slot for execution in self._runner.running)
