"""LaneKeys: what one lane of a worker knows of keyed tasks, and what it has slots for."""

from collections.abc import Sequence
from math import inf

from ...rows import Lane
from .budget import CLAIM_LIMIT, FreeSlots
from .key_walk import KeyWalk, Look
from .keys import CROWDED, Keys
from .queue_limits import QueueLimits

__all__ = ["LaneKeys"]


class LaneKeys:
    """The keys of one lane. Those of queues that have a limit in this worker are in groups apart, because a
    claim has one number of slots for all that it names.

    walk: where it looks for keys. untaken: queues of keys that this worker was told, and that no claim has
    named since. has_met: whether it has ever come by keyed tasks.
    """

    def __init__(
        self, lane: Lane, queues: Sequence[str], *, slots: FreeSlots, queue_limits: QueueLimits
    ) -> None:
        self.lane = lane
        self.walk = KeyWalk(queues)
        self.untaken: set[str] = set()
        self.has_met = False
        self._slots = slots
        self._queue_limits = queue_limits
        self._others = Keys()
        self._groups: dict[str | None, Keys] = {None: self._others}

    def free(self) -> int:
        """Return the free slots of the lane; negative if too many tasks were claimed."""
        return self._slots.free(self.lane)

    def room(self, group: str | None) -> int:
        """Return how many tasks of a group may be claimed, if there are slots."""
        return CLAIM_LIMIT if group is None else self._queue_limits.room(group)

    def keys_of(self, queue_name: str) -> Keys:
        """Return the group to which a queue belongs."""
        if not self._queue_limits.has(queue_name):
            return self._others
        keys = self._groups.get(queue_name)
        if keys is None:
            keys = self._groups[queue_name] = Keys()
        return keys

    def next_group(self, now: float) -> tuple[str | None, Keys]:
        """Return a group with keys to name and room for their tasks, by turns; if there is none, any."""
        for group, keys in self._groups.items():
            if keys.has_any(now) and self.room(group) > 0:
                self._groups[group] = self._groups.pop(group)
                return group, keys
        return None, self._others

    def next_look(self, now: float) -> Look | None:
        """Return the look that is due, if one is. The walk waits while many keys do; looks after wake-ups and
        at the first tasks don't, because they may find more urgent ones.
        """
        is_crowded = self._others.waiting >= CROWDED
        return self.walk.next(now, self._others.wanted(self.free()), may_walk=not is_crowded)

    def come_round(self) -> None:
        """Begin the next walk once the last is over, if keys that have tasks were left out."""
        if self.walk.is_over and any(keys.has_dropped for keys in self._groups.values()):
            for keys in self._groups.values():
                keys.has_dropped = False
            self.walk.begin()

    def has_work(self, now: float) -> bool:
        """Return whether there is a look or a claim to be sent, and a slot for what it may bring."""
        if self.is_idle() or self.free() <= 0:
            return False
        return self.walk.at <= now or any(
            keys.has_any(now) and self.room(group) > 0 for group, keys in self._groups.items()
        )

    @property
    def at(self) -> float:
        """When that is so by the time alone; ``inf`` if only news can make it so."""
        if self.is_idle() or self.free() <= 0:
            return inf
        return min(self.walk.at, *(keys.at for keys in self._groups.values()))

    def is_idle(self) -> bool:
        """Return whether nothing is to be named or looked at, now or later."""
        return self.walk.is_over and not (self.has_met and any(map(len, self._groups.values())))

    def is_looking(self) -> bool:
        """Return whether a look isn't over, or keys that it has found wait for a claim."""
        return not self.walk.is_over or any(keys.has_open for keys in self._groups.values())

    def open_all(self) -> None:
        """Try all closed keys now."""
        for keys in self._groups.values():
            keys.open_all()

    def waiting_in(self) -> set[str]:
        """Return the queues in which keys wait for a claim."""
        return self.untaken.union(*(keys.queues() for keys in self._groups.values()))
